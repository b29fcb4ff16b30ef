"""The language-model loss in chunks, against that of all logits in float64: each term, label, head and precision."""

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_model, random_ids
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn
from transformers import GPT2LMHeadModel, set_seed

from hf_gpt.compatibility import enable_activation_checkpointing
from hf_gpt.model import losses
from hf_gpt.model.losses import LossTerms, language_model_loss
from hf_gpt.model.targets import next_token_targets

WIDTH, VOCABULARY = 24, 99
PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
TERMS = {
    "plain": LossTerms(),
    "smoothed": LossTerms(label_smoothing=0.1),
    "z_loss": LossTerms(z_loss_coef=0.01),
    "both": LossTerms(0.2, 0.03),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Sets sizes that make several chunks of several parts, with a smaller last one."""
    monkeypatch.setitem(losses.CHUNK_BYTES, "cpu", 7 * VOCABULARY * 8)
    monkeypatch.setattr(losses, "CACHED_ROWS", 3)
    monkeypatch.setattr(losses, "ADDED_ROWS", 40)


def head_and_states(dtype=torch.float64, bias=True):
    set_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias).to(dtype)
    return head, torch.randn(2, 11, WIDTH, dtype=dtype)


def some_labels(ignored=True):
    labels = random_ids(2, 11, low=0)
    if ignored:
        labels[0, 3:6] = labels[1, -2:] = -100
    return labels


def definition(head, states, labels, terms, num_items=None, shift_labels=None):
    """Returns the loss of all logits by its formulas, in float64."""
    logits = nn.functional.linear(states, head.weight, head.bias)
    targets = shift_labels if shift_labels is not None else labels[:, 1:]
    logits = (logits if shift_labels is not None else logits[:, :-1]).flatten(0, 1).double()
    counted = targets.flatten() != -100
    logits, targets = logits[counted], targets.flatten()[counted]
    log_probabilities = logits.log_softmax(-1)
    chosen = -log_probabilities.gather(1, targets[:, None])[:, 0]
    uniform = -log_probabilities.mean(-1)
    each = (1 - terms.label_smoothing) * chosen + terms.label_smoothing * uniform
    each = each + terms.z_loss_coef * logits.logsumexp(-1).square()
    return each.sum() / (len(targets) if num_items is None else num_items)


def loss_of(head, states, labels, terms, **options):
    """Returns the loss in chunks; the options are those of `next_token_targets`."""
    targets = next_token_targets(labels, states, **options)
    return language_model_loss(head, states, targets, terms, vocab_size=VOCABULARY)


def gradients(loss, head, states):
    return torch.autograd.grad(loss, [states, *head.parameters()])


def assert_close(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        assert (a.double() - e.double()).abs().max() <= tolerance * e.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("num_items", [None, 37, torch.tensor(37)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_equals_the_definition(terms, bias, ignored, num_items, dtype, tolerance):
    head, states = head_and_states(dtype, bias)
    states.requires_grad_()
    labels = some_labels(ignored)
    actual = loss_of(head, states, labels, TERMS[terms], num_items_in_batch=num_items)
    expected = definition(head, states, labels, TERMS[terms], num_items)
    assert_close([actual], [expected], tolerance)
    assert_close(gradients(actual, head, states), gradients(expected, head, states), tolerance)


class Wrapped(nn.Module):
    """A head that is no linear layer itself."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, states):
        return self.head(states)


def hooked(head):
    head.register_forward_hook(lambda *_: None)
    return head


@pytest.mark.parametrize("wrap", [Wrapped, hooked, torch.compile], ids=["wrapped", "hooked", "compiled"])
@pytest.mark.parametrize("terms", TERMS)
def test_other_heads_equal_the_definition(wrap, terms):
    head, states = head_and_states()
    states.requires_grad_()
    labels = some_labels()
    expected = definition(head, states, labels, TERMS[terms])
    expected_gradients = gradients(expected, head, states)
    options = {"backend": "eager"} if wrap is torch.compile else {}
    actual = loss_of(wrap(head, **options), states, labels, TERMS[terms])
    assert_close([actual], [expected], 1e-12)
    assert_close(gradients(actual, head, states), expected_gradients, 1e-12)


def test_shifted_labels_and_another_ignore_index():
    head, states = head_and_states()
    shifted = some_labels()
    expected = definition(head, states, None, LossTerms(), shift_labels=shifted)
    zeros = torch.where(shifted == -100, 0, shifted.clamp(min=1))
    assert_close([loss_of(head, states, shifted, LossTerms(), shift_labels=shifted)], [expected], 1e-12)
    actual = loss_of(head, states, zeros, LossTerms(), shift_labels=zeros, ignore_index=0)
    expected = definition(head, states, None, LossTerms(), shift_labels=zeros.masked_fill(zeros == 0, -100))
    assert_close([actual], [expected], 1e-12)


@pytest.mark.parametrize("frozen", ["states", "weight", "bias"])
def test_frozen_inputs_get_no_gradient(frozen):
    head, states = head_and_states()
    states.requires_grad_(frozen != "states")
    if frozen != "states":
        getattr(head, frozen).requires_grad_(False)
    expected = definition(head, states, some_labels(), LossTerms())
    actual = loss_of(head, states, some_labels(), LossTerms())
    learns = [each for each in (states, *head.parameters()) if each.requires_grad]
    assert_close(torch.autograd.grad(actual, learns), torch.autograd.grad(expected, learns), 1e-12)


def test_backward_twice_and_with_another_gradient():
    head, states = head_and_states()
    states.requires_grad_()
    loss = loss_of(head, states, some_labels(), LossTerms())
    once = torch.autograd.grad(loss, [states, head.weight], retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, [states, head.weight], retain_graph=True)
    assert_close(thrice, [3 * each for each in once], 1e-12)
    assert_close(torch.autograd.grad(loss, [states, head.weight]), once, 1e-12)


def test_autocast_is_as_close_as_full_logits():
    """Logits and products are rounded, sums are float32: the error is at most twice that of full bfloat16 logits."""
    head, states = head_and_states(torch.float32)
    states.requires_grad_()
    exact = gradients(definition(head, states, some_labels(), LossTerms()), head, states)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(head, states, some_labels(), LossTerms())
        full = nn.functional.cross_entropy(
            head(states)[:, :-1].flatten(0, 1).float(), some_labels()[:, 1:].flatten(), ignore_index=-100
        )
    ours, plain = gradients(loss, head, states), gradients(full, head, states)
    assert loss.dtype == torch.float32
    for actual, other, expected in zip(ours, plain, exact, strict=True):
        assert actual.dtype == expected.dtype
        error, usual = (actual - expected).abs().max(), (other - expected).abs().max()
        assert error <= 2 * usual


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "half"])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize(("scale", "num_items"), [(2.0**16, None), (2.0**16, 2**19), (1.0, None), (2.0**20, 2**19)])
def test_float16_gradients(scale, num_items, terms, autocast):
    """The scale of a GradScaler comes after the loss: neither few targets overflow nor many underflow."""
    head, states = head_and_states(torch.float32)
    labels = some_labels()
    exact = gradients(definition(head, states.requires_grad_(), labels, TERMS[terms], num_items), head, states)
    if not autocast:
        head, states = head.half(), states.detach().half().requires_grad_()
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        loss = loss_of(head, states, labels, TERMS[terms], num_items_in_batch=num_items)
    assert loss.dtype == torch.float32
    for actual, expected, like in zip(
        gradients(scale * loss, head, states), exact, (states, *head.parameters()), strict=True
    ):
        assert actual.dtype == like.dtype
        assert (actual.double() / scale - expected).norm() < 5e-3 * expected.norm()


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "half"])
@pytest.mark.parametrize("scale", [1.0, 2.0**8])
def test_float16_gradients_of_a_frequent_class(scale, autocast, monkeypatch):
    """The gradients of many tokens of one class add up to more than float16 holds, before they are divided."""
    monkeypatch.setitem(losses.CHUNK_BYTES, "cpu", 2**20)
    head, states = head_and_states(torch.float32)
    states, labels = states.repeat(1, 100, 1) + 1, torch.full((2, 1100), 7)
    exact = gradients(definition(head, states.requires_grad_(), labels, LossTerms()), head, states)
    if not autocast:
        head, states = head.half(), states.detach().half().requires_grad_()
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        loss = loss_of(head, states, labels, LossTerms())
    for actual, expected in zip(gradients(scale * loss, head, states), exact, strict=True):
        assert (actual.double() / scale - expected).norm() < 5e-3 * expected.norm()


@pytest.mark.parametrize("variant", ["default", "llama", "mixtral"])
@pytest.mark.parametrize("num_items", [None, 2**19])
def test_float16_training_step(variant, num_items):
    """As in `Trainer(fp16=True)`: all gradients of a model, against full logits and against float32."""
    scale, ids = 2.0**16, random_ids(2, 11)
    model = make_model(variant).train()
    found = []
    for dtype, skip_logits in ((torch.float32, True), (torch.float16, True), (torch.float16, False)):
        model.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=dtype == torch.float16):
            loss = model(ids, labels=ids, num_items_in_batch=num_items, skip_logits=skip_logits).loss
        (scale * loss).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    errors = [(actual - found[0]).norm() / found[0].norm() for actual in found[1:]]
    assert errors[0] < max(1.5 * errors[1], 2e-3)


def test_extreme_logits():
    """Probabilities below the smallest float32 have a finite loss."""
    head, states = head_and_states(torch.float32)
    states = (1e4 * states).requires_grad_()
    loss = loss_of(head, states, some_labels(), LossTerms())
    assert_close([loss], [definition(head, states, some_labels(), LossTerms())], 1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients(loss, head, states))


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_mean_without_targets_is_nan_as_in_gpt2(plain, training):
    model = make_model().train(training)
    if not plain:
        hooked(model.lm_head)
    ids, ignored = random_ids(2, 5), torch.full((2, 5), -100)
    peer = GPT2LMHeadModel._from_config(GPT2LMHeadModel.config_class(n_layer=1, n_embd=8, n_head=2, vocab_size=99))
    assert peer(ids, labels=ignored).loss.isnan()
    assert model(ids, labels=ignored).loss.isnan()
    assert model(ids, labels=ignored, num_items_in_batch=5).loss == peer(ids, labels=ignored, num_items_in_batch=5).loss
    if training:
        model(ids, labels=ignored, num_items_in_batch=5).loss.backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("wrong", [-1, -99, VOCABULARY, 10**6])
@pytest.mark.parametrize("training", [True, False])
def test_labels_outside_the_vocabulary_raise(wrong, training):
    labels = random_ids(1, 6)
    labels[0, 3] = wrong
    with pytest.raises(ValueError, match=rf"labels .*{wrong}.*expected 0 to 98, by vocab_size=99"):
        make_model().train(training)(random_ids(1, 6), labels=labels)


# --- in the model -----------------------------------------------------------------------------------------------------


def test_logits_are_skipped_in_training_by_default(variant):
    model, ids = make_model(variant), random_ids(2, 9)
    evaluated = model(ids, labels=ids)
    assert evaluated.logits.shape == (2, 9, 99)
    assert model(ids, labels=ids, skip_logits=True).logits is None
    trained = model.train()(ids, labels=ids)
    with_logits = model(ids, labels=ids, skip_logits=False)
    assert trained.logits is None
    assert with_logits.logits.shape == (2, 9, 99)
    assert torch.allclose(trained.loss, with_logits.loss, rtol=1e-6)
    if model.config.num_local_experts is None:
        assert torch.allclose(trained.loss, evaluated.loss, rtol=1e-6)
    with pytest.raises(ValueError, match="skip_logits=True without labels"):
        model(ids, skip_logits=True)


@torch.no_grad()
def expected_loss(model, ids):
    return definition(model.lm_head, model.model(ids).last_hidden_state, ids, LossTerms())


@pytest.mark.parametrize("change", ["loss_function", "lora", "resized", "head_bias", "untied", "checkpointing"])
def test_the_loss_of_other_ways_to_train(change):
    fields = {"head_bias": {"lm_head_bias": True}, "untied": {"tie_word_embeddings": False}}.get(change, {})
    model, ids = make_model(**fields).train(), random_ids(2, 9)
    expected = expected_loss(model, ids)
    if change == "loss_function":
        model.loss_function = lambda logits, labels, **_: logits.mean()
        assert model(ids, labels=ids).loss == model(ids, labels=ids).logits.mean()
        return
    if change == "lora":
        model = get_peft_model(model, LoraConfig(target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM"))
    if change == "resized":
        model.resize_token_embeddings(120)
        expected = expected_loss(model, ids)
    if change == "checkpointing":
        enable_activation_checkpointing(model)
    loss = model(ids, labels=ids).loss
    assert_close([loss], [expected], 1e-5)
    loss.backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_smoothing_and_z_loss_apply_only_in_training():
    fields = {"label_smoothing": 0.1, "lm_z_loss_coef": 0.01}
    model, ids = make_model(**fields), random_ids(2, 9)
    states = model.model(ids).last_hidden_state
    assert_close([model(ids, labels=ids).loss], [definition(model.lm_head, states, ids, LossTerms())], 1e-5)
    expected = definition(model.lm_head, states, ids, LossTerms(0.1, 0.01))
    for options in ({}, {"skip_logits": False}):
        assert_close([model.train()(ids, labels=ids, **options).loss], [expected], 1e-5)


def test_compiled_step_equals_eager_step():
    model, ids = make_model().train(), random_ids(2, 9)
    model(ids, labels=ids).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compiler.reset()
    torch.compile(model, fullgraph=True, backend="aot_eager")(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-4, atol=1e-6), name


def test_loss_inside_activation_checkpointing():
    head, states = head_and_states()
    states.requires_grad_()

    def checkpointed(states):
        return loss_of(head, states, some_labels(), LossTerms())

    expected = gradients(checkpointed(states), head, states)
    assert_close(gradients(checkpoint(checkpointed, states, use_reentrant=False), head, states), expected, 1e-12)


@pytest.mark.parametrize("variant", ["default", "llama", "gpt_oss"])
def test_loss_inside_a_selective_checkpoint(variant):
    """One that keeps the products, and therefore the logits."""

    def keep_products(_context, operation, *_args, **_kwargs):
        is_product = operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return CheckpointPolicy.MUST_SAVE if is_product else CheckpointPolicy.PREFER_RECOMPUTE

    model, ids = make_model(variant).train(), random_ids(2, 11)
    parameters, found = [p for p in model.parameters() if p.requires_grad], []
    for context in (noop_context_fn, partial(create_selective_checkpoint_contexts, keep_products)):
        loss = checkpoint(lambda: model(ids, labels=ids).loss, use_reentrant=False, context_fn=context)
        found.append(torch.autograd.grad(loss, parameters))
    assert_close(*found, 1e-4)


def test_memory_does_not_grow_with_the_logits(monkeypatch):
    """No tensor has (tokens x vocabulary) elements."""
    monkeypatch.setitem(losses.CHUNK_BYTES, "cpu", 16 * 99 * 4)
    model, ids = make_model().train(), random_ids(4, 60)
    with torch.profiler.profile(record_shapes=True) as profile:
        model(ids, labels=ids).loss.backward()
    largest = max(
        (shape[0] * shape[-1] for event in profile.events() for shape in event.input_shapes if len(shape) > 1
         and shape[-1] == 99), default=0,
    )  # fmt: skip
    assert 0 < largest <= 32 * 99


def test_logits_at_chosen_positions_do_not_change_the_loss():
    model, ids = make_model(), random_ids(2, 9)
    expected = model(ids, labels=ids).loss
    for kept in (torch.arange(8, -1, -1), torch.tensor([3, 5])):
        output = model(ids, labels=ids, logits_to_keep=kept)
        assert output.logits.shape[1] == len(kept)
        assert_close([output.loss], [expected], 1e-6)


def test_a_loss_function_of_the_user_needs_logits():
    model, ids = make_model(), random_ids(2, 9)
    model.loss_function = lambda logits, labels, vocab_size, **_: logits.square().mean()
    assert model.train()(ids, labels=ids).logits is not None
    with pytest.raises(ValueError, match="skip_logits=True with a loss_function"):
        model(ids, labels=ids, skip_logits=True)
