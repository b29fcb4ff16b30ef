"""Costs against models: parameters, the FLOPs and the saved tensors that PyTorch counts, caches."""

import pytest
import torch
from tiny import make_config, make_model, masks_by_pattern, random_ids
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from hf_gpt import preset_config
from hf_gpt.accounting import account


def test_parameters(variant):
    model = make_model(variant)
    costs = account(model.config)
    assert costs.parameters == model.num_parameters()
    assert [layer.parameters for layer in costs.layers] == [
        sum(parameter.numel() for parameter in block.parameters()) for block in model.model.layers
    ]


def test_active_parameters():
    """All parameters but those of the experts that are not selected."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
    costs, dense = account(make_config("llama", **experts)), account(make_config("llama"))
    router, expert = 32 * 4, 3 * 32 * 24
    assert costs.parameters - dense.parameters == 2 * (router + 4 * expert - 3 * 32 * 128)
    assert costs.parameters - costs.active_parameters == 2 * expert
    assert dense.active_parameters == dense.parameters


def test_flops(variant):
    """The FlopCounterMode of PyTorch counts the masked half of causal attention too."""
    model, length = make_model(variant, attention="eager").double(), 16  # it does not count oneDNN operators
    with FlopCounterMode(display=False) as counter:
        model(random_ids(1, length))
    config = model.config
    per_key = 4 * config.num_attention_heads * config.head_dim
    masks = masks_by_pattern(config, rows=1, length=length)
    unseen = sum(float((masks[pattern] < 0).sum()) / length for pattern in config.attention_patterns)
    assert account(config, length).forward_flops_per_token == counter.get_total_flops() / length - per_key * unseen


def test_cache_bytes(variant):
    model, length = make_model(variant), 24
    cache = DynamicCache(config=model.config)
    model(random_ids(1, length), past_key_values=cache)
    actual = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert account(model.config, length, torch.float32).cache_bytes == actual


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_cache_bytes_per_token(dtype, size):
    config = make_config("grouped")
    assert account(config, dtype=dtype).cache_bytes_per_token == 2 * 2 * 2 * 8 * size


def test_the_largest_preset_is_counted_without_memory():
    assert account(preset_config("gpt3-175b")).parameters == 174_604_259_328


def test_activation_bytes(variant):
    """Within 10 % of what autograd saves for a block, without weights; norms and attention save some statistics too."""
    model, ids = make_model(variant, max_position_embeddings=256).train(), random_ids(1, 256)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def record(tensor):
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    def saved_bytes_per_token(layers):
        saved.clear()
        model.model.layers = torch.nn.ModuleList(layers)
        model.config.num_hidden_layers = len(layers)
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            outputs = model.model(ids, use_cache=False)
        assert outputs.last_hidden_state.requires_grad
        return sum(storage.nbytes() for storage in saved.values()) / ids.numel()

    layers, costs = list(model.model.layers), account(model.config).layers
    both, first = saved_bytes_per_token(layers), saved_bytes_per_token(layers[:1])
    assert abs(both - first - costs[1].activation_bytes_per_token) < 0.1 * (both - first)
