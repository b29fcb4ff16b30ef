"""Experts: every implementation against a loop over tokens in float64; the loss that balances them."""

import pytest
import torch
from tiny import make_config, make_model, random_ids
from torch.nn.functional import gelu

from hf_gpt.moe import SparseMLP

WIDTH, INNER, EXPERTS, CHOSEN = 16, 24, 5, 2


def sparse_mlp(implementation="eager", **fields):
    config = make_config(
        hidden_size=WIDTH, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN, moe_intermediate_size=INNER, **fields
    )
    config._experts_implementation = implementation
    module = SparseMLP(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return module.eval()


def definition(module, states):
    """Token by token, expert by expert, in float64."""
    config = module.experts.config
    weights = {name: parameter.double() for name, parameter in module.named_parameters()}
    opening = f"experts.{'up_proj' if config.mlp_type == 'mlp' else 'gate_up_proj'}"
    output = torch.zeros_like(states)
    for index, token in enumerate(states):
        scores = weights["router.weight"] @ token + weights.get("router.bias", 0)
        best = scores.argsort(descending=True)[: config.num_experts_per_tok]
        for expert, share in zip(best, scores[best].softmax(0), strict=True):
            hidden = token @ weights[opening][expert]
            if config.mlp_bias:
                hidden = hidden + weights[f"{opening}_bias"][expert]
            if config.mlp_type == "mlp":
                hidden = gelu(hidden, approximate="tanh")
            else:
                gate, up = hidden[:INNER], hidden[INNER:]
                if config.mlp_type == "glu":
                    hidden = gelu(gate, approximate="tanh") * up
                else:
                    gate, up = gate.clamp(max=config.swiglu_limit), up.clamp(-config.swiglu_limit, config.swiglu_limit)
                    hidden = gate * torch.sigmoid(config.swiglu_alpha * gate) * (up + 1)
            hidden = hidden @ weights["experts.down_proj"][expert]
            if config.mlp_bias:
                hidden = hidden + weights["experts.down_proj_bias"][expert]
            output[index] += share * hidden
    return output


@pytest.mark.parametrize("mlp_type", ["mlp", "glu", "clamped_glu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_experts_equal_the_definition(implementation, bias, mlp_type):
    fields = {"mlp_type": mlp_type, "mlp_bias": bias, "router_bias": bias, "swiglu_limit": 0.5}
    module = sparse_mlp(implementation, **fields)
    states = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = states.float().requires_grad_()
    actual = module(inputs)
    expected_inputs = states.clone().requires_grad_()
    expected = definition(module, expected_inputs.flatten(0, 1)).view_as(states)
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()

    parameters = list(module.parameters())
    gradients = torch.autograd.grad(actual.square().sum(), [inputs, *parameters])
    expected_gradients = torch.autograd.grad(expected.square().sum(), [expected_inputs, *parameters])
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert (gradient - expected_gradient).abs().max() < 1e-5 * expected_gradient.abs().max()


def test_the_default_implementation_is_the_fastest(monkeypatch):
    """Ours on a CPU; grouped_mm on an accelerator, which refuses odd widths."""
    assert make_model("mixtral").config._experts_implementation == "eager"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    even, odd = make_model("mixtral"), make_model("mixtral", moe_intermediate_size=23)
    assert (even.config._experts_implementation, odd.config._experts_implementation) == ("grouped_mm", "eager")
    odd(random_ids(1, 5))
    with pytest.raises(ValueError, match="moe_intermediate_size=23: grouped_mm expects multiples of 8"):
        odd.set_experts_implementation("grouped_mm")


def test_the_loss_balances_in_training_without_being_asked():
    model, ids = make_model("mixtral", router_aux_loss_coef=0.5), random_ids(2, 9)
    assert model(ids, labels=ids).aux_loss is None
    plain = model(ids, labels=ids).loss
    asked = model(ids, labels=ids, output_router_logits=True)
    assert torch.allclose(asked.loss, plain + 0.5 * asked.aux_loss)
    trained = model.train()(ids, labels=ids)
    assert torch.allclose(trained.loss, asked.loss)
    assert make_model("mixtral", router_aux_loss_coef=0).train()(ids, labels=ids).aux_loss is None


def test_padding_does_not_count_in_the_balancing_loss():
    model, ids = make_model("mixtral"), random_ids(1, 6)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 5 + [1] * 6])
    alone = model(ids, output_router_logits=True)
    together = model(padded, attention_mask=mask, output_router_logits=True)
    assert torch.allclose(together.aux_loss, alone.aux_loss, rtol=1e-5)
    assert [logits.shape for logits in together.router_logits] == [(11, 4)]


def test_the_balancing_loss_is_shared_out_under_accumulation():
    """Micro-batches add up to one batch."""
    model, ids = make_model("mixtral").train(), random_ids(2, 8)
    whole = model(ids, labels=ids, num_items_in_batch=16)
    parts = [model(row[None], labels=row[None], num_items_in_batch=16) for row in ids]
    plain = sum(part.loss - 0.001 * part.aux_loss / 2 for part in parts)
    assert torch.allclose(plain, whole.loss - 0.001 * whole.aux_loss, rtol=1e-5)


def test_jitter_acts_in_training_alone():
    module, states = sparse_mlp(router_jitter_noise=0.5), torch.randn(1, 4, WIDTH)
    assert torch.equal(module(states), module(states))
    module.train()
    assert not torch.equal(module(states), module(states))


def test_initial_weights():
    """Residual projections smaller, biases zero, also of experts."""
    model = make_model("gpt_oss", hidden_size=64, num_hidden_layers=2, initializer_range=0.02)
    experts = model.model.layers[0].mlp.experts
    assert abs(experts.gate_up_proj.std().item() / 0.02 - 1) < 0.05
    assert abs(experts.down_proj.std().item() / (0.02 / 2) - 1) < 0.05
    assert not experts.gate_up_proj_bias.any()
    assert not experts.down_proj_bias.any()
    assert model.model.layers[0].self_attn.sinks.any()
