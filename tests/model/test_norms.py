"""Norms against their formulas in float64."""

import pytest
import torch
from tiny import make_config, make_model

from hf_gpt.model.norms import build_norm

WIDTH = 24
NORMS = [
    ("layer_norm", "weight_and_bias"),
    ("layer_norm", "weight"),
    ("layer_norm", "none"),
    ("rms_norm", "weight"),
    ("rms_norm", "none"),
]


def normalized(norm_type: str, states: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm (Ba et al. 2016, equation 4) and RMSNorm (Zhang and Sennrich 2019, equation 4), without parameters."""
    if norm_type == "layer_norm":
        states = states - states.mean(-1, keepdim=True)
    return states / ((states**2).mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize(("norm_type", "norm_parameters"), NORMS)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_norm_equals_its_formula(norm_type, norm_parameters, eps):
    config = make_config(norm_type=norm_type, norm_parameters=norm_parameters, norm_eps=eps)
    norm = build_norm(config, WIDTH).double()
    states = 3 * torch.randn(2, 5, WIDTH, dtype=torch.float64) + 2
    states[0, 0] = 0
    expected = normalized(norm_type, states, eps)
    for name, parameter in norm.named_parameters():
        with torch.no_grad():
            parameter.normal_()
        expected = expected * parameter if name == "weight" else expected + parameter
    assert torch.allclose(norm(states), expected, atol=1e-12)


@pytest.mark.parametrize(("norm_type", "norm_parameters"), NORMS)
def test_norm_has_the_configured_parameters(norm_type, norm_parameters):
    norm = build_norm(make_config(norm_type=norm_type, norm_parameters=norm_parameters), WIDTH)
    expected = {"weight_and_bias": ["weight", "bias"], "weight": ["weight"], "none": []}[norm_parameters]
    assert [name for name, _ in norm.named_parameters()] == expected
    states = torch.randn(3, WIDTH)
    assert torch.allclose(norm(states), normalized(norm_type, states, 1e-5), atol=1e-5)  # weight 1 and bias 0 at first


@pytest.mark.parametrize("norm_type", ["layer_norm", "rms_norm"])
def test_every_norm_of_a_model_is_the_configured_one(norm_type):
    model = make_model(norm_type=norm_type, qk_norm=True, norm_eps=0.25)
    norms = {name: module for name, module in model.named_modules() if name.rpartition(".")[2].endswith("norm")}
    assert len(norms) == 2 * 4 + 1  # before attention and feed-forward, of queries and keys; the final one
    assert {type(norm).__name__ for norm in norms.values()} == {
        {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}[norm_type]
    }
    assert {norm.eps for norm in norms.values()} == {0.25}
