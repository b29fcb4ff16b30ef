"""Other attention patterns for a model that has weights."""

import pytest
import torch
from overfitting import overfit
from tiny import make_model, random_ids
from transformers import AutoModelForCausalLM

from hf_gpt import GPTForCausalLM
from hf_gpt.surgery import set_attention_patterns

BANDED = {"attention_patterns": ["banded", "dense"], "sliding_window": 4}


@pytest.mark.parametrize("patterns", [{0: "banded"}, {-2: "banded"}, ["banded", "dense"]])
def test_equals_a_model_built_with_these_patterns(patterns, tmp_path):
    model, ids = make_model("learned"), random_ids(2, 9)
    changed = set_attention_patterns(model, patterns, sliding_window=4)
    built = make_model("learned", **BANDED)
    built.load_state_dict(model.state_dict())
    assert torch.equal(changed(ids).logits, built(ids).logits)
    assert changed.config.layer_types == ["sliding_attention", "full_attention"]
    assert changed.config.to_dict() == {**built.config.to_dict(), "dtype": "float32"}
    changed.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, built(ids).logits)


def test_the_original_model_does_not_change():
    model, ids = make_model(), random_ids(2, 9)
    before = model(ids).logits
    changed = set_attention_patterns(model, "strided", attention_stride=3)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert torch.equal(model(ids).logits, before)
    assert model.config.attention_patterns == ["dense", "dense"]


def test_to_dense_and_back():
    model, ids = make_model("sparse_transformer"), random_ids(2, 9)
    dense = set_attention_patterns(model, "dense")
    assert (dense.config.attention_stride, dense.config.attention_summary_size) == (None, None)
    sizes = {"attention_stride": 3, "attention_summary_size": 1}
    again = set_attention_patterns(dense, ["fixed", "strided"], **sizes)
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_inherits_the_sizes_that_its_patterns_use():
    changed = set_attention_patterns(make_model("sparse_transformer"), {1: "fixed"})
    assert (changed.config.attention_stride, changed.config.attention_summary_size) == (3, 1)
    changed = set_attention_patterns(make_model("sparse_transformer"), {0: "banded"}, sliding_window=5)
    assert (changed.config.attention_stride, changed.config.attention_summary_size) == (3, None)


def test_the_changed_model_learns():
    changed = set_attention_patterns(make_model().train(), "banded", sliding_window=8)
    assert changed.training
    losses = overfit(changed, random_ids(2, 40))
    assert losses[-1] < losses[0] / 2


def test_from_pretrained_changes_patterns_too(tmp_path):
    model, ids = make_model(), random_ids(2, 9)
    model.save_pretrained(tmp_path)
    loaded = GPTForCausalLM.from_pretrained(tmp_path, **BANDED)
    assert torch.equal(loaded(ids).logits, set_attention_patterns(model, {0: "banded"}, sliding_window=4)(ids).logits)


@pytest.mark.parametrize(
    ("patterns", "sizes", "message"),
    [
        ({2: "banded"}, {"sliding_window": 4}, "layer 2 is out of range for num_hidden_layers=2"),
        ({0.5: "dense"}, {}, r"layer 0\.5 is out of range"),
        (None, {}, "patterns=None: expected a pattern"),
        ("sparse", {}, "attention_patterns holds 'sparse'"),
        (["dense"], {}, r"attention_patterns \(has 1\)"),
        ("banded", {}, "sliding_window=None"),
        ("strided", {}, "attention_stride=None"),
        ("fixed", {"attention_stride": 4}, "attention_summary_size=None"),
        ("dense", {"sliding_window": 4}, "sliding_window=4 without a banded layer"),
        ("banded", {"window": 4}, "window is not a size of a pattern"),
    ],
)
def test_bad_arguments_raise(patterns, sizes, message):
    with pytest.raises(ValueError, match=message):
        set_attention_patterns(make_model(), patterns, **sizes)
