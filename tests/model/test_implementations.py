"""Which attention and experts implementations a model accepts, and its defaults."""

import pytest
import torch
from tiny import make_config, make_model, random_ids
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_gpt import GPTForCausalLM

SIZES = {"attention_stride": 4, "attention_summary_size": 2}
SPARSE = {"attention_patterns": ["strided", "fixed"], **SIZES}
# Models that only a known implementation computes, and what the error names.
SPECIAL = {
    "strided": ({"attention_patterns": ["strided", "dense"], "attention_stride": 4}, "strided layers"),
    "fixed": ({"attention_patterns": ["dense", "fixed"], **SIZES}, "fixed layers"),
    "both": (SPARSE, "strided or fixed layers"),
    "sinks": ({"attention_sinks": True}, "attention sinks"),
    "both and sinks": (SPARSE | {"attention_sinks": True}, "strided or fixed layers.* and attention sinks"),
}
COMMON = {"dense": {}, "banded": {"attention_patterns": ["banded", "dense"], "sliding_window": 4}}


@pytest.fixture
def vllm(monkeypatch):
    """An attention function that a user has registered; it does not read the mask."""

    def attend(module, query, key, value, mask, scaling, **_):
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True)

    monkeypatch.setitem(AttentionInterface._global_mapping, "vllm", attend)


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize(("fields", "missing"), SPECIAL.values(), ids=SPECIAL)
def test_a_registered_implementation_raises_for_what_it_does_not_compute(fields, missing):
    message = f"attn_implementation='vllm' does not compute {missing}.*: choose sdpa, eager or flex_attention"
    with pytest.raises(ValueError, match=message):
        make_model(**fields, attention="vllm")
    model = make_model(**fields)
    for requested in ("vllm", {"": "vllm"}):
        with pytest.raises(ValueError, match=message):
            model.set_attn_implementation(requested)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("fields", COMMON.values(), ids=COMMON)
def test_a_registered_implementation_computes_dense_and_banded_layers(fields):
    ids, expected = random_ids(2, 4), make_model(**fields)  # one window
    model = make_model(**fields, attention="vllm")
    assert model.config._attn_implementation == "vllm"
    assert torch.allclose(model(ids).logits, expected(ids).logits, atol=1e-5)
    model.set_attn_implementation("eager")
    model.set_attn_implementation("vllm")
    assert torch.allclose(model(ids).logits, expected(ids).logits, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, SPARSE], ids=["dense", "sparse"])
def test_an_implementation_that_does_not_exist_raises(fields):
    with pytest.raises(ValueError, match=r"attn_implementation=.*nonsense"):
        make_model(**fields, attention="nonsense")
    with pytest.raises(ValueError, match=r"attn_implementation=.*nonsense"):
        make_model(**fields).set_attn_implementation("nonsense")


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3", "paged|eager", "paged|sdpa"])
def test_strided_and_fixed_layers_reject_other_implementations(implementation):
    with pytest.raises(ValueError, match=r"strided or fixed layers.*choose sdpa, eager or flex_attention"):
        make_model(**SPARSE, attention=implementation)
    with pytest.raises(ValueError, match="strided or fixed layers"):
        make_model(**SPARSE).set_attn_implementation(implementation)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "paged|sdpa"])
def test_sinks_reject_implementations_without_them(implementation):
    assert make_model("gpt_oss").config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match=r"attention_sinks.*choose sdpa"):
        make_model("gpt_oss", attention=implementation)


def test_default_experts_implementation(monkeypatch):
    """Eager experts on a CPU; on an accelerator grouped_mm, if the widths are multiples of 8."""
    assert make_model("mixtral").config._experts_implementation == "eager"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    even, odd = make_model("mixtral"), make_model("mixtral", moe_intermediate_size=23)
    assert (even.config._experts_implementation, odd.config._experts_implementation) == ("grouped_mm", "eager")
    odd(random_ids(1, 5))
    with pytest.raises(ValueError, match="moe_intermediate_size=23: grouped_mm expects multiples of 8"):
        odd.set_experts_implementation("grouped_mm")


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_tested_experts_implementations_are_accepted(implementation):
    model = make_model("mixtral")
    model.set_experts_implementation(implementation)
    assert model.config._experts_implementation == implementation
    built = GPTForCausalLM._from_config(make_config("mixtral"), experts_implementation=implementation)
    assert built.config._experts_implementation == implementation


@pytest.mark.parametrize("implementation", ["sonicmoe", "deepgemm", "nonsense"])
def test_other_experts_implementations_raise(implementation):
    model = make_model("mixtral")
    message = (
        f"experts_implementation='{implementation}' is not supported: expected one of eager, batched_mm, grouped_mm"
    )
    with pytest.raises(ValueError, match=message):
        model.set_experts_implementation(implementation)
    with pytest.raises(ValueError, match=message):
        GPTForCausalLM._from_config(make_config("mixtral"), experts_implementation=implementation)
    with pytest.raises(ValueError, match=message):
        make_model(experts_implementation=implementation)
    assert model.config._experts_implementation == "eager"


def test_a_dense_model_does_not_depend_on_other_models():
    """Whether a mixture of experts was built before, in the same process."""
    for _ in range(2):
        dense = make_model()
        for implementation in ("grouped_mm", "batched_mm"):
            message = f"experts_implementation='{implementation}': expected None or 'eager' .*num_local_experts=None"
            with pytest.raises(ValueError, match=message):
                dense.set_experts_implementation(implementation)
        dense.set_experts_implementation("eager")
        assert dense.config._experts_implementation == "eager"
        assert not dense._can_set_experts_implementation()
        assert make_model("mixtral")._can_set_experts_implementation()
