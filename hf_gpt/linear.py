"""The linear layer of every projection: nn.Linear, and oneDNN's matrix product where PyTorch does not choose it."""

import torch
from torch import nn

# What inductor compiles a linear layer to on a CPU. It has no backward, and no kernel in builds without oneDNN.
ONEDNN_LINEAR = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None


class Linear(nn.Linear):
    """x W^T + b.

    In float32 without gradients a CPU takes oneDNN: 1.1 to 2 times as fast as the BLAS that `F.linear` calls, from one
    row to a thousand (benchmarks/RESULTS.md). In bfloat16 PyTorch takes it itself.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not self._suits_onednn(states):
            return super().forward(states)
        return ONEDNN_LINEAR(states, self.weight, self.bias, "none", [], "")

    def _suits_onednn(self, states: torch.Tensor) -> bool:
        return (
            ONEDNN_LINEAR is not None
            and states.dtype == self.weight.dtype == torch.float32
            and states.device.type == "cpu"
            and type(states) is torch.Tensor  # neither quantised, nor sharded, nor fake
            and type(self.weight) is nn.Parameter
            and not torch.is_autocast_enabled("cpu")
        )
