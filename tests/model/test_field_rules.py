"""The kinds of fields: which values each accepts, and how it describes them."""

import math

import numpy as np
import pytest

from hf_gpt.model import field_rules as rules

KINDS = [
    (rules.size(3), [1, 3], [0, None, 2.0, True, "1", 10**400], "an integer from 1 to 524288"),
    (rules.size(None, least=2, most=9), [2, 9, None], [1, 10], "an integer from 2 to 9 or None"),
    (rules.one_of("a", ("a", "b")), ["a", "b"], ["c", None, ["a"], np.array(["a", "b"])], "one of a, b"),
    (rules.one_of(None, ("a", "b")), ["a", None], ["c"], "one of a, b"),
    (rules.flag(True), [True, False], [1, None], "True or False"),
    (rules.flag(None), [True, None], [0], "True or False or None"),
    (rules.probability(), [0, 0.5], [1, -0.1, None, True, math.nan, 10**400], "a number in [0, 1)"),
    (
        rules.positive(1.0),
        [1, 0.5, 10_000],
        [0, -1, None, math.inf, math.nan, 10**400, 10_001],
        "a positive number up to 10000",
    ),
    (rules.positive(None, most=2), [1, 2, None], [0, 2.1], "a positive number up to 2 or None"),
    (rules.coefficient(0.0), [0, 1.5], [-1, None, 10**400, -(10**400), "1"], "a number from 0 to 10000"),
    (rules.strings(), [["a"], [], None], ["a", [1]], "a list of strings, one for each layer, or None"),
    (rules.token_id(), [0, None], [-1, 1.0, [1]], "a token id or None"),
    (rules.token_id(several=True), [[0, 1], 3, None], [[], [-1]], "a token id, a list of them or None"),
    (rules.mapping(), [{}, {"a": {}}, None], [[], {"a": object()}], "a dict of JSON or None"),
    (rules.flat_mapping(), [{}, {"a": 1}, None], [{"a": {}}, []], "a flat dict or None"),
]


@pytest.mark.parametrize(("declared", "valid", "invalid", "expects"), KINDS, ids=[kind[3] for kind in KINDS])
def test_kinds_of_fields(declared, valid, invalid, expects):
    rule = declared.metadata["rule"]
    assert rule.expects == expects
    assert all(map(rule.holds, valid))
    assert not any(map(rule.holds, invalid))


def test_a_field_without_a_default_on_the_class():
    declared = rules.without_default(rules.flag(None))
    assert declared.default_factory() is None
    assert declared.metadata["rule"].holds(None)


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "is_json"),
    [
        ({"a": [1, 2.5, None, True, "b", {"c": ()}], 1: []}, True),
        (10**400, True),
        (10**5000, False),
        ({(1, 2): 3}, False),
        ([{1, 2}], False),
        (1j, False),
        (nested(100), True),
        (nested(100_000), False),
    ],
    ids=lambda value: rules.shown(value)[:20],
)
def test_json(value, is_json):
    assert rules.is_json(value) == is_json


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([1, "a"], "[1, 'a']"),
        ("a\nb", r"'a\nb'"),
        (np.eye(2), "array([[1., 0.], [0., 1.]])"),
        ("x" * 5000, "'" + "x" * 119 + "..."),
        (10**5000, "(int, too long to be shown)"),
        (nested(100_000), "(list, too long to be shown)"),
    ],
    ids=lambda value: rules.shown(value)[:20],
)
def test_values_in_messages(value, text):
    assert rules.shown(value) == text
    with pytest.raises(ValueError, match=r"^a=.*: expected more$"):
        rules.Rule(lambda _: False, "more").check("a", value)
