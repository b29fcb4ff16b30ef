"""The attention mask of each pattern, in the form that the attention implementation needs, made once for all layers.

Eager attention and FlexAttention get the mask of the definition; FlashAttention implements dense and banded layers
itself. `sdpa` gets pieces of a sparse pattern (`sparse_attention`) for many queries, and the gathered keys for one
query. Where neither is possible - padding between tokens, or a compiled graph that must not depend on the mask - it
gets the mask of the definition too.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .attention_patterns import Banded, Dense, Fixed, Pattern, Strided, build_pattern, causal_mask, whole
from .batch_layout import BatchLayout
from .caches import FixedLayer, layer_of
from .configuration_gpt import LAYER_TYPES, OWN_PATTERNS, GPTConfig
from .sparse_attention import Piece, Span

# Below this many keys a mask takes less time than pieces (benchmarks/RESULTS.md, sparse attention).
MIN_KEYS_FOR_PIECES = 256


class Pieces(NamedTuple):
    """The pieces of each sequence of a batch."""

    jobs: list[tuple[Span, list[Piece]]]

    def contiguous(self) -> "Pieces":
        return self  # generate() calls it on every mask that it makes for a static cache


class GatheredKeys(NamedTuple):
    """The keys that the one query of each row sees."""

    slots: torch.Tensor  # (B or 1, M), of the layer's keys
    mask: torch.Tensor  # (B, 1, 1, M), False where a slot is unused

    def contiguous(self) -> "GatheredKeys":
        return GatheredKeys(self.slots.contiguous(), self.mask.contiguous())

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
        ValueError: prepared masks by layer type, as in continuous batching, for strided or fixed layers.
    """
    patterns = dict.fromkeys(config.attention_patterns)
    if tokens.is_prepared:
        return {pattern: prepared_mask(tokens.attention_mask, pattern) for pattern in patterns}
    with eager_block_masks(config, inputs_embeds.device):
        return {pattern: create_mask(config, inputs_embeds, tokens, pattern) for pattern in patterns}


def create_masks_for_generate(
    config: GPTConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | Mapping[str, Any] | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None = None,
    **_,
) -> dict[str, Any]:
    """Returns the masks of `create_attention_masks`, for the arguments with which generate() asks for those of a static
    cache: it makes them outside the compiled graph, and the model then uses them as prepared masks."""
    batch, length = inputs_embeds.shape[:2]
    tokens = BatchLayout(batch, length, inputs_embeds.device, attention_mask, position_ids, past_key_values)
    return create_attention_masks(config, inputs_embeds, tokens)


def prepared_mask(masks: torch.Tensor | Mapping[str, Any], pattern: str) -> Any:
    """Returns the caller's mask of a pattern, by the name of the pattern or of its layer type, or the one for all."""
    if not isinstance(masks, Mapping):
        return masks
    if pattern in masks:
        return masks[pattern]
    if pattern in OWN_PATTERNS:
        raise ValueError(
            f"attention_mask: masks by layer type ({', '.join(masks)}) do not describe {pattern} layers "
            "(attention_patterns). Continuous batching (generate_batch) does not support them: use generate() with "
            "sdpa, eager or flex_attention"
        )
    return masks[LAYER_TYPES[pattern]]


def create_mask(config: GPTConfig, inputs_embeds: torch.Tensor, tokens: BatchLayout, name: str) -> Any:
    """Returns the mask of one pattern."""
    request = MaskRequest(config, inputs_embeds, tokens, config.attention_patterns.index(name))
    if name == "dense":
        if gains_from_pieces(config, inputs_embeds) and not tokens.is_plain_causal:
            return split_into_pieces(Dense(), tokens, offset=0)
        return request.create()
    pattern = build_pattern(config, name)
    if "flash" in config._attn_implementation:
        return request.create(is_banded=isinstance(pattern, Banded))
    return sparse_mask(pattern, request)


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
            self.tokens.attention_mask,
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
    def key_range(self) -> tuple[int, int]:
        """Number of keys of the layer, and the slot of the first."""
        cache, length = self.tokens.past_key_values, self.tokens.length
        return cache.get_mask_sizes(length, self.layer_idx) if cache is not None else (length, 0)


def gains_from_pieces(config: GPTConfig, inputs_embeds: torch.Tensor) -> bool:
    """True if dense rows with padding, packed ones, and chunks after a past are faster split into sequences, by the
    kernels of the CPU, than with a full (T x T) mask."""
    has_dropout = config.attention_dropout and torch.is_grad_enabled()
    is_eager_cpu = inputs_embeds.device.type == "cpu" and not torch.compiler.is_compiling()
    is_long = inputs_embeds.shape[1] >= MIN_KEYS_FOR_PIECES
    return is_eager_cpu and config._attn_implementation == "sdpa" and is_long and not has_dropout


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
            return gather_keys(pattern, tokens, keys)
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


def gather_keys(pattern: Strided | Fixed, tokens: BatchLayout, keys: int) -> GatheredKeys:
    """Returns the keys of one query in each row, by `tokens.spans`, in a layer with `keys` keys. Their number is
    constant for a static cache, so that decoding compiles."""
    first_slots = [0] * tokens.batch
    for row, start, _ in tokens.spans:
        first_slots[row] = start
    first_slots = first_slots[:1] if len(set(first_slots)) == 1 else first_slots
    starts = torch.tensor(first_slots, device=tokens.device)[:, None]  # (B or 1, 1)
    slots = pattern.keys_of(tokens.past - starts, keys - 1)
    seen = slots >= 0
    return GatheredKeys((slots + starts).clamp(min=0), seen[:, None, None].expand(tokens.batch, -1, -1, -1))


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
    tokens, past, length = request.tokens, request.tokens.past, request.tokens.length
    queries = torch.arange(past, past + length, device=tokens.device).expand(tokens.batch, -1)
    if tokens.mask is not None:
        queries = tokens.logical_positions[:, -length:]
    keys = torch.cat((layer.positions.to(tokens.device), queries), dim=1)  # (B, cached + T)
    if request.config._attn_implementation == "sdpa" and length == 1:
        return (pattern.visible(queries, keys) & (keys >= 0))[:, None, None]
    offset = past - layer.positions.shape[1]

    def visible(batch, head, query, key):
        position = keys[batch, key - offset]
        return (position >= 0) & pattern.visible(queries[batch, query - past], position)

    return request.create_from(visible, ignore_padding=True)


def eager_block_masks(config: GPTConfig, device: torch.device) -> AbstractContextManager:
    """Keeps transformers from compiling FlexAttention's block masks on a CPU: for padded rows, the C++ that torch 2.13
    generates does not compile."""
    if config._attn_implementation == "flex_attention" and device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
