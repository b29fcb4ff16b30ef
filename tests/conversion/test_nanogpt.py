import pytest
import torch
from nanogpt_reference import NanoGPT
from native import assert_close, assert_convert_raises, assert_same_bits, enlarge_weights, read_tensors
from tiny import random_ids
from transformers import GPT2LMHeadModel

from hf_gpt import GPTForCausalLM
from hf_gpt.conversion import convert, export, verify


@pytest.mark.parametrize("bias", [True, False])
def test_conversion_and_export(bias, tmp_path):
    arguments = {"n_layer": 2, "n_head": 3, "n_embd": 21, "block_size": 32, "vocab_size": 77, "bias": bias}
    native = NanoGPT(**arguments)
    enlarge_weights(native)
    stored = {f"_orig_mod.{name}": tensor for name, tensor in native.state_dict().items()}
    (tmp_path / "native").mkdir()
    optimizer = torch.optim.AdamW(native.parameters()).state_dict()
    state = {"model": stored, "model_args": arguments | {"dropout": 0.1}, "optimizer": optimizer, "iter_num": 5}
    torch.save(state, tmp_path / "native/ckpt.pt")

    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(2, 32, high=77)
    assert_close(ours(ids).logits, native(ids))
    assert ours.config.residual_dropout == ours.config.attention_dropout == ours.config.embedding_dropout == 0.1
    assert verify(tmp_path / "ours", tmp_path / "native", "nanogpt")["random tokens"].relative < 1e-5

    export(tmp_path / "ours", tmp_path / "back", "nanogpt")
    back = torch.load(tmp_path / "back/ckpt.pt", weights_only=True)
    assert back["model_args"] == state["model_args"]
    assert_same_bits(back["model"], native.state_dict())
    convert(tmp_path / "back", tmp_path / "again")
    assert_same_bits(read_tensors(tmp_path / "again"), read_tensors(tmp_path / "ours"))


def test_export_to_gpt2(tmp_path):
    """To another family that can express the same model."""
    arguments = {"n_layer": 1, "n_head": 2, "n_embd": 12, "block_size": 16, "vocab_size": 50, "bias": True}
    native = NanoGPT(**arguments)
    (tmp_path / "native").mkdir()
    torch.save({"model": native.state_dict(), "model_args": arguments}, tmp_path / "native/ckpt.pt")
    export(convert(tmp_path / "native", tmp_path / "ours"), tmp_path / "gpt2", "gpt2")
    ids = random_ids(1, 16, high=50)
    assert_close(GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2")(ids).logits, native(ids))


@pytest.mark.parametrize("state", [{}, {"model_args": None}, {"model_args": {"n_layer": [2]}}, {"model_args": [1]}])
def test_invalid_arguments(tmp_path, state):
    (tmp_path / "native").mkdir()
    torch.save({"model": {"a": torch.ones(2)}, **state}, tmp_path / "native/ckpt.pt")
    assert_convert_raises(tmp_path / "native", r"ckpt\.pt is no checkpoint of nanoGPT: expected the numbers")


def test_missing_arguments(tmp_path):
    (tmp_path / "native").mkdir()
    torch.save({"model": {"a": torch.ones(2)}, "model_args": {"n_layer": 1}}, tmp_path / "native/ckpt.pt")
    assert_convert_raises(tmp_path / "native", "has no configuration of nanogpt: KeyError")
