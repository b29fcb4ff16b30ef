"""Products of linear layers against calls of them: outputs, gradients, packed weights, autocast, in-place edits."""

from functools import partial

import pytest
import torch
from threads import in_threads
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_gpt.model import linear
from hf_gpt.model.backends import onednn_linear, pack_weight
from hf_gpt.model.linear import PACKED, PackedWeights, Route, project, project_together, route

SHAPES = [(1, 1, 24), (3, 24), (2, 7, 24), (24,), (0, 24), (2, 0, 24)]


def calls_of(layer):
    """Returns the product of a layer and its own call."""
    return partial(project, layer), layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_nn_linear(shape, bias):
    ours, theirs = calls_of(nn.Linear(24, 13, bias=bias))
    states = torch.randn(shape)
    with torch.no_grad():
        assert ours(states).shape == theirs(states).shape
        assert torch.allclose(ours(states), theirs(states), atol=1e-6)
        strided = torch.randn(24, 5, 2).transpose(0, 2)
        assert torch.allclose(ours(strided), theirs(strided), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_fall_back_to_pytorch(dtype):
    ours, theirs = calls_of(nn.Linear(24, 13).to(dtype))
    states = torch.randn(3, 24, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(ours(states), theirs(states))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_equal_those_of_nn_linear(dtype, tolerance, autocast, bias):
    layer = nn.Linear(24, 13, bias=bias).to(dtype)
    given = torch.randn(2, 5, 24, dtype=dtype)
    gradients = []
    for call in calls_of(layer):
        layer.zero_grad()
        states = given.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = call(states)
        output.float().square().sum().backward()
        gradients.append([output, states.grad, *(parameter.grad for parameter in layer.parameters())])
    for actual, expected in zip(*gradients, strict=True):
        assert actual.dtype == expected.dtype
        close = 2e-2 if autocast else tolerance
        assert torch.allclose(actual, expected, rtol=close, atol=close * expected.abs().max().item())


def test_second_gradients():
    layer, states = nn.Linear(24, 13), torch.randn(3, 24, requires_grad=True)
    (first,) = torch.autograd.grad(project(layer, states).square().sum(), states, create_graph=True)
    first.square().sum().backward()
    expected = 8 * (layer.weight.t() @ layer.weight @ first.detach().t()).t() / 2
    assert torch.allclose(states.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_project_together_equals_separate_layers(needed):
    """The layers have different widths; one of them is frozen."""
    three = [nn.Linear(24, width, bias=bias) for width, bias in ((12, True), (6, True), (18, True))]
    three[needed].requires_grad_(False)
    states = torch.randn(2, 3, 24)
    together = project_together(states, *three)
    sum(each.square().sum() for each in together).backward()
    gradients = [parameter.grad for layer in three for parameter in layer.parameters()]
    for layer in three:
        layer.zero_grad()
    apart = [layer(states) for layer in three]
    sum(each.square().sum() for each in apart).backward()
    for actual, layer in zip(together, apart, strict=True):
        assert torch.allclose(actual, layer, atol=1e-6)
    for actual, parameter in zip(gradients, (p for layer in three for p in layer.parameters()), strict=True):
        assert (actual is None) == (parameter.grad is None)
        assert actual is None or torch.allclose(actual, parameter.grad, atol=1e-5)


def test_project_together_runs_hooks():
    seen = []
    three = [nn.Linear(24, 8) for _ in range(3)]
    three[1].register_forward_hook(lambda *_: seen.append(True))
    project_together(torch.randn(2, 24), *three)
    assert seen


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_packed_weights_equal_plain_weights(rows):
    three = [nn.Linear(48, width).to(torch.bfloat16) for width in (32, 16, 64)]
    states = torch.randn(rows, 1, 48, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = [nn.functional.linear(states, layer.weight, layer.bias) for layer in three]
        token = PACKED.set(PackedWeights())
        try:
            for _ in range(3):
                for actual, plain in zip(project_together(states, *three), expected, strict=True):
                    assert torch.allclose(actual, plain, atol=2e-2)
                assert torch.allclose(project(three[1], states), expected[1], atol=2e-2)
                assert PACKED.get().bytes == 2 * 48 * (32 + 16 + 64 + 16)
        finally:
            PACKED.reset(token)


def test_packed_weights_have_a_limit(monkeypatch):
    monkeypatch.setattr(PackedWeights, "BYTES", 200)
    packed, first, second = PackedWeights(), torch.randn(8, 8).bfloat16(), torch.randn(8, 8).bfloat16()
    assert packed.get((first, None)) is not None
    assert packed.get((second, None)) is None
    assert packed.get((first, None)) is not None
    del first
    assert packed.bytes == 0
    assert packed.get((second, None)) is not None


def test_packed_weights_are_released_with_their_source():
    """Offloaded weights are new tensors at each use: their packed copies would fill the memory."""
    packed = PackedWeights()
    for _ in range(20):
        assert packed.get((torch.randn(8, 8).bfloat16(), None)) is not None
        assert packed.bytes == 0
    kept = torch.randn(8, 8).bfloat16()
    for _ in range(3):  # the weight stays, its bias is new
        bias = torch.randn(8).bfloat16()
        assert torch.equal(packed.get((kept, bias))[1], bias)
        assert packed.bytes == 2 * 64


def test_packed_weights_belong_to_their_source():
    packed, states = PackedWeights(), torch.randn(1, 8).bfloat16()
    with torch.no_grad():
        for _ in range(20):
            weight = torch.randn(8, 8).bfloat16()
            packed_weight, _ = packed.get((weight, None))
            actual = onednn_linear(states, packed_weight, None)
            assert torch.allclose(actual, states @ weight.t(), atol=0.1)
            del weight


def test_threads_that_run_in_copies_of_one_context_pack_each_weight_once(monkeypatch):
    packings = []
    monkeypatch.setattr(linear, "pack_weight", lambda weight: packings.append(id(weight)) or pack_weight(weight))
    packed, weights = PackedWeights(), [torch.randn(64, 64).bfloat16() for _ in range(40)]
    found = in_threads(lambda _: [packed.get((weight, None))[0] for weight in weights])
    assert len(packings) == len(weights)
    assert all(each is first for others in found for each, first in zip(others, found[0], strict=True))
    assert packed.bytes == 40 * 2 * 64 * 64
    packed.release()
    assert packed.bytes == 0
    assert packed.get((weights[0], None)) is None


def test_project_together_with_and_without_bias():
    three = [nn.Linear(24, 8, bias=bias) for bias in (False, True, True)]
    states = torch.randn(2, 24)
    for actual, layer in zip(project_together(states, *three), three, strict=True):
        assert torch.allclose(actual, nn.functional.linear(states, layer.weight, layer.bias), atol=1e-6)


def test_runs_onednn():
    """A silent fallback to nn.Linear would slow down decoding."""
    layer = nn.Linear(24, 13)
    with torch.no_grad(), torch.profiler.profile() as profile:
        project(layer, torch.randn(1, 24))
    assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}


def test_autocast():
    ours, theirs = calls_of(nn.Linear(24, 13))
    states = torch.randn(3, 24)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(states), theirs(states))
        assert ours(states).dtype == torch.bfloat16


def test_outputs_can_be_edited_in_place():
    """As LoRA variants, steering hooks and `logits /= temperature` do."""
    layer, states = nn.Linear(24, 13), torch.randn(2, 5, 24, requires_grad=True)
    output = project(layer, states)
    assert route(layer, states) is Route.ONEDNN
    output /= 2
    output[..., 3] = 0
    output.sum().backward()
    expected = layer.weight.sum(0) - layer.weight[3]
    assert torch.allclose(states.grad, (expected / 2).expand_as(states), atol=1e-6)


def test_global_hooks_see_every_layer():
    seen, layer = [], nn.Linear(24, 13)
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        project(layer, torch.randn(1, 24))
    finally:
        handle.remove()
    assert seen == [layer]


@pytest.mark.parametrize("gradients", [True, False])
def test_operations_are_counted(gradients):
    layer, states = nn.Linear(24, 13), torch.randn(5, 24)
    with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
        project(layer, states)
    assert counter.get_total_flops() == 2 * 5 * 24 * 13
