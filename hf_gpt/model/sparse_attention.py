"""Attention over a union of pieces, each a batch of small attentions that computes only the scores of the pattern.

A query whose keys are in several pieces gets the softmax over all of them: the outputs of the pieces are combined by
their log-sum-exp, and in backward each piece receives the combined output and log-sum-exp, as in ring attention (Liu et
al. 2023). An attention sink is one more term of the same sum. Pieces are views of queries and keys: no (T x T) tensor
is allocated.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .backends import flash_attention, flash_attention_backward, is_plain, plain_attention
from .differentiation import differentiate, is_transformed
from .linear import compute_dtype


class Piece(NamedTuple):
    """A batch of X small attentions between some queries and some keys of one sequence."""

    queries: Callable[[torch.Tensor], torch.Tensor]  # (heads, queries, d) to (X, heads, q, d), a view
    keys: Callable[[torch.Tensor], torch.Tensor]  # (kv_heads, keys, d) to (X, kv_heads, [parts,] k, d), a view
    causal: bool = False  # the i-th query sees the first i + 1 keys
    mask: torch.Tensor | None = None  # (q, parts x k) or (X, 1, q, parts x k), True where a key is seen
    adds: bool = False  # its queries have been in an earlier piece
    overlaps: bool = False  # attentions of the batch share keys


class Span(NamedTuple):
    """One sequence: consecutive slots of one row. Its queries are the last of its keys."""

    row: int
    first_query: int
    first_key: int
    queries: int
    keys: int

    def of_queries(self, states: torch.Tensor) -> torch.Tensor:
        return states[self.row, :, self.first_query : self.first_query + self.queries]

    def of_keys(self, states: torch.Tensor) -> torch.Tensor:
        return states[self.row, :, self.first_key : self.first_key + self.keys]


class Batch(NamedTuple):
    """All rows as one batch."""

    def of_queries(self, states: torch.Tensor) -> torch.Tensor:
        return states

    of_keys = of_queries


Jobs = Sequence[tuple[Span | Batch, Sequence[Piece]]]


def attend_by_pieces(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    jobs: Jobs,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Softmax attention of each query over the keys of all its pieces and the sink.

    Args:
        query: (B, heads, T, head_dim).
        key, value: (B, kv_heads, keys, head_dim).
        sinks: (heads,), the score of a key without a value.
        jobs: the pieces of each sequence. Queries in no piece get zeros.
        scaling: factor on the scores.
        dropout: probability of dropout on the attention probabilities.

    Returns:
        (B, T, heads, head_dim).
    """
    # Under autocast, as scaled_dot_product_attention does. RoPE may have left queries and keys in float32.
    query, key, value = (states.to(compute_dtype(states)) for states in (query, key, value))
    if query.is_cpu and not dropout and is_plain(query, key, value, sinks):
        return UnionAttention.apply(query, key, value, sinks, jobs, scaling)[0].transpose(1, 2)
    return union_attention(query, key, value, sinks, jobs, scaling, dropout).transpose(1, 2)


class CPUKernels(NamedTuple):
    """Computes pieces by the kernels of the CPU, and writes results in place."""

    scaling: float

    def attend(
        self, piece: Piece, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the output of a piece, (X, heads, q, head_dim), and its log-sum-exp, (X, heads, q, 1)."""
        return flash_attention(query, key, value, additive(piece.mask, query), piece.causal, self.scaling)

    def put(self, piece: Piece, whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Writes the result of a piece into that of the sequence, and returns the latter."""
        piece.queries(whole).copy_(part)
        return whole


class Plain(NamedTuple):
    """Computes pieces in differentiable operations: on every device, with dropout, and inside a compiled graph."""

    scaling: float
    dropout: float

    def attend(
        self, piece: Piece, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the same as `CPUKernels.attend`."""
        mask = additive(piece.mask, query)
        return plain_attention(query, key, value, mask, piece.causal, self.scaling, self.dropout)

    def put(self, piece: Piece, whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Returns the result of the sequence with that of a piece written to it, as a new tensor."""
        if part.shape == whole.shape:
            return part
        slots = piece.queries(torch.arange(whole.shape[1], device=whole.device)[None, :, None]).flatten()
        return whole.index_copy(1, slots, part.transpose(0, 1).flatten(1, 2).to(whole.dtype))


def combine(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    jobs: Jobs,
    by: CPUKernels | Plain,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the output, (B, heads, T, head_dim), and the log-sum-exp of all scores, (B, heads, T, 1)."""
    batch, heads, length, head_dim = query.shape
    output = query.new_zeros(batch, length, heads, head_dim).transpose(1, 2)
    total = query.new_zeros(batch, heads, length, 1, dtype=torch.promote_types(query.dtype, torch.float32))
    for span, pieces in jobs:
        q, k, v = span.of_queries(query), span.of_keys(key), span.of_keys(value)
        o, t = places = span.of_queries(output), span.of_queries(total)
        for piece in pieces:
            part, logsumexp = by.attend(piece, piece.queries(q), *(piece.keys(x).flatten(2, -2) for x in (k, v)))
            if piece.adds:
                before, sofar = piece.queries(o).to(t.dtype), piece.queries(t)
                part = torch.lerp(before, part.to(t.dtype), torch.sigmoid(logsumexp - sofar))
                logsumexp = torch.logaddexp(sofar, logsumexp)
            o, t = by.put(piece, o, part), by.put(piece, t, logsumexp)
        if o is not places[0]:
            places[0].copy_(o)
            places[1].copy_(t)
    if sinks is not None:
        sink = sinks[:, None, None].to(total.dtype)
        output = (output * torch.sigmoid(total - sink)).to(query.dtype)
        total = torch.logaddexp(total, sink)
    return output, total


class UnionAttention(torch.autograd.Function):
    """`combine` by kernels. It saves queries, keys, values, the output and one number for each query and head."""

    @staticmethod
    def forward(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        jobs: Jobs,
        scaling: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return combine(query, key, value, sinks, jobs, CPUKernels(scaling))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, outputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        *tensors, ctx.jobs, ctx.scaling = inputs
        ctx.save_for_backward(*tensors, *outputs)
        ctx.mark_non_differentiable(outputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, sinks, output, total = ctx.saved_tensors
        if is_transformed(gradient):
            inputs = (query, key, value, sinks, ctx.jobs, ctx.scaling)
            return differentiate(union_attention, inputs, ctx.needs_input_grad, gradient)
        grads = tuple(torch.zeros_like(states) for states in (query, key, value))
        for span, pieces in ctx.jobs:
            by_query = tuple(span.of_queries(x) for x in (gradient, query, output, total))
            by_key = tuple(span.of_keys(x) for x in (key, value))
            for piece in pieces:
                g, q, o, t = (piece.queries(x) for x in by_query)
                k, v = (piece.keys(x).flatten(2, -2) for x in by_key)
                mask = additive(piece.mask, q)
                to_query, *to_keys = flash_attention_backward(g, q, k, v, o, t, mask, piece.causal, ctx.scaling)
                piece.queries(span.of_queries(grads[0])).add_(to_query)
                for total_gradient, part in zip(grads[1:], to_keys, strict=True):
                    add_to_keys(piece.keys(span.of_keys(total_gradient)), part, piece.overlaps)
        to_sinks = None
        if sinks is not None:  # a sink takes probability from the keys and has no value
            probability = torch.exp(sinks[:, None, None] - total)
            to_sinks = -(probability * (gradient * output).sum(-1, keepdim=True)).sum((0, 2, 3)).to(sinks.dtype)
        return *grads, to_sinks, None, None


def union_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    jobs: Jobs,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """The output of `UnionAttention` in differentiable operations, and with dropout."""
    return combine(query, key, value, sinks, jobs, Plain(scaling, dropout))[0]


def additive(mask: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor | None:
    """Returns a mask to be added to the scores, (X or 1, 1, q, k). It is finite, also for a query without any key."""
    if mask is None:
        return None
    mask = mask.to(states.device).view((1,) * (4 - mask.ndim) + mask.shape)
    if mask.dtype != torch.bool:
        return mask.to(states.dtype)
    return torch.zeros_like(mask, dtype=states.dtype).masked_fill_(~mask, torch.finfo(states.dtype).min)


def add_to_keys(whole: torch.Tensor, part: torch.Tensor, overlaps: bool) -> None:
    """Adds the gradient of a piece's keys, (X, kv_heads, parts x k, d), to the piece's view of all keys' gradient."""
    part = part.unflatten(2, whole.shape[2:-1])
    if not overlaps:
        whole.add_(part)
        return
    for index in range(whole.shape[2]):  # equal parts of different attentions are disjoint
        whole[:, :, index].add_(part[:, :, index])
