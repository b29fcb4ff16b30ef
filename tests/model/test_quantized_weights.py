"""Products with quantized weights, against the dequantized matrix in float64."""

import copy

import pytest
import torch
from quantized import dequantized
from recording import kernels_of
from tiny import random_ids
from torch import nn

from hf_gpt.model import quantized_weights
from hf_gpt.model.quantized_weights import MANY_ROWS, install_kernels, pack_int4, unpack_int4
from hf_gpt.surgery.quantization import SCHEMES

SHAPES = [(1, 1, 64), (3, 64), (2, 7, 64), (64,), (0, 64), (MANY_ROWS["int8"], 64), (MANY_ROWS["int4"], 64)]


def quantized_layer(scheme, outputs=99, bias=True, group_size=32):
    """Returns a quantized layer, and its weight as an (out, in) matrix in float64."""
    torch.manual_seed(0)
    layer = nn.Linear(64, outputs, bias=bias).bfloat16().requires_grad_(False)
    layer.weight = nn.Parameter(SCHEMES[scheme].quantize(layer.weight, group_size, "layer"), requires_grad=False)
    install_kernels(layer)
    return layer, dequantized(layer.weight)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("outputs", "bias"), [(99, True), (64, False), (16, True)])
def test_layer_equals_its_dequantized_matrix(scheme, shape, outputs, bias):
    layer, matrix = quantized_layer(scheme, outputs, bias)
    states = torch.randn(shape).bfloat16()
    expected = states.double() @ matrix.t() + (layer.bias.double() if bias else 0)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            output = layer(states)
        assert output.dtype == torch.bfloat16
        assert output.shape == expected.shape
        assert torch.allclose(output.double(), expected, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_layer_is_exact_in_float32(scheme):
    layer, matrix = quantized_layer(scheme)
    layer.bias.data = layer.bias.data.float()
    states = torch.randn(5, 64)
    expected = states.double() @ matrix.t() + layer.bias.double()
    with torch.no_grad():
        # torchao does not round int8 products; int4 scales are bfloat16
        assert torch.allclose(layer(states).double(), expected, atol={"int8": 1e-5, "int4": 0.02}[scheme])


@pytest.mark.parametrize("inputs", [8, 24, 40])
def test_int8_width_without_alignment_falls_back(inputs):
    """The kernel needs aligned rows: otherwise it crashes or returns wrong values."""
    weight = nn.Parameter(SCHEMES["int8"].quantize(torch.randn(9, inputs)), requires_grad=False)
    states = torch.randn(1, inputs).bfloat16()
    with torch.no_grad():
        output = quantized_weights.multiply_int8(states, weight, None)
    assert torch.allclose(output.double(), states.double() @ dequantized(weight).t(), atol=0.05, rtol=0.01)


@pytest.mark.parametrize("offset", [1, 8, 16])
def test_unaligned_int8_storage(offset):
    weight = SCHEMES["int8"].quantize(torch.randn(9, 32))
    place = torch.empty(9 * 32 + 64, dtype=torch.int8)
    start = -place.data_ptr() % 64 + offset
    weight.qdata = place[start : start + 9 * 32].view(9, 32).copy_(weight.qdata)
    states = torch.randn(10, 32).bfloat16()
    with torch.inference_mode():
        output = quantized_weights.multiply_int8(states, weight, None)
    assert torch.allclose(output.double(), states.double() @ dequantized(weight).t(), atol=0.05, rtol=0.01)
    assert not weight.qdata.is_inference()


def test_pack_and_unpack_int4():
    numbers = torch.randint(-8, 8, (5, 6), dtype=torch.int8)
    assert torch.equal(unpack_int4(pack_int4(numbers)), numbers)


@pytest.mark.parametrize(
    ("scheme", "kernel"), [("int8", "_weight_int8pack_mm"), ("int4", "_weight_int4pack_mm_for_cpu")]
)
def test_few_rows_run_the_kernel(scheme, kernel):
    """A silent fallback would slow down decoding."""
    layer, _ = quantized_layer(scheme)
    assert f"aten::{kernel}" in kernels_of(lambda: layer(torch.randn(1, 64).bfloat16()))
    many = torch.randn(MANY_ROWS[scheme], 64).bfloat16()
    assert f"aten::{kernel}" not in kernels_of(lambda: layer(many))


def test_load_state_dict_discards_packed_weights():
    layer, _ = quantized_layer("int4")
    other = copy.deepcopy(layer)
    other.weight.zero_point.add_(1)
    states = torch.randn(1, 64).bfloat16()
    with torch.no_grad():
        layer(states)
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(states), other(states))


def test_quantized_embedding_equals_its_dequantized_rows():
    torch.manual_seed(0)
    table = nn.Embedding(9, 64).bfloat16()
    plain, ids = table(random_ids(2, 3, low=0, high=9)), random_ids(2, 3, low=0, high=9)
    table.weight = nn.Parameter(SCHEMES["int8"].quantize(table.weight), requires_grad=False)
    install_kernels(table)
    assert torch.equal(table(ids), table.weight.dequantize()[ids])
    assert torch.allclose(table(ids), plain, atol=0.02)
