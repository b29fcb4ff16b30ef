"""The attention mask of each pattern, in the form that the attention implementation needs, made once for all layers.

Eager attention and FlexAttention get the mask of the definition; FlashAttention implements dense and banded layers
itself. `sdpa` gets pieces of a sparse pattern (`sparse_attention`) for many queries, and the gathered keys for one
query. Where neither is possible - padding between tokens, or a compiled graph that must not depend on the mask - it
gets the mask of the definition too.
"""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import Cache
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    add_offsets_to_mask_function,
    and_masks,
    causal_mask_function,
    create_causal_mask,
    create_sliding_window_causal_mask,
    padding_mask_function,
    prepare_padding_mask,
)

from .attention_patterns import Banded, Dense, Fixed, Pattern, Strided, build_pattern, causal_mask, whole
from .batch_layout import BatchLayout, filled_layer
from .caches import FixedLayer, layer_of
from .configuration_gpt import LAYER_TYPES, OWN_PATTERNS, GPTConfig
from .sparse_attention import Piece, Span

# Below this many keys a mask takes less time than pieces (benchmarks/RESULTS.md, sparse attention).
MIN_KEYS_FOR_PIECES = 256


class Pieces(NamedTuple):
    """The pieces of each sequence of a batch."""

    jobs: list[tuple[Span, list[Piece]]]


class GatheredKeys(NamedTuple):
    """The keys that the one query of each row sees."""

    slots: torch.Tensor  # (B or 1, M), of the layer's keys
    mask: torch.Tensor  # (B, 1, 1, M), False where a slot is unused

    @classmethod
    def of_slots(cls, slots: torch.Tensor, batch: int) -> "GatheredKeys":
        """Returns the keys in slots of (B or 1, 1, 1, M), -1 where there is none."""
        return cls(slots[:, 0, 0].clamp(min=0), (slots >= 0).expand(batch, -1, -1, -1))

    def gather(self, states: torch.Tensor) -> torch.Tensor:
        """(B, kv_heads, keys, head_dim) to (B, kv_heads, M, head_dim)."""
        if len(self.slots) == 1:
            return states.index_select(2, self.slots[0])
        return states.gather(2, self.slots[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))


def create_attention_masks(config: GPTConfig, inputs_embeds: torch.Tensor, tokens: BatchLayout) -> dict[str, Any]:
    """Returns for each pattern of the model a mask of the attention implementation (a tensor, a BlockMask or None),
    `Pieces` or `GatheredKeys`.

    Args:
        inputs_embeds: (B, T, D); only its shape, dtype and device are used.
        tokens: where the tokens are.

    Raises:
        ValueError: a prepared mask of another shape or type, or prepared masks by layer type, as in continuous
            batching, for strided or fixed layers.
    """
    masks = masks_or_slots(config, inputs_embeds, tokens)
    return {
        pattern: GatheredKeys.of_slots(mask, tokens.batch) if is_slots(mask) else mask
        for pattern, mask in masks.items()
    }


def create_masks_for_generate(
    config: GPTConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | Mapping[str, Any] | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None = None,
    **_,
) -> Any:
    """Returns prepared masks for the arguments with which generate() asks for those of a static cache: it makes them
    outside the compiled graph.

    As in transformers, one mask if all layers have the same, else a dict by layer type; a dict by pattern if there are
    strided or fixed layers. All are tensors or None, which torch.compile and exporters accept as inputs. If the model
    would split the rows into pieces, the attention mask as it is.
    """
    batch, length = inputs_embeds.shape[:2]
    tokens = BatchLayout(batch, length, inputs_embeds.device, attention_mask, position_ids, past_key_values)
    masks = masks_or_slots(config, inputs_embeds, tokens)
    if any(isinstance(mask, Pieces) for mask in masks.values()):
        return attention_mask
    if set(OWN_PATTERNS) & set(masks):
        return masks
    by_layer_type = {LAYER_TYPES[pattern]: mask for pattern, mask in masks.items()}
    return by_layer_type if len(by_layer_type) > 1 else by_layer_type.popitem()[1]


def masks_or_slots(config: GPTConfig, inputs_embeds: torch.Tensor, tokens: BatchLayout) -> dict[str, Any]:
    """Returns what `create_attention_masks` does, but slots, (B, 1, 1, M), for keys that are to be gathered."""
    config = with_uncompiled_block_masks(config, inputs_embeds.device)
    make = prepared_mask if tokens.is_prepared else create_mask
    return {
        pattern: make(pattern, MaskRequest(config, inputs_embeds, tokens, filled_layer_of(pattern, config, tokens)))
        for pattern in dict.fromkeys(config.attention_patterns)
    }


def filled_layer_of(pattern: str, config: GPTConfig, tokens: BatchLayout) -> int:
    """Returns the first layer of a pattern that holds keys, or the first one if none does."""
    patterns = config.attention_patterns
    layers = (layer for layer, each in enumerate(patterns) if each == pattern)
    return filled_layer(tokens.past_key_values, layers, default=patterns.index(pattern))


def create_mask(pattern: str, request: "MaskRequest") -> Any:
    """Returns the mask of one pattern."""
    config, tokens = request.config, request.tokens
    if pattern == "dense":
        if gains_from_pieces(request):
            return split_into_pieces(Dense(), tokens, offset=0)
        return request.create()
    definition = build_pattern(config, pattern)
    if "flash" in config._attn_implementation:
        return request.create(is_banded=isinstance(definition, Banded))
    return sparse_mask(definition, request)


def prepared_mask(pattern: str, request: "MaskRequest") -> Any:
    """Returns the caller's mask of a pattern, by the name of the pattern or of its layer type, or the one for all."""
    masks, layer = request.tokens.attention_mask, layer_of(request.tokens.past_key_values, request.layer_idx)
    if isinstance(layer, FixedLayer) and layer.is_initialized:
        raise ValueError(
            "attention_mask: a prepared mask does not fit the cache of a fixed layer (attention_patterns), which has "
            "dropped keys; expected (B, past + T)"
        )
    if not isinstance(masks, Mapping):
        return checked(masks, request)
    if pattern in masks:
        mask = masks[pattern]
        if pattern in OWN_PATTERNS and is_slots(mask):
            return mask if request.tokens.length == 1 else mask_of_slots(mask, request.key_range[0])
        return checked(mask, request)
    if pattern in OWN_PATTERNS:
        raise ValueError(
            f"attention_mask: masks by layer type ({', '.join(masks)}) do not describe {pattern} layers "
            "(attention_patterns). Continuous batching (generate_batch) does not support them: use generate() with "
            "sdpa, eager or flex_attention"
        )
    if LAYER_TYPES[pattern] not in masks:
        raise ValueError(f"attention_mask: masks by {', '.join(masks)}: expected {LAYER_TYPES[pattern]} too")
    return checked(masks[LAYER_TYPES[pattern]], request)


def checked(mask: Any, request: "MaskRequest") -> Any:
    """Returns a prepared mask.

    Raises:
        ValueError: a tensor of 4 dimensions that does not fit the queries and keys of the layer, or neither says which
            keys are seen nor is added to the scores.
    """
    tokens = request.tokens
    if not isinstance(mask, torch.Tensor) or mask.ndim != 4 or not tokens.may_read_values:
        return mask
    keys, _ = request.key_range
    if tokens.past_key_values is None:  # continuous batching has keys that only its attention function knows
        keys = max(keys, mask.shape[3])
    expected = (tokens.batch, request.config.num_attention_heads, tokens.length, keys)
    fits = all(size in (1, most) for size, most in zip(mask.shape, expected, strict=True))
    if not fits or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise ValueError(
            f"attention_mask of shape {tuple(mask.shape)} and type {str(mask.dtype).removeprefix('torch.')}: expected "
            f"({tokens.batch}, 1, {tokens.length}, {keys}), bool or added to the scores"
        )
    return mask


class MaskRequest(NamedTuple):
    """The arguments of transformers' mask functions for one layer."""

    config: GPTConfig
    inputs_embeds: torch.Tensor
    tokens: BatchLayout
    layer_idx: int

    def create(self, is_banded: bool = False) -> Any:
        """Returns transformers' causal mask, or its sliding-window mask."""
        function = create_sliding_window_causal_mask if is_banded else create_causal_mask
        return function(
            self.config,
            self.inputs_embeds,
            self.padding_of_trace if is_banded and not self.tokens.may_read_values else self.tokens.attention_mask,
            self.tokens.past_key_values,
            position_ids=self.tokens.given_position_ids,
            layer_idx=self.layer_idx,
        )

    def create_from(self, visible, ignore_padding: bool = False) -> Any:
        """Returns a causal mask restricted to the keys that a function of transformers' signature, (batch, head, query
        slot, key slot), returns True for."""
        return create_causal_mask(
            self.config,
            self.inputs_embeds,
            None if ignore_padding else self.tokens.attention_mask,
            self.tokens.past_key_values,
            and_mask_function=visible,
            layer_idx=self.layer_idx,
        )

    @property
    def padding_of_trace(self) -> torch.Tensor | None:
        """The attention mask of the layer's keys alone: in its exporters, transformers replaces a sliding layer by one
        that takes its first key for the first slot, also after a past that is longer than the window."""
        mask, tokens = self.tokens.attention_mask, self.tokens
        if mask is None or tokens.is_static:
            return mask
        keys, offset = self.key_range
        return mask[:, mask.shape[1] - keys - offset :]

    @property
    def key_range(self) -> tuple[int, int]:
        """Number of keys of the layer, and the slot of the first."""
        cache, length = self.tokens.past_key_values, self.tokens.length
        return cache.get_mask_sizes(length, self.layer_idx) if cache is not None else (length, 0)


def gains_from_pieces(request: MaskRequest) -> bool:
    """True if dense rows with padding, packed ones, and chunks after a past are faster split into sequences, by the
    kernels of the CPU, than with a full (T x T) mask."""
    config, tokens = request.config, request.tokens
    if config._attn_implementation != "sdpa" or tokens.device.type != "cpu" or not tokens.may_read_values:
        return False
    has_dropout = config.attention_dropout and torch.is_grad_enabled()
    return tokens.length >= MIN_KEYS_FOR_PIECES and not has_dropout and not tokens.is_plain_causal


def sparse_mask(pattern: Pattern, request: MaskRequest) -> Any:
    """Returns the mask of a banded, strided or fixed pattern."""
    tokens, length, is_banded = request.tokens, request.tokens.length, isinstance(pattern, Banded)
    layer = layer_of(tokens.past_key_values, request.layer_idx)
    if isinstance(layer, FixedLayer) and layer.is_initialized:
        return mask_of_cached_keys(pattern, request, layer)
    if request.config._attn_implementation == "sdpa" and tokens.spans is not None:
        longest = max((stop - start for _, start, stop in tokens.spans), default=0)
        if tokens.sequences is None and longest <= pattern.reach:
            return request.create(is_banded)
        keys, offset = request.key_range
        if length > 1 and max(length, longest) >= MIN_KEYS_FOR_PIECES:
            return split_into_pieces(pattern, tokens, offset)
        if length == 1 and not is_banded:
            return slots_of_keys(pattern, tokens, keys)
    if is_banded and (tokens.spans is not None or not tokens.may_read_values):
        return request.create(is_banded)  # without padding between tokens, slots differ as logical positions do
    return defined_mask(pattern, request)


def split_into_pieces(pattern: Pattern, tokens: BatchLayout, offset: int) -> Pieces:
    """Returns the pieces of each sequence of `tokens.spans`. The first key of the layer is in slot `offset`."""
    past, jobs, made = int(tokens.past), [], {}
    for row, start, stop in tokens.spans:
        first_query, first_key = max(start, past), max(start, offset)
        keys, queries = stop - first_key, stop - first_query
        if queries > 0:
            if (keys, queries) not in made:
                is_short = keys < MIN_KEYS_FOR_PIECES
                pieces = masked_piece(pattern, keys, queries) if is_short else pattern.pieces(keys, queries)
                made[keys, queries] = pieces
            span = Span(row, first_query - past, first_key - offset, queries, keys)
            jobs.append((span, made[keys, queries]))
    return Pieces(jobs)


def masked_piece(pattern: Pattern, keys: int, queries: int) -> list[Piece]:
    """Returns a short sequence as one piece with a mask."""
    positions = torch.arange(keys)
    seen = pattern.visible(positions[keys - queries :, None], positions) & causal_mask(queries, keys)
    return [Piece(whole(0, queries), whole(0, keys), mask=seen)]


def slots_of_keys(pattern: Strided | Fixed, tokens: BatchLayout, keys: int) -> torch.Tensor:
    """Returns the slots of the keys that the one query of each row sees, (B or 1, 1, 1, M), -1 where there is none.

    M depends on `keys`, the number of keys of the layer: it is constant for a static cache, so that decoding compiles.
    """
    first_slots = [0] * tokens.batch
    for row, start, _ in tokens.spans:
        first_slots[row] = start
    first_slots = first_slots[:1] if len(set(first_slots)) == 1 else first_slots
    starts = torch.tensor(first_slots, device=tokens.device)[:, None]  # (B or 1, 1)
    positions = pattern.keys_of(tokens.past - starts, keys - 1)
    return torch.where(positions >= 0, positions + starts, -1)[:, None, None]


def is_slots(mask: Any) -> bool:
    """True for slots of keys, in place of a mask."""
    return isinstance(mask, torch.Tensor) and mask.ndim == 4 and mask.dtype == torch.long


def mask_of_slots(slots: torch.Tensor, keys: int) -> torch.Tensor:
    """Returns the mask of several queries that each see the keys in their slots, (B or 1, 1, T, M) to (B or 1, 1, T,
    keys)."""
    seen = torch.zeros(*slots.shape[:3], keys + 1, dtype=torch.bool, device=slots.device)
    return seen.scatter(3, torch.where(slots < 0, keys, slots), True)[..., :keys]


def defined_mask(pattern: Pattern, request: MaskRequest) -> Any:
    """Returns the mask of the pattern's definition, in the form of the attention implementation."""
    tokens = request.tokens

    def visible(batch, head, query, key):
        return pattern.visible(query, key)

    if tokens.mask is not None or tokens.sequences is not None:
        positions = tokens.logical_positions
        sequences = torch.zeros_like(positions) if tokens.sequences is None else tokens.sequences
        if tokens.past_key_values is not None:  # a static cache has more slots than tokens
            keys, offset = request.key_range
            unused = (0, max(0, offset + keys - positions.shape[1]))
            positions, sequences = (nn.functional.pad(x, unused) for x in (positions, sequences))

        def visible(batch, head, query, key):
            is_same_sequence = sequences[batch, query] == sequences[batch, key]
            return is_same_sequence & pattern.visible(positions[batch, query], positions[batch, key])

    return request.create_from(visible)


def mask_of_cached_keys(pattern: Pattern, request: MaskRequest, layer: FixedLayer) -> Any:
    """Returns the mask of the definition for a cache layer that has dropped keys."""
    tokens, past, length = request.tokens, layer.get_seq_length(), request.tokens.length
    queries = torch.arange(past, past + length, device=tokens.device).expand(tokens.batch, -1)
    if tokens.mask is not None:
        queries = tokens.logical_positions[:, -length:]
    keys = torch.cat((layer.positions.to(tokens.device), queries), dim=1)  # (B, cached + T)
    if request.config._attn_implementation == "sdpa" and length == 1:
        return (pattern.visible(queries, keys) & (keys >= 0))[:, None, None]

    def visible(batch, head, query, key):
        position = keys[batch, key - layer.dropped]
        return (position >= 0) & pattern.visible(queries[batch, query - past], position)

    return request.create_from(visible, ignore_padding=True)


def uncompiled_block_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    **_,
) -> BlockMask:
    """The mask of FlexAttention, as transformers makes it, without torch.compile."""
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        mask_function = and_masks(mask_function, padding_mask_function(padding))
    visible = add_offsets_to_mask_function(mask_function, q_offset, kv_offset)
    return create_block_mask(visible, batch_size, None, q_length, kv_length, device)


UNCOMPILED = "hf_gpt.uncompiled_flex_attention"
ALL_MASK_ATTENTION_FUNCTIONS.register(UNCOMPILED, uncompiled_block_mask)


def with_uncompiled_block_masks(config: GPTConfig, device: torch.device) -> GPTConfig:
    """Returns a configuration by which transformers does not compile FlexAttention's masks on a CPU: for padded rows,
    the C++ that torch 2.13 generates does not compile. A stance of torch.compile would hold for all threads."""
    if config._attn_implementation != "flex_attention" or device.type != "cpu" or torch.compiler.is_compiling():
        return config
    config = copy(config)
    config._attn_implementation = UNCOMPILED
    return config
