"""A command never runs on weights that are not in the checkpoint, or not finite."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import VARIANTS, logits, make_model, random_ids
from transformers import GPT2Config, GPT2LMHeadModel, TorchAoConfig

from hf_gpt import GPTForCausalLM, GPTModel
from hf_gpt.conversion.loading import load_model
from hf_gpt.surgery import quantize

BIAS, WEIGHT = "model.layers.1.mlp.down_proj.bias", "model.layers.1.mlp.down_proj.weight"
SCALE, VALUES = "model.layers.1.mlp.down_proj._weight_scale", "model.layers.1.mlp.down_proj._weight_qdata"
SCHEMES = {"float": lambda model: model, "int8": quantize, "int4": lambda model: quantize(model, "int4")}

NAN = float("nan")
ANOTHER = "has no place in a model of this configuration"
# How a tensor is damaged, and what the error says of it.
DAMAGE = {
    "missing": (lambda tensor: None, "is missing"),
    "nan": (lambda tensor: tensor.fill_(NAN), "contains NaN or infinity"),
    "infinity": (
        lambda tensor: tensor.flatten().index_fill(0, torch.tensor([3]), -torch.inf).view_as(tensor),
        "contains",
    ),
    "shape": (lambda tensor: tensor[:-1].clone(), "has the shape"),
    "type": (lambda tensor: tensor.long(), "is of type torch.int64: expected"),
}


def change_tensors(folder, changes):
    """Replaces, adds, or (None) removes tensors, and leaves the metadata."""
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = {name: tensor for name, tensor in (load_file(file) | changes).items() if tensor is not None}
    save_file(tensors, file, metadata)


def assert_refused(folder, *parts, error=ValueError):
    """The message is one line with the folder and all parts."""
    with pytest.raises(error) as raised:
        load_model(folder)
    message = str(raised.value)
    assert "\n" not in message
    assert all(part in message for part in (str(folder), *parts)), message


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_model_loads(variant, tmp_path):
    model, ids = make_model(variant), random_ids(2, 5)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load_model(tmp_path), ids), logits(model, ids))


@pytest.mark.parametrize("variant", ["default", "llama", "mixtral"])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_quantized_models_load(variant, scheme, tmp_path):
    model, ids = quantize(make_model(variant), scheme), random_ids(2, 5)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert torch.equal(logits(load_model(tmp_path), ids), logits(model, ids))


def test_models_that_torchao_quantized_otherwise_load(tmp_path):
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    make_model().save_pretrained(tmp_path / "model")
    for scheme in (Int8WeightOnlyConfig(), Float8WeightOnlyConfig()):
        folder = tmp_path / type(scheme).__name__
        config = TorchAoConfig(scheme)
        GPTForCausalLM.from_pretrained(tmp_path / "model", quantization_config=config).save_pretrained(folder)
        load_model(folder)


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        ("float", BIAS),
        ("float", WEIGHT),
        ("float", "model.embed_tokens.weight"),
        ("int8", BIAS),
        ("int8", SCALE),
        ("int8", VALUES),
        ("int4", BIAS),
        ("int4", SCALE),
        ("int4", VALUES),
    ],
)
def test_a_damaged_tensor(scheme, name, tmp_path):
    SCHEMES[scheme](make_model()).save_pretrained(tmp_path)
    content, tensor = (tmp_path / "model.safetensors").read_bytes(), load_file(tmp_path / "model.safetensors")[name]
    for damage, (change, message) in DAMAGE.items():
        if tensor.is_floating_point() or damage not in ("nan", "infinity"):
            (tmp_path / "model.safetensors").write_bytes(content)
            change_tensors(tmp_path, {name: change(tensor.clone())})
            assert_refused(
                tmp_path, name.replace("_weight_scale", "weight") if "contains" in message else name, message
            )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_other_damage(scheme, tmp_path):
    SCHEMES[scheme](make_model()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    for name in ("model.layers.2.mlp.up_proj.bias", "score.weight"):
        change_tensors(tmp_path, {name: torch.ones(3)})
        assert_refused(tmp_path, name, ANOTHER)
        file.write_bytes(content)
    for size in (0, 5, 1000, len(content) - 1):
        file.write_bytes(content[:size])
        assert_refused(tmp_path, "truncated or damaged", error=OSError)
    file.unlink()
    assert_refused(tmp_path, "contains no weights", error=FileNotFoundError)


def test_a_missing_shard(tmp_path):
    make_model().save_pretrained(tmp_path, max_shard_size="40KB")
    shard = max(tmp_path.glob("*.safetensors"))
    shard.unlink()
    assert_refused(tmp_path, shard.name, "does not exist", error=FileNotFoundError)


def test_a_tied_head(tmp_path):
    """It may be stored too, or in the place of the embeddings, but not differ from them."""
    model, ids = make_model(), random_ids(2, 5)
    model.save_pretrained(tmp_path)
    table = model.lm_head.weight.detach().clone()
    for changes in ({"lm_head.weight": table}, {"lm_head.weight": table, "model.embed_tokens.weight": None}):
        change_tensors(tmp_path, changes)
        assert torch.equal(logits(load_model(tmp_path), ids), logits(model, ids))
    change_tensors(tmp_path, {"lm_head.weight": table + 1, "model.embed_tokens.weight": table})
    assert_refused(tmp_path, "tie_word_embeddings=True contradicts", "lm_head.weight")


def test_the_decoder_alone(tmp_path):
    for variant in ("default", "llama"):
        make_model(variant, model_class=GPTModel).save_pretrained(tmp_path / variant)
    load_model(tmp_path / "default")
    assert_refused(tmp_path / "llama", "lm_head.weight", "is missing")


def test_pickles(tmp_path):
    model, ids = make_model(), random_ids(2, 5)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = model.state_dict()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert torch.equal(logits(load_model(tmp_path), ids), logits(model, ids))
    torch.save({name: tensor for name, tensor in tensors.items() if name != BIAS}, tmp_path / "pytorch_model.bin")
    assert_refused(tmp_path, BIAS, "is missing")


def test_an_adapter(tmp_path):
    """The base model, which its folder names, is checked."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_model().save_pretrained(base)
    lora = LoraConfig(target_modules=["q_proj"])
    get_peft_model(GPTForCausalLM.from_pretrained(base), lora).save_pretrained(adapter)
    model = load_model(adapter)
    with pytest.raises(ValueError, match="the model has an adapter"):
        quantize(model)
    change_tensors(base, {BIAS: None})
    with pytest.raises(ValueError, match=f"{BIAS} in {base} is missing"):
        load_model(adapter)


@pytest.mark.parametrize(
    "description",
    [
        [],
        {"_type": "Int8Tensor"},
        {"_type": "Int8Tensor", "_data": []},
        {"_type": ["Int8Tensor"], "_data": {}},
        *({"_type": "Int8Tensor", "_data": {"block_size": size}} for size in ([], [1], [1, 0], [1, "2"], 7, None)),
    ],
    ids=str,
)
def test_metadata_that_torchao_did_not_write(description, tmp_path):
    quantize(make_model()).save_pretrained(tmp_path)
    file, text = tmp_path / "model.safetensors", json.dumps([description, "_tensor_data_names"])
    if isinstance(description, dict):
        text = json.dumps(description | {"_tensor_data_names": ["qdata"]})
    save_file(load_file(file), file, {WEIGHT: text})
    assert_refused(tmp_path, "describes a quantized tensor as torchao does not")


def test_metadata_of_another_tensor(tmp_path):
    """A bias is no matrix, and a matrix has the shape of the configuration."""
    quantize(make_model()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    for name, size in ((BIAS, [1, 32]), (WEIGHT, [1, 1])):
        text = json.dumps({"_type": "Int8Tensor", "_data": {"block_size": size}, "_tensor_data_names": ["qdata"]})
        save_file(load_file(file), file, {name: text})
        assert_refused(tmp_path, "model.", "is missing")


@pytest.mark.parametrize("fields", [{}, {"base_model_name_or_path": [1]}, {"base_model_name_or_path": ""}], ids=str)
def test_an_adapter_without_a_base_model(fields, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    assert_refused(tmp_path, "adapter_config.json names no model: expected base_model_name_or_path")


def test_a_model_of_transformers(tmp_path):
    config = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert type(load_model(tmp_path, dtype=torch.float64)) is GPT2LMHeadModel
    change_tensors(tmp_path, {"transformer.h.1.mlp.c_fc.bias": None})
    assert_refused(tmp_path, "transformer.h.1.mlp.c_fc.bias", "is missing")


def test_a_folder_without_a_model(tmp_path):
    assert_refused(tmp_path, "config.json", error=OSError)
    (tmp_path / "config.json").write_text(json.dumps([]))
    assert_refused(tmp_path, "expected a JSON object")
