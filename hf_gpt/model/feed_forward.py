"""The feed-forward layer of a block: plain or gated."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.activations import ACT2FN

from .configuration_gpt import GPTConfig
from .linear import (
    Linear,
    OneDNNLinear,
    compute_dtype,
    is_bare,
    linear_gradients,
    project_together,
    suits_onednn,
)

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


class ActivatedLinear(torch.autograd.Function):
    """A linear layer of an activation, of which only what enters it is kept: the activation is computed once more."""

    @staticmethod
    def forward(
        ctx: Any,
        activate: Callable[..., torch.Tensor],
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *entering: torch.Tensor,
    ) -> torch.Tensor:
        ctx.activate = activate
        ctx.save_for_backward(weight, bias, *entering)
        return OneDNNLinear.forward(activate(*entering), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, bias, *entering = ctx.saved_tensors
        _, of_weight, of_bias, *of_entering = ctx.needs_input_grad
        needed = (any(of_entering), of_weight, of_bias)
        entering = [each.detach().requires_grad_() for each in entering]
        with torch.enable_grad():
            active = ctx.activate(*entering)
        to_active, *to_parameters = linear_gradients(gradient, active.detach(), (weight, bias), needed)
        to_entering = [None] * len(entering)
        if to_active is not None:
            to_entering = torch.autograd.grad(active, entering, to_active)
        return None, *to_parameters, *to_entering


# What is larger is computed once more in the backward pass: a CPU's allocator would map its memory anew in every step.
KEPT_BYTES = 32 * 2**20


def activate_and_project(
    activate: Callable[..., torch.Tensor], layer: nn.Module, *entering: torch.Tensor
) -> torch.Tensor:
    """layer(activate(entering)); a large activation, on a CPU where gradients are recorded, is not kept."""
    if torch.is_grad_enabled() and is_bare(layer):
        dtype = compute_dtype(entering[0])
        suits = entering[0].dtype == dtype and suits_onednn(dtype, layer.weight, layer.bias, *entering)
        if suits and entering[0].nbytes > KEPT_BYTES:
            return ActivatedLinear.apply(activate, layer.weight, layer.bias, *entering)
    return layer(activate(*entering))


class MLP(nn.Module):
    """down(act(up(x))), (B, T, hidden_size) to the same."""

    def __init__(self, config: GPTConfig, inner: int) -> None:
        super().__init__()
        self.up_proj = Linear(config.hidden_size, inner, bias=config.mlp_bias)
        self.down_proj = Linear(inner, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.writes_to_residual = True  # for its initial weights
        self.act_fn = build_activation(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return activate_and_project(self.act_fn, self.down_proj, self.up_proj(hidden_states))


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
        gate_and_up = project_together(hidden_states, self.gate_proj, self.up_proj)
        return activate_and_project(self.combine, self.down_proj, *gate_and_up)


def build_mlp(config: GPTConfig, inner: int) -> nn.Module:
    """Plain or gated, `inner` wide inside."""
    return MLP(config, inner) if config.mlp_type == "mlp" else GatedMLP(config, inner)
