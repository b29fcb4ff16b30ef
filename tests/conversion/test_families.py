import pytest
import torch
from native import assert_convert_raises, assert_same_bits, native_config, read_config, read_tensors, update_config
from native_families import NATIVE
from tiny import make_model, random_ids
from transformers import MistralConfig, MistralForCausalLM

from hf_gpt import GPTForCausalLM
from hf_gpt.conversion import FAMILIES, convert, export, llama, mixtral
from hf_gpt.conversion.families import find_family, recognize
from hf_gpt.conversion.family import Family, same
from hf_gpt.conversion.storage import Storage


def test_every_family_of_transformers_is_tested():
    """A new family needs one row in tests/native_families.py. The others have test files of their own."""
    assert [name for name, family in FAMILIES.items() if type(family.storage) is Storage] == list(NATIVE)


@pytest.mark.parametrize("name", NATIVE)
def test_recognizes_the_model_type(name, tmp_path):
    native_config(name).save_pretrained(tmp_path)
    assert recognize(tmp_path) is FAMILIES[name] is find_family(name)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("bert", "config.json has model_type='bert': expected one of openai-gpt, gpt2"),
        ("hf_gpt", "is a model of hf_gpt already"),
        (["gpt2"], r"config.json has model_type=\['gpt2'\]"),
    ],
)
def test_other_model_types(native, model_type, message):
    update_config(native, {"model_type": model_type})
    assert_convert_raises(native, message)


def test_a_folder_without_a_model(native):
    (native / "config.json").unlink()
    message = r"contains no model: expected one of config\.json, ckpt\.pt, model\.pt"
    assert_convert_raises(native, message, FileNotFoundError)


def test_export_to_an_unknown_family(tmp_path):
    make_model().save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="no family 'gpt5': expected one of openai-gpt"):
        export(tmp_path / "ours", tmp_path / "back", "gpt5")


def test_a_new_family_needs_no_other_code(tmp_path, monkeypatch):
    """Mistral, which hf_gpt does not have: one Family in the table."""
    mistral = Family(
        storage=Storage("mistral"),
        fields=llama.FIELDS | same("sliding_window"),
        constants=llama.CONSTANTS | {"attention_bias": False, "mlp_bias": False},
        read=mixtral.read,
        canonical=llama.canonical,
        layouts=llama.LLAMA.layouts,
        base_model_prefix="model.",
    )
    monkeypatch.setitem(FAMILIES, mistral.name, mistral)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    native = MistralForCausalLM(MistralConfig(**sizes, num_key_value_heads=2, vocab_size=99, sliding_window=5)).eval()
    native.save_pretrained(tmp_path / "native")
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    assert ours.config.attention_patterns == ["banded", "banded"]
    ids = random_ids(2, 21)
    torch.testing.assert_close(ours(ids).logits, native(ids).logits)
    export(tmp_path / "ours", tmp_path / "back", "mistral")
    assert_same_bits(read_tensors(tmp_path / "back"), read_tensors(tmp_path / "native"))
    assert read_config(tmp_path / "back") == read_config(tmp_path / "native")
