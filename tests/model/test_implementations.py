"""Which attention and experts implementations a model accepts, and its defaults."""

import pytest
import torch
from tiny import make_model, random_ids

SPARSE = {"attention_patterns": ["strided", "fixed"], "attention_stride": 4, "attention_summary_size": 2}


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
