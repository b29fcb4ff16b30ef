"""Covers the files of the families of transformers, conversion/<family>.py: each is a table, tested through `convert`.

A new family is tested by its row in tests/native_families.py.
"""

import pytest
import torch
from native import (
    assert_close,
    assert_same_bits,
    native_model,
    read_config,
    read_tensors,
    rename_tensors,
    replace_tensors,
    save_native,
    update_config,
)
from native_families import NATIVE
from tiny import random_ids
from transformers import AutoModelForCausalLM

from hf_gpt import GPTForCausalLM
from hf_gpt.conversion import FAMILIES, convert, export
from hf_gpt.conversion.gpt_oss import MXFP4
from hf_gpt.conversion.weights import expand
from hf_gpt.model.configuration_gpt import ACTIVATIONS

SEEDS = range(6)
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture
def models(tmp_path, family, seed):
    """A native model and its conversion."""
    native = save_native(tmp_path / "native", family, seed)
    return native, GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))


@pytest.mark.parametrize("family", NATIVE)
@pytest.mark.parametrize("seed", SEEDS)
class TestEquality:
    def test_logits_and_loss(self, models):
        native, ours = models
        ids = random_ids(3, 21, high=native.config.vocab_size)
        with torch.no_grad():
            expected, actual = native(ids, labels=ids), ours(ids, labels=ids)
        assert_close(actual.logits, expected.logits)
        assert torch.allclose(actual.loss, expected.loss, rtol=1e-5)

    def test_padded_batches(self, models):
        native, ours = models
        ids, mask = random_ids(2, 12, high=native.config.vocab_size), torch.ones(2, 12, dtype=torch.long)
        mask[0, :5] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)  # hf_gpt derives them from the mask
        with torch.no_grad():
            expected = native(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
            actual = ours(ids, attention_mask=mask).logits[mask.bool()]
        assert_close(actual, expected)

    def test_gradients(self, models, family):
        native, ours = models
        ids = random_ids(2, 16, high=native.config.vocab_size)
        for model in models:
            model(ids, labels=ids).loss.backward()
        gradients = {name: parameter.grad for name, parameter in native.named_parameters()}
        names = [name for name, _ in ours.named_parameters()]
        layouts = [expand(layout, ours.config, names) for layout in FAMILIES[family].layouts]
        in_memory = next(each for each in layouts if all(gradients.keys() >= {*mapping.native} for mapping in each))
        scale = max(gradient.abs().max() for gradient in gradients.values())
        for mapping in in_memory:
            for name, gradient in mapping.from_native(gradients.__getitem__, ours.config).items():
                assert (ours.get_parameter(name).grad - gradient).abs().max() <= 1e-5 * scale, name

    def test_greedy_generation(self, models, family):
        native, ours = models
        ids, mask = random_ids(2, 6, high=native.config.vocab_size), torch.ones(2, 6, dtype=torch.long)
        native.config.output_router_logits = False  # with a cache, its balancing loss has a mask of the wrong length
        if not NATIVE[family].counts_padding:
            mask[0, :2] = 0
        expected = native.generate(ids, attention_mask=mask, **GREEDY)
        assert torch.equal(ours.generate(ids, attention_mask=mask, **GREEDY), expected)

    def test_export(self, models, family, tmp_path):
        export(tmp_path / "ours", tmp_path / "back", family)
        assert_same_bits(read_tensors(tmp_path / "back"), read_tensors(tmp_path / "native"))
        assert read_config(tmp_path / "back") == read_config(tmp_path / "native")
        convert(tmp_path / "back", tmp_path / "again")
        assert_same_bits(read_tensors(tmp_path / "again"), read_tensors(tmp_path / "ours"))
        assert read_config(tmp_path / "again") == read_config(tmp_path / "ours")


@pytest.mark.parametrize("family", NATIVE)
def test_the_decoder_alone_with_computed_tensors(family, tmp_path):
    """As GPT-2 is on the Hub: a tied model, saved without the prefix of its base model, with masks or RoPE tables."""
    native = save_native(tmp_path / "native", family, tie_word_embeddings=True)
    rename_tensors(tmp_path / "native", lambda name: name.removeprefix(FAMILIES[family].base_model_prefix))
    computed = {f"layers.0{ending}": torch.ones(1, 1, 8, 8) for ending in FAMILIES[family].computed}
    replace_tensors(tmp_path / "native", computed)
    if "lm_head.bias" in read_tensors(tmp_path / "native"):  # not tied to anything
        replace_tensors(tmp_path / "native", {"lm_head.bias": None})
        with pytest.raises(ValueError, match=r"lm_head\.bias .* is missing"):
            convert(tmp_path / "native", tmp_path / "ours")
        return
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(1, 9, high=native.config.vocab_size)
    assert_close(ours(ids).logits, native(ids).logits)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, tmp_path):
    native = save_native(tmp_path / "native", "gpt2", activation_function=activation)
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(2, 9, high=native.config.vocab_size)
    assert_close(ours(ids).logits, native(ids).logits)


def test_mixtral_with_stacked_experts(tmp_path):
    native = native_model("mixtral")
    native.save_pretrained(tmp_path / "native", save_original_format=False)
    assert any("gate_up_proj" in name for name in read_tensors(tmp_path / "native"))
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(1, 9, high=native.config.vocab_size)
    assert_close(ours(ids).logits, native(ids).logits)


@pytest.mark.parametrize("prefix", ["gpt_neox.", ""])
def test_gpt_neox_with_its_head_under_the_name_of_the_module(prefix, tmp_path):
    native = save_native(tmp_path / "native", "gpt_neox", tie_word_embeddings=False)
    new_name = lambda name: name.replace("embed_out", "lm_head").replace("gpt_neox.", prefix)  # noqa: E731
    rename_tensors(tmp_path / "native", new_name)
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    assert torch.equal(ours.lm_head.weight, native.lm_head.weight)


def test_gpt_oss_in_mxfp4(tmp_path):
    """Weights of 4 bits become exactly the bfloat16 values that they represent."""
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    native = save_native(tmp_path / "native", "gpt_oss", **sizes)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    generator = torch.Generator().manual_seed(0)
    packed = {}
    for name, tensor in read_tensors(tmp_path / "native").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, rows, columns = tensor.shape
            codes = torch.randint(16, (experts, columns, rows // 32, 32), generator=generator)
            scales = torch.randint(120, 128, (experts, columns, rows // 32), generator=generator)
            packed[f"{name}_blocks"] = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
            packed[f"{name}_scales"] = scales.to(torch.uint8)
            packed[name] = None
            dequantized = values[codes] * 2.0 ** (scales[..., None] - 127)
            native.get_parameter(name).data = dequantized.flatten(2).transpose(1, 2).contiguous()
    replace_tensors(tmp_path / "native", packed)
    update_config(tmp_path / "native", {"quantization_config": {"quant_method": "mxfp4"}})
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"), dtype=torch.float32)
    ids = random_ids(2, 9, high=native.config.vocab_size)
    assert_close(ours(ids).logits, native(ids).logits)
    export(tmp_path / "ours", tmp_path / "back", "gpt_oss")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    assert_same_bits(dict(again.state_dict()), dict(native.state_dict()))


def test_mxfp4_with_a_scale_beyond_bfloat16():
    blocks, scales = torch.full((1, 2, 1, 16), 0x77, dtype=torch.uint8), torch.full((1, 2, 1), 255, dtype=torch.uint8)
    with pytest.raises(ValueError, match="MXFP4 contain NaN or infinity"):
        MXFP4.from_native([blocks, scales], None)
