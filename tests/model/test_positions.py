"""Positions: learned, sinusoidal and rotary ones, against their formulas."""

import math

import pytest
import torch
from tiny import ROPES, TINY, make_config, make_model, random_ids
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hf_gpt import GPTForCausalLM, GPTModel
from hf_gpt.model.positions import build_rotation


def test_sinusoidal_positions_are_those_of_the_paper():
    config = make_config("sinusoidal")
    states = GPTModel(config).embed_positions(torch.zeros(1, 3, 32), torch.tensor([[0, 1, 40]]))[0]
    for row, position in enumerate([0, 1, 40]):
        for i in range(16):
            angle = position / 10_000 ** (2 * i / 32)
            assert states[row, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert states[row, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_positions_beyond_the_learned_ones_raise():
    model, length = make_model("learned"), TINY["max_position_embeddings"]
    cache = model(random_ids(1, length)).past_key_values
    with pytest.raises(ValueError, match="position_ids from 64 to 64: expected 0 to 63, by max_position_embeddings=64"):
        model(random_ids(1, 1), past_key_values=cache)
    packed = torch.arange(length).repeat(2)[None]  # two sequences, each within the limit
    model(random_ids(1, 2 * length), position_ids=packed)


def test_learned_positions_are_rows_of_a_table():
    config = make_config("learned", position_offset=2)
    positions = GPTModel(config).embed_positions
    assert positions.weight.shape == (2 + TINY["max_position_embeddings"], 32)  # OPT: the first two rows are unused
    states, position_ids = torch.randn(2, 3, 32), torch.tensor([[0, 1, 63], [5, 5, 2]])
    expected = states + positions.weight[position_ids + 2]
    assert torch.equal(positions(states, position_ids), expected)


@pytest.mark.parametrize("variant", ["no_positions", "learned", "sinusoidal"])
def test_no_rotary_positions(variant):
    """Attention gets no rotary embedding; with position_embedding_type="none" the states stay as they are, too."""
    model = make_model(variant).model
    states, position_ids = torch.randn(1, 3, 32), torch.arange(3)[None]
    assert model.rotary_emb(states, position_ids) is None
    assert torch.equal(model.embed_positions(states, position_ids), states) == (variant == "no_positions")
    query = torch.randn(1, 4, 3, 8)
    assert torch.equal(build_rotation(model.config)(query, None), query)


THETA = 500.0


def rotary_config(fraction, **overrides):
    return make_config(
        rope_parameters={"rope_theta": THETA, "partial_rotary_factor": fraction}, head_dim=16, **overrides
    )


def rotate(config, states, position_ids):
    """What a model does to queries and keys: (B, heads, T, head_dim)."""
    embeddings = GPTModel(config).rotary_emb(states, position_ids)
    return build_rotation(config)(states, embeddings)


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_rotary_positions_multiply_complex_numbers(fraction):
    """Dimensions i and i + d / 2 are one complex number, rotated by p * theta^(-2i / d) (Su et al. 2021)."""
    config, position_ids = rotary_config(fraction), torch.tensor([[0, 1, 7, 60], [3, 3, 0, 25]])
    states = torch.randn(2, 4, 4, 16, dtype=torch.float64)
    dim = int(16 * fraction)
    turns = position_ids[..., None].double() * THETA ** (-2 * torch.arange(dim // 2, dtype=torch.float64) / dim)
    first, second = states[..., :dim].chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(turns), turns)[:, None]
    expected = torch.cat((turned.real, turned.imag, states[..., dim:]), dim=-1)
    assert torch.allclose(rotate(config, states, position_ids), expected, atol=2e-5)  # angles are float32


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotary_scores_depend_on_the_distance_alone(fraction):
    config, positions = rotary_config(fraction), torch.arange(6)[None]
    query, key = torch.randn(2, 1, 4, 6, 16, dtype=torch.float64)
    scores = [
        rotate(config, query, positions + shift) @ rotate(config, key, positions + shift).transpose(-1, -2)
        for shift in (0, 50)
    ]
    assert torch.allclose(*scores, atol=1e-4)
    reversed_order = rotate(config, query, positions.flip(1)) @ rotate(config, key, positions).transpose(-1, -2)
    assert not torch.allclose(reversed_order, scores[0], atol=0.1)


def test_llama3_scales_low_frequencies_alone():
    """Frequencies of more than `high_freq_factor` turns in the original length stay, those of fewer than
    `low_freq_factor` are divided by `factor`, and those between are interpolated (Llama 3.1)."""
    original, factor, low, high = 32, 8.0, 1.0, 4.0
    rope = {
        "rope_type": "llama3",
        "rope_theta": THETA,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    inverse = []
    for i in range(8):
        frequency = THETA ** (-2 * i / 16)
        turns = original * frequency / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        inverse.append(share * frequency + (1 - share) * frequency / factor)
    assert {frequency * THETA ** (2 * i / 16) for i, frequency in enumerate(inverse)} >= {1.0, 1 / factor}
    rotary = GPTModel(make_config(rope_parameters=rope, head_dim=16)).rotary_emb
    assert torch.allclose(rotary.inv_freq.double(), torch.tensor(inverse, dtype=torch.float64), rtol=1e-6)


CASES = {"default": {}, **ROPES, "dynamic": {"factor": 4.0}}
POSITIONS = {"short": torch.arange(9)[None], "long": torch.arange(50)[None], "late": torch.tensor([[3, 40], [0, 16]])}


def rope_config(rope_type, length=16):
    rope = {"rope_type": rope_type, "rope_theta": THETA, **CASES[rope_type]}
    return make_config(rope_parameters=rope, max_position_embeddings=length)


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("rope_type", CASES)
def test_rotary_embeddings_are_those_of_transformers(rope_type, positions):
    config = rope_config(rope_type)
    fields = ("hidden_size", "num_attention_heads", "max_position_embeddings", "rope_parameters")
    native = LlamaRotaryEmbedding(LlamaConfig(**{name: getattr(config, name) for name in fields}))
    states = torch.zeros(1)
    for found, expected in zip(GPTModel(config).rotary_emb(states, positions), native(states, positions), strict=True):
        assert torch.equal(found, expected)


def test_one_class_has_every_rope_type():
    """Tools build the class of a model's module from another configuration."""
    rotary_class = type(GPTModel(rope_config("default")).rotary_emb)
    for rope_type in CASES:
        config = rope_config(rope_type)
        for positions in POSITIONS.values():
            pairs = (each(torch.zeros(1), positions) for each in (rotary_class(config), GPTModel(config).rotary_emb))
            assert all(torch.equal(*pair) for pair in zip(*pairs, strict=True))


def state_of(module):
    """Returns the attributes, buffers and parameters of a module and its parts."""
    plain = (bool, int, float, str, type(None))
    return [
        {name: value for name, value in vars(part).items() if isinstance(value, plain)}
        | {name: (buffer.data_ptr(), buffer._version, buffer.tolist()) for name, buffer in part._buffers.items()}
        for part in module.modules()
    ]


@pytest.mark.parametrize("rope_type", CASES)
def test_a_forward_pass_writes_nothing_to_the_rotary_module(rope_type):
    """Threads share the module: a longer sequence in one of them must not change the frequencies of the others."""
    rotary, states = GPTModel(rope_config(rope_type)).rotary_emb, torch.zeros(1)
    before, names = state_of(rotary), set(vars(rotary))
    first = rotary(states, POSITIONS["short"])
    for positions in (POSITIONS["long"], POSITIONS["late"]):
        rotary(states, positions)
        assert state_of(rotary) == before
        assert set(vars(rotary)) == names
    assert all(torch.equal(*pair) for pair in zip(rotary(states, POSITIONS["short"]), first, strict=True))


@pytest.mark.parametrize("rope_type", CASES)
def test_frequencies_after_loading(rope_type, tmp_path):
    """They are not in the checkpoint."""
    model = GPTForCausalLM(rope_config(rope_type))
    model.save_pretrained(tmp_path)
    loaded = GPTForCausalLM.from_pretrained(tmp_path)
    for positions in POSITIONS.values():
        pairs = (each.model.rotary_emb(torch.zeros(1), positions) for each in (model, loaded))
        assert all(torch.equal(*pair) for pair in zip(*pairs, strict=True))


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_frequencies_of_a_trace_depend_on_the_positions(rope_type):
    rotary = GPTModel(rope_config(rope_type)).rotary_emb
    compiled = torch.compile(rotary, backend="eager", fullgraph=True, dynamic=True)
    for positions in POSITIONS.values():
        for found, expected in zip(compiled(torch.zeros(1), positions), rotary(torch.zeros(1), positions), strict=True):
            assert torch.equal(found, expected)


def test_an_index_of_a_replaced_embedding():
    """The table that is looked up decides, not the configuration's vocab_size."""
    model, ids = make_model("default", model_class=GPTModel), torch.tensor([[3, 105]])
    with pytest.raises(ValueError, match="input_ids from 3 to 105: expected 0 to 98, by vocab_size=99"):
        model(ids)
    model.set_input_embeddings(torch.nn.Embedding(110, 32))
    model(ids)
    with pytest.raises(ValueError, match="input_ids from 3 to 110: expected 0 to 109"):
        model(torch.tensor([[3, 110]]))
