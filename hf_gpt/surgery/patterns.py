"""Changes the attention patterns of a model that has weights."""

from collections.abc import Mapping, Sequence

from ..model.configuration_gpt import PATTERN_FIELDS, GPTConfig
from .rebuild import Model, rebuild

Patterns = str | Sequence[str] | Mapping[int, str]


def set_attention_patterns(model: Model, patterns: Patterns, **sizes: int) -> Model:
    """Returns a copy of a model with other attention patterns and the same weights.

        local = set_attention_patterns(model, {0: "banded", 2: "banded"}, sliding_window=256)

    Args:
        model: any hf_gpt model that is not quantized.
        patterns: `dense`, `banded`, `strided` or `fixed`: one name for all layers, a list with one name for each layer,
            or a dict from layer indices to names that leaves the other layers unchanged. Negative indices count from
            the last layer.
        sizes: `sliding_window`, `attention_stride` and `attention_summary_size`, if a pattern requires them. The
            default is the value in the configuration of the model.

    Raises:
        ValueError: a layer index is out of range, a pattern is unknown, or a size is missing or belongs to no layer.
    """
    config = model.config
    if unknown := sizes.keys() - PATTERN_FIELDS.keys():
        raise ValueError(f"{min(unknown)} is not a size of a pattern: expected {', '.join(PATTERN_FIELDS)}")
    new_patterns = _patterns_of_layers(config, patterns)
    inherited = {
        name: getattr(config, name) for name, users in PATTERN_FIELDS.items() if not set(users).isdisjoint(new_patterns)
    }
    fields = {**dict.fromkeys(PATTERN_FIELDS), **inherited, **sizes, "attention_patterns": new_patterns}
    return rebuild(model, config.replace(**fields))


def _patterns_of_layers(config: GPTConfig, patterns: Patterns) -> list[str]:
    """Returns the name of the new pattern of each layer."""
    count = config.num_hidden_layers
    if isinstance(patterns, str):
        return [patterns] * count
    if isinstance(patterns, Sequence):
        return list(patterns)
    if not isinstance(patterns, Mapping):
        raise ValueError(f"patterns={patterns!r}: expected a pattern, a list of patterns, or a dict from layer indices")
    chosen = list(config.attention_patterns)
    for layer_idx, pattern in patterns.items():
        if layer_idx not in range(-count, count):
            raise ValueError(f"patterns: layer {layer_idx} is out of range for num_hidden_layers={count}")
        chosen[layer_idx] = pattern
    return chosen
