"""The attention patterns, one class each: which keys a query sees, and the pieces of its fast path.

    dense  x . . . . . . .    banded  x . . . . . . .    strided  x . . . . . . .    fixed  x . . . . . . .
           x x . . . . . .    (3)     x x . . . . . .    (3)      x x . . . . . .    (3, 1) x x . . . . . .
           x x x . . . . .            x x x . . . . .             x x x . . . . .           x x x . . . . .
           x x x x . . . .            . x x x . . . .             x x x x . . . .           . . x x . . . .
           x x x x x . . .            . . x x x . . .             . x x x x . . .           . . x x x . . .
           x x x x x x . .            . . . x x x . .             . . x x x x . .           . . x x x x . .
           x x x x x x x .            . . . . x x x .             x . . x x x x .           . . x . . x x .
           x x x x x x x x            . . . . . x x x             . x . . x x x x           . . x . . x x x

Queries and keys are logical positions: padding has none, and each packed sequence starts at 0.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

from .configuration_gpt import GPTConfig
from .sparse_attention import Piece

# About the number of queries of one piece: the allocator of a CPU reuses buffers of this size (benchmarks/RESULTS.md,
# sparse attention).
CHUNK = 1024


def triangle(length: int) -> int:
    """Returns 1 + 2 + ... + `length`."""
    return length * (length + 1) // 2


def earlier_blocks(length: int, stride: int) -> int:
    """Returns the number of blocks of `stride` positions before that of a position, summed over `length` positions."""
    blocks, rest = divmod(length, stride)
    return stride * triangle(blocks - 1) + rest * blocks


class Dense(NamedTuple):
    """Every key."""

    def pairs(self, length: int) -> int:
        """Returns how many keys the queries of a sequence see, summed over the queries."""
        return triangle(length)

    def keys_cached(self, length: int) -> int:
        """Returns how many keys a dynamic cache holds after `length` tokens."""
        return length

    def visible(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Returns True where a query sees a key that is not later: broadcastable positions to booleans."""
        return torch.ones_like(query - key, dtype=torch.bool)

    def pieces(self, keys: int, queries: int) -> list[Piece]:
        """Returns the pieces of a sequence of `keys` keys whose last `queries` are queries: the past, and the causal
        triangle."""
        past = keys - queries
        own = Piece(whole(0, queries), whole(past, keys), causal=True, adds=past > 0)
        return [Piece(whole(0, queries), whole(0, past)), own] if past else [own]


class Banded(NamedTuple):
    """q - k < window: GPT-Neo's local layers, GPT-3's locally banded ones, gpt-oss's sliding ones."""

    window: int

    @property
    def reach(self) -> int:
        """Longest sequence whose queries all see each earlier key."""
        return self.window

    def pairs(self, length: int) -> int:
        beyond = max(0, length - self.window)  # queries that see a whole window
        return triangle(length - beyond) + beyond * self.window

    def keys_cached(self, length: int) -> int:
        return min(length, self.window - 1)

    def visible(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query - key < self.window

    def pieces(self, keys: int, queries: int) -> list[Piece]:
        """Returns blocks of queries, each with the window of keys that it needs."""
        past = keys - queries
        block = 64 if self.window <= 128 else 128 if self.window <= 512 else 256  # measured
        parts = -(-(self.window - 1) // block) + 1
        before = (parts - 1) * block  # keys of a window before its block
        lead = min(queries, max(0, before - past))  # queries whose window would start before the first key
        blocks, rest = divmod(queries - lead, block)
        pieces = [self._corner(past, 0, lead)] if lead else []
        mask = self._mask(block, before + block)
        for first, count in chunks(blocks, block):
            start = lead + first * block
            keys_of = windows(past + start - before, block, parts, count)
            pieces.append(Piece(rows(start, block, count), keys_of, mask=mask, overlaps=True))
        return [*pieces, self._corner(past, queries - rest, queries)] if rest else pieces

    def _corner(self, past: int, start: int, stop: int) -> Piece:
        first = max(0, past + start - self.window + 1)
        if first == past + start and stop - start <= self.window:
            return Piece(whole(start, stop), whole(first, past + stop), causal=True)
        return Piece(whole(start, stop), whole(first, past + stop), mask=self._mask(stop - start, past + stop - first))

    def _mask(self, queries: int, keys: int) -> torch.Tensor:
        return causal_mask(queries, keys).triu(keys - queries - self.window + 1)


class Strided(NamedTuple):
    """q - k < stride, or a multiple of stride (Child et al. 2019, section 4.3, strided)."""

    stride: int

    @property
    def reach(self) -> int:
        return self.stride + 1

    def pairs(self, length: int) -> int:
        return Banded(self.stride).pairs(length) + earlier_blocks(length, self.stride)

    def keys_cached(self, length: int) -> int:
        return length

    def visible(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        distance = query - key
        return (distance < self.stride) | (distance % self.stride == 0)

    def keys_of(self, position: torch.Tensor, most: int) -> torch.Tensor:
        """Returns the keys of one query in each row.

        Args:
            position: (B, 1), logical positions of the queries.
            most: largest position that a query may have.

        Returns:
            (B, M), logical positions; negative where there is no key.
        """
        near = torch.arange(self.stride, device=position.device)
        far = torch.arange(1, most // self.stride + 1, device=position.device) * self.stride
        return position - torch.cat((near, far))

    def pieces(self, keys: int, queries: int) -> list[Piece]:
        """Returns a band, and for each phase of the stride the causal attention of its column without the own key."""
        stride, past = self.stride, keys - queries
        columns = []
        edges = sorted({0, past % stride, keys % stride, stride})
        for phase, after in pairwise(edges):
            width = after - phase  # phases with equally many rows and the same first query
            last = -(-(keys - phase) // stride)  # number of rows of these phases among the keys
            first = max(1, -(-(past - phase) // stride))  # the row of their first query that sees an earlier one
            if last <= first:
                continue
            seen = None if first == 1 else causal_mask(last - first, last - 1)
            queries_of = phases(phase - past + first * stride, width, stride, last - first)
            columns.append(Piece(queries_of, phases(phase, width, stride, last - 1), seen is None, seen, adds=True))
        return Banded(stride).pieces(keys, queries) + columns


class Fixed(NamedTuple):
    """k in the query's block of `stride` keys, or among the last `summary` of an earlier block (Child et al. 2019,
    section 4.3, fixed)."""

    stride: int
    summary: int

    @property
    def reach(self) -> int:
        return self.stride

    def pairs(self, length: int) -> int:
        blocks, rest = divmod(length, self.stride)
        own = blocks * triangle(self.stride) + triangle(rest)
        return own + earlier_blocks(length, self.stride) * self.summary

    def keys_cached(self, length: int) -> int:
        return length % self.stride + length // self.stride * self.summary

    def visible(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own = query // self.stride == key // self.stride
        is_padding = query < 0  # its scores must not be empty: it sees every key, as in the other patterns
        return is_padding | own | (key % self.stride >= self.stride - self.summary)

    def keys_of(self, position: torch.Tensor, most: int) -> torch.Tensor:
        """Returns the keys of one query in each row, as `Strided.keys_of`."""
        block = position // self.stride  # (B, 1)
        own = position - torch.arange(self.stride, device=position.device)
        last = torch.arange(self.stride - self.summary, self.stride, device=position.device)
        blocks = torch.arange(most // self.stride, device=position.device)[:, None]
        summaries = (blocks * self.stride + last).flatten()  # (blocks x summary)
        own = own.masked_fill(own // self.stride != block, -1)
        summaries = torch.where(summaries // self.stride < block, summaries, -1)
        return torch.cat((own, summaries), dim=1)

    def pieces(self, keys: int, queries: int) -> list[Piece]:
        """Returns each block by itself, then groups of queries with the summaries of all earlier blocks."""
        stride, past = self.stride, keys - queries
        lead = min(queries, -past % stride)  # queries that complete a block of the past
        blocks, rest = divmod(queries - lead, stride)
        pieces = []
        if lead:
            begun = past - past % stride
            seen = causal_mask(lead, past + lead - begun)
            pieces.append(Piece(whole(0, lead), whole(begun, past + lead), mask=seen))
        for first, count in chunks(blocks, stride):
            start = lead + first * stride
            pieces.append(Piece(rows(start, stride, count), rows(past + start, stride, count), causal=True))
        if rest:
            pieces.append(Piece(whole(queries - rest, queries), whole(keys - rest, keys), causal=True))
        group = max(CHUNK, queries // 16)
        for start in range(max(0, stride - past), queries, group):
            stop = min(queries, start + group)
            before = (past + stop - 1) // stride  # number of blocks before that of the last query
            block_of_query = torch.arange(past + start, past + stop)[:, None] // stride
            seen = torch.arange(before * self.summary) // self.summary < block_of_query
            keys_of = summary_keys(stride, self.summary, before)
            pieces.append(Piece(whole(start, stop), keys_of, mask=seen, adds=True))
        return pieces


Pattern = Dense | Banded | Strided | Fixed


def build_pattern(config: GPTConfig, name: str) -> Pattern:
    """Returns the pattern of a name in `attention_patterns`, with the configuration's sizes.

    Raises:
        ValueError: no such pattern.
    """
    match name:
        case "dense":
            return Dense()
        case "banded":
            return Banded(config.sliding_window)
        case "strided":
            return Strided(config.attention_stride)
        case "fixed":
            return Fixed(config.attention_stride, config.attention_summary_size)
    raise ValueError(f"unknown attention pattern {name!r}")


# --- views of one sequence: (heads, length, d) to (X, heads, slots, d) or (X, heads, parts, slots, d) -----------------

View = Callable[[torch.Tensor], torch.Tensor]


def chunks(blocks: int, block: int) -> Iterator[tuple[int, int]]:
    """Splits blocks of `block` queries into groups of about CHUNK queries: yields first block and number of each."""
    step = max(1, CHUNK // block)
    return ((first, min(step, blocks - first)) for first in range(0, blocks, step))


def causal_mask(queries: int, keys: int) -> torch.Tensor:
    """Returns True where a key is not later than the query, (queries, keys). The queries are the last of the keys."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def whole(start: int, stop: int) -> View:
    """Views consecutive slots."""
    return lambda states: states[None, :, start:stop]


def rows(start: int, size: int, count: int) -> View:
    """Views `count` consecutive blocks of `size` slots."""
    return lambda states: states[:, start : start + count * size].unflatten(1, (count, size)).transpose(0, 1)


def windows(start: int, size: int, parts: int, count: int) -> View:
    """Views `count` windows of `parts` blocks of `size` slots, each shifted by one block."""

    def view(states: torch.Tensor) -> torch.Tensor:
        slots = states[:, start : start + (count + parts - 1) * size]
        return slots.unfold(1, parts * size, size).permute(1, 0, 3, 2).unflatten(2, (parts, size))

    return view


def phases(start: int, width: int, stride: int, count: int) -> View:
    """Views `count` slots at distance `stride`, starting from each of `width` neighbors."""
    return lambda states: states[:, start:].unfold(1, width, stride)[:, :count].permute(3, 0, 1, 2)


def summary_keys(stride: int, summary: int, count: int) -> View:
    """Views the last `summary` slots of each of the first `count` blocks."""
    return lambda states: states[:, stride - summary :].unfold(1, summary, stride)[:, :count].permute(0, 1, 3, 2)[None]
