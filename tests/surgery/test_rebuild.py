"""The model of another configuration that every change of a model builds."""

import pytest
import torch
from tiny import make_config, make_model, random_ids

from hf_gpt import GPTForTokenClassification
from hf_gpt.compatibility import enable_activation_checkpointing
from hf_gpt.surgery import extend_context, quantize, set_attention_patterns, upcycle
from hf_gpt.surgery.rebuild import rebuild


def test_copies_the_weights():
    model, ids = make_model(), random_ids(2, 9)
    changed = rebuild(model, make_config())
    assert torch.equal(changed(ids).logits, model(ids).logits)
    for weight, original in zip(changed.parameters(), model.parameters(), strict=True):
        assert weight.data_ptr() != original.data_ptr()


def test_makes_each_weight_by_a_function():
    model = make_model()
    changed = rebuild(model, make_config(), lambda name, read: 2 * read(name) if "norm" in name else read(name))
    assert torch.equal(changed.model.norm.weight, 2 * model.model.norm.weight)
    assert torch.equal(changed.lm_head.weight, model.lm_head.weight)
    assert changed.lm_head.weight is changed.model.embed_tokens.weight


def test_preserves_class_dtype_and_attention_implementation():
    model = make_model(model_class=GPTForTokenClassification, attention="eager").bfloat16()
    changed = set_attention_patterns(model, "banded", sliding_window=4)
    assert (type(changed), changed.dtype) == (GPTForTokenClassification, torch.bfloat16)
    assert changed.config._attn_implementation == "eager"


def test_preserves_training_mode_frozen_parameters_checkpointing_and_generation():
    model = make_model().train()
    model.generation_config.max_new_tokens = 7
    model.model.embed_tokens.requires_grad_(False)
    enable_activation_checkpointing(model)
    changed = set_attention_patterns(model, "dense")
    assert changed.training
    assert changed.generation_config.max_new_tokens == 7
    assert changed.model.gradient_checkpointing
    assert [p.requires_grad for p in changed.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize(
    "change",
    [
        lambda model: set_attention_patterns(model, "banded", sliding_window=4),
        lambda model: upcycle(model, 4, 2),
        lambda model: extend_context(model, 128),
    ],
    ids=["patterns", "upcycling", "context"],
)
def test_a_quantized_model_is_not_rebuilt(change):
    with pytest.raises(ValueError, match="the model is quantized already"):
        change(quantize(make_model()))
