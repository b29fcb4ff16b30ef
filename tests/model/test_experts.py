"""Experts: every implementation against a loop over tokens in float64."""

import copy

import pytest
import torch
from mixture import (
    CHOSEN,
    EXPERTS,
    IMPLEMENTATIONS,
    INNER,
    WIDTH,
    assert_equals_the_definition,
    random_states,
    sparse_mlp,
)
from peft import LoraConfig, PeftModel, get_peft_model
from recording import LargestTensor, ProductDtypes
from tiny import make_model, random_ids


@pytest.mark.parametrize("mlp_type", ["mlp", "glu", "clamped_glu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_experts_equal_the_definition(implementation, bias, mlp_type):
    fields = {"mlp_type": mlp_type, "mlp_bias": bias, "router_bias": bias, "swiglu_limit": 0.5}
    assert_equals_the_definition(sparse_mlp(implementation, **fields), 1e-5, torch.float32)
    assert_equals_the_definition(sparse_mlp(implementation, **fields).double(), 1e-12, torch.float64)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_expert_without_tokens(implementation):
    """Its gradients are zero, not uninitialized memory."""
    module = sparse_mlp(implementation, router_bias=True)
    with torch.no_grad():
        module.router.bias[:2] += 100
    module(random_states(3, 7, dtype=torch.float32)).square().sum().backward()
    for parameter in module.experts.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad[:2].any()
        assert not parameter.grad[2:].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty_input(implementation):
    module = sparse_mlp(implementation)
    states = torch.zeros(0, 3, WIDTH, requires_grad=True)
    assert module(states).shape == (0, 3, WIDTH)
    module(states).sum().backward()
    assert states.grad.shape == states.shape
    assert not module.experts.down_proj.grad.any()


def test_experts_of_other_ranks_are_skipped():
    """Under expert parallelism their index is num_experts, and their share 0."""
    module, tokens = sparse_mlp(), random_states(4, dtype=torch.float32)
    indices, shares = torch.tensor([[0, EXPERTS], [EXPERTS, 1], [2, 3], [EXPERTS, EXPERTS]]), torch.ones(4, 2)
    shares[indices == EXPERTS] = 0
    alone = module.experts(tokens, indices.clamp(max=EXPERTS - 1), shares)
    assert torch.allclose(module.experts(tokens, indices, shares), alone, atol=1e-6)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_no_tensor_of_tokens_by_experts_by_width(implementation):
    module = sparse_mlp(implementation, num_local_experts=16, mlp_type="glu")
    states = random_states(2, 512, dtype=torch.float32).requires_grad_()
    with LargestTensor() as watch:
        module(states).square().sum().backward()
    assert watch.elements <= 1024 * CHOSEN * 2 * INNER  # gate and up of the chosen experts
    assert watch.elements < 1024 * 16 * WIDTH


def test_autocast_multiplies_in_bfloat16():
    module, states = sparse_mlp(mlp_type="glu"), random_states(2, 7, dtype=torch.float32).requires_grad_()
    expected = module(states)
    gradients = torch.autograd.grad(expected.square().sum(), [states, *module.experts.parameters()])
    with torch.autocast("cpu", dtype=torch.bfloat16), ProductDtypes() as products:
        actual = module(states)
    rounded = torch.autograd.grad(actual.square().sum(), [states, *module.experts.parameters()])
    for one, other in zip((actual, *rounded), (expected, *gradients), strict=True):
        assert one.dtype == other.dtype
        assert 0 < (one - other).abs().max() < 0.03 * other.abs().max()
    assert products.dtypes == {torch.bfloat16}


@pytest.mark.parametrize("variant", ["mixtral", "gpt_oss", "deepseek"])
def test_a_compiled_training_step(variant):
    """One graph: the compiled model runs grouped_mm, because eager experts read token counts on the host."""
    model, ids = make_model(variant).train(), random_ids(2, 9)
    expected = model(ids, labels=ids).loss
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    compiled = copy.deepcopy(model)
    compiled.zero_grad()
    torch.compiler.reset()
    loss = torch.compile(compiled, backend="aot_eager", fullgraph=True)(ids, labels=ids).loss
    loss.backward()
    torch.compiler.reset()
    assert torch.allclose(loss, expected, rtol=1e-5)
    for name, parameter in compiled.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-5), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("variant", ["mixtral", "gpt_oss"])
def test_lora_on_experts(variant, implementation, tmp_path):
    """LoRA by `target_parameters`, as for every model with fused experts: trains, saves, loads and merges."""
    model, ids = make_model(variant), random_ids(2, 9)
    model.set_experts_implementation(implementation)
    before = model(ids).logits
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=targets, task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    assert torch.equal(tuned(ids).logits, before)
    trained = {
        name.split(".lora_")[0].rpartition(".layers.0.")[2] for name, p in tuned.named_parameters() if p.requires_grad
    }
    assert {"mlp.experts", "mlp.experts.base_layer"} <= trained

    tuned.train()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=3e-2)
    for _ in range(10):
        loss = tuned(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = tuned.eval()(ids).logits
    assert loss < 0.8 * tuned.get_base_model().loss_function(before, ids, vocab_size=99)
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_model(variant), tmp_path)
    assert torch.allclose(again(ids).logits, after, atol=1e-4)
    assert torch.allclose(tuned.merge_and_unload()(ids).logits, after, atol=1e-4)


def test_compiled_in_float64():
    """grouped_mm, which serves a compiled graph, has no float64."""
    model, ids = make_model("mixtral").double(), random_ids(2, 7)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


def test_experts_take_the_names_of_the_interface():
    experts = make_model("mixtral").model.layers[0].mlp.experts
    states, indices, weights = torch.randn(5, 32), torch.tensor([[0, 3]] * 5), torch.rand(5, 2)
    named = experts(hidden_states=states, top_k_index=indices, top_k_weights=weights)
    assert torch.equal(named, experts(states, indices, weights))
