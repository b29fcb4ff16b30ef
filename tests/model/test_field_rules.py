"""The kinds of fields: which values each accepts, and how it describes them."""

import math

import pytest

from hf_gpt.model import field_rules as rules

KINDS = [
    (rules.size(3), [1, 3], [0, None, 2.0, True, "1"], "an integer of at least 1"),
    (rules.size(None, least=2), [2, None], [1], "an integer of at least 2 or None"),
    (rules.one_of("a", ("a", "b")), ["a", "b"], ["c", None], "one of a, b"),
    (rules.one_of(None, ("a", "b")), ["a", None], ["c"], "one of a, b"),
    (rules.flag(True), [True, False], [1, None], "True or False"),
    (rules.flag(None), [True, None], [0], "True or False or None"),
    (rules.probability(), [0, 0.5], [1, -0.1, None, True], "a number in [0, 1)"),
    (rules.positive(1.0), [1, 0.5], [0, -1, None, math.inf, math.nan], "a positive number"),
    (rules.positive(None), [1, None], [0], "a positive number or None"),
    (rules.coefficient(0.0), [0, 1.5], [-1, None], "a number of at least 0"),
    (rules.strings(), [["a"], [], None], ["a", [1]], "a list of strings, one for each layer, or None"),
    (rules.token_id(), [0, None], [-1, 1.0, [1]], "a token id or None"),
    (rules.token_id(several=True), [[0, 1], 3, None], [[], [-1]], "a token id, a list of them or None"),
    (rules.mapping(), [{}, {"a": {}}, None], [[]], "a dict or None"),
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
