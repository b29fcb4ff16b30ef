import pytest
from native import assert_close, save_native
from native_families import ROPE, longrope
from tiny import random_ids

from hf_gpt import GPTForCausalLM
from hf_gpt.conversion import convert
from hf_gpt.conversion.rope import drop_ignored_rope


@pytest.mark.parametrize("rope", [*ROPE, longrope(8)], ids=lambda rope: rope["rope_type"])
def test_every_rope_type_beyond_its_original_length(rope, tmp_path):
    native = save_native(tmp_path / "native", "llama", head_dim=8, rope_parameters=rope)
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(2, 40, high=native.config.vocab_size)
    assert_close(ours(ids).logits, native(ids).logits)


@pytest.mark.parametrize(
    ("rope", "ignored", "expected"),
    [
        ({"rope_type": "yarn", "original_max_position_embeddings": 8}, (), {"original_max_position_embeddings": 8}),
        ({"rope_type": "dynamic", "original_max_position_embeddings": 8}, (), {}),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, (), {"partial_rotary_factor": 0.5}),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, ("partial_rotary_factor",), {}),
    ],
)
def test_ignored_parameters(rope, ignored, expected):
    native = drop_ignored_rope({"rope_parameters": rope, "head_dim": 8}, *ignored)
    assert native == {"rope_parameters": {"rope_type": rope["rope_type"], **expected}, "head_dim": 8}


def test_a_model_without_rope():
    assert drop_ignored_rope({"rope_parameters": None}, "partial_rotary_factor") == {"rope_parameters": None}
