"""Feed-forward layers against their formulas, and recomputation: large activations are not saved for backward."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import VARIANTS, make_config, make_model, random_ids

from hf_gpt.compatibility import enable_activation_checkpointing
from hf_gpt.model import feed_forward
from hf_gpt.model.feed_forward import build_activation, build_mlp

DENSE = [name for name, fields in VARIANTS.items() if "num_local_experts" not in fields]


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# The activations of the lineage by their names in transformers (Hendrycks and Gimpel 2016 for the GELUs).
FORMULAS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "silu": lambda x: x / (1 + (-x).exp()),
    "quick_gelu": lambda x: x / (1 + (-1.702 * x).exp()),
}


@pytest.mark.parametrize("activation", FORMULAS)
def test_activation_equals_its_formula(activation):
    states = torch.linspace(-8, 8, 201, dtype=torch.float64)
    actual = build_activation(make_config(hidden_act=activation))(states)
    assert torch.allclose(actual, FORMULAS[activation](states), atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mlp_type", ["mlp", "glu", "clamped_glu"])
def test_feed_forward_equals_its_formula(mlp_type, bias):
    """down(act(up)), down(act(gate) * up) (Shazeer 2020), and the clamped gate of gpt-oss."""
    config = make_config(mlp_type=mlp_type, mlp_bias=bias, hidden_act="silu", swiglu_alpha=1.5, swiglu_limit=0.5)
    layer, states = build_mlp(config, 48).double(), torch.randn(2, 5, 32, dtype=torch.float64)

    def linear(name, x):
        projection = getattr(layer, f"{name}_proj")
        return x @ projection.weight.t() + (projection.bias if bias else 0)

    up = linear("up", states)
    if mlp_type == "mlp":
        hidden = FORMULAS["silu"](up)
    elif mlp_type == "glu":
        hidden = FORMULAS["silu"](linear("gate", states)) * up
    else:
        gate = torch.minimum(linear("gate", states), torch.tensor(0.5))
        assert (up.abs() > 0.5).any()
        hidden = gate * torch.sigmoid(1.5 * gate) * (up.clamp(-0.5, 0.5) + 1)
    assert torch.allclose(layer(states), linear("down", hidden), atol=1e-12)


def gradients(model, ids, autocast=False):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(ids, labels=ids).loss
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("variant", DENSE)
def test_recomputation_does_not_change_gradients(variant, autocast, monkeypatch):
    model, ids = make_model(variant).train(), random_ids(2, 9)
    expected = gradients(model, ids, autocast)
    monkeypatch.setattr(feed_forward, "RECOMPUTED_BYTES", 0)
    actual = gradients(model, ids, autocast)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        tolerance = 3e-2 if autocast else 1e-5
        assert (gradient - expected[name]).abs().max() <= tolerance * expected[name].abs().max() + 1e-7, name


@pytest.mark.parametrize("change", ["frozen_down", "frozen_up", "lora", "checkpointing"])
def test_recomputation_with_frozen_layers_lora_and_checkpointing(change, monkeypatch):
    model, ids = make_model(mlp_type="glu", hidden_act="silu").train(), random_ids(2, 9)
    for layer in model.model.layers if change.startswith("frozen") else ():
        getattr(layer.mlp, change.removeprefix("frozen_") + "_proj").requires_grad_(False)
    if change == "lora":
        model = get_peft_model(model, LoraConfig(target_modules=["down_proj"], init_lora_weights=False))
    if change == "checkpointing":
        enable_activation_checkpointing(model)
    expected = gradients(model, ids)
    monkeypatch.setattr(feed_forward, "RECOMPUTED_BYTES", 0)
    actual = gradients(model, ids)
    assert actual.keys() == expected.keys()
    assert all(torch.allclose(actual[name], expected[name], rtol=1e-4, atol=1e-7) for name in expected)


@pytest.mark.parametrize("mlp_type", ["mlp", "glu", "clamped_glu"])
def test_only_the_inputs_are_saved_for_backward(mlp_type, monkeypatch):
    model = make_model(mlp_type=mlp_type).train()
    mlp, states = model.model.layers[0].mlp, torch.randn(1, 5, 32, requires_grad=True)

    def bytes_saved():
        saved = {}

        def save(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            output = mlp(states)
        assert output.requires_grad
        weights = {parameter.untyped_storage().data_ptr() for parameter in mlp.parameters()}
        return sum(storage.nbytes() for pointer, storage in saved.items() if pointer not in weights)

    assert bytes_saved() >= 4 * 5 * (32 + 2 * 128)
    monkeypatch.setattr(feed_forward, "RECOMPUTED_BYTES", 0)
    assert bytes_saved() <= 4 * 5 * (32 + (1 if mlp_type == "mlp" else 2) * 128)
