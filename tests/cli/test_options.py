import pytest

from hf_gpt.cli.options import parse_fields, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("None", None),
        ("rope", "rope"),
        ('["banded", "dense"]', ["banded", "dense"]),
    ],
)
def test_values_are_json_or_text(text, value):
    assert parse_value(text) == value


def test_fields():
    assert parse_fields(None) == {}
    assert parse_fields(["hidden_size=32", "norm_type=rms_norm"]) == {"hidden_size": 32, "norm_type": "rms_norm"}


def test_other_names_of_fields():
    assert parse_fields(["n_layer=6", "rope_theta=5e5"]) == {"n_layer": 6, "rope_theta": 5e5}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("dropout=0.1", "dropout=0.1 is not a field of GPTConfig: set residual_dropout, embedding_dropout and"),
        ("rotary_dim=4", "rotary_dim=4 is not a field of GPTConfig: set rope_parameters with partial_rotary_factor"),
        ("n_layr=6", r"--set n_layr=6: unknown field$"),
        ("hidden_size", "--set hidden_size: expected FIELD=VALUE"),
        ("layers=2", "--set layers=2: unknown field"),
        ("norm_eps=1" + "0" * 5000, "--set norm_eps: an integer has 5001 digits, expected at most 64"),
        ("attention_patterns=" + "[" * 100_000, r"--set attention_patterns: \[\[.* is nested too deeply"),
        ("hiden_size=2", r"--set hiden_size=2: unknown field: did you mean hidden_size\?"),
    ],
)
def test_bad_assignments_raise(assignment, message):
    with pytest.raises(ValueError, match=message):
        parse_fields([assignment])
