"""Positions: learned, sinusoidal and rotary ones, against their formulas."""

import math

import pytest
import torch
from tiny import TINY, make_config, make_model, random_ids

from hf_gpt import GPTModel


def test_sinusoidal_positions_are_those_of_the_paper():
    config = make_config("sinusoidal")
    states = GPTModel(config).embed_positions(torch.zeros(1, 3, 32), torch.tensor([[0, 1, 40]]))[0]
    for row, position in enumerate([0, 1, 40]):
        for i in range(16):
            angle = position / 10_000 ** (2 * i / 32)
            assert states[row, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert states[row, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_refuses_positions_beyond_the_learned_ones():
    model, length = make_model("learned"), TINY["max_position_embeddings"]
    cache = model(random_ids(1, length)).past_key_values
    with pytest.raises(ValueError, match="position_ids from 64 to 64: expected 0 to 63, by max_position_embeddings=64"):
        model(random_ids(1, 1), past_key_values=cache)
    packed = torch.arange(length).repeat(2)[None]  # two sequences, each within the limit
    model(random_ids(1, 2 * length), position_ids=packed)
