"""Routers and experts: every implementation against a loop over tokens in float64, and against the native classes."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import make_config, make_model, random_ids
from torch.nn.functional import gelu
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.olmoe import modeling_olmoe
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig

from hf_gpt.model.moe import SharedSparseMLP, build_feed_forward, build_router

WIDTH, INNER, EXPERTS, CHOSEN = 16, 24, 5, 2
IMPLEMENTATIONS = ["eager", "grouped_mm", "batched_mm"]
ROUTINGS = [(function, norm) for function in ("softmax", "sigmoid") for norm in (True, False)]


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
    """Token by token, expert by expert, in float64."""
    config = module.experts.config
    weights = {name: parameter.double() for name, parameter in module.named_parameters()}
    weights |= {name: buffer.double() for name, buffer in module.named_buffers()}
    first = f"experts.{'up_proj' if config.mlp_type == 'mlp' else 'gate_up_proj'}"
    zeros = torch.zeros(config.num_local_experts, 1, dtype=torch.float64)
    output = []
    for token in states:
        logits = weights["router.weight"] @ token + weights.get("router.bias", 0)
        scores = logits.softmax(0) if config.router_score_function == "softmax" else logits.sigmoid()
        favour = scores + weights.get("router.e_score_correction_bias", 0)
        chosen = favour.argsort(descending=True)[: config.num_experts_per_tok]
        shares = scores[chosen] / (scores[chosen].sum() if config.norm_topk_prob else 1)
        mixed = 0
        for expert, share in zip(chosen, shares * config.routed_scaling_factor, strict=True):
            biases = [weights.get(f"{name}_bias", zeros)[expert] for name in (first, "experts.down_proj")]
            down = weights["experts.down_proj"][expert]
            mixed = mixed + share * feed_forward(config, token @ weights[first][expert], biases[0], down, biases[1])
        output.append(mixed)
    return torch.stack(output)


def assert_equals_the_definition(module, tolerance, dtype):
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


@pytest.mark.parametrize("mlp_type", ["mlp", "glu", "clamped_glu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_experts_equal_the_definition(implementation, bias, mlp_type):
    fields = {"mlp_type": mlp_type, "mlp_bias": bias, "router_bias": bias, "swiglu_limit": 0.5}
    assert_equals_the_definition(sparse_mlp(implementation, **fields), 1e-5, torch.float32)
    if implementation == "eager":
        assert_equals_the_definition(sparse_mlp(**fields).double(), 1e-12, torch.float64)


@pytest.mark.parametrize("rate", [None, 0.0])
@pytest.mark.parametrize(("function", "norm"), ROUTINGS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_routing_equals_the_definition(implementation, function, norm, rate):
    fields = {"router_score_function": function, "norm_topk_prob": norm, "router_bias_update_rate": rate}
    module = sparse_mlp(implementation, routed_scaling_factor=2.5, **fields)
    assert_equals_the_definition(module, 1e-5, torch.float32)


def test_shared_experts_are_one_layer_beside_the_chosen():
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
def test_routers_equal_the_native_ones(native_class, native_config, fields):
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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_expert_without_tokens(implementation):
    """No NaN, and gradients of zero, in memory that was never written before."""
    module = sparse_mlp(implementation, router_bias=True)
    with torch.no_grad():
        module.router.bias[:2] += 100
    module(random_states(3, 7, dtype=torch.float32)).square().sum().backward()
    for parameter in module.experts.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad[:2].any()
        assert not parameter.grad[2:].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_tokens(implementation):
    module = sparse_mlp(implementation)
    states = torch.zeros(0, 3, WIDTH, requires_grad=True)
    assert module(states).shape == (0, 3, WIDTH)
    module(states).sum().backward()
    assert states.grad.shape == states.shape
    assert not module.experts.down_proj.grad.any()


def test_a_model_without_tokens_is_refused():
    with pytest.raises(ValueError, match=r"inputs of shape \(2, 0\): expected at least one token"):
        make_model("mixtral")(torch.zeros(2, 0, dtype=torch.long))


def test_experts_on_other_ranks_are_passed_over():
    """Expert parallelism gives them an index beyond the local ones, and no share."""
    module, tokens = sparse_mlp(), random_states(4, dtype=torch.float32)
    indices, shares = torch.tensor([[0, EXPERTS], [EXPERTS, 1], [2, 3], [EXPERTS, EXPERTS]]), torch.ones(4, 2)
    shares[indices == EXPERTS] = 0
    alone = module.experts(tokens, indices.clamp(max=EXPERTS - 1), shares)
    assert torch.allclose(module.experts(tokens, indices, shares), alone, atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Watches every tensor that is made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return result


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_nothing_is_as_large_as_tokens_times_experts_times_width(implementation):
    module = sparse_mlp(implementation, num_local_experts=16, mlp_type="glu")
    states = random_states(2, 512, dtype=torch.float32).requires_grad_()
    with LargestTensor() as watch:
        module(states).square().sum().backward()
    assert watch.size <= 1024 * CHOSEN * 2 * INNER  # gate and up, of the chosen
    assert watch.size < 1024 * 16 * WIDTH


class ProductDtypes(TorchDispatchMode):
    """The dtypes of all matrices that are multiplied."""

    PRODUCTS = ("aten.mm.", "aten.addmm.", "mkldnn._linear_pointwise.")

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith(self.PRODUCTS):
            self.dtypes |= {each.dtype for each in args if isinstance(each, torch.Tensor)}
        return func(*args, **(kwargs or {}))


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
    """In one graph, although eager experts ask how many tokens each of them gets."""
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


def test_the_default_implementation_is_the_fastest(monkeypatch):
    """Ours on a CPU; grouped_mm on an accelerator, which refuses odd widths."""
    assert make_model("mixtral").config._experts_implementation == "eager"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    even, odd = make_model("mixtral"), make_model("mixtral", moe_intermediate_size=23)
    assert (even.config._experts_implementation, odd.config._experts_implementation) == ("grouped_mm", "eager")
    odd(random_ids(1, 5))
    with pytest.raises(ValueError, match="moe_intermediate_size=23: grouped_mm expects multiples of 8"):
        odd.set_experts_implementation("grouped_mm")


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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("variant", ["mixtral", "gpt_oss"])
def test_lora_on_experts(variant, implementation, tmp_path):
    """By `target_parameters`, as for every model with fused experts: learns, loads again, and merges."""
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


def test_lora_on_all_linear_layers_leaves_the_router_alone():
    model, ids = make_model("mixtral"), random_ids(2, 9)
    before = model(ids).logits
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert torch.equal(tuned(ids).logits, before)
    assert not any("router.lora" in name for name, _ in tuned.named_parameters())


def test_a_router_that_is_saved_beside_an_adapter():
    """PEFT trains a copy of it; the load is counted there, and its bias moves."""
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
