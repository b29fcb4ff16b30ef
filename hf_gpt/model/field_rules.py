"""The allowed values of a field of `GPTConfig`: a declaration for each kind of field."""

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """The allowed values of a field: a test, and its description for the error message."""

    holds: Callable[[Any], bool]
    expects: str


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def ruled(default: Any, holds: Callable[[Any], bool], expects: str) -> Any:
    return field(default=default, metadata={"rule": Rule(holds, expects)})


def without_default(declared: Any) -> Any:
    """Returns a field whose default, None, is no attribute of the class: the attribute may be deleted."""
    return field(default_factory=lambda: None, metadata=declared.metadata)


def size(default: int | None, least: int = 1) -> Any:
    """A field for an integer of at least `least`, or None if that is the default."""
    optional = default is None
    return ruled(
        default,
        lambda value: (optional and value is None) or (is_int(value) and value >= least),
        f"an integer of at least {least}" + (" or None" if optional else ""),
    )


def one_of(default: str | None, choices: tuple[str, ...]) -> Any:
    """A field for one of several names, or None if that is the default."""
    return ruled(default, lambda value: value in (*choices, default), f"one of {', '.join(choices)}")


def flag(default: bool | None) -> Any:
    """A field for True or False, or None if that is the default."""
    optional = default is None
    return ruled(
        default,
        lambda value: isinstance(value, bool) or (optional and value is None),
        "True or False" + (" or None" if optional else ""),
    )


def probability() -> Any:
    return ruled(0.0, lambda value: is_number(value) and 0 <= value < 1, "a number in [0, 1)")


def positive(default: float | None) -> Any:
    """A field for a positive number, or None if that is the default."""
    optional = default is None
    return ruled(
        default,
        lambda value: (is_number(value) and value > 0) or (optional and value is None),
        "a positive number" + (" or None" if optional else ""),
    )


def coefficient(default: float | None) -> Any:
    """A field for a number of at least 0, or None if that is the default."""
    optional = default is None
    return ruled(
        default,
        lambda value: (is_number(value) and value >= 0) or (optional and value is None),
        "a number of at least 0" + (" or None" if optional else ""),
    )


def strings() -> Any:
    return ruled(
        None,
        lambda value: value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value)),
        "a list of strings, one for each layer, or None",
    )


def token_id(several: bool = False) -> Any:
    def holds(value: Any) -> bool:
        ids = value if several and isinstance(value, list) else [value]
        return value is None or (bool(ids) and all(is_int(item) and item >= 0 for item in ids))

    return ruled(None, holds, "a token id" + (", a list of them" if several else "") + " or None")


def mapping() -> Any:
    return ruled(None, lambda value: value is None or isinstance(value, dict), "a dict or None")


def flat_mapping() -> Any:
    """A field for a dict that contains no dicts, or None."""
    return ruled(
        None,
        lambda value: value is None or (isinstance(value, dict) and not any(map(_is_dict, value.values()))),
        "a flat dict or None",
    )


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)
