"""A sparse layer with random weights, and its definition in float64."""

import torch
from tiny import make_config
from torch.nn.functional import gelu

from hf_gpt.model.moe import build_feed_forward

WIDTH, INNER, EXPERTS, CHOSEN = 16, 24, 5, 2
IMPLEMENTATIONS = ["eager", "grouped_mm", "batched_mm"]


def sparse_mlp(implementation="eager", **fields):
    sizes = {"num_local_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "moe_intermediate_size": INNER}
    config = make_config(hidden_size=WIDTH, **sizes | fields)
    config._experts_implementation = implementation
    module = build_feed_forward(config, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 3)
    return module.eval()


def random_states(*shape, dtype=torch.float64):
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1), dtype=dtype)


def feed_forward(config, hidden, biases, down, down_bias):
    hidden = hidden + biases
    if config.mlp_type == "mlp":
        return gelu(hidden, approximate="tanh") @ down + down_bias
    gate, up = hidden.chunk(2)
    if config.mlp_type == "glu":
        return (gelu(gate, approximate="tanh") * up) @ down + down_bias
    gate, up = gate.clamp(max=config.swiglu_limit), up.clamp(-config.swiglu_limit, config.swiglu_limit)
    return (gate * torch.sigmoid(config.swiglu_alpha * gate) * (up + 1)) @ down + down_bias


def definition(module, states):
    """Returns the output of a sparse layer for (N, hidden_size), token by token and expert by expert, in float64."""
    config = module.experts.config
    weights = {name: parameter.double() for name, parameter in module.named_parameters()}
    weights |= {name: buffer.double() for name, buffer in module.named_buffers()}
    first = f"experts.{'up_proj' if config.mlp_type == 'mlp' else 'gate_up_proj'}"
    zeros = torch.zeros(config.num_local_experts, 1, dtype=torch.float64)
    output = []
    for token in states:
        logits = weights["router.weight"] @ token + weights.get("router.bias", 0)
        scores = logits.softmax(0) if config.router_score_function == "softmax" else logits.sigmoid()
        ranking = scores + weights.get("router.e_score_correction_bias", 0)
        chosen = ranking.argsort(descending=True)[: config.num_experts_per_tok]
        shares = scores[chosen] / (scores[chosen].sum() if config.norm_topk_prob else 1)
        mixed = 0
        for expert, share in zip(chosen, shares * config.routed_scaling_factor, strict=True):
            biases = [weights.get(f"{name}_bias", zeros)[expert] for name in (first, "experts.down_proj")]
            down = weights["experts.down_proj"][expert]
            mixed = mixed + share * feed_forward(config, token @ weights[first][expert], biases[0], down, biases[1])
        output.append(mixed)
    return torch.stack(output)


def assert_equals_the_definition(module, tolerance, dtype):
    """Compares the output and all gradients."""
    states = random_states(3, 7)
    inputs = states.to(dtype).requires_grad_()
    actual = module(inputs)
    expected_inputs = states.clone().requires_grad_()
    expected = definition(module, expected_inputs.flatten(0, 1)).view_as(states)
    assert (actual - expected).abs().max() < tolerance * expected.abs().max()

    parameters = list(module.parameters())
    gradients = torch.autograd.grad(actual.square().sum(), [inputs, *parameters])
    expected_gradients = torch.autograd.grad(expected.square().sum(), [expected_inputs, *parameters])
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert (gradient - expected_gradient).abs().max() < tolerance * expected_gradient.abs().max()
