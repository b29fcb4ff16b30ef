"""Models with quantized weights: how accurate they are, how they are saved, and that none is quantized twice."""

import copy
import importlib.util
import sys

import pytest
import torch
from overfitting import overfit
from peft import LoraConfig, get_peft_model
from quantized import dequantized
from recording import kernels_of
from safetensors.torch import load_file
from tiny import VARIANTS, logits, make_model, random_ids
from transformers import AutoModelForCausalLM, TorchAoConfig

from hf_gpt import GPTForCausalLM, GPTForSequenceClassification
from hf_gpt.model import quantized_weights
from hf_gpt.model.quantized_weights import dequantize_int4
from hf_gpt.surgery import quantize
from hf_gpt.surgery.quantization import SCHEMES

GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
DENSE = [name for name, fields in VARIANTS.items() if "num_local_experts" not in fields]
PAIRS = [(variant, scheme) for variant in VARIANTS for scheme in SCHEMES if (variant, scheme) != ("factorized", "int4")]


@pytest.mark.parametrize("group_size", quantized_weights.INT4_GROUPS)
def test_int4_is_accurate_to_half_a_step(group_size):
    torch.manual_seed(0)
    weight = torch.randn(8, 512)
    quantized = SCHEMES["int4"].quantize(weight, group_size, "layer")
    assert quantized.scale.shape == (512 // group_size, 8)
    half_a_step = quantized.scale.float().t().repeat_interleave(group_size, dim=1) / 2
    rounding = 0.02  # of scale and zero point to bfloat16
    assert ((dequantize_int4(quantized).float() - weight).abs() <= half_a_step + rounding).all()
    constant = SCHEMES["int4"].quantize(torch.full((8, 512), 0.5), group_size, "layer")
    assert torch.allclose(dequantize_int4(constant).float(), torch.full((8, 512), 0.5))


@pytest.mark.parametrize(("variant", "scheme"), PAIRS)
def test_logits_are_those_of_the_dequantized_model(variant, scheme):
    model, ids = make_model(variant), random_ids(2, 9)
    quantized = quantize(model, scheme)
    assert quantized.dtype == torch.bfloat16
    exact = copy.deepcopy(model)
    names = dict(quantized.named_parameters())
    with torch.no_grad():
        for name, parameter in exact.named_parameters():
            weight = names[name]
            parameter.copy_(weight if type(weight) is torch.nn.Parameter else dequantized(weight))
    expected = logits(exact, ids)
    nearest = logits(exact.bfloat16(), ids).float()
    error, rounding = (logits(quantized, ids).float() - expected).abs(), (nearest - expected).abs()
    if variant in DENSE:  # rounding can change the selected experts
        assert error.mean() < 2 * rounding.mean() + 1e-3 * expected.abs().max()
    assert torch.equal(model.lm_head.weight, make_model(variant).lm_head.weight)  # the original does not change


@pytest.mark.parametrize(("variant", "scheme"), PAIRS)
def test_saves_and_loads(tmp_path, variant, scheme):
    model, ids = quantize(make_model(variant), scheme), random_ids(2, 9)
    model.save_pretrained(tmp_path)
    for loaded in (GPTForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert torch.equal(logits(loaded, ids), logits(model, ids))
        assert torch.equal(loaded.generate(ids, **GREEDY), model.generate(ids, **GREEDY))
        tied = model.config.tie_word_embeddings
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
        assert type(loaded.lm_head.weight).__name__ == "Int8Tensor"
    loaded.save_pretrained(tmp_path / "again")
    first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert tied != any(name.startswith("lm_head._weight") for name in first)


@pytest.mark.parametrize(("scheme", "bytes_per_weight"), [("int8", 1), ("int4", 0.5 + 4 / 32)])
def test_size_of_the_file(tmp_path, scheme, bytes_per_weight):
    model = make_model(hidden_size=128, vocab_size=64)
    quantize(model, scheme).save_pretrained(tmp_path)
    matrices = sum(p.numel() for name, p in model.model.layers.named_parameters() if "proj.weight" in name)
    others = model.num_parameters() - matrices
    assert (tmp_path / "model.safetensors").stat().st_size < matrices * bytes_per_weight * 1.1 + 2 * others + 20_000


def test_quantization_config_of_from_pretrained(tmp_path):
    """The way of transformers, which does not quantize a tied head."""
    from torchao.quantization import Int8WeightOnlyConfig

    model, ids = make_model(), random_ids(2, 9)
    model.save_pretrained(tmp_path)
    options = {"dtype": torch.bfloat16, "quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    for loader in (GPTForCausalLM, AutoModelForCausalLM):
        loaded = loader.from_pretrained(tmp_path, **options)
        ours, theirs = quantize(model).model.layers[0].mlp.up_proj.weight, loaded.model.layers[0].mlp.up_proj.weight
        assert torch.equal(ours.qdata, theirs.qdata)
        assert torch.equal(ours.scale, theirs.scale)
        assert "aten::_weight_int8pack_mm" in kernels_of(lambda: loaded(ids[:1, :1]))  # noqa: B023 called at once
        loaded.save_pretrained(tmp_path / "saved")
        assert torch.equal(logits(GPTForCausalLM.from_pretrained(tmp_path / "saved"), ids), logits(loaded, ids))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_task_heads(tmp_path, scheme):
    model = make_model(model_class=GPTForSequenceClassification, num_labels=3, pad_token_id=0)
    quantized = quantize(model, scheme)
    assert type(quantized.score.weight) is torch.nn.Parameter
    quantized.save_pretrained(tmp_path)
    loaded, ids = GPTForSequenceClassification.from_pretrained(tmp_path), random_ids(2, 9)
    assert torch.equal(logits(loaded, ids), logits(quantized, ids))


def test_precision_of_the_parts_that_are_not_quantized():
    quantized = quantize(make_model("deepseek"))
    assert quantized.model.layers[1].mlp.router.e_score_correction_bias.dtype == torch.float32
    assert quantized.model.rotary_emb.inv_freq.dtype == torch.float32
    assert type(quantized.model.layers[1].mlp.experts.down_proj) is torch.nn.Parameter
    assert type(quantized.model.layers[1].mlp.shared_experts.down_proj.weight).__name__ == "Int8Tensor"


def test_lora_over_int8():
    model = get_peft_model(
        quantize(make_model()), LoraConfig(target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    )
    losses = overfit(model.train(), random_ids(2, 20), steps=10)
    assert losses[-1] < 0.8 * losses[0]


def test_lora_over_int4_raises():
    with pytest.raises(TypeError, match="only supports int8"):
        get_peft_model(quantize(make_model(), "int4"), LoraConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize(
    ("to", "group_size", "message"),
    [
        ("int3", 32, "to='int3': expected one of int8, int4"),
        ("int4", 48, "group_size=48: expected one of 32, 64, 128, 256"),
        ("int4", 64, "group_size=64 does not divide the 32 input features of model.layers.0.self_attn.q_proj"),
    ],
)
def test_bad_arguments_raise(to, group_size, message):
    with pytest.raises(ValueError, match=message):
        quantize(make_model(), to, group_size=group_size)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_model_is_not_quantized_again(tmp_path, scheme):
    from torchao.quantization import Int8WeightOnlyConfig

    model = quantize(make_model(), scheme)
    model.save_pretrained(tmp_path)
    for again in (model, GPTForCausalLM.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match="the model is quantized already"):
            quantize(again)
    options = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    for loader in (GPTForCausalLM, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="the model is quantized already"):
            loader.from_pretrained(tmp_path, **options)


def test_without_torchao(tmp_path, monkeypatch):
    quantize(make_model()).save_pretrained(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("hf_gpt.surgery.quantization.is_torchao_available", lambda: False)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torchao" else find_spec(name, *a)
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "torchao"]:
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: quantize(make_model()), lambda: GPTForCausalLM.from_pretrained(tmp_path)):
        with pytest.raises(ImportError, match=r"pip install 'hf_gpt\[quant\]'"):
            call()
