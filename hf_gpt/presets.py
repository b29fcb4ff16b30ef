"""The lineage by name: each preset is what sets a model apart from the family before it."""

from itertools import cycle, islice
from typing import Any

from .configuration_gpt import GPTConfig

Delta = dict[str, Any]

GPT: Delta = {  # Radford et al. 2018, section 4.1
    "vocab_size": 40478,
    "max_position_embeddings": 512,
    "position_embedding_type": "learned",
    "norm_position": "post",
    "embedding_dropout": 0.1,
    "residual_dropout": 0.1,
    "attention_dropout": 0.1,
    "classifier_dropout": 0.1,
}
GPT2: Delta = GPT | {  # Radford et al. 2019, section 2.3
    "vocab_size": 50257,
    "max_position_embeddings": 1024,
    "norm_position": "pre",
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
GPT3: Delta = GPT2 | {  # Brown et al. 2020, section 2.1
    "max_position_embeddings": 2048,
    "attention_patterns": ["dense", "banded"],
    # The paper publishes neither the width of the bands nor which layers have them: both are chosen here.
    "sliding_window": 256,
}


def _sized(layers: int, hidden: int, heads: int, head_dim: int | None = None) -> Delta:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return sizes if head_dim is None else sizes | {"head_dim": head_dim}


# `attention_patterns` is repeated until every layer has one.
PRESETS: dict[str, Delta] = {
    "gpt": GPT | _sized(12, 768, 12),
    "gpt2": GPT2 | _sized(12, 768, 12),
    "gpt2-medium": GPT2 | _sized(24, 1024, 16),
    "gpt2-large": GPT2 | _sized(36, 1280, 20),
    "gpt2-xl": GPT2 | _sized(48, 1600, 25),
    # Table 2.1 as it is printed: the heads of XL and 13B together are not as wide as the model.
    "gpt3-small": GPT3 | _sized(12, 768, 12, 64),
    "gpt3-medium": GPT3 | _sized(24, 1024, 16, 64),
    "gpt3-large": GPT3 | _sized(24, 1536, 16, 96),
    "gpt3-xl": GPT3 | _sized(24, 2048, 24, 128),
    "gpt3-2.7b": GPT3 | _sized(32, 2560, 32, 80),
    "gpt3-6.7b": GPT3 | _sized(32, 4096, 32, 128),
    "gpt3-13b": GPT3 | _sized(40, 5140, 40, 128),
    "gpt3-175b": GPT3 | _sized(96, 12288, 96, 128),
}


def preset_names() -> list[str]:
    """The names that `preset_config` knows, oldest and smallest first."""
    return list(PRESETS)


def preset_config(name: str, **overrides: Any) -> GPTConfig:
    """The configuration of a member of the lineage, with some fields changed.

    Raises:
        ValueError: there is no such preset, or an override is refused by `GPTConfig`.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}: expected one of {', '.join(PRESETS)}")
    values = PRESETS[name] | overrides
    if "attention_patterns" in PRESETS[name] and "attention_patterns" not in overrides:
        layers = values["num_hidden_layers"]
        values["attention_patterns"] = list(islice(cycle(PRESETS[name]["attention_patterns"]), layers))
    return GPTConfig(**values)
