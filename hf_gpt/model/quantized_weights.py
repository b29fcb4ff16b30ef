"""Weights that torchao has quantised, as the layers of this model use them on a CPU: by the kernels of PyTorch.

Alone, torchao 0.18 makes an int8 matrix whole again for each product, and has no int4 product for a CPU. Its tensors
are known here by the names of their classes: it need not be installed.
"""

import torch
from torch import nn

# From so many rows on, a matrix is better made whole again and multiplied once (benchmarks/RESULTS.md).
MANY_ROWS = {"int8": 17, "int4": 193}

INT8_ALIGNMENT = 16  # bytes, at whose multiples each row of the matrix must begin: elsewhere the kernel crashes
INT4_GROUPS = (32, 64, 128, 256)  # input features that share a scale, as the kernel can have them
INT4_OUTPUTS = 16  # output features must be a multiple


def multiply_int8(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b, where W is int8 with a scale for each output feature."""
    rows = states.numel() // states.shape[-1]
    fits = weight.scale.numel() == weight.shape[0] and weight.shape[1] % INT8_ALIGNMENT == 0
    if not (fits and rows < MANY_ROWS["int8"] and suits_kernels(states) and takes_states_as_they_are(weight)):
        return nn.functional.linear(states, weight, bias)  # torchao's
    scale = weight.scale.flatten().to(states.dtype)
    output = torch._weight_int8pack_mm(states.reshape(rows, -1), aligned(weight), scale)
    output = output if bias is None else output.add_(bias)
    return output.view(*states.shape[:-1], -1)


def multiply_int4(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b, where W is int4 with a scale and a zero point for each group of input features."""
    if states.device.type != "cpu" or not takes_states_as_they_are(weight):
        return nn.functional.linear(states, weight, bias)  # torchao's
    rows, group = states.numel() // states.shape[-1], weight.block_size[-1]
    if not (suits_kernels(states) and rows < MANY_ROWS["int4"] and group in INT4_GROUPS):
        return nn.functional.linear(states, dequantize_int4(weight).to(states.dtype), bias)
    packed, scale_and_zero = packed_int4(weight)
    output = torch.ops.aten._weight_int4pack_mm_for_cpu(states.reshape(rows, -1), packed, group, scale_and_zero)
    output = output[:, : weight.shape[0]]
    output = output if bias is None else output.add_(bias)
    return output.reshape(*states.shape[:-1], -1)


# What multiplies by a weight, by the class of it.
PRODUCTS = {"Int8Tensor": multiply_int8, "Int4Tensor": multiply_int4}


def suits_kernels(states: torch.Tensor) -> bool:
    """They have no backward, and only in bfloat16 they are fast."""
    return (
        states.dtype == torch.bfloat16
        and states.device.type == "cpu"
        and states.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def aligned(weight: torch.Tensor) -> torch.Tensor:
    """The int8 numbers, moved if they begin where a file, which is mapped, has put them: that may be anywhere."""
    if weight.qdata.data_ptr() % INT8_ALIGNMENT:
        with torch.inference_mode(False):
            weight.qdata = weight.qdata.clone()
    return weight.qdata


def takes_states_as_they_are(weight: torch.Tensor) -> bool:
    """The weight alone is quantised."""
    return weight.act_pre_scale is None and getattr(weight, "act_quant_kwargs", None) is None


def dequantize_int4(weight: torch.Tensor) -> torch.Tensor:
    """(out, in), in the dtype of the scales."""
    scale, zero = (values.t()[..., None] for values in (weight.scale, weight.zero_point))  # (out, groups, 1)
    numbers = unpack_int4(weight.qdata).view(*scale.shape[:2], -1).to(scale.dtype)
    return torch.addcmul(zero, numbers, scale).flatten(1)


def unpack_int4(pairs: torch.Tensor) -> torch.Tensor:
    """Two numbers out of each byte, the low half first. (out, in / 2) to (out, in), int8 from -8 to 7."""
    return torch.stack(((pairs << 4) >> 4, pairs >> 4), dim=-1).flatten(1)


def pack_int4(numbers: torch.Tensor) -> torch.Tensor:
    """The inverse of `unpack_int4`."""
    return (numbers[:, 1::2] << 4) | (numbers[:, ::2] & 15)


def packed_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight in the order of the kernel, which differs from one processor to another; made once, kept with it."""
    if not hasattr(weight, "packed"):
        rest = -weight.shape[0] % INT4_OUTPUTS
        numbers = nn.functional.pad(unpack_int4(weight.qdata), (0, 0, 0, rest))
        scale_and_zero = torch.stack((weight.scale, weight.zero_point), dim=-1).bfloat16()  # (groups, out, 2)
        weight.packed = (
            torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.int() + 8, 1),
            nn.functional.pad(scale_and_zero, (0, 0, 0, rest)),
        )
    return weight.packed


def forget_packed(weight: torch.Tensor) -> None:
    """Its numbers have changed in place."""
    vars(weight).pop("packed", None)


def look_up_int8(weight: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows of a matrix that is int8: only those that are asked for are made whole again."""
    return (weight.qdata[indices] * weight.scale[indices]).to(weight.dtype)
