"""The entries of `rope_parameters`, and what they must be."""

from typing import Any

from .field_rules import LARGEST, MOST_TOKENS, Rule, is_int, is_number, shown

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}


LEAST = 1e-6  # of a divisor
MOST_THETA = 1e12


def _is_positive(value: Any) -> bool:
    return is_number(value) and value >= LEAST


def _are_positive(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_positive, value))


POSITIVE, POSITIVES = (
    Rule(_is_positive, f"a positive number from {LEAST} to {LARGEST}"),
    Rule(_are_positive, f"a list of positive numbers from {LEAST} to {LARGEST}"),
)

# The allowed entries of `rope_parameters`. transformers checks which of them a type needs.
ROPE_RULES = {
    "rope_type": Rule(lambda value: isinstance(value, str) and value in ROPE_TYPES, f"one of {', '.join(ROPE_TYPES)}"),
    "rope_theta": Rule(
        lambda value: is_number(value, MOST_THETA) and value > 1, f"a number above 1, up to {MOST_THETA}"
    ),
    "partial_rotary_factor": Rule(lambda value: is_number(value) and 0 < value <= 1, "a number in (0, 1]"),
    "factor": Rule(lambda value: is_number(value) and value >= 1, f"a number from 1 to {LARGEST}"),
    "original_max_position_embeddings": Rule(
        lambda value: is_int(value) and 1 < value <= MOST_TOKENS, f"an integer from 2 to {MOST_TOKENS}"
    ),
    "low_freq_factor": POSITIVE,
    "high_freq_factor": POSITIVE,
    "short_factor": POSITIVES,
    "long_factor": POSITIVES,
    "attention_factor": Rule(
        lambda value: value is None or _is_positive(value), f"a positive number from {LEAST} to {LARGEST}, or None"
    ),
    "beta_fast": POSITIVE,
    "beta_slow": POSITIVE,
    "mscale": POSITIVE,
    "mscale_all_dim": POSITIVE,
    "truncate": Rule(lambda value: isinstance(value, bool), "True or False"),
}


def check_rope(config: Any) -> None:
    """Checks `rope_parameters` and the number of rotated dimensions.

    Raises:
        ValueError: an entry is unknown or invalid, or contradicts another.
    """
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        raise ValueError(f"rope_parameters={shown(rope)}: expected a dict with rope_type and rope_theta")
    for name, value in rope.items():
        if name not in ROPE_RULES:
            raise ValueError(f"rope_parameters: {shown(name)} is unknown, expected some of {', '.join(ROPE_RULES)}")
        if not ROPE_RULES[name].holds(value):
            raise ValueError(f"rope_parameters: {name}={shown(value)}, expected {ROPE_RULES[name].expects}")
    try:
        config.validate_rope()
    except KeyError as error:
        raise ValueError(f"rope_parameters={shown(rope)}: {error.args[0]}") from error

    rope_type, rotary_dim, least = rope["rope_type"], config.rotary_dim, 4 if rope["rope_type"] == "dynamic" else 2
    if rotary_dim < least or rotary_dim % 2:
        raise ValueError(
            f"rope_parameters rotate int(head_dim x partial_rotary_factor) = {rotary_dim} dimensions of "
            f"head_dim={config.head_dim}: expected an even number of at least {least}"
        )
    if rope_type == "yarn" and rope.get("beta_fast", 32) < rope.get("beta_slow", 1):
        raise ValueError("rope_parameters: beta_fast must not be below beta_slow")
    if rope_type == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise ValueError("rope_parameters: high_freq_factor must be above low_freq_factor")
    if rope_type == "longrope":
        for name in ("short_factor", "long_factor"):
            if len(rope[name]) != rotary_dim // 2:
                raise ValueError(
                    f"rope_parameters: {name} has {len(rope[name])} entries, expected {rotary_dim // 2}, one for each "
                    "rotated pair of dimensions"
                )
