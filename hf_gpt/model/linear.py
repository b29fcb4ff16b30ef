"""The linear layer of every projection: nn.Linear, by oneDNN on a CPU."""

from collections.abc import Sequence
from contextvars import ContextVar
from enum import Enum
from typing import Any

import torch
from torch import nn

from .backends import is_plain, matmul, onednn_linear, pack_weight, suits_onednn
from .quantized_weights import forget_packed, is_quantized, multiply


class Route(Enum):
    """How the product of a linear layer is computed."""

    MODULE = "module"
    """By a call of the module: hooks, a wrapper, a subclass, a sharded weight, torch.compile or functorch needs it."""
    QUANTIZED = "quantized"
    """By the product of the weight's tensor class."""
    PLAIN = "plain"
    """By operations of torch on the weight, on any device."""
    ONEDNN = "onednn"
    """By oneDNN on a CPU."""


def route(layer: nn.Module, *states: torch.Tensor) -> Route:
    """Returns how a caller may compute `layer(states)`, states of (..., in): by the layer's own route if it is bare,
    else by the module."""
    return route_product(layer.weight, layer.bias, *states) if is_bare(layer) else Route.MODULE


def route_product(weight: torch.Tensor, bias: torch.Tensor | None, *states: torch.Tensor) -> Route:
    """Returns how to compute x W^T + b for the given states, which all have the same dtype."""
    if is_quantized(weight):
        return Route.QUANTIZED
    if suits_onednn(compute_dtype(states[0]), weight, bias, *states):
        return Route.ONEDNN
    return Route.PLAIN if is_plain(weight, bias, *states) else Route.MODULE


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_bare(layer: nn.Module, *types: type[nn.Module]) -> bool:
    """True if a call of the layer is just the `forward` of one of these types, by default of a linear layer: it has no
    hooks, no wrapper and no `forward` of its own."""
    attributes = vars(layer)
    is_wrapped = "forward" in attributes or any(attributes[hooks] for hooks in HOOKS)
    return type(layer) in (types or (Linear, nn.Linear)) and not is_wrapped


def compute_dtype(states: torch.Tensor) -> torch.dtype:
    """Returns the dtype of matrix products: that of autocast where it is enabled, which leaves float64 alone."""
    device = states.device.type
    is_lowered = torch.is_autocast_enabled(device) and states.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_lowered else states.dtype


# --- products by oneDNN, forward and backward ---------------------------------------------------------------------


class OneDNNLinear(torch.autograd.Function):
    """x W^T + b, where W may be given in several parts, stacked along the output features: one product for all of them,
    and one for each gradient.

    Under autocast a weight is cast in forward and again in backward, and the cast is not saved.
    """

    @staticmethod
    def forward(states: torch.Tensor, *parameters: torch.Tensor | None) -> torch.Tensor:
        """(..., in), weights of (out, in) and as many biases, (out,), to (..., sum of out)."""
        weight, bias = joined(parameters, states.dtype)
        return matmul(states, weight.t(), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, *parameters = ctx.saved_tensors
        return linear_gradients(gradient, states, parameters, ctx.needs_input_grad)


def linear_gradients(
    gradient: torch.Tensor,
    states: torch.Tensor,
    parameters: Sequence[torch.Tensor | None],
    needs_gradient: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """Returns the gradients of `OneDNNLinear` with respect to the states and each parameter; None where not needed."""
    weights, biases = halves(parameters)
    needs_states, *needs_parameters = needs_gradient
    to_states, to_weights, to_biases = None, [None] * len(weights), [None] * len(weights)
    if needs_states:
        to_states = matmul(gradient, joined(parameters, gradient.dtype)[0])
    gradient, states = gradient.flatten(0, -2), states.flatten(0, -2)
    rows = [len(weight) for weight in weights]
    if any(needs_parameters[: len(weights)]):
        to_weights = weight_gradient(gradient, states).to(weights[0].dtype).split(rows)
    if any(needs_parameters[len(weights) :]):
        to_biases = gradient.sum(dim=0).to(biases[0].dtype).split(rows)
    computed = (*to_weights, *to_biases)
    return to_states, *(each if need else None for each, need in zip(computed, needs_parameters, strict=True))


def weight_gradient(gradient: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """(N, out) and (N, in) to (out, in), by the library that is faster for the shape (benchmarks/RESULTS.md, the
    lineage)."""
    if gradient.dtype == torch.float32 and gradient.shape[1] <= states.shape[1]:
        return matmul(gradient.t(), states)
    return gradient.t() @ states


def halves(parameters: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Splits weights followed by as many biases."""
    middle = len(parameters) // 2
    return parameters[:middle], parameters[middle:]


def joined(parameters: Sequence[torch.Tensor | None], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Concatenates weights to one, and biases to one, in the given dtype."""
    weight, bias = (
        None if part[0] is None else (part[0] if len(part) == 1 else torch.cat(part)).to(dtype)
        for part in halves(parameters)
    )
    return weight, bias


# --- packed weights for decoding ----------------------------------------------------------------------------------


class PackedWeights:
    """bfloat16 weights in the memory layout that oneDNN reads fastest for a few rows, beside the plain ones
    (benchmarks/RESULTS.md, decoding and quantized weights)."""

    ROWS = 64
    BYTES = 2 * 2**30  # limit on all packed weights together
    MIN_CALLS = 24  # calls of a layer that pay for packing it

    def __init__(self) -> None:
        self.packed: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor | None]] = {}
        self.sources: list[Sequence[torch.Tensor | None]] = []  # references, so that no other tensor gets the same id
        self.bytes = 0

    def get(self, parameters: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Returns weights followed by as many biases as one packed weight and one bias, or None beyond the limit."""
        key = tuple(map(id, parameters))
        if key not in self.packed:
            size = sum(2 * weight.numel() for weight in halves(parameters)[0])  # bytes
            if self.bytes + size > self.BYTES:
                return None
            weight, bias = joined(parameters, torch.bfloat16)
            self.packed[key] = pack_weight(weight), bias
            self.sources.append(parameters)
            self.bytes += size
        return self.packed[key]


# The packed weights of the running generate().
PACKED: ContextVar[PackedWeights | None] = ContextVar("packed weights", default=None)


def reads_packed(states: torch.Tensor) -> bool:
    """True for a few rows in bfloat16 inside a generate() that packs weights."""
    if torch.compiler.is_compiling() or PACKED.get() is None:
        return False
    return states.dtype == torch.bfloat16 and states.numel() <= PackedWeights.ROWS * states.shape[-1]


# --- layers -------------------------------------------------------------------------------------------------------


def project(states: torch.Tensor, *parameters: torch.Tensor | None) -> torch.Tensor:
    """Returns x W^T + b by oneDNN: weights followed by as many biases, as in `OneDNNLinear`."""
    dtype = compute_dtype(states)
    if states.dtype != dtype:
        states = states.to(dtype)
    if torch.is_grad_enabled():
        return OneDNNLinear.apply(states, *parameters)
    packed = PACKED.get().get(parameters) if reads_packed(states) else None
    return onednn_linear(states, *(packed or joined(parameters, dtype)))


class Linear(nn.Linear):
    """x W^T + b.

    On a CPU by oneDNN: in float32 a speedup of 1.1 to 2.2 over the BLAS that `F.linear` calls on AMD processors, from
    one row to a thousand (benchmarks/RESULTS.md, the lineage). A quantized weight is multiplied by its own kernel.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight, self.bias
        match route_product(weight, bias, states):
            case Route.ONEDNN:
                return project(states, weight, bias)
            case Route.QUANTIZED:
                return multiply(states, weight, bias)
            case _:
                return nn.functional.linear(states, weight, bias)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        forget_packed(self.weight)


def project_together(states: torch.Tensor, *layers: nn.Module) -> Sequence[torch.Tensor]:
    """Returns the outputs of several linear layers for the same states: (..., in) to one (..., out) for each layer.

    One product computes them all where the concatenated weight pays for itself: where gradients are recorded, and with
    packed weights.
    """
    pays = torch.is_grad_enabled() or reads_packed(states)
    if pays and all(route(layer, states) is Route.ONEDNN for layer in layers):
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        if len({bias is None for bias in biases}) == 1:
            return project(states, *weights, *biases).split([len(weight) for weight in weights], dim=-1)
    return [layer(states) for layer in layers]
