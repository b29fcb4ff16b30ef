"""Where the tokens of a batch are: their rows, padding, packed sequences and the cached tokens before them.

`GPTModel.forward` builds one `BatchLayout` first. Positions, attention masks and caches are all derived from it.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from transformers import Cache

from .backends import is_traced


class BatchLayout:
    """The T new tokens of a batch, and the cached ones before them.

    A slot is an index into a row; a logical position counts tokens, not padding, from the start of a sequence.

    Args:
        batch: number of rows, B.
        length: number of new slots of each row, T.
        device: where the tokens are.
        attention_mask: (B, past + T), 1 where there is a token, or None without padding. A prepared mask, (B, 1, T,
            keys), or a mapping of masks by pattern or layer type, is used as it is; padding is then unknown.
        position_ids: (B or 1, T), from the caller. A restart without attention mask and cache starts a packed sequence.
        past_key_values: cache that holds the earlier tokens.

    Raises:
        ValueError: an attention mask that does not cover past + T slots of B rows, position ids of another shape, a
            past that is no cache.
    """

    def __init__(
        self,
        batch: int,
        length: int,
        device: torch.device,
        attention_mask: torch.Tensor | Mapping[str, Any] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
    ) -> None:
        self.batch, self.length, self.device = batch, length, device
        self.attention_mask, self.past_key_values = attention_mask, past_key_values
        self.given_position_ids = position_ids
        check_cache(past_key_values)
        check_position_ids(position_ids, batch, length)
        check_mask(attention_mask, batch)
        self.past = cached_slots(past_key_values)
        """Cached slots: an int, or a scalar tensor for a static cache."""
        self.is_static = getattr(past_key_values, "is_compileable", False)
        """True for a static cache, whose attention mask may cover unused slots behind the tokens."""
        self.may_read_values = not is_traced()
        """False in a trace, which must not depend on values of tensors."""
        self._found: dict[str, Any] = {}
        self.mask = self._padding_mask()
        """(B, past + T), True where there is a token; None without padding or if padding is unknown. For a static cache
        it may be longer."""

    @property
    def is_prepared(self) -> bool:
        """True if the caller has made the attention masks."""
        return self.attention_mask is not None and self.mask is None

    def _padding_mask(self) -> torch.Tensor | None:
        mask = padding_mask(self.attention_mask)
        if mask is None:
            return None
        mask, width = mask.to(self.device), mask.shape[1]
        # A trace must not tie two lengths together, and an accelerator would synchronize at every token.
        if not self.may_read_values or (isinstance(self.past, torch.Tensor) and not self.past.is_cpu):
            return mask
        slots = int(self.past) + self.length
        if width < slots or (width > slots and not self.is_static):
            raise ValueError(
                f"attention_mask has {width} slots: expected {int(self.past)} of the past and {self.length} new ones"
            )
        return mask if width == slots else mask[:, :slots]

    @property
    def sequences(self) -> torch.Tensor | None:
        """(B, T), the number of each token's packed sequence; None if none are packed."""
        return self._once("sequences", self._find_sequences)

    @property
    def spans(self) -> list[tuple[int, int, int]] | None:
        """Row, first and last slot + 1 of each sequence; None in a compiled graph, or if padding interrupts one."""
        return self._once("spans", self._find_spans)

    @property
    def logical_positions(self) -> torch.Tensor:
        """Logical positions of all slots, -1 for padding: (B, past + T) with a mask, (B, T) for packed sequences."""
        return self._once("logical_positions", self._find_logical_positions)

    def _once(self, name: str, find: Callable[[], Any]) -> Any:
        if name not in self._found:  # functools.cached_property has a lock, which torch.compile cannot trace
            self._found[name] = find()
        return self._found[name]

    def _find_sequences(self) -> torch.Tensor | None:
        position_ids = self.given_position_ids
        if position_ids is None or self.attention_mask is not None or self.past_key_values is not None:
            return None
        starts = position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1
        if self.may_read_values and not starts.any():
            return None
        return starts.cumsum(dim=-1).expand(self.batch, -1)

    def _find_spans(self) -> list[tuple[int, int, int]] | None:
        if not self.may_read_values or self.is_prepared:
            return None
        if self.mask is not None:
            return spans_of_rows(self.mask[:, : int(self.past) + self.length])
        if self.sequences is not None:
            return spans_of_sequences(self.sequences)
        return [(row, 0, int(self.past) + self.length) for row in range(self.batch)]

    def _find_logical_positions(self) -> torch.Tensor:
        if self.sequences is None:
            return torch.where(self.mask, token_counts(self.mask) - 1, -1)
        slots = torch.arange(self.length, device=self.device).expand_as(self.sequences)
        starts = self.sequences.diff(dim=-1, prepend=self.sequences[:, :1] - 1) != 0
        return slots - torch.where(starts, slots, 0).cummax(dim=-1).values

    @property
    def is_plain_causal(self) -> bool:
        """True if causal attention needs no mask: each row is one sequence without padding and past, or unknown."""
        if self.spans is None:
            return True
        if int(self.past):
            return False
        return self.sequences is None and (self.mask is None or bool(self.mask.all()))

    @property
    def position_ids(self) -> torch.LongTensor:
        """Positions of the new tokens, (B or 1, T): those of the caller, or counted without padding."""
        if self.given_position_ids is not None:
            return self.given_position_ids
        if self.mask is not None:
            counts = (token_counts(self.mask) - 1).clamp(min=0)
            return counts.index_select(1, self._new_slots()) if self.is_static else counts[:, -self.length :]
        return self._new_slots()[None]

    def _new_slots(self) -> torch.Tensor:
        return torch.arange(self.length, device=self.device) + self.past


def filled_layer(cache: Cache | None, layers: Iterable[int], default: int = 0) -> int:
    """Returns the first of some layers that holds keys: a pipeline stage fills only its own."""
    cached = getattr(cache, "layers", ())
    return next((layer for layer in layers if layer < len(cached) and cached[layer].is_initialized), default)


def cached_slots(cache: Cache | None) -> int | torch.Tensor:
    """Returns the number of cached slots: an int, or a scalar tensor for a static cache."""
    if cache is None:
        return 0
    layers = getattr(cache, "layers", ())
    if not layers or layers[0].is_initialized:
        return cache.get_seq_length()
    return cache.get_seq_length(filled_layer(cache, range(len(layers))))


def check_inputs(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> None:
    """Raises a ValueError unless there is one of token ids, (B, T), and embeddings, (B, T, D), with a token."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("expected exactly one of input_ids and inputs_embeds")
    name, inputs, expected = (
        ("input_ids", input_ids, "(B, T)") if inputs_embeds is None else ("inputs_embeds", inputs_embeds, "(B, T, D)")
    )
    if inputs.ndim != expected.count(",") + 1 or not inputs.numel():
        raise ValueError(f"{name} of shape {tuple(inputs.shape)}: expected {expected}, and at least one token")


def check_cache(past_key_values: Cache | None) -> None:
    """Raises a ValueError for tuples of keys and values, as they were passed before transformers had caches."""
    if past_key_values is not None and not hasattr(past_key_values, "get_seq_length"):
        raise ValueError(
            f"past_key_values is a {type(past_key_values).__name__}: expected a Cache. DynamicCache(past_key_values) "
            "makes one from (keys, values) of each layer"
        )


def check_position_ids(position_ids: torch.Tensor | None, batch: int, length: int) -> None:
    """Raises a ValueError unless there is one position for each of `length` tokens, in each of `batch` rows or in one
    row for all."""
    if position_ids is None:
        return
    shape = tuple(position_ids.shape)
    if len(shape) != 2 or shape[0] not in (1, batch) or shape[1] != length or position_ids.dtype == torch.bool:
        kind = str(position_ids.dtype).removeprefix("torch.")
        raise ValueError(
            f"position_ids of shape {shape} and type {kind}: expected numbers of shape ({batch} or 1, {length}), one "
            "for each new token"
        )


def check_mask(attention_mask: torch.Tensor | Mapping[str, Any] | None, batch: int) -> None:
    """Raises a ValueError for a list, and for a tensor that has neither 2 dimensions and `batch` rows nor 4 dimensions.

    `BatchLayout` checks the width of a padding mask, `create_attention_masks` the shape of a prepared one.
    """
    if isinstance(attention_mask, (list, tuple, np.ndarray)):
        raise ValueError(f"attention_mask is a {type(attention_mask).__name__}: expected a tensor, (B, past + T)")
    if not isinstance(attention_mask, torch.Tensor):
        return
    shape = tuple(attention_mask.shape)
    if len(shape) not in (2, 4) or (len(shape) == 2 and shape[0] != batch):
        raise ValueError(
            f"attention_mask of shape {shape}: expected ({batch}, past + T), or a prepared mask, ({batch}, 1, T, keys)"
        )


def padding_mask(attention_mask: torch.Tensor | Mapping[str, Any] | None) -> torch.Tensor | None:
    """Returns an attention mask of (B, slots) as booleans, True where there is a token. None for any other: without a
    mask there is no padding, and a prepared mask does not show it."""
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return attention_mask.bool()
    return None


def token_counts(mask: torch.Tensor) -> torch.Tensor:
    """Returns how many tokens each row has up to each slot, (B, slots)."""
    return mask.long().cumsum(dim=-1)


def spans_of_sequences(sequences: torch.Tensor) -> list[tuple[int, int, int]]:
    """Returns row, first slot and last slot + 1 of each packed sequence, from their numbers, (B, T)."""
    spans = []
    for row, numbers in enumerate(sequences):
        lengths = numbers.unique_consecutive(return_counts=True)[1].tolist()
        spans += [(row, stop - length, stop) for length, stop in zip(lengths, accumulate(lengths), strict=True)]
    return spans


def spans_of_rows(mask: torch.Tensor) -> list[tuple[int, int, int]] | None:
    """Returns one sequence for each row that has a token, from (B, slots); None if padding interrupts one."""
    counts = mask.sum(dim=-1)
    starts = mask.long().argmax(dim=-1)
    stops = mask.shape[1] - mask.flip(-1).long().argmax(dim=-1)
    if ((counts != stops - starts) & (counts > 0)).any():
        return None
    rows = zip(counts.tolist(), starts.tolist(), stops.tolist(), strict=True)
    return [(row, start, stop) for row, (count, start, stop) in enumerate(rows) if count]
