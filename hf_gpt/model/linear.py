"""The linear layer of every projection: nn.Linear, by oneDNN on a CPU."""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from .quantized_weights import PRODUCTS, forget_packed

# What inductor compiles a linear layer to on a CPU. It has no backward, and no kernel in builds without oneDNN.
ONEDNN_LINEAR = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
ONEDNN_DTYPES = (torch.float32, torch.bfloat16)


PLAIN_TYPES = (torch.Tensor, nn.Parameter)


def is_plain(*operands: torch.Tensor | None) -> bool:
    """Neither quantised, nor sharded, nor fake; and nobody looks on who wants to see each operation."""
    for each in operands:
        if each is not None and type(each) not in PLAIN_TYPES:
            return False
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def suits_onednn(dtype: torch.dtype, *operands: torch.Tensor | None) -> bool:
    """Plain tensors on a CPU, in a precision that oneDNN has."""
    if ONEDNN_LINEAR is None or dtype not in ONEDNN_DTYPES or not is_plain(*operands):
        return False
    return all(each is None or each.is_cpu for each in operands)


def matmul(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(..., n) times (n, m), and a bias, (m,); by oneDNN where no gradient is recorded."""
    if not torch.is_grad_enabled() and left.dtype == right.dtype and suits_onednn(left.dtype, left, right):
        return ONEDNN_LINEAR(left, right.t(), bias, "none", [], "")
    return left @ right if bias is None else left @ right + bias


def weight_gradient(gradient: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """(N, out) and (N, in) to (out, in); by what is faster (benchmarks/RESULTS.md)."""
    if gradient.dtype == torch.float32 and gradient.shape[1] <= states.shape[1]:
        return matmul(gradient.t(), states)
    return gradient.t() @ states


def compute_dtype(states: torch.Tensor) -> torch.dtype:
    """The precision in which matrices are multiplied: that of autocast, where it is on. It leaves float64 alone."""
    device = states.device.type
    lowered = torch.is_autocast_enabled(device) and states.dtype != torch.float64
    return torch.get_autocast_dtype(device) if lowered else states.dtype


class OneDNNLinear(torch.autograd.Function):
    """x W^T + b, where W may stand in several parts, one below the other: one product, and one for each gradient.

    Under autocast a weight is cast when it is needed, and not kept.
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
    needed: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """Those by the states and by each parameter of `OneDNNLinear`; None for what is not needed."""
    weights, biases = halves(parameters)
    needs_states, *needed = needed
    to_states, to_weights, to_biases = None, [None] * len(weights), [None] * len(weights)
    if needs_states:
        to_states = matmul(gradient, joined(parameters, gradient.dtype)[0])
    gradient, states = gradient.flatten(0, -2), states.flatten(0, -2)
    rows = [len(weight) for weight in weights]
    if any(needed[: len(weights)]):
        to_weights = weight_gradient(gradient, states).to(weights[0].dtype).split(rows)
    if any(needed[len(weights) :]):
        to_biases = gradient.sum(dim=0).to(biases[0].dtype).split(rows)
    given = (*to_weights, *to_biases)
    return to_states, *(each if need else None for each, need in zip(given, needed, strict=True))


def halves(parameters: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    middle = len(parameters) // 2
    return parameters[:middle], parameters[middle:]


def joined(parameters: Sequence[torch.Tensor | None], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights, and then biases, as one of each."""
    weight, bias = (
        None if part[0] is None else (part[0] if len(part) == 1 else torch.cat(part)).to(dtype)
        for part in halves(parameters)
    )
    return weight, bias


class PackedWeights:
    """Weights in the order in which oneDNN reads them for a few rows; they stand beside the plain ones, as long as they
    are used. In bfloat16 one to 16 rows read them 1.3 to 1.9 times as fast, 64 rows 1.2 times (benchmarks/RESULTS.md).
    """

    ROWS = 64
    BYTES = 2 * 2**30  # what they may take in all
    WORTH = 24  # readings that pay for the packing

    def __init__(self) -> None:
        self.kept: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor | None]] = {}
        self.sources: list[Sequence[torch.Tensor | None]] = []  # held, so that no other tensor gets their identity
        self.bytes = 0

    def of(self, parameters: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Weights, and then as many biases, as one of each; None where there is no room."""
        key = tuple(map(id, parameters))
        if key not in self.kept and self.bytes < self.BYTES:
            weight, bias = joined(parameters, torch.bfloat16)
            self.kept[key] = torch.ops.mkldnn._reorder_linear_weight(weight, 1), bias
            self.sources.append(parameters)
            self.bytes += weight.nbytes
        return self.kept.get(key)


# Those of the generate() that runs.
PACKED: ContextVar[PackedWeights | None] = ContextVar("packed weights", default=None)


def reads_packed(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """Few rows in bfloat16, while generate() runs."""
    if torch.compiler.is_compiling() or PACKED.get() is None:
        return False
    return states.dtype == weight.dtype == torch.bfloat16 and states.numel() <= PackedWeights.ROWS * states.shape[-1]


def project(states: torch.Tensor, dtype: torch.dtype, *parameters: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b by oneDNN, in a precision that suits it: weights, and then as many biases, as in `OneDNNLinear`."""
    if states.dtype != dtype:
        states = states.to(dtype)
    if torch.is_grad_enabled():
        return OneDNNLinear.apply(states, *parameters)
    kept = PACKED.get().of(parameters) if reads_packed(states, parameters[0]) else None
    weight, bias = kept or joined(parameters, dtype)
    return ONEDNN_LINEAR(states, weight, bias, "none", [], "")


class Linear(nn.Linear):
    """x W^T + b.

    On a CPU it takes oneDNN: in float32 1.1 to 2 times as fast as the BLAS that `F.linear` calls, from one row to a
    thousand (benchmarks/RESULTS.md). A quantised weight has a product of its own.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight, self.bias
        if (product := PRODUCTS.get(type(weight).__name__)) is not None:
            return product(states, weight, bias)
        if not suits_onednn(dtype := compute_dtype(states), states, weight, bias):
            return nn.functional.linear(states, weight, bias)
        return project(states, dtype, weight, bias)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        forget_packed(self.weight)


def project_together(states: torch.Tensor, *layers: nn.Module) -> Sequence[torch.Tensor]:
    """What each of several layers makes of the same states; in one product where one weight for all is at hand or
    worth making: for gradients, and packed."""
    if all(map(is_bare, layers)) and (torch.is_grad_enabled() or reads_packed(states, layers[0].weight)):
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        alike = len({bias is None for bias in biases}) == 1
        if alike and suits_onednn(dtype := compute_dtype(states), states, *weights, *biases):
            return project(states, dtype, *weights, *biases).split([len(weight) for weight in weights], dim=-1)
    return [layer(states) for layer in layers]


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_bare(layer: nn.Module, *types: type[nn.Module]) -> bool:
    """A linear layer, or one of just these types, that nothing is wrapped round: a call does what the type does."""
    attributes = vars(layer)
    wrapped = "forward" in attributes or any(attributes[hooks] for hooks in HOOKS)
    return type(layer) in (types or (Linear, nn.Linear)) and not wrapped
