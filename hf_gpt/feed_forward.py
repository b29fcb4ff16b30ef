"""The feed-forward layer of a block: plain or gated."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_gpt import GPTConfig
from .linear import Linear, project_together

# Names of one function: the first is written out in transformers, a stored tensor for each step of its formula.
SAME_FUNCTION = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}


def build_activation(config: GPTConfig) -> nn.Module:
    return ACT2FN[SAME_FUNCTION.get(config.hidden_act, config.hidden_act)]


class ActivatedGate(nn.Module):
    """act(gate) * up (Shazeer 2020)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.act_fn = build_activation(config)

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return self.act_fn(gate) * up


class ClampedGate(nn.Module):
    """g * sigmoid(alpha * g) * (u + 1), where g is cut off above and u on both sides (gpt-oss)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.alpha, self.limit = config.swiglu_alpha, config.swiglu_limit

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(gate * self.alpha) * (up + 1)


GATES = {"glu": ActivatedGate, "clamped_glu": ClampedGate}


class MLP(nn.Module):
    """down(act(up(x))), (B, T, hidden_size) to the same."""

    def __init__(self, config: GPTConfig, inner: int) -> None:
        super().__init__()
        self.up_proj = Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.down_proj = Linear(inner, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.writes_to_residual = True  # for its initial weights
        self.act_fn = build_activation(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class GatedMLP(nn.Module):
    """down(combine(gate(x), up(x)))."""

    def __init__(self, config: GPTConfig, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.down_proj = Linear(inner, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.writes_to_residual = True
        self.combine = GATES[config.mlp_type](config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = project_together(hidden_states, self.gate_proj, self.up_proj)
        return self.down_proj(self.combine(gate, up))


def build_mlp(config: GPTConfig, inner: int) -> nn.Module:
    """Plain or gated, `inner` wide inside."""
    return MLP(config, inner) if config.mlp_type == "mlp" else GatedMLP(config, inner)
