import pytest
import torch
from torch import nn

from hf_gpt.linear import Linear

SHAPES = [(1, 1, 24), (3, 24), (2, 7, 24), (24,), (0, 24), (2, 0, 24)]


def layers(bias=True):
    ours, theirs = Linear(24, 13, bias=bias), nn.Linear(24, 13, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_layer_of_pytorch(shape, bias):
    ours, theirs = layers(bias)
    states = torch.randn(shape)
    with torch.no_grad():
        assert ours(states).shape == theirs(states).shape
        assert torch.allclose(ours(states), theirs(states), atol=1e-6)
        strided = torch.randn(24, 5, 2).transpose(0, 2)
        assert torch.allclose(ours(strided), theirs(strided), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_left_to_pytorch(dtype):
    ours, theirs = (layer.to(dtype) for layer in layers())
    states = torch.randn(3, 24, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(ours(states), theirs(states))


def test_gradients_are_those_of_pytorch():
    ours, theirs = layers()
    states = torch.randn(3, 24)
    for layer in (ours, theirs):
        layer(states).square().sum().backward()
    assert torch.equal(ours.weight.grad, theirs.weight.grad)
    assert torch.equal(ours.bias.grad, theirs.bias.grad)


def test_onednn_is_what_it_runs():
    """Otherwise the layer would be a nn.Linear, and decoding slow, without a sign."""
    ours, _ = layers()
    with torch.no_grad(), torch.profiler.profile() as profile:
        ours(torch.randn(1, 24))
    assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}


def test_autocast_is_obeyed():
    ours, theirs = layers()
    states = torch.randn(3, 24)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(states), theirs(states))
        assert ours(states).dtype == torch.bfloat16
