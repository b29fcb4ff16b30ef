"""The linear layer of every projection: nn.Linear, and oneDNN's matrix product where PyTorch does not choose it."""

import torch
from torch import nn

from .quantized_weights import PRODUCTS, forget_packed

# What inductor compiles a linear layer to on a CPU. It has no backward, and no kernel in builds without oneDNN.
ONEDNN_LINEAR = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None


def suits_onednn(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """Float32 on a CPU; in bfloat16 PyTorch takes oneDNN itself."""
    return (
        ONEDNN_LINEAR is not None
        and states.dtype == weight.dtype == torch.float32
        and states.device.type == "cpu"
        and type(states) is torch.Tensor  # neither quantised, nor sharded, nor fake
        and type(weight) in (nn.Parameter, torch.Tensor)
        and not torch.is_autocast_enabled("cpu")
    )


def matmul(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(n, m) times (m, k), and a bias, (k,); for where no gradient is recorded."""
    if suits_onednn(left, right):
        return ONEDNN_LINEAR(left, right.t(), bias, "none", [], "")
    return left @ right if bias is None else torch.addmm(bias, left, right)


class Linear(nn.Linear):
    """x W^T + b.

    In float32 without gradients a CPU takes oneDNN: 1.1 to 2 times as fast as the BLAS that `F.linear` calls, from one
    row to a thousand (benchmarks/RESULTS.md). A quantised weight has a product of its own.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if (product := PRODUCTS.get(type(self.weight).__name__)) is not None:
            return product(states, self.weight, self.bias)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not suits_onednn(states, self.weight):
            return super().forward(states)
        return ONEDNN_LINEAR(states, self.weight, self.bias, "none", [], "")

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        forget_packed(self.weight)
