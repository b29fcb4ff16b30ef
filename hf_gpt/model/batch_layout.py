"""Where the tokens of a batch are: their rows, padding, packed sequences and the cached tokens before them.

`GPTModel.forward` builds one `BatchLayout` first. Positions, attention masks and caches are all derived from it.
"""

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import torch
from transformers import Cache


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
        ValueError: an attention mask that does not cover past + T slots.
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
        self.past = past_key_values.get_seq_length() if past_key_values is not None else 0
        """Cached slots: an int, or a scalar tensor for a static cache."""
        self.may_read_values = not torch.compiler.is_compiling()
        """False in a compiled graph, which must not depend on values of tensors."""
        self._found: dict[str, Any] = {}
        self.mask = self._padding_mask()
        """(B, past + T), True where there is a token; None without padding or if padding is unknown."""

    @property
    def is_prepared(self) -> bool:
        """True if the caller has made the attention masks."""
        return self.attention_mask is not None and self.mask is None

    def _padding_mask(self) -> torch.Tensor | None:
        mask = padding_mask(self.attention_mask)
        if mask is None:
            return None
        mask, width = mask.to(self.device), mask.shape[1]
        if isinstance(self.past, int):
            is_checked = self.past > 0 or self.may_read_values  # a graph must not tie two lengths together
        else:
            is_checked = self.may_read_values and self.past.is_cpu  # an accelerator would synchronize at every token
        if not is_checked:
            return mask
        slots = int(self.past) + self.length
        is_static = getattr(self.past_key_values, "is_compileable", False)  # then the mask may cover unused slots
        if width < slots or (width > slots and not is_static):
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
            return spans_of_rows(self.mask)
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
            return (token_counts(self.mask) - 1).clamp(min=0)[:, -self.length :]
        return (torch.arange(self.length, device=self.device) + self.past)[None]


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
