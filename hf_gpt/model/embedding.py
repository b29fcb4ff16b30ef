"""The token embeddings: nn.Embedding, whose table may be quantised, and whose gradient joins that of a tied output
layer."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .linear import is_bare, is_plain
from .positions import check_indices
from .quantized_weights import look_up_int8


class Embedding(nn.Embedding):
    """(B, T) token ids to (B, T, embedding_dim)."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if type(self.weight).__name__ == "Int8Tensor":
            return look_up_int8(self.weight, ids)
        return super().forward(ids)


class WrittenOut(torch.autograd.Function):
    """The same matrix, for several uses; the sum of their gradients leaves it dense."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.to_dense() if gradient.is_sparse else gradient


class Lookup(torch.autograd.Function):
    """Rows of a matrix, whose gradient holds those rows alone."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        return nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (ids,) = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        return torch.sparse_coo_tensor(ids.reshape(1, -1), rows, ctx.shape, check_invariants=False), None


def worth_tying(embedding: nn.Module, head: nn.Module, ids: torch.Tensor | None) -> bool:
    """Whether `look_up_tied` may stand for the embedding, and gains anything: the two have one weight, which learns on
    a CPU, and nothing is wrapped round either."""
    if ids is None or not (torch.is_grad_enabled() and is_bare(embedding, Embedding) and is_bare(head)):
        return False
    weight = head.weight
    learns = embedding.weight is weight and weight.requires_grad and weight.dtype == torch.float32
    return learns and weight.is_cpu and ids.is_cpu and is_plain(weight)


def look_up_tied(weight: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of the ids, (B, T, D), and the same weight, (vocabulary, D), as the output layer is to use it.

    The gradient of the embeddings is added to that of the output layer in place. Otherwise autograd writes it out
    first: of GPT-2 that is 154 MB, nearly all zero, and a twentieth of a training step.

    Raises:
        ValueError: a token id outside the vocabulary.
    """
    check_indices("input_ids", ids, "vocab_size", len(weight))
    shared = WrittenOut.apply(weight)
    # The head's comes first: what is recorded first waits, in the backward pass, for all the others; and a dense
    # gradient that follows a sparse one takes it in place.
    for_head = torch.ops.aten.alias(shared)
    return Lookup.apply(shared, ids), for_head
