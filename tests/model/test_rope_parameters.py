"""rope_parameters: every entry is checked, and the number of rotated dimensions."""

import pytest
from tiny import TINY, make_config

from hf_gpt import GPTConfig
from hf_gpt.model.rope_parameters import DEFAULT_ROPE, ROPE_RULES, check_rope

INVALID = [
    ({"rope_parameters": {"rope_type": "spiral"}}, "rope_parameters: rope_type='spiral', expected one of default"),
    ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters=.*Missing required keys.*factor"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "factor=0.5, expected a number from 1 to"),
    ({"rope_parameters": {"rope_tetha": 1e4}}, "rope_parameters: 'rope_tetha' is unknown"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters=.*: expected a flat dict"),
    ({"rope_parameters": "yarn"}, "rope_parameters='yarn': expected a flat dict"),
    ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta=-1.0, expected a number above 1"),
    ({"rope_parameters": {"partial_rotary_factor": 0.4}}, "rotate .* = 3 dimensions of head_dim=8"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.25}}, "at least 4"),
    (
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4, "factor": 2.0}},
        "short_factor has 1 entries, expected 4",
    ),
    (
        {"rope_parameters": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
        "high_freq_factor must be above low_freq_factor",
    ),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 2.0}},
        "beta_fast must not be below beta_slow",
    ),
]


@pytest.mark.parametrize(("fields", "message"), INVALID, ids=[str(fields)[:60] for fields, _ in INVALID])
def test_invalid_parameters_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**TINY, **fields})


@pytest.mark.parametrize("name", ROPE_RULES)
def test_every_entry_has_a_rule(name):
    config = make_config()
    config.rope_parameters = DEFAULT_ROPE | {name: "wrong"}
    with pytest.raises(ValueError, match=f"rope_parameters: {name}='wrong', expected {ROPE_RULES[name].expects[:8]}"):
        check_rope(config)


def test_missing_parameters_raise():
    config = make_config("learned")
    with pytest.raises(ValueError, match="rope_parameters=None: expected a dict with rope_type and rope_theta"):
        check_rope(config)
