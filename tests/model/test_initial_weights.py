"""The initial weights of each kind of module."""

import math

import pytest
import torch
from tiny import make_model, random_ids
from torch import nn


@pytest.mark.parametrize(("norm_position", "residual_std"), [("pre", 0.02 / math.sqrt(8)), ("post", 0.02)])
def test_initial_weights_of_residual_projections(norm_position, residual_std):
    """Scaled by 1 / sqrt(N) for N residual layers, two in each block (GPT-2, section 2.3); not in GPT-1."""
    fields = {"hidden_size": 256, "num_hidden_layers": 4, "initializer_range": 0.02}
    model = make_model("llama", norm_position=norm_position, **fields)
    expected = {"o_proj": residual_std, "down_proj": residual_std}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            std = expected.get(name.rpartition(".")[-1], 0.02)
            assert abs(module.weight.std().item() / std - 1) < 0.05, name


def test_initial_weights_of_experts():
    """Residual projections are scaled, and biases zero, as in dense layers."""
    model = make_model("gpt_oss", hidden_size=64, num_hidden_layers=2, initializer_range=0.02)
    experts = model.model.layers[0].mlp.experts
    assert abs(experts.gate_up_proj.std().item() / 0.02 - 1) < 0.05
    assert abs(experts.down_proj.std().item() / (0.02 / 2) - 1) < 0.05
    assert not experts.gate_up_proj_bias.any()
    assert not experts.down_proj_bias.any()
    assert model.model.layers[0].self_attn.sinks.any()


@pytest.mark.parametrize("embedding_size", [128, 16])
def test_initial_weights_beside_sinusoids(embedding_size):
    """Scaled embeddings have half the deviation of those of Vaswani et al. 2017: the sinusoids have 0.7."""
    model = make_model("sinusoidal", hidden_size=128, embedding_size=embedding_size, vocab_size=500)
    assert model.config.embedding_scale == math.sqrt(128)
    assert abs(model.model.embed_tokens.weight.std().item() * math.sqrt(128) / 0.5 - 1) < 0.05


@pytest.mark.parametrize("positions", ["learned", "rope", "none"])
def test_initial_weights_without_sinusoids(positions):
    fields = {"initializer_range": 0.02, "position_embedding_type": positions, "hidden_size": 128}
    for scale in (1.0, 10.0):
        weight = make_model(embedding_scale=scale, **fields).model.embed_tokens.weight
        assert abs(weight.std().item() / 0.02 - 1) < 0.05


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope", "none"])
def test_initial_weights_of_narrow_embeddings(positions):
    """Projections keep the variance of the embeddings, and of the logits."""
    fields = {"initializer_range": 0.02, "position_embedding_type": positions, "hidden_size": 256, "vocab_size": 500}
    model, wide = make_model(embedding_size=32, **fields), make_model(**fields)
    ids = random_ids(4, 50, high=500)
    embeddings = model.model.embed_tokens(ids)
    assert abs(model.model.project_in(embeddings).std().item() / embeddings.std().item() - 1) < 0.1
    states = torch.randn(200, 256)
    logits, expected = model.lm_head(model.model.project_out(states)), wide.lm_head(states)
    assert abs(logits.std().item() / expected.std().item() - 1) < 0.1
