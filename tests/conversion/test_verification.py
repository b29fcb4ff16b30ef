import pytest
import torch
from native import save_native

from hf_gpt import GPTForCausalLM
from hf_gpt.conversion import convert, verify
from hf_gpt.tokenization import train_tokenizer


@pytest.fixture
def folders(tmp_path):
    """Converted and native model, with a tokenizer."""
    save_native(tmp_path / "native", "gpt2", vocab_size=300)
    train_tokenizer(["All heroes wear capes."], 300).save_pretrained(tmp_path / "native")
    return convert(tmp_path / "native", tmp_path / "ours"), tmp_path / "native"


def test_a_conversion_is_exact(folders):
    differences = verify(*folders, "gpt2")
    assert list(differences) == ["random tokens", "real tokens"]
    assert all(difference.relative < 1e-5 for difference in differences.values())


def test_changed_weights_are_detected(folders):
    ours, native = folders
    model = GPTForCausalLM.from_pretrained(ours)
    torch.nn.init.zeros_(model.model.layers[0].mlp.down_proj.weight)
    model.save_pretrained(ours)
    for difference in verify(ours, native, "gpt2").values():
        assert difference.relative == difference.largest / difference.scale > 1e-3
