"""Quantise the weights of a model, for decoding: int8 or int4 by torchao. It saves and loads as any model does."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from transformers import TorchAoConfig
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import is_torchao_available

from ..model.modeling_gpt import NEEDS_TORCHAO, GPTPreTrainedModel, refuse_quantized
from ..model.quantized_weights import INT4_GROUPS, pack_int4

Model = TypeVar("Model", bound=GPTPreTrainedModel)

GROUP_SIZE = 32
UNTOUCHED = ["score"]  # the output layers of the task heads
SMALLEST_STEP = 1e-6  # between the numbers of a group whose weights are all the same


def quantize(model: Model, to: str = "int8", *, group_size: int = GROUP_SIZE) -> Model:
    """A copy of a model, in bfloat16, whose weight matrices are quantised.

        small = quantize(GPTForCausalLM.from_pretrained("my-gpt"), "int4")
        small.save_pretrained("my-gpt-int4")  # from_pretrained loads it

    Token embeddings and language model heads, tied or not, are int8 in both schemes. Experts (stacked in one tensor),
    routers, norms, biases, positions and the output layers of task heads are not quantised.

    Args:
        model: any hf_gpt model that is not quantised.
        to: `int8`, with a scale for each output feature; or `int4`, with a scale and a zero point for each
            `group_size` input features of an output feature.
        group_size: 32, 64, 128 or 256; the smaller, the more exact.

    Raises:
        ImportError: torchao is not installed.
        ValueError: the model is quantised already; an unknown scheme; a group size that does not divide a layer.
    """
    if not is_torchao_available():
        raise ImportError(NEEDS_TORCHAO)
    refuse_quantized(model.config)
    if to not in SCHEMES:
        raise ValueError(f"to={to!r}: expected one of {', '.join(SCHEMES)}")
    if group_size not in INT4_GROUPS:
        raise ValueError(f"group_size={group_size}: expected one of {', '.join(map(str, INT4_GROUPS))}")
    describe, make = SCHEMES[to]
    quantizer = AutoHfQuantizer.from_config(
        TorchAoConfig(describe(group_size), modules_to_not_convert=UNTOUCHED, include_input_output_embeddings=True),
        pre_quantized=False,
    )
    changed = deepcopy(model).requires_grad_(False)
    quantizer.preprocess_model(changed)
    tables = (changed.get_input_embeddings(), changed.get_output_embeddings())
    for name, module in changed.named_modules():
        if module in tables:
            module.weight = nn.Parameter(make_int8(module.weight), requires_grad=False)
        elif isinstance(module, nn.Linear) and name not in UNTOUCHED:
            module.weight = nn.Parameter(make(module.weight, group_size, name), requires_grad=False)
    changed.tie_weights()
    exact = tuple(changed._keep_in_fp32_modules_strict or ())
    for name, parameter in changed.named_parameters():
        if type(parameter) is nn.Parameter and not name.endswith(exact):
            parameter.data = parameter.data.bfloat16()
    changed.hf_quantizer = quantizer
    quantizer.postprocess_model(changed)
    return changed


def describe_int8(group_size: int) -> Any:
    """The configuration by which torchao knows the scheme."""
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def describe_int4(group_size: int) -> Any:
    from torchao.quantization import Int4WeightOnlyConfig

    return Int4WeightOnlyConfig(group_size)


def make_int8(weight: torch.Tensor, *_) -> torch.Tensor:
    """A matrix, (out, in), as a tensor of torchao."""
    from torchao.quantization import Int8Tensor, PerRow

    return Int8Tensor.from_hp(weight.detach().bfloat16(), PerRow())


def make_int4(weight: torch.Tensor, group_size: int, name: str) -> torch.Tensor:
    """The same in int4. (`Int4Tensor.from_hp` wants the package mslk, for CUDA, whose order this is.)"""
    from torchao.quantization import Int4Tensor

    outputs, inputs = weight.shape
    if inputs % group_size:
        raise ValueError(f"group_size={group_size} does not divide the {inputs} input features of {name}")
    groups = weight.detach().float().view(outputs, -1, group_size)
    least, most = groups.aminmax(dim=-1, keepdim=True)
    scale = ((most - least) / 15).clamp(min=SMALLEST_STEP)
    zero = least + 8 * scale
    numbers = ((groups - zero) / scale).round().clamp(-8, 7).to(torch.int8).view(outputs, inputs)
    scale, zero = (values[..., 0].t().contiguous().bfloat16() for values in (scale, zero))  # (groups, out)
    return Int4Tensor(pack_int4(numbers), scale, zero, [1, group_size], weight.shape)


class Scheme(NamedTuple):
    describe: Callable[[int], Any]
    make: Callable[..., torch.Tensor]


SCHEMES = {"int8": Scheme(describe_int8, make_int8), "int4": Scheme(describe_int4, make_int4)}
