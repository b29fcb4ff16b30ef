"""The gradient of a tied embedding, against that of PyTorch's embedding."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_model, random_ids

from hf_gpt.model import modeling_gpt
from hf_gpt.model.embedding import suits_tied_lookup
from hf_gpt.model.losses import LinearCrossEntropy


def tied_model(**fields):
    return make_model(tie_word_embeddings=True, **fields).train()


def some_ids():
    ids = random_ids(2, 9)
    ids[0, 2:5] = ids[1, 3]  # one token several times, in both rows
    return ids


def gradients_of(model, ids, backward=lambda outputs: outputs.loss.backward()):
    model.zero_grad()
    backward(model(ids, labels=ids, output_hidden_states=True))
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def use_plain_embedding(monkeypatch):
    """Switches to PyTorch's embedding."""
    monkeypatch.setattr(modeling_gpt, "suits_tied_lookup", lambda *_: False)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert not actual[name].is_sparse
        torch.testing.assert_close(actual[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def twice(outputs):
    outputs.loss.backward(retain_graph=True)
    outputs.loss.backward()


BACKWARDS = {
    "loss": lambda outputs: outputs.loss.backward(),
    "twice": twice,
    "states alone": lambda outputs: outputs.hidden_states[-1].square().sum().backward(),
    "both": lambda outputs: (outputs.loss + outputs.hidden_states[0].square().sum()).backward(),
}


@pytest.mark.parametrize("backward", BACKWARDS.values(), ids=BACKWARDS)
@pytest.mark.parametrize(
    "fields", [{}, {"lm_head_bias": True}, {"embedding_size": 16}], ids=["plain", "bias", "factorized"]
)
def test_gradients_equal_those_of_a_plain_embedding(backward, fields, monkeypatch):
    model, ids = tied_model(**fields), some_ids()
    assert suits_tied_lookup(model.model.embed_tokens, model.lm_head, ids)
    actual = gradients_of(model, ids, backward)
    use_plain_embedding(monkeypatch)
    assert_same(actual, gradients_of(model, ids, backward))


def test_gradients_accumulate_over_steps(monkeypatch):
    def two_steps():
        model.zero_grad()
        for ids in (some_ids(), random_ids(1, 5)):
            model(ids, labels=ids).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    model = tied_model()
    actual = two_steps()
    use_plain_embedding(monkeypatch)
    assert_same(actual, two_steps())


def test_embedding_gradient_is_added_to_that_of_the_head_in_place(monkeypatch):
    of_head, backward = [], LinearCrossEntropy.backward

    def recorded(ctx, gradient):
        given = backward(ctx, gradient)
        of_head.append(given[1].data_ptr())
        return given

    monkeypatch.setattr(LinearCrossEntropy, "backward", staticmethod(recorded))
    gradient = gradients_of(tied_model(), some_ids())["model.embed_tokens.weight"]
    assert of_head == [gradient.data_ptr()]


def untie(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())


def hook(model):
    model.model.embed_tokens.register_forward_hook(lambda *_: None)


UNSUPPORTED = {
    "untied": untie,
    "frozen": lambda model: model.lm_head.weight.requires_grad_(False),
    "hooked": hook,
    "hooked head": lambda model: model.lm_head.register_full_backward_pre_hook(lambda *_: None),
    "bfloat16": lambda model: model.bfloat16(),
}


@pytest.mark.parametrize("change", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_falls_back_to_the_plain_embedding(change, monkeypatch):
    model, ids = tied_model(), some_ids()
    change(model)
    assert not suits_tied_lookup(model.model.embed_tokens, model.lm_head, ids)
    actual = gradients_of(model, ids)
    use_plain_embedding(monkeypatch)
    assert_same(actual, gradients_of(model, ids))


def test_hooks_of_the_embedding_are_called():
    model, called = tied_model(), []
    model.model.embed_tokens.register_forward_hook(lambda *_: called.append(True))
    gradients_of(model, some_ids())
    assert called == [True]


@pytest.mark.parametrize("options", [{"target_modules": ["embed_tokens"]}, {"trainable_token_indices": [1, 2]}])
def test_an_embedding_wrapped_by_peft(options):
    options = {"target_modules": ["q_proj"], "ensure_weight_tying": True, **options}
    model, ids = get_peft_model(tied_model(), LoraConfig(task_type="CAUSAL_LM", **options)), some_ids()
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_a_token_outside_the_vocabulary_raises(wrong):
    model, ids = tied_model(), some_ids()
    labels = ids.clone()
    ids[0, 1] = wrong
    with pytest.raises(ValueError, match=r"input_ids from .* vocab_size"):
        model(ids, labels=labels)
