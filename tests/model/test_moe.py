"""Sparse layers and their routers, against a loop over tokens in float64 and against the native classes."""

import pytest
import torch
from mixture import IMPLEMENTATIONS, INNER, WIDTH, assert_equals_the_definition, random_states, sparse_mlp
from peft import LoraConfig, get_peft_model
from tiny import make_config, make_model, random_ids
from torch.distributed.fsdp import fully_shard
from torch.utils._pytree import tree_map
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.olmoe import modeling_olmoe
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from wrapped import process_group

from hf_gpt.model.moe import SharedSparseMLP, build_router

ROUTINGS = [(function, norm) for function in ("softmax", "sigmoid") for norm in (True, False)]


@pytest.mark.parametrize("rate", [None, 0.0])
@pytest.mark.parametrize(("function", "norm"), ROUTINGS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_routing_equals_the_definition(implementation, function, norm, rate):
    fields = {"router_score_function": function, "norm_topk_prob": norm, "router_bias_update_rate": rate}
    module = sparse_mlp(implementation, routed_scaling_factor=2.5, **fields)
    assert_equals_the_definition(module, 1e-5, torch.float32)


def test_shared_experts_are_added_to_the_chosen_ones():
    module, states = sparse_mlp(num_shared_experts=2), random_states(2, 4, dtype=torch.float32)
    assert isinstance(module, SharedSparseMLP)
    assert module.shared_experts.up_proj.weight.shape == (2 * INNER, WIDTH)
    chosen = sparse_mlp()
    chosen.load_state_dict({n: v for n, v in module.state_dict().items() if not n.startswith("shared_experts")})
    assert torch.equal(module(states), chosen(states) + module.shared_experts(states))


@pytest.mark.parametrize(
    ("native_class", "native_config", "fields"),
    [
        (
            modeling_deepseek_v3.DeepseekV3TopkRouter,
            DeepseekV3Config(hidden_size=WIDTH, n_routed_experts=8, n_group=1, topk_group=1, num_experts_per_tok=3),
            {"router_score_function": "sigmoid", "router_bias_update_rate": 0.001, "routed_scaling_factor": 2.5},
        ),
        (
            modeling_olmoe.OlmoeTopKRouter,
            OlmoeConfig(hidden_size=WIDTH, num_experts=8, num_experts_per_tok=3, norm_topk_prob=False),
            {"norm_topk_prob": False},
        ),
    ],
    ids=["deepseek_v3", "olmoe"],
)
def test_routers_equal_the_native_classes(native_class, native_config, fields):
    native = native_class(native_config)
    for tensor in native.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)))
    ours = build_router(make_config(hidden_size=WIDTH, num_local_experts=8, num_experts_per_tok=3, **fields))
    ours.load_state_dict(native.state_dict())
    tokens = random_states(50, dtype=torch.float32)
    (logits, shares, indices), (our_logits, our_shares, our_indices) = native(tokens), ours(tokens)
    assert torch.allclose(our_logits, logits, atol=1e-5)
    dense = torch.zeros(50, 8)
    assert torch.allclose(dense.scatter(1, our_indices, our_shares), dense.scatter(1, indices, shares), atol=1e-5)


def test_jitter_applies_only_in_training():
    module, states = sparse_mlp(router_jitter_noise=0.5), torch.randn(1, 4, WIDTH)
    assert torch.equal(module(states), module(states))
    module.train()
    assert not torch.equal(module(states), module(states))


def test_lora_on_all_linear_layers_skips_the_router():
    model, ids = make_model("mixtral"), random_ids(2, 9)
    before = model(ids).logits
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert torch.equal(tuned(ids).logits, before)
    assert not any("router.lora" in name for name, _ in tuned.named_parameters())


def test_a_router_saved_with_an_adapter():
    """PEFT trains a copy of the router; the load is counted in the copy, and its bias moves."""
    model, ids = make_model("deepseek", router_bias_update_rate=0.25), random_ids(2, 9)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["router"], task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config).train()
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    tuned(ids, labels=ids).loss.backward()
    optimizer.step()
    biases = {name: buffer for name, buffer in tuned.named_buffers() if "e_score_correction_bias" in name}
    assert {name: bool(bias.any()) for name, bias in biases.items()} == {
        name: "modules_to_save" in name for name in biases
    }
    assert len(biases) == 2


@pytest.mark.parametrize("variant", ["mixtral", "gpt_oss", "deepseek"])
def test_outputs_of_the_decoder_can_be_rebuilt(variant):
    """A pytree of fields: FSDP 2 rebuilds the outputs of each module that it shards."""
    model = make_model(variant).train()
    outputs = model.model(random_ids(2, 7), output_router_logits=True, output_router_indices=True)
    rebuilt = tree_map(lambda tensor: tensor, outputs)
    assert rebuilt.keys() == outputs.keys()
    assert all(map(torch.equal, rebuilt.router_indices, outputs.router_indices))


@pytest.mark.parametrize("variant", ["mixtral", "gpt_oss", "deepseek"])
def test_a_sharded_decoder_inside_a_sharded_model(variant):
    ids, losses = random_ids(2, 7), []
    with process_group():
        for shard in (lambda module: module, fully_shard):
            model = make_model(variant, tie_word_embeddings=False).train()
            shard(model.model)
            losses.append(shard(model)(ids, labels=ids).loss)
            losses[-1].backward()
    assert torch.allclose(*losses, rtol=1e-5)
