"""The token embeddings: nn.Embedding, whose gradient on a CPU is written where there are tokens alone, and whose table
may be quantised."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .linear import is_plain
from .quantized_weights import look_up_int8


class Lookup(torch.autograd.Function):
    """Rows of a matrix. Memory that is zero already (calloc) takes the gradient: pages without a token in them are
    never touched, and added to the gradient of a tied head at the price of reading alone."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        return nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (ids,) = ctx.saved_tensors
        total = torch.from_numpy(np.zeros(ctx.shape, np.float32))
        return total.index_add_(0, ids.flatten(), gradient.flatten(0, -2)), None


class Embedding(nn.Embedding):
    """(B, T) token ids to (B, T, embedding_dim)."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if type(self.weight).__name__ == "Int8Tensor":
            return look_up_int8(self.weight, ids)
        on_cpu = self.weight.device.type == ids.device.type == "cpu" and self.weight.dtype == torch.float32
        if not (torch.is_grad_enabled() and on_cpu and is_plain(self.weight)):
            return super().forward(ids)
        return Lookup.apply(self.weight, ids)
