"""The allowed values of a field of `GPTConfig`: a declaration for each kind of field."""

from collections.abc import Callable
from dataclasses import field
from typing import Any, NamedTuple

MOST_UNITS = 2**19  # widths and counts: a weight of three of them has less than 2^63 bytes
MOST_LAYERS = 10_000
MOST_TOKENS = 2**31 - 1  # lengths and vocabularies
LARGEST = 10_000  # numbers: a model of larger ones overflows in training
MOST_BITS = 10_000  # Python reads and prints no integers of more than 4,300 digits

SHOWN_CHARACTERS = 120


def shown(value: Any) -> str:
    """Returns a value as an error message shows it: on one line, and shortened."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an integer of thousands of digits, a deep list
        return f"({type(value).__name__}, too long to be shown)"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


class Rule(NamedTuple):
    """The allowed values of a field: a test, and its description for the error message."""

    holds: Callable[[Any], bool]
    expects: str

    def check(self, name: str, value: Any) -> None:
        """Raises a ValueError if a field does not have an allowed value."""
        if not self.holds(value):
            raise ValueError(f"{name}={shown(value)}: expected {self.expects}")


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any, most: float = LARGEST) -> bool:
    """True for a number between -`most` and `most`, so not for NaN and infinity."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -most <= value <= most


def is_json(value: Any, depth: int = 100) -> bool:
    """True for what config.json can contain: at most `depth` levels of dicts and lists."""
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(k, (str, int)) and is_json(v, depth - 1) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(is_json(item, depth - 1) for item in value)
    if isinstance(value, int):
        return value.bit_length() <= MOST_BITS
    return value is None or isinstance(value, (float, str))


def ruled(default: Any, holds: Callable[[Any], bool], expects: str) -> Any:
    return field(default=default, metadata={"rule": Rule(holds, expects)})


def without_default(declared: Any) -> Any:
    """Returns a field whose default, None, is no attribute of the class: the attribute may be deleted."""
    return field(default_factory=lambda: None, metadata=declared.metadata)


def size(default: int | None, least: int = 1, most: int = MOST_UNITS) -> Any:
    """A field for an integer from `least` to `most`, or None if that is the default."""
    optional = default is None
    return ruled(
        default,
        lambda value: (optional and value is None) or (is_int(value) and least <= value <= most),
        f"an integer from {least} to {most}" + (" or None" if optional else ""),
    )


def one_of(default: str | None, choices: tuple[str, ...]) -> Any:
    """A field for one of several names, or None if that is the default."""
    optional = default is None
    return ruled(
        default,
        lambda value: (optional and value is None) or (isinstance(value, str) and value in choices),
        f"one of {', '.join(choices)}",
    )


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


def positive(default: float | None, most: float = LARGEST) -> Any:
    """A field for a positive number up to `most`, or None if that is the default."""
    optional = default is None
    return ruled(
        default,
        lambda value: (is_number(value, most) and value > 0) or (optional and value is None),
        f"a positive number up to {most}" + (" or None" if optional else ""),
    )


def coefficient(default: float | None) -> Any:
    """A field for a number from 0 on, or None if that is the default."""
    optional = default is None
    return ruled(
        default,
        lambda value: (is_number(value) and value >= 0) or (optional and value is None),
        f"a number from 0 to {LARGEST}" + (" or None" if optional else ""),
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
    return ruled(
        None, lambda value: value is None or (isinstance(value, dict) and is_json(value)), "a dict of JSON or None"
    )


def flat_mapping() -> Any:
    """A field for a dict that contains no dicts, or None."""
    return ruled(
        None,
        lambda value: value is None or (isinstance(value, dict) and not any(map(_is_dict, value.values()))),
        "a flat dict or None",
    )


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)
