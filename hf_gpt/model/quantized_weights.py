"""Products with weights that torchao has quantized, by the kernels of PyTorch on a CPU.

torchao 0.18 by itself dequantizes an int8 matrix for each product, and has no int4 product for a CPU. Its tensors are
recognized by the names of their classes, so that it need not be installed.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from .backends import INT4_MATMUL, INT4_PACK, INT8_MATMUL
from .embedding_scale import ScaledEmbedding

# From this many rows on, one product with the dequantized matrix is faster (benchmarks/RESULTS.md, decoding and
# quantized weights).
MANY_ROWS = {"int8": 17, "int4": 193}

INT8_ALIGNMENT = 16  # bytes; the int8 kernel crashes where a row of the matrix starts at any other address
INT4_GROUPS = (32, 64, 128, 256)  # numbers of input features with one scale that the int4 kernel supports
INT4_OUTPUTS = 16  # the int4 kernel needs a multiple of this many output features


def multiply_int8(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Returns x W^T + b, where W is int8 with a scale for each output feature."""
    rows = states.numel() // states.shape[-1]
    is_supported = weight.scale.numel() == weight.shape[0] and weight.shape[1] % INT8_ALIGNMENT == 0
    is_fast = INT8_MATMUL is not None and rows < MANY_ROWS["int8"] and suits_kernels(states)
    if not (is_supported and is_fast and is_weight_only(weight)):
        return nn.functional.linear(states, weight, bias)  # torchao's
    scale = weight.scale.flatten().to(states.dtype)
    output = INT8_MATMUL(states.reshape(rows, -1), aligned(weight), scale)
    output = output if bias is None else output.add_(bias)
    return output.view(*states.shape[:-1], -1)


def multiply_int4(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Returns x W^T + b, where W is int4 with a scale and a zero point for each group of input features."""
    if states.device.type != "cpu" or not is_weight_only(weight):
        return nn.functional.linear(states, weight, bias)  # torchao's
    rows, group = states.numel() // states.shape[-1], weight.block_size[-1]
    has_kernel = INT4_MATMUL is not None and INT4_PACK is not None and group in INT4_GROUPS
    if not (has_kernel and rows < MANY_ROWS["int4"] and suits_kernels(states)):
        return nn.functional.linear(states, dequantize_int4(weight).to(states.dtype), bias)
    packed, scale_and_zero = packed_int4(weight)
    output = INT4_MATMUL(states.reshape(rows, -1), packed, group, scale_and_zero)
    output = output[:, : weight.shape[0]]
    output = output if bias is None else output.add_(bias)
    return output.reshape(*states.shape[:-1], -1)


def suits_kernels(states: torch.Tensor) -> bool:
    """True for bfloat16 on a CPU outside autograd: the kernels have no backward and are slow in other dtypes."""
    return (
        states.dtype == torch.bfloat16
        and states.device.type == "cpu"
        and states.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def aligned(weight: torch.Tensor) -> torch.Tensor:
    """Returns the int8 values, copied once if a memory-mapped file has placed them at an address without alignment."""
    if weight.qdata.data_ptr() % INT8_ALIGNMENT:
        with torch.inference_mode(False):
            weight.qdata = weight.qdata.clone()
    return weight.qdata


def is_weight_only(weight: torch.Tensor) -> bool:
    """True if the activations are neither quantized nor scaled."""
    return weight.act_pre_scale is None and getattr(weight, "act_quant_kwargs", None) is None


def dequantize_int4(weight: torch.Tensor) -> torch.Tensor:
    """Returns the weight, (out, in), in the dtype of its scales."""
    scale, zero = (values.t()[..., None] for values in (weight.scale, weight.zero_point))  # (out, groups, 1)
    numbers = unpack_int4(weight.qdata).view(*scale.shape[:2], -1).to(scale.dtype)
    return torch.addcmul(zero, numbers, scale).flatten(1)


def unpack_int4(pairs: torch.Tensor) -> torch.Tensor:
    """Splits each byte into two numbers, the low half first: (out, in / 2) to (out, in), int8 from -8 to 7."""
    return torch.stack(((pairs << 4) >> 4, pairs >> 4), dim=-1).flatten(1)


def pack_int4(numbers: torch.Tensor) -> torch.Tensor:
    """Inverts `unpack_int4`."""
    return (numbers[:, 1::2] << 4) | (numbers[:, ::2] & 15)


def packed_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the weight in the memory layout of this processor's kernel, with its scales and zero points.

    It is packed once and cached on the weight.
    """
    if not hasattr(weight, "packed"):
        rest = -weight.shape[0] % INT4_OUTPUTS
        numbers = nn.functional.pad(unpack_int4(weight.qdata), (0, 0, 0, rest))
        scale_and_zero = torch.stack((weight.scale, weight.zero_point), dim=-1).bfloat16()  # (groups, out, 2)
        weight.packed = (
            INT4_PACK(numbers.int() + 8, 1),
            nn.functional.pad(scale_and_zero, (0, 0, 0, rest)),
        )
    return weight.packed


def forget_packed(weight: torch.Tensor) -> None:
    """Drops the packed copy of a weight whose values have changed in place."""
    vars(weight).pop("packed", None)


def look_up_int8(weight: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Returns rows of an int8 matrix, and dequantizes only these."""
    return (weight.qdata[indices] * weight.scale[indices]).to(weight.dtype)


class TensorKernels(NamedTuple):
    """The operations of a quantized tensor class."""

    multiply: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    """States, weight and bias to x W^T + b."""
    look_up: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """Weight and row indices to these rows."""


# By the name of the tensor class.
KERNELS = {
    "Int8Tensor": TensorKernels(multiply_int8, look_up_int8),
    "Int4Tensor": TensorKernels(multiply_int4, lambda weight, indices: dequantize_int4(weight)[indices]),
}


def is_quantized(weight: torch.Tensor) -> bool:
    """True for a weight that torchao has quantized to a class of `KERNELS`."""
    return type(weight).__name__ in KERNELS


def multiply(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Returns x W^T + b for a quantized weight."""
    return KERNELS[type(weight).__name__].multiply(states, weight, bias)


def look_up(weight: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Returns rows of a quantized matrix."""
    return KERNELS[type(weight).__name__].look_up(weight, indices)


# --- modules ------------------------------------------------------------------------------------------------------


class QuantizedLinear(nn.Linear):
    """A linear layer with a quantized weight."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return multiply(states, self.weight, self.bias)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        forget_packed(self.weight)


class QuantizedEmbedding(nn.Embedding):
    """Token embeddings with a quantized table."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return look_up(self.weight, ids)


class QuantizedScaledEmbedding(ScaledEmbedding, QuantizedEmbedding):
    """The same, times a factor."""


MODULES = {
    nn.Linear: QuantizedLinear,
    nn.Embedding: QuantizedEmbedding,
    ScaledEmbedding: QuantizedScaledEmbedding,
}


def install_kernels(model: nn.Module) -> None:
    """Makes each layer with a quantized weight use the kernels of its tensor class, also where it is hooked or
    wrapped."""
    for module in model.modules():
        if type(module) in MODULES and is_quantized(module.weight):
            module.__class__ = MODULES[type(module)]
