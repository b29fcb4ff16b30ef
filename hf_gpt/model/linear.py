"""Products of linear layers: by oneDNN on a CPU where a call of the layer is nothing more than its product.

The layers are `nn.Linear` itself, because tools that quantize or replace layers ask for exactly this class. So the
faster product is chosen by the caller, `project(layer, states)`, and everything else that a layer may have become -
hooked, wrapped, quantized, sharded, traced - is called as it is.
"""

import operator
from collections.abc import Sequence
from contextvars import ContextVar
from enum import Enum
from threading import Lock
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from .backends import has_global_hooks, is_plain, matmul, onednn_linear, pack_weight, suits_onednn
from .quantized_weights import QuantizedLinear, is_quantized, multiply


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
    """Returns how a caller may compute `layer(states)`, states of (..., in), which all have the same dtype: by the
    layer's own route if it is bare, else by the module."""
    if not is_bare(layer):
        return Route.MODULE
    weight, bias = layer.weight, layer.bias
    if is_quantized(weight):
        return Route.QUANTIZED
    if suits_onednn(compute_dtype(states[0]), weight, bias, *states):
        return Route.ONEDNN
    return Route.PLAIN if is_plain(weight, bias, *states) else Route.MODULE


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_bare(layer: nn.Module, *types: type[nn.Module]) -> bool:
    """True if a call of the layer is just the `forward` of one of these types, by default of a linear layer: it has no
    hooks, no wrapper and no `forward` of its own."""
    if type(layer) not in (types or (nn.Linear, QuantizedLinear)):
        return False
    attributes = vars(layer)
    return not ("forward" in attributes or has_global_hooks() or any(attributes[hooks] for hooks in HOOKS))


def compute_dtype(states: torch.Tensor) -> torch.dtype:
    """Returns the dtype of matrix products: that of autocast where it is enabled, which leaves float64 alone."""
    if states.dtype == torch.float64 or states.is_meta:  # the meta device has no autocast
        return states.dtype
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


# --- products by oneDNN, forward and backward ---------------------------------------------------------------------


class OneDNNLinear(torch.autograd.Function):
    """x W^T + b, where W may be given in several parts, stacked along the output features: one product for all of them,
    and one for each gradient.

    Under autocast a weight is cast in forward and again in backward, and the cast is not saved.
    """

    @staticmethod
    def forward(states: torch.Tensor, *parameters: torch.Tensor | None) -> torch.Tensor:
        """(N, in), weights of (out, in) and as many biases, (out,), to (N, sum of out)."""
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
    if len(parameters) == 2:
        weight, bias = parameters
    else:
        weight, bias = (None if part[0] is None else torch.cat(part) for part in halves(parameters))
    return cast(weight, dtype), cast(bias, dtype)


def cast(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Returns a tensor in a dtype; None for None. A call of `to` that changes nothing takes a microsecond."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


# --- packed weights for decoding ----------------------------------------------------------------------------------


class PackedWeight(NamedTuple):
    """Weights and biases as one packed weight and one bias, and references to what they were packed from."""

    sources: tuple[ref | None, ...]
    packed: tuple[torch.Tensor, torch.Tensor | None]
    bytes: int

    def is_from(self, parameters: Sequence[torch.Tensor | None]) -> bool:
        """True if these are the parameters that were packed."""
        sources = [None if source is None else source() for source in self.sources]
        return len(sources) == len(parameters) and all(map(operator.is_, sources, parameters))


class PackedWeights:
    """bfloat16 weights in the memory layout that oneDNN reads fastest for a few rows, beside the plain ones
    (benchmarks/RESULTS.md, decoding and quantized weights).

    A packed weight is released with its source: offloaded weights are new tensors at each use. Threads that run in
    copies of one context share them.
    """

    ROWS = 64
    BYTES = 2 * 2**30  # limit on all packed weights together
    MIN_CALLS = 24  # calls of a layer that pay for packing it

    def __init__(self) -> None:
        self.by_weight: WeakIdKeyDictionary = WeakIdKeyDictionary()  # by the first weight
        self.limit = self.BYTES
        self.lock = Lock()

    @property
    def bytes(self) -> int:
        """Bytes of all packed weights."""
        return sum(entry.bytes for entry in self.by_weight.values())

    def get(self, parameters: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Returns weights followed by as many biases as one packed weight and one bias, or None beyond the limit."""
        entry = self.by_weight.get(parameters[0])
        if entry is None or not entry.is_from(parameters):
            with self.lock:
                entry = self._pack(parameters)
        return entry and entry.packed

    def release(self) -> None:
        """Releases all packed weights and packs no more, also for a task that runs in a copy of the context."""
        with self.lock:
            self.limit = 0
            self.by_weight.clear()

    def _pack(self, parameters: Sequence[torch.Tensor | None]) -> PackedWeight | None:
        entry = self.by_weight.get(parameters[0])
        if entry is not None and entry.is_from(parameters):  # another thread has packed them meanwhile
            return entry
        size = sum(2 * weight.numel() for weight in halves(parameters)[0])
        if self.bytes + size > self.limit:
            return None
        weight, bias = joined(parameters, torch.bfloat16)
        sources = tuple(None if each is None else ref(each) for each in parameters)
        entry = self.by_weight[parameters[0]] = PackedWeight(sources, (pack_weight(weight), bias), size)
        return entry


# The packed weights of the running generate().
PACKED: ContextVar[PackedWeights | None] = ContextVar("packed weights", default=None)


def reads_packed(states: torch.Tensor) -> bool:
    """True for a few rows in bfloat16 inside a generate() that packs weights."""
    if torch.compiler.is_compiling() or PACKED.get() is None:
        return False
    return states.dtype == torch.bfloat16 and states.numel() <= PackedWeights.ROWS * states.shape[-1]


# --- layers -------------------------------------------------------------------------------------------------------


def product(states: torch.Tensor, *parameters: torch.Tensor | None) -> torch.Tensor:
    """Returns x W^T + b by oneDNN: weights followed by as many biases, as in `OneDNNLinear`."""
    dtype = compute_dtype(states)
    states = cast(states, dtype)
    if torch.is_grad_enabled():
        # As a matrix: a tensor of three dimensions would leave the function as a view, which forbids in-place edits.
        output = OneDNNLinear.apply(states.reshape(-1, states.shape[-1]), *parameters)
        return output.view(*states.shape[:-1], output.shape[-1])
    packed = PACKED.get().get(parameters) if reads_packed(states) else None
    return onednn_linear(states, *(packed or joined(parameters, dtype)))


def project(layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Returns `layer(states)`, (..., in) to (..., out).

    On a CPU by oneDNN: in float32 a speedup of 1.1 to 2.2 over the BLAS that `nn.Linear` calls on AMD processors, from
    one row to a thousand (benchmarks/RESULTS.md, the lineage). A quantized weight is multiplied by its own kernel.
    """
    match route(layer, states):
        case Route.ONEDNN:
            return product(states, layer.weight, layer.bias)
        case Route.QUANTIZED:
            return multiply(states, layer.weight, layer.bias)
        case _:
            return layer(states)


def project_together(states: torch.Tensor, *layers: nn.Module) -> Sequence[torch.Tensor]:
    """Returns the outputs of several linear layers for the same states: (..., in) to one (..., out) for each layer.

    One product computes them all where the concatenated weight pays for itself: where gradients are recorded, and with
    packed weights.
    """
    pays = torch.is_grad_enabled() or reads_packed(states)
    if pays and all(route(layer, states) is Route.ONEDNN for layer in layers):
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        if len({bias is None for bias in biases}) == 1:
            return product(states, *weights, *biases).split([len(weight) for weight in weights], dim=-1)
    return [project(layer, states) for layer in layers]
