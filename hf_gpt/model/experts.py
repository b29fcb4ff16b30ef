"""The experts of a sparse layer: their stacked weights, and their products with the tokens routed to them."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from .backends import is_plain, is_traced, matmul
from .configuration_gpt import GPTConfig
from .differentiation import differentiate, is_transformed
from .feed_forward import GATES, build_activation
from .linear import compute_dtype


class Experts(nn.Module):
    """The feed-forward layers of all experts, computed by transformers' experts interface.

    Weights are (experts, in, out), as in gpt-oss, which is the faster layout for one token. `gate_up_proj` of a gated
    expert holds the columns of the gate, then those of `up`.
    """

    # The layout, in the terms of the interface.
    is_transposed = True
    is_concatenated = True
    has_post_expert_norm = False
    _is_expert_parallel = False

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_experts = config.num_local_experts
        self.has_gate = config.mlp_type in GATES
        self.has_bias = config.mlp_bias
        width, intermediate = config.hidden_size, config.moe_intermediate_size
        if self.has_gate:
            self.first, first_width = "gate_up_proj", 2 * intermediate
            self.combine = GATES[config.mlp_type](config)
        else:
            self.first, first_width = "up_proj", intermediate
            self.act_fn = build_activation(config)
        for name, into, out in ((self.first, width, first_width), ("down_proj", intermediate, width)):
            self.register_parameter(name, nn.Parameter(torch.empty(self.num_experts, into, out)))
            bias = nn.Parameter(torch.empty(self.num_experts, out)) if self.has_bias else None
            self.register_parameter(f"{name}_bias", bias)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self.combine(*gate_up.chunk(2, dim=-1))

    def activate(self, inputs: torch.Tensor) -> torch.Tensor:
        """Applies what is between the two linear layers of an expert: the gate or the activation."""
        return self._apply_gate(inputs) if self.has_gate else self.act_fn(inputs)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Returns the weighted sum of the outputs of each token's experts: (N, hidden_size), indices and weights of
        (N, k), to (N, hidden_size)."""
        run = ALL_EXPERTS_FUNCTIONS.get_interface(self.implementation(hidden_states), eager_experts)
        return run(self, hidden_states, top_k_index, top_k_weights)

    def implementation(self, hidden_states: torch.Tensor) -> str:
        """Returns the configured implementation, or the one that serves where it cannot run."""
        name = self.config._experts_implementation
        if name == "eager" and is_traced(hidden_states):  # a graph cannot depend on the tokens of each expert
            name = "grouped_mm" if torch.compiler.is_compiling() else "batched_mm"
        if name == "grouped_mm" and hidden_states.dtype == torch.float64:  # grouped_mm has none
            name = "batched_mm" if is_traced() else "eager"
        return name


def eager_experts(
    experts: Experts, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Computes one expert after the other, each for the tokens that are routed to it.

    Args:
        hidden_states: (N, hidden_size).
        top_k_index, top_k_weights: (N, k), the experts of each token and their weights in its output. An index of
            `num_experts` or more belongs to another rank and is skipped.

    Returns:
        (N, hidden_size).
    """
    names = (experts.first, f"{experts.first}_bias", "down_proj", "down_proj_bias")
    parameters = [getattr(experts, name) for name in names]
    run = ExpertsInTurn.apply if is_plain(hidden_states, *parameters) else experts_in_turn
    routing = Routing.of(top_k_index, experts.num_experts)
    return run(experts.activate, routing, compute_dtype(hidden_states), hidden_states, top_k_weights, *parameters)


class Routing(NamedTuple):
    """The choices of all tokens, sorted by expert: n of (N x k), without those of other ranks."""

    order: torch.Tensor
    """(n,), indices into the flattened choices."""
    origin: torch.Tensor
    """(n,), the token of each choice."""
    spans: list[tuple[int, slice]]
    """For each expert that has tokens, its slice of the order."""

    @classmethod
    def of(cls, indices: torch.Tensor, num_experts: int) -> "Routing":
        """Sorts the choices, (N, k)."""
        chosen, order = indices.flatten().sort(stable=True)
        counts = torch.bincount(chosen, minlength=num_experts)[:num_experts].tolist()
        ends = list(accumulate(counts, initial=0))
        spans = [(expert, slice(*ends[expert : expert + 2])) for expert in range(num_experts) if counts[expert]]
        order = order[: ends[-1]]
        return cls(order, order // indices.shape[-1], spans)


def experts_in_turn(
    activate: Callable[[torch.Tensor], torch.Tensor],
    routing: Routing,
    dtype: torch.dtype,
    tokens: torch.Tensor,
    shares: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    down: torch.Tensor,
    down_bias: torch.Tensor | None,
    save: Callable[[torch.Tensor], None] = lambda inputs: None,
) -> torch.Tensor:
    """(N, hidden_size) to the same shape, by products in `dtype`. Shares are (N, k), weights (experts, in, out), biases
    (experts, out). `save` receives the inputs of each activation."""
    share = shares.flatten()[routing.order, None]  # (n, 1)
    output = torch.zeros_like(tokens)
    for expert, rows in routing.spans:
        inputs = affine(tokens[routing.origin[rows]].to(dtype), first, first_bias, expert)
        save(inputs)
        result = affine(activate(inputs), down, down_bias, expert) * share[rows]
        output.index_add_(0, routing.origin[rows], result.to(output.dtype))
    return output


class ExpertsInTurn(torch.autograd.Function):
    """`experts_in_turn` with a backward of its own.

    Autograd would save every intermediate tensor of every expert, and allocate a gradient of the size of all weights
    for each. Here only the inputs of the activation are saved, and the activation is recomputed. The gradient of a
    weight in the output needs no output: g . (a W + b) = (g W^T) . a + g . b.
    """

    @staticmethod
    def forward(
        ctx: Any,
        activate: Callable[[torch.Tensor], torch.Tensor],
        routing: Routing,
        dtype: torch.dtype,
        *tensors: torch.Tensor | None,
    ) -> torch.Tensor:
        saved_inputs: list[torch.Tensor] = []
        ctx.options = activate, routing, dtype
        output = experts_in_turn(activate, routing, dtype, *tensors, save=saved_inputs.append)
        ctx.save_for_backward(*tensors, *saved_inputs)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens, shares, first, first_bias, down, down_bias, *all_inputs = ctx.saved_tensors
        parameters = (first, first_bias, down, down_bias)
        if is_transformed(gradient):
            inputs = (*ctx.options, tokens, shares, *parameters)
            return differentiate(experts_in_turn, inputs, ctx.needs_input_grad, gradient)
        activate, (order, origin, spans), dtype = ctx.options
        share = shares.flatten()[order, None]
        to_tokens, to_share = torch.zeros_like(tokens), shares.new_zeros(shares.numel())
        needed = ctx.needs_input_grad[-len(parameters) :]
        to_parameters = [torch.empty_like(p) if need else None for p, need in zip(parameters, needed, strict=True)]
        to_first, to_first_bias, to_down, to_down_bias = to_parameters

        for (expert, rows), inputs in zip(spans, all_inputs, strict=True):
            states, from_output = (each[origin[rows]].to(dtype) for each in (tokens, gradient))
            with torch.enable_grad():
                inputs = inputs.detach().requires_grad_()
                active = activate(inputs)  # (rows, intermediate)
            to_active = matmul(from_output, down[expert].t().to(dtype))
            products = (to_active * active.detach()).sum(dim=-1, dtype=shares.dtype)
            if down_bias is not None:
                products += from_output.to(shares.dtype) @ down_bias[expert].to(shares.dtype)
            to_share[order[rows]] = products

            to_result = (from_output * share[rows]).to(dtype)
            (to_inputs,) = torch.autograd.grad(active, inputs, (to_active * share[rows]).to(dtype))
            to_tokens.index_add_(0, origin[rows], matmul(to_inputs, first[expert].t().to(dtype)).to(tokens.dtype))
            for to_weight, to_bias, left, right in (
                (to_first, to_first_bias, states, to_inputs),
                (to_down, to_down_bias, active.detach(), to_result),
            ):
                if to_weight is not None:
                    to_weight[expert] = matmul(left.t(), right)
                if to_bias is not None:
                    to_bias[expert] = right.sum(dim=0)

        idle = sorted(set(range(len(first))) - {expert for expert, _ in spans})
        for to_parameter in to_parameters:
            if to_parameter is not None:
                to_parameter[idle] = 0
        return None, None, None, to_tokens, to_share.view(shares.shape), *to_parameters


def affine(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, expert: int) -> torch.Tensor:
    """Returns the output of one linear layer of one expert, in the dtype of `states`."""
    bias = None if bias is None else bias[expert].to(states.dtype)
    return matmul(states, weight[expert].to(states.dtype), bias)
