"""What each pattern of a model is given in place of a mask, made once for all layers that share it.

Eager attention and FlexAttention get the mask of the definition; FlashAttention knows dense and banded layers itself.
`sdpa` gets the pieces of a sparse pattern (`sparse_attention`) for many queries, and for one query the slots of the
keys that it may see; where neither fits - padding between tokens, a compiler that cannot read the mask - the mask.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .attention_patterns import Banded, Dense, Fixed, Pattern, Strided, build_pattern, causal_mask, whole
from .caches import FixedLayer, layer_of, logical_positions
from .configuration_gpt import LAYER_TYPES, OWN_PATTERNS, GPTConfig
from .sparse_attention import Piece, Span

# A sequence of fewer keys costs less with a mask than cut into pieces (benchmarks/RESULTS.md).
SHORTEST = 256


class Pieces(NamedTuple):
    """The pieces of each sequence of a batch."""

    jobs: list[tuple[Span, list[Piece]]]

    def contiguous(self) -> "Pieces":
        return self  # generate() asks this of every mask that it makes for a static cache


class Chosen(NamedTuple):
    """The keys that one query of each row sees."""

    slots: torch.Tensor  # (B or 1, M), of the layer's keys
    mask: torch.Tensor  # (B, 1, 1, M), False where a slot stands for none

    def contiguous(self) -> "Chosen":
        return Chosen(self.slots.contiguous(), self.mask.contiguous())

    def of(self, states: torch.Tensor) -> torch.Tensor:
        """(B, kv_heads, keys, head_dim) to (B, kv_heads, M, head_dim)."""
        if len(self.slots) == 1:
            return states.index_select(2, self.slots[0])
        return states.gather(2, self.slots[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))


class Tokens(NamedTuple):
    """Where the T new tokens of a batch, and those before them, stand."""

    past: int | torch.Tensor  # slots before the new tokens
    mask: torch.Tensor | None  # (B, past + T), True where there is a token; None where there is no padding
    sequences: torch.Tensor | None  # (B, T), the number of each token's packed sequence; None where none are packed
    spans: list[tuple[int, int, int]] | None  # row, first slot, last + 1 of each sequence; None where unknown

    def fill_rows(self) -> bool:
        """Each row is one sequence without a past, which causal attention serves as it is; or nobody knows."""
        if self.spans is None or int(self.past):
            return self.spans is None
        return self.sequences is None and (self.mask is None or bool(self.mask.all()))

    def positions(self) -> torch.Tensor:
        """Logical positions of all slots, -1 for padding. (B, past + T)"""
        if self.sequences is None:
            return logical_positions(self.mask)
        slots = torch.arange(self.sequences.shape[1], device=self.sequences.device).expand_as(self.sequences)
        starts = self.sequences.diff(dim=-1, prepend=self.sequences[:, :1] - 1) != 0
        return slots - torch.where(starts, slots, 0).cummax(dim=-1).values


def create_attention_masks(
    config: GPTConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | Mapping[str, Any] | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None = None,
    **_,
) -> dict[str, Any]:
    """The mask of each pattern that the model has, in the form that its attention implementation wants.

    Args:
        inputs_embeds: (B, T, D); only its shape, dtype and device matter.
        attention_mask: (B, past + T), 1 where there is a token, or None where there is no padding. A prepared mask,
            (B, 1, T, keys), or a mapping of masks by pattern or by layer type, is passed on.
        position_ids: (B, T), where the caller gave them: a restart marks a new packed sequence.

    Raises:
        ValueError: masks by layer type, as in continuous batching, for strided or fixed layers; an attention mask that
            leaves out the past.
    """
    patterns = dict.fromkeys(config.attention_patterns)
    if isinstance(attention_mask, Mapping):
        return {pattern: prepared(attention_mask, pattern) for pattern in patterns}
    if attention_mask is not None and len(attention_mask.shape) != 2:
        return dict.fromkeys(patterns, attention_mask)
    check_width(inputs_embeds, attention_mask, past_key_values)
    common = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
        "position_ids": position_ids,
    }
    tokens = None
    masks = {}
    with _eager_block_masks(config, inputs_embeds.device):
        for name in patterns:
            layer_idx = config.attention_patterns.index(name)
            if name == "dense" and gains_from_pieces(config, inputs_embeds):
                tokens = tokens or find_tokens(inputs_embeds, attention_mask, past_key_values, position_ids)
                if not tokens.fill_rows():
                    masks[name] = cut(Dense(), tokens, offset=0)
                    continue
            if name == "dense" or "flash" in config._attn_implementation:
                make = create_sliding_window_causal_mask if name == "banded" else create_causal_mask
                masks[name] = make(**common, layer_idx=layer_idx)
                continue
            if tokens is None:
                tokens = find_tokens(inputs_embeds, attention_mask, past_key_values, position_ids)
            masks[name] = sparse_mask(build_pattern(config, name), tokens, layer_idx, **common)
    return masks


def gains_from_pieces(config: GPTConfig, inputs_embeds: torch.Tensor) -> bool:
    """Whether the kernels of the CPU may take dense rows apart, which otherwise need a mask of length by length: rows
    with padding, packed ones, and chunks after a past."""
    drops = config.attention_dropout and torch.is_grad_enabled()
    on_cpu = inputs_embeds.device.type == "cpu" and not torch.compiler.is_compiling()
    return on_cpu and config._attn_implementation == "sdpa" and inputs_embeds.shape[1] >= SHORTEST and not drops


def check_width(
    inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache | None
) -> None:
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    length = inputs_embeds.shape[1]
    if attention_mask is not None and isinstance(past, int) and past and attention_mask.shape[1] < past + length:
        raise ValueError(
            f"attention_mask has {attention_mask.shape[1]} slots: expected {past} of the past and {length} new ones"
        )


def prepared(masks: Mapping[str, Any], pattern: str) -> Any:
    """The mask of a pattern, by its name or by its layer type."""
    if pattern in masks:
        return masks[pattern]
    if pattern in OWN_PATTERNS:
        raise ValueError(
            f"masks by layer type ({', '.join(masks)}) cannot tell what a {pattern} layer sees: continuous batching "
            "(generate_batch) has no such layers, use generate() with sdpa, eager or flex_attention"
        )
    return masks[LAYER_TYPES[pattern]]


def find_tokens(
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None,
) -> Tokens:
    batch, length = inputs_embeds.shape[:2]
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    readable = not torch.compiler.is_compiling()  # nor would a graph hold for other lengths
    if attention_mask is not None:
        mask = attention_mask.to(device=inputs_embeds.device, dtype=torch.bool)
        if readable:  # of a static cache it may be as long as the cache
            mask = nn.functional.pad(mask, (0, int(past) + length - mask.shape[1]))
        return Tokens(past, mask, None, spans_of_rows(mask) if readable else None)
    if position_ids is not None and past_key_values is None:
        starts = position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1
        if not readable or starts.any():
            sequences = starts.cumsum(dim=-1).expand(batch, -1)
            return Tokens(past, None, sequences, spans_of_sequences(sequences) if readable else None)
    return Tokens(past, None, None, [(row, 0, int(past) + length) for row in range(batch)] if readable else None)


def spans_of_sequences(sequences: torch.Tensor) -> list[tuple[int, int, int]]:
    spans = []
    for row, numbers in enumerate(sequences):
        lengths = numbers.unique_consecutive(return_counts=True)[1].tolist()
        spans += [(row, stop - length, stop) for length, stop in zip(lengths, accumulate(lengths), strict=True)]
    return spans


def spans_of_rows(mask: torch.Tensor) -> list[tuple[int, int, int]] | None:
    """One sequence for each row that has a token, if none of them is interrupted by padding."""
    counts = mask.sum(dim=-1)
    starts = mask.long().argmax(dim=-1)
    stops = mask.shape[1] - mask.flip(-1).long().argmax(dim=-1)
    if ((counts != stops - starts) & (counts > 0)).any():
        return None
    rows = zip(counts.tolist(), starts.tolist(), stops.tolist(), strict=True)
    return [(row, start, stop) for row, (count, start, stop) in enumerate(rows) if count]


def sparse_mask(pattern: Pattern, tokens: Tokens, layer_idx: int, **common) -> Any:
    """What the layers of a sparse pattern are given."""
    config, cache, length = common["config"], common["past_key_values"], common["inputs_embeds"].shape[1]
    make_mask = create_sliding_window_causal_mask if isinstance(pattern, Banded) else create_causal_mask
    layer = layer_of(cache, layer_idx)
    if isinstance(layer, FixedLayer) and layer.is_initialized:
        return mask_of_kept_keys(pattern, tokens, layer, layer_idx, **common)
    if config._attn_implementation == "sdpa" and tokens.spans is not None:
        longest = max((stop - start for _, start, stop in tokens.spans), default=0)
        if tokens.sequences is None and longest <= pattern.reach:
            return make_mask(**common, layer_idx=layer_idx)
        keys, offset = cache.get_mask_sizes(length, layer_idx) if cache is not None else (length, 0)
        if length > 1 and max(length, longest) >= SHORTEST:
            return cut(pattern, tokens, offset)
        if length == 1 and not isinstance(pattern, Banded):
            return choose(pattern, tokens, keys, common["inputs_embeds"])
    if isinstance(pattern, Banded) and (tokens.spans is not None or torch.compiler.is_compiling()):
        return make_mask(**common, layer_idx=layer_idx)  # slots and logical positions are equally far apart
    return defined_mask(pattern, tokens, layer_idx, **common)


def cut(pattern: Pattern, tokens: Tokens, offset: int) -> Pieces:
    """Every sequence in pieces. The first key of the layer stands in slot `offset`."""
    past, jobs, known = int(tokens.past), [], {}
    for row, start, stop in tokens.spans:
        first_query, first_key = max(start, past), max(start, offset)
        keys, queries = stop - first_key, stop - first_query
        if queries > 0:
            if (keys, queries) not in known:
                cheap = keys < SHORTEST
                known[keys, queries] = [uncut(pattern, keys, queries)] if cheap else pattern.pieces(keys, queries)
            span = Span(row, first_query - past, first_key - offset, queries, keys)
            jobs.append((span, known[keys, queries]))
    return Pieces(jobs)


def uncut(pattern: Pattern, keys: int, queries: int) -> Piece:
    """A short sequence as it is."""
    positions = torch.arange(keys)
    seen = pattern.visible(positions[keys - queries :, None], positions) & causal_mask(queries, keys)
    return Piece(whole(0, queries), whole(0, keys), mask=seen)


def choose(pattern: Strided | Fixed, tokens: Tokens, keys: int, inputs_embeds: torch.Tensor) -> Chosen:
    """The keys of one query in each row. Of a static cache the same number at every step, so that it compiles."""
    batch, device = inputs_embeds.shape[0], inputs_embeds.device
    starts = [0] * batch
    for row, start, _ in tokens.spans:
        starts[row] = start
    starts = torch.tensor(starts[:1] if len(set(starts)) == 1 else starts, device=device)[:, None]  # (B or 1, 1)
    slots = pattern.keys_of(tokens.past - starts, keys - 1)
    seen = slots >= 0
    return Chosen((slots + starts).clamp(min=0), seen[:, None, None].expand(batch, -1, -1, -1))


def defined_mask(pattern: Pattern, tokens: Tokens, layer_idx: int, **common) -> Any:
    """The mask that the pattern's definition says, in the form of the attention implementation."""

    def visible(batch, head, query, key):
        return pattern.visible(query, key)

    if tokens.mask is not None or tokens.sequences is not None:
        positions = tokens.positions()
        sequences = torch.zeros_like(positions) if tokens.sequences is None else tokens.sequences
        if (cache := common["past_key_values"]) is not None:  # a static one is longer than what it holds
            keys, offset = cache.get_mask_sizes(common["inputs_embeds"].shape[1], layer_idx)
            beyond = (0, max(0, offset + keys - positions.shape[1]))
            positions, sequences = (nn.functional.pad(x, beyond) for x in (positions, sequences))

        def visible(batch, head, query, key):
            together = sequences[batch, query] == sequences[batch, key]
            return together & pattern.visible(positions[batch, query], positions[batch, key])

    return create_causal_mask(**common | {"position_ids": None}, and_mask_function=visible, layer_idx=layer_idx)


def mask_of_kept_keys(pattern: Pattern, tokens: Tokens, layer: FixedLayer, layer_idx: int, **common) -> Any:
    """The same for keys of which only some have stayed in the cache."""
    batch, length = common["inputs_embeds"].shape[:2]
    past, device = layer.get_seq_length(), common["inputs_embeds"].device
    queries = torch.arange(past, past + length, device=device).expand(batch, -1)
    if tokens.mask is not None:
        queries = tokens.positions()[:, -length:]
    keys = torch.cat((layer.positions.to(device), queries), dim=1)  # (B, kept + T)
    if common["config"]._attn_implementation == "sdpa" and length == 1:
        return (pattern.visible(queries, keys) & (keys >= 0))[:, None, None]
    offset = past - layer.positions.shape[1]

    def visible(batch, head, query, key):
        position = keys[batch, key - offset]
        return (position >= 0) & pattern.visible(queries[batch, query - past], position)

    unpadded = {"attention_mask": None, "position_ids": None}
    return create_causal_mask(**common | unpadded, and_mask_function=visible, layer_idx=layer_idx)


def _eager_block_masks(config: GPTConfig, device: torch.device) -> AbstractContextManager:
    # transformers compiles the block masks of FlexAttention; for padded rows on the CPU, torch 2.13 writes C++ that its
    # own compiler refuses
    if config._attn_implementation == "flex_attention" and device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
