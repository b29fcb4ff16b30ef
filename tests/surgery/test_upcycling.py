"""A mixture of experts from a dense model: the same function before training, for any routing."""

import json

import pytest
import torch
from overfitting import overfit
from tiny import VARIANTS, make_model, random_ids

from hf_gpt import GPTForCausalLM, GPTForSequenceClassification
from hf_gpt.compatibility import enable_activation_checkpointing
from hf_gpt.conversion import checkpoints, convert, export
from hf_gpt.surgery import upcycle, upcycle_checkpoint

DENSE = [variant for variant, fields in VARIANTS.items() if "num_local_experts" not in fields]
SIZES = {
    "copies": {"num_experts": 4, "num_experts_per_tok": 2},
    "one_expert": {"num_experts": 1, "num_experts_per_tok": 1},
    "virtual_groups": {"num_experts": 8, "num_experts_per_tok": 2, "granularity": 2},
    "several_groups": {"num_experts": 16, "num_experts_per_tok": 8, "granularity": 4},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dense", DENSE)
def test_computes_the_same_function(dense, sizes):
    model, ids = make_model(dense), random_ids(2, 12)
    sparse = upcycle(model, **sizes)
    expected = model(ids).logits
    assert (sparse(ids).logits - expected).abs().max() < 1e-5 * expected.abs().max()
    assert sparse.config.mlp_layer_types == ["sparse", "sparse"]
    experts = sparse.model.layers[0].mlp.experts
    assert len(experts.down_proj) == sizes["num_experts"]
    assert (sparse.lm_head.weight is sparse.model.embed_tokens.weight) == model.config.tie_word_embeddings
    assert experts.down_proj.shape[1] * sizes.get("granularity", 1) == model.config.intermediate_size


@pytest.mark.parametrize("mlp_type", ["mlp", "glu", "clamped_glu"])
@pytest.mark.parametrize(
    "routing", [{}, {"router_score_function": "sigmoid", "router_bias_update_rate": 0.01}], ids=str
)
def test_computes_the_same_function_with_every_mlp_type_bias_and_routing(mlp_type, routing):
    model, ids = make_model(mlp_type=mlp_type, mlp_bias=True, residual_dropout=0.1), random_ids(2, 12)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    sparse = upcycle(model, 8, 4, granularity=2, router_bias=True, **routing)
    expected = model(ids).logits
    assert (sparse(ids).logits - expected).abs().max() < 1e-5 * expected.abs().max()


def test_routing_fields_that_a_dense_model_ignores_are_reset():
    ignored = {"norm_topk_prob": False, "routed_scaling_factor": 2.0, "router_jitter_noise": 0.5}
    model, ids = make_model("llama", **ignored).train(), random_ids(2, 12)
    assert torch.allclose(upcycle(model)(ids).logits, model(ids).logits, atol=1e-4)


def test_experts_are_copies_of_parts_of_the_layer():
    """Two experts are a virtual group, the halves of the layer; the other two repeat it."""
    model = make_model("llama", torch_dtype=torch.float32)
    mlp, sparse = model.model.layers[1].mlp, upcycle(model, 4, 2, granularity=2)
    experts, router = sparse.model.layers[1].mlp.experts, sparse.model.layers[1].mlp.router
    gates, ups = experts.gate_up_proj.chunk(2, dim=2)
    for expert in range(4):
        half = slice(0, 64) if expert % 2 == 0 else slice(64, 128)
        assert torch.equal(gates[expert].t(), mlp.gate_proj.weight[half])
        assert torch.equal(ups[expert].t(), mlp.up_proj.weight[half])
        assert torch.equal(experts.down_proj[expert].t(), 2 * mlp.down_proj.weight[:, half])
    assert torch.equal(router.weight[0::2], router.weight[1::2])
    assert not torch.equal(router.weight[0], router.weight[2])


def test_given_layers():
    model, ids = make_model("learned", num_hidden_layers=3), random_ids(2, 9)
    sparse = upcycle(model, layers=[0, -1])
    assert sparse.config.mlp_layer_types == ["sparse", "dense", "sparse"]
    assert torch.equal(sparse.model.layers[1].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)
    assert torch.allclose(sparse(ids).logits, model(ids).logits, atol=1e-4)


def test_the_original_model_does_not_change_and_its_settings_are_preserved():
    model, ids = make_model("llama").train(), random_ids(2, 9)
    model.model.embed_tokens.weight.requires_grad_(False)
    enable_activation_checkpointing(model)
    model.generation_config.update(max_new_tokens=7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sparse = upcycle(model)
    assert sparse.training
    assert sparse.model.gradient_checkpointing
    assert sparse.generation_config.max_new_tokens == 7
    assert not sparse.model.embed_tokens.weight.requires_grad
    sparse(ids, labels=ids).loss.backward()
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_task_head():
    model, ids = make_model("learned", GPTForSequenceClassification), random_ids(2, 9)
    mask = torch.ones_like(ids)
    assert torch.allclose(upcycle(model)(ids, mask).logits, model(ids, mask).logits, atol=1e-5)


def test_in_bfloat16():
    model = make_model("llama").bfloat16()
    sparse = upcycle(model)
    assert {parameter.dtype for parameter in sparse.parameters()} == {torch.bfloat16}
    experts = sparse.model.layers[0].mlp.experts
    assert torch.equal(experts.down_proj[3].t(), model.model.layers[0].mlp.down_proj.weight)


def test_noise():
    model = make_model("llama")
    plain, noisy = (upcycle(model, noise=noise).model.layers[0].mlp.experts for noise in (0.0, 0.1))
    for name in ("gate_up_proj", "down_proj"):
        difference = getattr(noisy, name) - getattr(plain, name)
        assert abs(difference.std() / getattr(plain, name).std() - 0.1) < 0.01
        assert not torch.equal(difference[0], difference[1])


def test_reinitialization():
    """A quarter of the inner units, the same in the input and output projections, others in each expert."""
    model = make_model("llama")
    plain, drawn = (upcycle(model, reinitialize=fraction).model.layers[0].mlp.experts for fraction in (0.0, 0.25))
    gate, up = (drawn.gate_up_proj != plain.gate_up_proj).any(dim=1).chunk(2, dim=1)  # (experts, inner)
    down = (drawn.down_proj != plain.down_proj).any(dim=2)
    assert torch.equal(gate, up)
    assert torch.equal(gate, down)
    assert gate.sum(dim=1).tolist() == [32] * 8
    assert not torch.equal(gate[0], gate[1])
    assert abs(drawn.down_proj.std() / plain.down_proj.std() - 1) < 0.05


@pytest.mark.parametrize("route", ["model", "checkpoint"])
def test_reinitialise_is_a_deprecated_alias(tmp_path, route):
    model = make_model("llama")
    model.save_pretrained(tmp_path / "dense")

    def upcycle_by_the_old_name():
        if route == "model":
            return upcycle(model, reinitialise=0.25)
        return GPTForCausalLM.from_pretrained(
            upcycle_checkpoint(tmp_path / "dense", tmp_path / "sparse", reinitialise=0.25)
        )

    with pytest.warns(DeprecationWarning, match="use reinitialize") as caught:
        old = upcycle_by_the_old_name()
    assert caught[0].filename == __file__  # the warning points to the caller
    expected = upcycle(model, reinitialize=0.25).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in old.state_dict().items())


def test_random_numbers_depend_on_the_seed_alone():
    model = make_model("llama")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = upcycle(model, noise=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = upcycle(model, noise=0.1), upcycle(model, noise=0.1, seed=1)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(tensor, other.state_dict()[name]) == (".mlp." not in name)


def test_the_experts_learn_to_differ():
    sparse = upcycle(make_model().train(), 4, 2, router_aux_loss_coef=0.0)
    assert overfit(sparse, random_ids(4, 24))[-1] < 1
    experts = sparse.model.layers[0].mlp.experts
    assert not torch.allclose(experts.up_proj[0], experts.up_proj[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok=3: expected at most num_local_experts=2"),
        ({"num_experts": 0}, "num_local_experts=0: expected an integer from 1 to"),
        ({"num_experts": 6, "granularity": 4}, "granularity=4 does not divide num_experts=6"),
        ({"num_experts": 8, "granularity": 4}, "granularity=4 does not divide num_experts_per_tok=2"),
        (
            {"num_experts": 6, "num_experts_per_tok": 3, "granularity": 3},
            "granularity=3 does not divide intermediate_size=128",
        ),
        ({"granularity": 0}, "granularity=0: expected an integer of at least 1"),
        ({"layers": [0, 2]}, "layers: layer 2 is out of range for num_hidden_layers=2"),
        ({"layers": []}, "layers: expected at least one layer index"),
        ({"layers": 1}, "layers=1: expected a list of layer indices"),
        ({"num_experts": "8"}, "num_local_experts='8': expected an integer"),
        ({"noise": float("nan")}, "noise=nan: expected a number of at least 0"),
        ({"noise": -0.1}, "noise=-0.1: expected a number of at least 0"),
        ({"reinitialize": 1.5}, "reinitialize=1.5: expected a fraction from 0 to 1"),
        ({"norm_topk_prob": False}, "upcycle does not accept norm_topk_prob: expected one of router_score_function"),
        ({"router_aux_loss_coef": -1}, "router_aux_loss_coef=-1: expected a number from 0 to"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        upcycle(make_model(), **arguments)


def test_a_mixture_of_experts_raises():
    with pytest.raises(ValueError, match="num_local_experts=4: the model is already a mixture of experts"):
        upcycle(make_model("mixtral"))


class TestCheckpoint:
    """`upcycle_checkpoint`."""

    @pytest.mark.parametrize("dense", ["llama", "learned"])
    def test_writes_the_weights_of_upcycle(self, dense, tmp_path):
        model = make_model(dense)
        model.generation_config.update(max_new_tokens=7)
        model.save_pretrained(tmp_path / "dense")
        options = {"granularity": 2, "noise": 0.1, "seed": 3, "router_bias_update_rate": 0.01, "layers": [-1]}
        out = upcycle_checkpoint(tmp_path / "dense", tmp_path / "sparse", 4, 2, max_shard_size="20KB", **options)
        assert len(list(out.glob("*.safetensors"))) > 2
        loaded, expected = GPTForCausalLM.from_pretrained(out), upcycle(model, 4, 2, **options)
        assert loaded.state_dict().keys() == expected.state_dict().keys()
        assert all(torch.equal(t, expected.state_dict()[name]) for name, t in loaded.state_dict().items())
        assert loaded.config.mlp_layer_types == ["dense", "sparse"]
        assert loaded.generation_config.max_new_tokens == 7
        assert (out / "modeling_gpt.py").is_file()
        assert json.loads((out / "config.json").read_text())["architectures"] == ["GPTForCausalLM"]

    def test_a_llama_becomes_a_mixtral(self, tmp_path):
        make_model("llama", qk_norm=False).save_pretrained(tmp_path / "ours")
        export(tmp_path / "ours", tmp_path / "llama", "llama")
        convert(tmp_path / "llama", tmp_path / "again")
        upcycle_checkpoint(tmp_path / "again", tmp_path / "sparse", router_aux_loss_type="pooled")
        export(tmp_path / "sparse", tmp_path / "mixtral", "mixtral")
        convert(tmp_path / "mixtral", tmp_path / "back")
        ids = random_ids(2, 9)
        expected = GPTForCausalLM.from_pretrained(tmp_path / "ours")(ids).logits
        assert torch.allclose(GPTForCausalLM.from_pretrained(tmp_path / "back")(ids).logits, expected, atol=1e-4)

    def test_resumes(self, tmp_path, monkeypatch):
        make_model("llama").save_pretrained(tmp_path / "dense")
        arguments = {"src": tmp_path / "dense", "out": tmp_path / "sparse", "max_shard_size": "20KB", "layers": [0, 1]}
        save, saved = checkpoints.save_file, []

        def save_two(tensors, file, **options):
            if len(saved) == 2:
                raise KeyboardInterrupt
            saved.append(file)
            save(tensors, file, **options)

        monkeypatch.setattr(checkpoints, "save_file", save_two)
        with pytest.raises(KeyboardInterrupt):
            upcycle_checkpoint(**arguments)
        assert not (tmp_path / "sparse").exists()
        monkeypatch.setattr(checkpoints, "save_file", save)
        with pytest.raises(FileExistsError, match="unfinished"):
            upcycle_checkpoint(**arguments, seed=1)
        upcycle_checkpoint(**arguments | {"layers": range(-2, 0)})  # the same layers
        expected = upcycle(make_model("llama")).state_dict()
        actual = GPTForCausalLM.from_pretrained(tmp_path / "sparse").state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in actual.items())

    def test_an_error_leaves_nothing(self, tmp_path):
        make_model("llama").save_pretrained(tmp_path / "dense")
        with pytest.raises(ValueError, match="does not divide"):
            upcycle_checkpoint(tmp_path / "dense", tmp_path / "out", 6, 2, granularity=4)
        assert [path.name for path in tmp_path.iterdir()] == ["dense"]
