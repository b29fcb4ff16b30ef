"""Private operations of torch: each is found on the installed release, and each fallback computes the same results."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from naive import attention
from quantized import dequantized
from tiny import make_model, random_ids
from torch import nn

from hf_gpt.model import backends, quantized_weights
from hf_gpt.model.backends import find_operation, flash_attention, flash_attention_backward, is_plain
from hf_gpt.model.embedding import look_up_tied
from hf_gpt.model.linear import PACKED, PackedWeights, Route, project_together, route
from hf_gpt.model.quantized_weights import install_kernels
from hf_gpt.surgery.quantization import SCHEMES

ONEDNN = ["ONEDNN_LINEAR", "ONEDNN_PACK"]
KERNELS = ["FLASH", "FLASH_BACKWARD"]
QUANTIZED = ["INT8_MATMUL", "INT4_MATMUL", "INT4_PACK"]
OTHERS = ["FUNCTORCH_ACTIVE", "DISPATCH_MODES", "DISPATCH_MODE", "GLOBAL_HOOKS", "ALIAS", "FLOAT32_MATMUL"]
OPERATIONS = [*OTHERS, *ONEDNN, *KERNELS, *QUANTIZED]

# A model for each group of operations.
MODELS = {
    "dense": {},
    "sparse": {
        "attention_patterns": ["strided", "fixed"],
        "attention_stride": 3,
        "attention_summary_size": 1,
        "attention_sinks": True,
        "num_key_value_heads": 2,
    },
    "experts": {"mlp_type": "glu", "num_local_experts": 4, "router_aux_loss_coef": 0.5},
}


def hide(monkeypatch, *names):
    """Makes operations unavailable, as on a release of torch without them."""
    for name in names:
        monkeypatch.setattr(quantized_weights if name in QUANTIZED else backends, name, None)


# --- the operations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_available(name):
    """A release of torch that renames an operation or its arguments makes the model slower, not wrong."""
    if name in ONEDNN and not torch.backends.mkldnn.is_available():
        pytest.skip("torch is built without oneDNN")
    assert getattr(quantized_weights if name in QUANTIZED else backends, name) is not None


def test_every_operation_is_tested():
    bound = {name for name, value in vars(backends).items() if name.isupper() and (callable(value) or value is None)}
    assert bound - {"ALL_PARALLEL_STYLES"} == set(OPERATIONS)


def test_no_other_module_uses_private_operations():
    for path in Path(backends.__file__).parent.glob("*.py"):
        if path.name != "backends.py":
            assert not re.findall(r"torch\.(?:ops\b|_\w+)|import _\w+", path.read_text()), path.name


@pytest.mark.parametrize(
    ("path", "arguments", "is_found"),
    [
        ("ops.aten.alias.default", ("self",), True),
        ("ops.aten.alias.default", (), True),
        ("ops.aten.alias.default", ("tensor",), False),
        ("ops.aten.alias.default", ("self", "dim"), False),
        ("ops.aten.mm.default", ("mat2", "self"), False),
        ("ops.aten.alias.no_such_overload", (), False),
        ("ops.aten.no_such_operation.default", (), False),
        ("ops.no_such_namespace.alias.default", (), False),
        ("_C.no_such_function", (), False),
        ("no_such_module.function", (), False),
        ("matmul", ("not", "checked"), True),
    ],
)
def test_find_operation(path, arguments, is_found):
    assert (find_operation(path, *arguments) is not None) == is_found


def test_imports_without_parallel_styles(monkeypatch):
    """As with transformers 5.17, which cannot split experts over processes."""
    monkeypatch.setitem(sys.modules, "transformers.distributed.parallel_utils", None)
    folder = Path(backends.__file__).parent
    spec = importlib.util.spec_from_file_location(
        "copied", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    monkeypatch.setitem(sys.modules, "copied", importlib.util.module_from_spec(spec))
    try:
        plans = importlib.import_module("copied.parallel_plans")
        assert plans.ALL_PARALLEL_STYLES is None
        config = make_model("gpt_oss").config
        assert plans.tensor_parallel_plan(config).items() <= config.base_model_tp_plan.items()
    finally:
        for name in [name for name in sys.modules if name.startswith("copied.")]:
            del sys.modules[name]


class Subclass(torch.Tensor):
    pass


def test_plain_operands():
    plain = torch.zeros(2)
    assert is_plain(plain, nn.Parameter(plain), None)
    assert not is_plain(plain, plain.as_subclass(Subclass))
    assert not torch.compile(lambda x: x + is_plain(x), backend="eager", fullgraph=True)(plain).any()
    seen = []
    torch.func.vmap(lambda x: seen.append(is_plain(plain)) or x)(plain)
    assert seen == [False]


# --- a training step without them -------------------------------------------------------------------------------------


def step(model, ids):
    """Returns logits, the training loss, and all gradients."""
    with torch.no_grad():
        logits = model.eval()(ids).logits
    loss = model.train()(ids, labels=ids).loss
    loss.backward()
    return [logits, loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize(
    "hidden", [[name] for name in OPERATIONS if name not in QUANTIZED] + [OPERATIONS], ids="-".join
)
@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_a_training_step_without_the_operation(fields, hidden, monkeypatch):
    ids = random_ids(2, 11)
    expected = step(make_model(**fields), ids)
    hide(monkeypatch, *hidden)
    for actual, wanted in zip(step(make_model(**fields), ids), expected, strict=True):
        assert (actual - wanted).abs().max() < 1e-5 * wanted.abs().max()


# --- attention --------------------------------------------------------------------------------------------------------

PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
QUERIES, KEYS = 5, 9


def attention_inputs(dtype, kv_heads, keys):
    """Queries, keys, values and a gradient, as views that are not contiguous, (2, heads, length, 8)."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(4, QUERIES), (kv_heads, keys), (kv_heads, keys), (4, QUERIES)]
    return [torch.randn(2, n, heads, 8, generator=generator, dtype=dtype).transpose(1, 2) for heads, n in sizes]


def some_mask(kind, dtype):
    """An additive mask, and the keys that it and causality allow, (2, QUERIES, keys)."""
    if kind == "causal":
        return None, torch.ones(2, QUERIES, QUERIES, dtype=torch.bool).tril()
    rows = 1 if kind == "one mask" else 2
    seen = torch.rand(rows, QUERIES, KEYS, generator=torch.Generator().manual_seed(1)) < (2 if kind == "none" else 0.5)
    seen[..., 0] = True
    mask = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    return None if kind == "none" else mask, seen.expand(2, -1, -1)


def assert_close(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert (a.double() - e.double()).abs().max() <= tolerance * e.double().abs().max()


@pytest.mark.parametrize("hidden", [[], KERNELS], ids=["kernel", "fallback"])
@pytest.mark.parametrize("kind", ["none", "causal", "one mask", "mask of each row"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_attention_equals_the_definition(dtype, tolerance, kv_heads, kind, hidden, monkeypatch):
    """Output, log-sum-exp and gradients. The same inputs to the kernels and to the fallback."""
    hide(monkeypatch, *hidden)
    mask, allowed = some_mask(kind, dtype)
    query, key, value, gradient = attention_inputs(dtype, kv_heads, allowed.shape[-1])
    exact = [states.double().requires_grad_() for states in (query, key, value)]
    expected = attention(*exact, allowed, 0.3).transpose(1, 2)
    scores = exact[0] @ exact[1].repeat_interleave(4 // kv_heads, dim=1).transpose(-1, -2) * 0.3
    expected_sums = scores.masked_fill(~allowed[:, None], -torch.inf).logsumexp(-1, keepdim=True)

    is_causal = kind == "causal"
    output, sums = flash_attention(query, key, value, mask, is_causal, 0.3)
    assert output.dtype == dtype
    assert sums.dtype == torch.promote_types(dtype, torch.float32)
    assert_close([output, sums], [expected, expected_sums], tolerance)

    gradients = flash_attention_backward(gradient, query, key, value, output, sums, mask, is_causal, 0.3)
    assert [each.dtype for each in gradients] == [dtype] * 3
    assert_close(gradients, torch.autograd.grad(expected, exact, gradient.double()), 2 * tolerance)


@pytest.mark.parametrize("hidden", [[], KERNELS], ids=["kernels", "fallback"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS[:2])
def test_backward_of_a_part_of_the_keys(dtype, tolerance, hidden, monkeypatch):
    """With the output and log-sum-exp over all keys, each part of the keys gets its gradients."""
    hide(monkeypatch, *hidden)
    query, key, value, gradient = attention_inputs(dtype, 2, KEYS)
    output, sums = flash_attention(query, key, value, None, False, 0.3)
    whole = flash_attention_backward(gradient, query, key, value, output, sums, None, False, 0.3)
    parts = [
        flash_attention_backward(gradient, query, key[:, :, part], value[:, :, part], output, sums, None, False, 0.3)
        for part in (slice(0, 4), slice(4, KEYS))
    ]
    to_query = parts[0][0] + parts[1][0]
    to_key, to_value = (torch.cat([part[i] for part in parts], dim=2) for i in (1, 2))
    assert_close([to_query, to_key, to_value], whole, tolerance)


# --- linear layers ----------------------------------------------------------------------------------------------------


def outputs_and_gradients(layers, states):
    inputs = states.clone().requires_grad_()
    outputs = project_together(inputs, *layers)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    gradients = torch.autograd.grad(sum(each.square().sum() for each in outputs), [inputs, *parameters])
    with torch.no_grad():
        return [*outputs, *gradients, *project_together(states, *layers), backends.matmul(states, layers[0].weight.t())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_layers_without_onednn(dtype, monkeypatch):
    torch.manual_seed(0)
    layers, states = [nn.Linear(24, width).to(dtype) for width in (8, 16)], torch.randn(2, 5, 24, dtype=dtype)
    expected = outputs_and_gradients(layers, states)
    hide(monkeypatch, *ONEDNN)
    assert route(layers[0], states) is Route.PLAIN
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert_close(outputs_and_gradients(layers, states), expected, tolerance)


@pytest.mark.parametrize("hidden", [["ONEDNN_PACK"], ["ONEDNN_LINEAR"], ONEDNN], ids="-".join)
@torch.no_grad()
def test_packed_weights_without_onednn(hidden, monkeypatch):
    layers, states = [nn.Linear(24, width).bfloat16() for width in (8, 16)], torch.randn(1, 1, 24).bfloat16()
    expected = [nn.functional.linear(states, layer.weight, layer.bias) for layer in layers]
    hide(monkeypatch, *hidden)
    token = PACKED.set(PackedWeights())
    try:
        assert_close(project_together(states, *layers), expected, 2e-2)
    finally:
        PACKED.reset(token)


@pytest.mark.parametrize("hidden", [[name] for name in QUANTIZED] + [QUANTIZED], ids="-".join)
@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_quantized_layers_without_kernels(scheme, hidden, monkeypatch):
    torch.manual_seed(0)
    layer, states = nn.Linear(64, 32).bfloat16(), torch.randn(1, 3, 64).bfloat16()
    layer.weight = nn.Parameter(SCHEMES[scheme].quantize(layer.weight, 32, "layer"), requires_grad=False)
    install_kernels(layer)
    hide(monkeypatch, *hidden)
    expected = states.double() @ dequantized(layer.weight).t() + layer.bias.double()
    assert_close([layer(states)], [expected], 1e-2)


def test_without_functorch_active_our_autograd_functions_are_not_used(monkeypatch):
    """They do not work inside torch.func, so that an unknown state counts as inside."""
    layer, states = nn.Linear(8, 4), torch.randn(2, 8)
    hide(monkeypatch, "FUNCTORCH_ACTIVE")
    assert not is_plain(states)
    assert route(layer, states) is Route.MODULE
    assert layer(states).grad_fn.name() == "AddmmBackward0"


def test_alias_is_an_operation_of_its_own(monkeypatch):
    """Autograd then adds the sparse gradient of the lookup to that of the head, which is dense, in place."""
    weight, ids = nn.Parameter(torch.randn(9, 4)), random_ids(2, 3, high=9)

    def gradient():
        embeds, for_head = look_up_tied(weight, ids)
        return torch.autograd.grad(embeds.sum() + (for_head @ torch.ones(4)).square().sum(), weight)[0]

    table = nn.functional.embedding(ids, weight)
    expected = torch.autograd.grad(table.sum() + (weight @ torch.ones(4)).square().sum(), weight)[0]
    assert_close([gradient()], [expected], 1e-6)
    hide(monkeypatch, "ALIAS")
    assert backends.alias(weight).grad_fn is not None
    assert_close([gradient()], [expected], 1e-6)
