import pytest
import torch
from tiny import make_model, random_ids
from transformers import AutoModelForCausalLM

from hf_gpt import GPTForCausalLM, GPTForTokenClassification
from hf_gpt.surgery import set_attention_patterns

BANDED = {"attention_patterns": ["banded", "dense"], "sliding_window": 4}


@pytest.mark.parametrize("patterns", [{0: "banded"}, {-2: "banded"}, ["banded", "dense"]])
def test_the_new_model_is_the_one_built_so(patterns, tmp_path):
    model, ids = make_model("learned"), random_ids(2, 9)
    changed = set_attention_patterns(model, patterns, sliding_window=4)
    built = make_model("learned", **BANDED)
    built.load_state_dict(model.state_dict())
    assert torch.equal(changed(ids).logits, built(ids).logits)
    assert changed.config.layer_types == ["sliding_attention", "full_attention"]
    assert changed.config.to_dict() == {**built.config.to_dict(), "dtype": "float32"}
    changed.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, built(ids).logits)


def test_the_old_model_stays_as_it_was():
    model, ids = make_model(), random_ids(2, 9)
    before = model(ids).logits
    changed = set_attention_patterns(model, "strided", attention_stride=3)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert torch.equal(model(ids).logits, before)
    assert model.config.attention_patterns == ["dense", "dense"]


def test_and_back():
    model, ids = make_model("sparse_transformer"), random_ids(2, 9)
    dense = set_attention_patterns(model, "dense")
    assert (dense.config.attention_stride, dense.config.attention_summary_size) == (None, None)
    sizes = {"attention_stride": 3, "attention_summary_size": 1}
    again = set_attention_patterns(dense, ["fixed", "strided"], **sizes)
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_sizes_stay_where_they_are_needed():
    changed = set_attention_patterns(make_model("sparse_transformer"), {1: "fixed"})
    assert (changed.config.attention_stride, changed.config.attention_summary_size) == (3, 1)
    changed = set_attention_patterns(make_model("sparse_transformer"), {0: "banded"}, sliding_window=5)
    assert (changed.config.attention_stride, changed.config.attention_summary_size) == (3, None)


def test_it_learns():
    model, ids = make_model(), random_ids(2, 40)
    changed = set_attention_patterns(model.train(), "banded", sliding_window=8)
    assert changed.training
    optimizer = torch.optim.AdamW(changed.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = changed(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_other_heads_dtypes_and_settings_come_along():
    model = make_model(model_class=GPTForTokenClassification, attention="eager").bfloat16()
    changed = set_attention_patterns(model, "banded", sliding_window=4)
    assert (type(changed), changed.dtype) == (GPTForTokenClassification, torch.bfloat16)
    assert changed.config._attn_implementation == "eager"
    model = make_model()
    model.generation_config.max_new_tokens = 7
    model.model.embed_tokens.requires_grad_(False)
    model.gradient_checkpointing_enable()
    changed = set_attention_patterns(model, "dense")
    assert changed.generation_config.max_new_tokens == 7
    assert changed.is_gradient_checkpointing
    assert [p.requires_grad for p in changed.parameters()] == [p.requires_grad for p in model.parameters()]


def test_loading_can_change_patterns_too(tmp_path):
    model, ids = make_model(), random_ids(2, 9)
    model.save_pretrained(tmp_path)
    loaded = GPTForCausalLM.from_pretrained(tmp_path, **BANDED)
    assert torch.equal(loaded(ids).logits, set_attention_patterns(model, {0: "banded"}, sliding_window=4)(ids).logits)


@pytest.mark.parametrize(
    ("patterns", "sizes", "message"),
    [
        ({2: "banded"}, {"sliding_window": 4}, "no layer 2 of num_hidden_layers=2"),
        ({0.5: "dense"}, {}, r"no layer 0\.5"),
        (None, {}, "patterns=None: expected a pattern"),
        ("sparse", {}, "attention_patterns holds 'sparse'"),
        (["dense"], {}, "attention_patterns has 1 entries"),
        ("banded", {}, "sliding_window=None"),
        ("strided", {}, "attention_stride=None"),
        ("fixed", {"attention_stride": 4}, "attention_summary_size=None"),
        ("dense", {"sliding_window": 4}, "sliding_window=4 without a banded layer"),
        ("banded", {"window": 4}, "window is no size of a pattern"),
    ],
)
def test_what_cannot_be_is_refused_by_name(patterns, sizes, message):
    with pytest.raises(ValueError, match=message):
        set_attention_patterns(make_model(), patterns, **sizes)
