"""The lookup of token embeddings that are tied to the output layer: its gradient is added to that of the output layer
in place."""

from typing import Any

import torch
from torch import nn

from .backends import alias, is_plain
from .differentiation import is_transformed
from .linear import is_bare
from .positions import check_indices


class DenseGradient(torch.autograd.Function):
    """Returns the same matrix; the sum of the gradients of its uses leaves this function dense."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.to_dense() if gradient.is_sparse else gradient


class SparseLookup(torch.autograd.Function):
    """Returns rows of a matrix; the gradient is sparse and holds these rows alone."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (ids,) = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        if is_transformed(gradient):  # a sparse tensor has few operations with a second derivative
            return rows.new_zeros(ctx.shape).index_add(0, ids.flatten(), rows), None
        return torch.sparse_coo_tensor(ids.reshape(1, -1), rows, ctx.shape, check_invariants=False), None


def suits_tied_lookup(embedding: nn.Module, head: nn.Module, ids: torch.Tensor | None) -> bool:
    """True if `look_up_tied` computes what the embedding does for ids of (B, T), and is faster: both modules are bare
    and share one plain float32 weight on a CPU whose gradient is recorded."""
    if ids is None or not (torch.is_grad_enabled() and is_bare(embedding, nn.Embedding) and is_bare(head)):
        return False
    weight = head.weight
    is_trained = embedding.weight is weight and weight.requires_grad and weight.dtype == torch.float32
    return is_trained and weight.is_cpu and ids.is_cpu and is_plain(weight)


def look_up_tied(weight: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the embeddings of the ids, (B, T, D), and the same weight, (vocab_size, D), for the output layer.

    The gradient of the embeddings is added to that of the output layer in place. Otherwise autograd makes it dense
    first: 154 MB of mostly zeros for GPT-2, a twentieth of a training step (benchmarks/RESULTS.md, training step).

    Raises:
        ValueError: a token id outside the vocabulary.
    """
    check_indices("input_ids", ids, "vocab_size", len(weight))
    shared = DenseGradient.apply(weight)
    # Autograd runs what was recorded first last, and adds a sparse gradient to a dense one in place, not the reverse:
    # so the use by the head is recorded before the lookup.
    for_head = alias(shared)
    return SparseLookup.apply(shared, ids), for_head
