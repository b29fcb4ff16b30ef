"""The feed-forward layer of a block: plain or gated."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_gpt import GPTConfig
from .differentiation import differentiate, is_transformed
from .linear import OneDNNLinear, Route, cast, compute_dtype, linear_gradients, project, project_together, route

# Other names of one function. transformers implements the first as a chain of elementwise operations, each of which
# saves a tensor for backward; the last is one kernel.
SAME_FUNCTION = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}


def build_activation(config: GPTConfig) -> nn.Module:
    """Returns the activation that `config.hidden_act` names."""
    return ACT2FN[SAME_FUNCTION.get(config.hidden_act, config.hidden_act)]


class ActivatedGate(nn.Module):
    """act(gate) * up (Shazeer 2020)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.act_fn = build_activation(config)

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return self.act_fn(gate) * up


class ClampedGate(nn.Module):
    """g * sigmoid(alpha * g) * (u + 1), with g = min(gate, limit) and u = clamp(up, -limit, limit) (gpt-oss)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.alpha, self.limit = config.swiglu_alpha, config.swiglu_limit

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(gate * self.alpha) * (up + 1)


GATES = {"glu": ActivatedGate, "clamped_glu": ClampedGate}


class ActivatedLinear(torch.autograd.Function):
    """A linear layer of an activation. It saves the input of the activation alone and recomputes the activation in
    backward."""

    @staticmethod
    def forward(
        ctx: Any,
        activate: Callable[..., torch.Tensor],
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *inputs: torch.Tensor,
    ) -> torch.Tensor:
        ctx.activate = activate
        ctx.save_for_backward(weight, bias, *inputs)
        return OneDNNLinear.forward(activate(*inputs), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, bias, *inputs = ctx.saved_tensors
        if is_transformed(gradient):
            arguments = (ctx.activate, weight, bias, *inputs)
            return differentiate(activated_linear, arguments, ctx.needs_input_grad, gradient)
        _, needs_weight, needs_bias, *needs_inputs = ctx.needs_input_grad
        inputs = [each.detach().requires_grad_() for each in inputs]
        with torch.enable_grad():
            active = ctx.activate(*inputs)
        to_active, *to_parameters = linear_gradients(
            gradient, active.detach(), (weight, bias), (any(needs_inputs), needs_weight, needs_bias)
        )
        to_inputs = [None] * len(inputs)
        if to_active is not None:
            to_inputs = torch.autograd.grad(active, inputs, to_active)
        return None, *to_parameters, *to_inputs


def activated_linear(
    activate: Callable[..., torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None, *inputs: torch.Tensor
) -> torch.Tensor:
    """`ActivatedLinear` in differentiable operations."""
    active = activate(*inputs)
    return nn.functional.linear(active, cast(weight, active.dtype), cast(bias, active.dtype))


# A larger activation is recomputed in backward: the allocator of a CPU maps memory anew above this size in every step,
# which takes longer than the activation (benchmarks/RESULTS.md, training step).
RECOMPUTED_BYTES = 32 * 2**20


def is_recomputed(inputs: torch.Tensor) -> bool:
    """True for a large activation in the dtype of products."""
    return inputs.nbytes > RECOMPUTED_BYTES and inputs.dtype == compute_dtype(inputs)


def activate_and_project(
    activate: Callable[..., torch.Tensor], layer: nn.Module, *inputs: torch.Tensor
) -> torch.Tensor:
    """Returns layer(activate(inputs)), inputs of (..., intermediate) to (..., out). On a CPU a large activation is not
    saved for backward."""
    if torch.is_grad_enabled() and route(layer, *inputs) is Route.ONEDNN and is_recomputed(inputs[0]):
        matrices = [each.reshape(-1, each.shape[-1]) for each in inputs]
        output = ActivatedLinear.apply(activate, layer.weight, layer.bias, *matrices)
        return output.view(*inputs[0].shape[:-1], output.shape[-1])
    return project(layer, activate(*inputs))


class MLP(nn.Module):
    """down(act(up(x))), (B, T, hidden_size) to the same shape."""

    def __init__(self, config: GPTConfig, intermediate_size: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.writes_to_residual = True  # for its initial weights
        self.act_fn = build_activation(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return activate_and_project(self.act_fn, self.down_proj, project(self.up_proj, hidden_states))


class GatedMLP(nn.Module):
    """down(combine(gate(x), up(x))), (B, T, hidden_size) to the same shape."""

    def __init__(self, config: GPTConfig, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.writes_to_residual = True
        self.combine = GATES[config.mlp_type](config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate_and_up = project_together(hidden_states, self.gate_proj, self.up_proj)
        return activate_and_project(self.combine, self.down_proj, *gate_and_up)


def build_mlp(config: GPTConfig, intermediate_size: int) -> nn.Module:
    """Returns the plain or gated feed-forward layer that `config.mlp_type` names."""
    return MLP(config, intermediate_size) if config.mlp_type == "mlp" else GatedMLP(config, intermediate_size)
