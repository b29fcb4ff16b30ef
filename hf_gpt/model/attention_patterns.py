"""Which keys a query sees: one class for each pattern, with its definition and its fast path.

    dense  x . . . . . . .    banded  x . . . . . . .    strided  x . . . . . . .    fixed  x . . . . . . .
           x x . . . . . .    (3)     x x . . . . . .    (3)      x x . . . . . .    (3, 1) x x . . . . . .
           x x x . . . . .            x x x . . . . .             x x x . . . . .           x x x . . . . .
           x x x x . . . .            . x x x . . . .             x x x x . . . .           . . x x . . . .
           x x x x x . . .            . . x x x . . .             . x x x x . . .           . . x x x . . .
           x x x x x x . .            . . . x x x . .             . . x x x x . .           . . x x x x . .
           x x x x x x x .            . . . . x x x .             x . . x x x x .           . . x . . x x .
           x x x x x x x x            . . . . . x x x             . x . . x x x x           . . x . . x x x

Queries and keys count logical positions: padding has none, and a packed sequence begins at 0.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

from .configuration_gpt import GPTConfig
from .sparse_attention import Piece

# Queries of one piece, about: what it needs for a moment stays small enough for memory to be used again, not asked for.
CHUNK = 1024


class Dense(NamedTuple):
    """Every key."""

    def keys_seen(self, position: int) -> int:
        return position + 1

    def keys_kept(self, length: int) -> int:
        """How many keys a dynamic cache holds after `length` tokens."""
        return length

    def visible(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(query - key, dtype=torch.bool)

    def pieces(self, keys: int, queries: int) -> list[Piece]:
        """All keys of the past, and the triangle."""
        past = keys - queries
        own = Piece(whole(0, queries), whole(past, keys), causal=True, adds=past > 0)
        return [Piece(whole(0, queries), whole(0, past)), own] if past else [own]


class Banded(NamedTuple):
    """q - k < window: GPT-Neo's local layers, GPT-3's locally banded ones, gpt-oss's sliding ones."""

    window: int

    @property
    def reach(self) -> int:
        """Sequences of at most this length see all of their keys."""
        return self.window

    def keys_seen(self, position: int) -> int:
        return min(position + 1, self.window)

    def keys_kept(self, length: int) -> int:
        return min(length, self.window - 1)

    def visible(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query - key < self.window

    def pieces(self, keys: int, queries: int) -> list[Piece]:
        """Cut queries, the last of the keys, into blocks; a block sees a window of as many keys as it may need."""
        past = keys - queries
        block = 64 if self.window <= 128 else 128 if self.window <= 512 else 256  # measured
        parts = -(-(self.window - 1) // block) + 1
        before = (parts - 1) * block  # keys of a window before its block
        head = min(queries, max(0, before - past))  # whose windows would begin before the first key
        blocks, tail = divmod(queries - head, block)
        pieces = [self._corner(past, 0, head)] if head else []
        mask = self._mask(block, before + block)
        for first, count in chunks(blocks, block):
            start = head + first * block
            keys_of = windows(past + start - before, block, parts, count)
            pieces.append(Piece(rows(start, block, count), keys_of, mask=mask, overlaps=True))
        return [*pieces, self._corner(past, queries - tail, queries)] if tail else pieces

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

    def keys_seen(self, position: int) -> int:
        return min(position + 1, self.stride) + position // self.stride

    def keys_kept(self, length: int) -> int:
        return length

    def visible(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        distance = query - key
        return (distance < self.stride) | (distance % self.stride == 0)

    def keys_of(self, position: torch.Tensor, most: int) -> torch.Tensor:
        """The keys of single queries at `position`, (B, 1), of at most `most`; negative numbers are none. (B, M)"""
        near = torch.arange(self.stride, device=position.device)
        far = torch.arange(1, most // self.stride + 1, device=position.device) * self.stride
        return position - torch.cat((near, far))

    def pieces(self, keys: int, queries: int) -> list[Piece]:
        """A band, and for each phase of the stride the causal attention of its column, its own key left out."""
        stride, past = self.stride, keys - queries
        columns = []
        edges = sorted({0, past % stride, keys % stride, stride})
        for phase, after in pairwise(edges):
            width = after - phase
            last = -(-(keys - phase) // stride)  # rows of these phases among the keys
            first = max(1, -(-(past - phase) // stride))  # the row of their first query that sees an earlier one
            if last <= first:
                continue
            seen = None if first == 1 else causal_mask(last - first, last - 1)
            queries_of = phases(phase - past + first * stride, width, stride, last - first)
            columns.append(Piece(queries_of, phases(phase, width, stride, last - 1), seen is None, seen, adds=True))
        return Banded(stride).pieces(keys, queries) + columns


class Fixed(NamedTuple):
    """k in the query's block of `stride`, or among the last `summary` of an earlier one (ibid., fixed)."""

    stride: int
    summary: int

    @property
    def reach(self) -> int:
        return self.stride

    def keys_seen(self, position: int) -> int:
        return position % self.stride + 1 + position // self.stride * self.summary

    def keys_kept(self, length: int) -> int:
        return length % self.stride + length // self.stride * self.summary

    def visible(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own = query // self.stride == key // self.stride
        padding = query < 0  # sees every key, as in the other patterns
        return padding | own | (key % self.stride >= self.stride - self.summary)

    def keys_of(self, position: torch.Tensor, most: int) -> torch.Tensor:
        block = position // self.stride  # (B, 1)
        own = position - torch.arange(self.stride, device=position.device)
        last = torch.arange(self.stride - self.summary, self.stride, device=position.device)
        blocks = torch.arange(most // self.stride, device=position.device)[:, None]
        summaries = (blocks * self.stride + last).flatten()  # (blocks x summary)
        own = own.masked_fill(own // self.stride != block, -1)
        summaries = torch.where(summaries // self.stride < block, summaries, -1)
        return torch.cat((own, summaries), dim=1)

    def pieces(self, keys: int, queries: int) -> list[Piece]:
        """Every block by itself; then groups of queries with the summaries of all earlier blocks."""
        stride, past = self.stride, keys - queries
        head = min(queries, -past % stride)  # the rest of a block that the past has begun
        blocks, tail = divmod(queries - head, stride)
        pieces = []
        if head:
            begun = past - past % stride
            seen = causal_mask(head, past + head - begun)
            pieces.append(Piece(whole(0, head), whole(begun, past + head), mask=seen))
        for first, count in chunks(blocks, stride):
            start = head + first * stride
            pieces.append(Piece(rows(start, stride, count), rows(past + start, stride, count), causal=True))
        if tail:
            pieces.append(Piece(whole(queries - tail, queries), whole(keys - tail, keys), causal=True))
        group = max(CHUNK, queries // 16)
        for start in range(max(0, stride - past), queries, group):
            stop = min(queries, start + group)
            before = (past + stop - 1) // stride  # blocks before that of the last query
            block_of_query = torch.arange(past + start, past + stop)[:, None] // stride
            seen = torch.arange(before * self.summary) // self.summary < block_of_query
            keys_of = summary_keys(stride, self.summary, before)
            pieces.append(Piece(whole(start, stop), keys_of, mask=seen, adds=True))
        return pieces


Pattern = Dense | Banded | Strided | Fixed


def build_pattern(config: GPTConfig, name: str) -> Pattern:
    """A pattern by its name in `attention_patterns`."""
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
    """The first of several blocks of `block` queries, and how many: about CHUNK queries each time."""
    step = max(1, CHUNK // block)
    return ((first, min(step, blocks - first)) for first in range(0, blocks, step))


def causal_mask(queries: int, keys: int) -> torch.Tensor:
    """True where a key is not later than the query; the queries are the last of the keys. (queries, keys)"""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def whole(start: int, stop: int) -> View:
    """Consecutive slots."""
    return lambda states: states[None, :, start:stop]


def rows(start: int, size: int, count: int) -> View:
    """`count` blocks of `size` slots, one after the other."""
    return lambda states: states[:, start : start + count * size].unflatten(1, (count, size)).transpose(0, 1)


def windows(start: int, size: int, parts: int, count: int) -> View:
    """`count` windows of `parts` blocks of `size` slots, each one block further."""

    def view(states: torch.Tensor) -> torch.Tensor:
        slots = states[:, start : start + (count + parts - 1) * size]
        return slots.unfold(1, parts * size, size).permute(1, 0, 3, 2).unflatten(2, (parts, size))

    return view


def phases(start: int, width: int, stride: int, count: int) -> View:
    """Slots that are `stride` apart, `count` of them, from each of `width` neighbours."""
    return lambda states: states[:, start:].unfold(1, width, stride)[:, :count].permute(3, 0, 1, 2)


def summary_keys(stride: int, summary: int, count: int) -> View:
    """The last `summary` slots of each of the first `count` blocks."""
    return lambda states: states[:, stride - summary :].unfold(1, summary, stride)[:, :count].permute(0, 1, 3, 2)[None]
