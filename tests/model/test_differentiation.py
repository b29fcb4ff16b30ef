"""Second derivatives, torch.func transforms and tracing of the training loss, against finite differences and the plain
loss in float64."""

import copy

import pytest
import torch
from tiny import VARIANTS, make_config, make_model, random_ids
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from hf_gpt import GPTForCausalLM
from hf_gpt.model import feed_forward
from hf_gpt.model.configuration_gpt import OWN_PATTERNS
from hf_gpt.model.differentiation import differentiate

IDS = random_ids(2, 11)
STEP = 1e-5


def training_model(variant, attention="eager", dtype=torch.float64, **fields):
    return make_model(variant, attention=attention, **fields).to(dtype).train()


def loss_of(model, **options):
    return model(IDS, labels=IDS, use_cache=False, **options).loss


def flat(tensors):
    return torch.cat([tensor.flatten().double() for tensor in tensors])


def directions(parameters):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for p in parameters]


def hessian_vector_product(model, **options):
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss_of(model, **options), parameters, create_graph=True)
    products = sum((left * right).sum() for left, right in zip(gradients, directions(parameters), strict=True))
    return flat(torch.autograd.grad(products, parameters, materialize_grads=True))


def finite_differences(model):
    """The same product from first derivatives."""
    parameters, gradients = list(model.parameters()), []
    for sign in (1, -1):
        shifted = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, direction in zip(shifted.parameters(), directions(parameters), strict=True):
                parameter.add_(sign * STEP * direction)
        gradients.append(flat(torch.autograd.grad(loss_of(shifted, skip_logits=False), list(shifted.parameters()))))
    return (gradients[0] - gradients[1]) / (2 * STEP)


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


CASES = [(variant, "eager") for variant in VARIANTS]
CASES += [(variant, "sdpa") for variant in ("strided", "fixed", "sparse_transformer")]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("variant", "attention"), CASES, ids="-".join)
def test_hessian_vector_product(variant, attention, tied, monkeypatch):
    monkeypatch.setattr("hf_gpt.model.attention_masks.MIN_KEYS_FOR_PIECES", 2)
    # With sdpa only sparse layers have a second derivative.
    fields = {"attention_patterns": [variant] * 2} if attention == "sdpa" and variant in OWN_PATTERNS else {}
    model = training_model(variant, attention, tie_word_embeddings=tied, **fields)
    assert relative_error(hessian_vector_product(model), finite_differences(model)) < 1e-5


@pytest.mark.parametrize("variant", ["default", "llama", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("hooked", [False, True], ids=["bare", "hooked"])
def test_hessian_vector_product_in_float32(variant, hooked, monkeypatch):
    """The products of oneDNN, and the recomputed activation; with a hook on the head, checkpointed chunks of logits."""
    monkeypatch.setattr(feed_forward, "RECOMPUTED_BYTES", 0)
    precise, model = (training_model(variant, dtype=dtype) for dtype in (torch.float64, torch.float32))
    if hooked:
        model.lm_head.register_forward_hook(lambda *_: None)
    assert relative_error(hessian_vector_product(model), hessian_vector_product(precise)) < 1e-3


@pytest.mark.parametrize("variant", ["default", "llama", "mixtral"])
def test_gradient_penalty(variant):
    """Differentiable gradients with respect to embeddings alone, as in adversarial training."""
    norms = []
    for skip_logits in (True, False):
        model = training_model(variant)
        embeds = model.get_input_embeddings()(IDS).detach().requires_grad_()
        loss = model(inputs_embeds=embeds, labels=IDS, use_cache=False, skip_logits=skip_logits).loss
        (gradient,) = torch.autograd.grad(loss, embeds, create_graph=True)
        gradient.square().sum().backward()
        norms.append(model.lm_head.weight.grad)
    torch.testing.assert_close(*norms, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", ["default", "llama", "mixtral", "strided"])
def test_gradients_can_be_edited_between_two_calls(variant):
    model = training_model(variant, dtype=torch.float32)
    loss, parameters = loss_of(model), list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    expected = [None if each is None else each.clone() for each in first]
    for each in first:
        if each is not None:
            each.zero_()
    for actual, each in zip(torch.autograd.grad(loss, parameters, allow_unused=True), expected, strict=True):
        torch.testing.assert_close(actual, each, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by_vmap", [True, False], ids=["vmap", "is_grads_batched"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("variant", "attention"), CASES, ids="-".join)
def test_batched_gradients(variant, attention, dtype, by_vmap, monkeypatch):
    """Backward inside vmap, after a forward outside."""
    monkeypatch.setattr("hf_gpt.model.attention_masks.MIN_KEYS_FOR_PIECES", 2)
    monkeypatch.setattr(feed_forward, "RECOMPUTED_BYTES", 0)
    model = training_model(variant, attention, dtype)
    parameters, factors = [p for p in model.parameters() if p.requires_grad], torch.tensor([1.0, -2.0], dtype=dtype)
    expected, loss = flat(torch.autograd.grad(loss_of(model), parameters)), loss_of(model)
    if by_vmap:
        rows = vmap(lambda factor: torch.autograd.grad(loss, parameters, factor))(factors)
    else:
        rows = torch.autograd.grad(loss, parameters, factors, is_grads_batched=True)
    for row, factor in enumerate(factors):
        actual = flat(each[row] for each in rows)
        assert relative_error(actual, factor * expected) < {torch.float64: 1e-9, torch.float32: 1e-4}[dtype]


# --- torch.func and tracing ----------------------------------------------------------------------------------------


def functional_loss(model):
    def loss(parameters, ids):
        return functional_call(model, parameters, (ids,), {"labels": ids, "use_cache": False}).loss

    return loss, {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_by_torch_func(variant, dtype):
    model = training_model(variant, dtype=dtype)
    expected = torch.autograd.grad(loss_of(model), list(model.parameters()))
    loss, parameters = functional_loss(model)
    actual = grad(loss)(parameters, IDS).values()
    assert relative_error(flat(actual), flat(expected)) < {torch.float64: 1e-9, torch.float32: 1e-4}[dtype]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_each_row(variant):
    """vmap over rows: per-example gradients, as in differential privacy."""
    model = training_model(variant, router_aux_loss_coef=0.0)
    loss, parameters = functional_loss(model)
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, IDS[:, None])
    expected = [torch.autograd.grad(loss_of_row(model, row), list(model.parameters())) for row in IDS]
    for row in range(len(IDS)):
        assert relative_error(flat(value[row] for value in each.values()), flat(expected[row])) < 1e-9


def loss_of_row(model, row):
    return model(row[None], labels=row[None], use_cache=False).loss


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_derivative(variant):
    model = training_model(variant)
    loss, parameters = functional_loss(model)
    tangents = dict(zip(parameters, directions(parameters.values()), strict=True))
    _, actual = jvp(lambda values: loss(values, IDS), (parameters,), (tangents,))
    gradients = torch.autograd.grad(loss_of(model), list(model.parameters()))
    expected = (flat(gradients) * flat(tangents.values())).sum()
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fake_tensors(variant):
    """Shapes without values, as in memory estimates."""
    with FakeTensorMode():
        model = make_model(variant).train()
        ids = torch.zeros(2, 11, dtype=torch.long)
        outputs = model(ids, labels=ids, skip_logits=False, attention_mask=torch.ones_like(ids), use_cache=False)
        outputs.loss.backward()
    assert outputs.logits.shape == (2, 11, 99)
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("skip_logits", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_meta_device(variant, skip_logits):
    """Parameters without memory, as for the FLOPs of a large model."""
    with torch.device("meta"):
        model, ids = GPTForCausalLM(make_config(variant)).train(), torch.zeros(2, 11, dtype=torch.long)
    outputs = model(ids, labels=ids, skip_logits=skip_logits)
    outputs.loss.backward()
    assert outputs.loss.is_meta
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


class Logits(nn.Module):
    """A model that returns a tensor, as torch.jit.trace needs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids, use_cache=False).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_jit_trace(variant):
    model, other = make_model(variant), random_ids(2, 11, seed=9)
    traced = torch.jit.trace(Logits(model), (IDS,), check_trace=False)
    with torch.no_grad():
        torch.testing.assert_close(traced(other), model(other, use_cache=False).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", ["default", "llama"])
def test_operations_are_counted(variant, training):
    """FlopCounterMode does not know the operations of oneDNN."""
    model = make_model(variant, attention="eager").train(training)
    counts = []
    for each in (model, copy.deepcopy(model).double()):  # float64 does not use oneDNN
        with torch.set_grad_enabled(training), FlopCounterMode(display=False) as counter:
            each(IDS, labels=IDS, skip_logits=False, use_cache=False)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


# --- the function itself -------------------------------------------------------------------------------------------


def test_inputs_that_depend_on_each_other():
    """A tied weight: the gradient of each input is partial, not that of the other one through it."""
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    states = weight * 2

    def product(states, factor, weight):
        return (states * weight).sum() * factor

    actual = differentiate(product, (states, 3.0, weight), (True, False, True), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(actual[0], 3 * weight)
    assert actual[1] is None
    torch.testing.assert_close(actual[2], 3 * states)
