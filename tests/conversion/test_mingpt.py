import json

import pytest
import torch
from nanogpt_reference import NanoGPT
from native import assert_close, assert_convert_raises, assert_same_bits, enlarge_weights, read_config
from tiny import random_ids
from torch import nn

from hf_gpt import GPTForCausalLM
from hf_gpt.conversion import convert, export, verify


def write_native(folder, arguments):
    """Writes a minGPT with two layers and three heads; returns the model, its tensors and its settings."""
    tanh = lambda: nn.GELU(approximate="tanh")  # noqa: E731
    native = NanoGPT(2, 3, 48, block_size=16, vocab_size=77, bias=True, tied=False, act=tanh)
    enlarge_weights(native)
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(16, 16).tril()[None, None] for layer in range(2)}
    tensors = native.state_dict() | masks
    folder.mkdir()
    torch.save(tensors, folder / "model.pt")
    settings = {"system": {"seed": 3407}, "model": {"n_layer": None, "vocab_size": None, **arguments}}
    (folder / "config.json").write_text(json.dumps(settings))
    return native, tensors, settings


@pytest.mark.parametrize("arguments", [{"model_type": "gpt-nano"}, {"n_head": 3, "model_type": None}])
def test_conversion_and_export(arguments, tmp_path):
    native, tensors, settings = write_native(tmp_path / "native", arguments)
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(2, 16, high=77)
    assert_close(ours(ids).logits, native(ids))
    assert verify(tmp_path / "ours", tmp_path / "native", "mingpt")["random tokens"].relative < 1e-5
    export(tmp_path / "ours", tmp_path / "back", "mingpt")
    assert_same_bits(torch.load(tmp_path / "back/model.pt"), tensors)
    assert read_config(tmp_path / "back")["system"] == settings["system"]


def test_an_unknown_number_of_heads(tmp_path):
    write_native(tmp_path / "native", {"model_type": "mine"})
    assert_convert_raises(tmp_path / "native", "expected n_head under `model`; the weights do not determine it")
