"""Quantizes the weights of a model to int8 or int4 by torchao. The result saves and loads like any model."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import TorchAoConfig
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import is_torchao_available

from ..model.checkpoints import NEEDS_TORCHAO, refuse_quantized
from ..model.quantized_weights import INT4_GROUPS, install_kernels, pack_int4
from .rebuild import Model

GROUP_SIZE = 32
NOT_QUANTIZED = ["score"]  # the output layers of the task heads
SMALLEST_SCALE = 1e-6  # of a group whose weights are all equal


def quantize(model: Model, to: str = "int8", *, group_size: int = GROUP_SIZE) -> Model:
    """Returns a copy of a model in bfloat16 whose weight matrices are quantized.

        small = quantize(GPTForCausalLM.from_pretrained("my-gpt"), "int4")
        small.save_pretrained("my-gpt-int4")  # from_pretrained loads it

    Token embeddings and language model heads, tied or not, are int8 in both schemes. Experts (stacked in one tensor),
    routers, norms, biases, positions and the output layers of task heads are not quantized.

    Args:
        model: any hf_gpt model that is not quantized.
        to: `int8`, with a scale for each output feature; or `int4`, with a scale and a zero point for each
            `group_size` input features of an output feature.
        group_size: 32, 64, 128 or 256. A smaller group is more accurate.

    Raises:
        ImportError: torchao is not installed.
        ValueError: the model is already quantized or has an adapter, the scheme is unknown, or the group size does not
            divide the input features of a layer.
    """
    if not is_torchao_available():
        raise ImportError(NEEDS_TORCHAO)
    refuse_quantized(model.config)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError("the model has an adapter, without which it would be saved: expected a merged model")
    if to not in SCHEMES:
        raise ValueError(f"to={to!r}: expected one of {', '.join(SCHEMES)}")
    if group_size not in INT4_GROUPS:
        raise ValueError(f"group_size={group_size}: expected one of {', '.join(map(str, INT4_GROUPS))}")
    scheme = SCHEMES[to]
    quantizer = AutoHfQuantizer.from_config(
        TorchAoConfig(
            scheme.torchao_config(group_size),
            modules_to_not_convert=NOT_QUANTIZED,
            include_input_output_embeddings=True,
        ),
        pre_quantized=False,
    )
    changed = deepcopy(model).requires_grad_(False)
    quantizer.preprocess_model(changed)
    embeddings = (changed.get_input_embeddings(), changed.get_output_embeddings())
    for name, module in changed.named_modules():
        if module in embeddings:
            module.weight = nn.Parameter(quantize_int8(module.weight), requires_grad=False)
        elif isinstance(module, nn.Linear) and name not in NOT_QUANTIZED:
            module.weight = nn.Parameter(scheme.quantize(module.weight, group_size, name), requires_grad=False)
    changed.tie_weights()
    float32 = tuple(changed._keep_in_fp32_modules_strict or ())
    for name, parameter in changed.named_parameters():
        if type(parameter) is nn.Parameter and not name.endswith(float32):
            parameter.data = parameter.data.bfloat16()
    install_kernels(changed)
    changed.hf_quantizer = quantizer
    quantizer.postprocess_model(changed)
    return changed


def int8_config(group_size: int) -> Any:
    """Returns the configuration of torchao for int8 weights."""
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def int4_config(group_size: int) -> Any:
    """Returns the configuration of torchao for int4 weights."""
    from torchao.quantization import Int4WeightOnlyConfig

    return Int4WeightOnlyConfig(group_size)


def quantize_int8(weight: torch.Tensor, *_) -> torch.Tensor:
    """Returns a matrix, (out, in), as an `Int8Tensor` of torchao with a scale for each output feature."""
    from torchao.quantization import Int8Tensor, PerRow

    return Int8Tensor.from_hp(weight.detach().bfloat16(), PerRow())


def quantize_int4(weight: torch.Tensor, group_size: int, name: str) -> torch.Tensor:
    """Returns a matrix, (out, in), as an `Int4Tensor` of torchao.

    `Int4Tensor.from_hp` requires the CUDA package mslk; this is the same layout without it.

    Args:
        weight: the matrix.
        group_size: input features that share a scale and a zero point.
        name: of the layer, for the error message.
    """
    from torchao.quantization import Int4Tensor

    outputs, inputs = weight.shape
    if inputs % group_size:
        raise ValueError(f"group_size={group_size} does not divide the {inputs} input features of {name}")
    groups = weight.detach().float().view(outputs, -1, group_size)
    smallest, largest = groups.aminmax(dim=-1, keepdim=True)
    scale = ((largest - smallest) / 15).clamp(min=SMALLEST_SCALE)
    zero_point = smallest + 8 * scale
    quantized = ((groups - zero_point) / scale).round().clamp(-8, 7).to(torch.int8).view(outputs, inputs)
    scale, zero_point = (values[..., 0].t().contiguous().bfloat16() for values in (scale, zero_point))  # (groups, out)
    return Int4Tensor(pack_int4(quantized), scale, zero_point, [1, group_size], weight.shape)


class Scheme(NamedTuple):
    """How the matrices of a model are quantized."""

    torchao_config: Callable[[int], Any]
    """Returns the configuration that torchao has for the scheme, from the group size."""
    quantize: Callable[..., torch.Tensor]
    """Quantizes a matrix, from the matrix, the group size and the name of its layer."""


SCHEMES = {"int8": Scheme(int8_config, quantize_int8), "int4": Scheme(int4_config, quantize_int4)}
