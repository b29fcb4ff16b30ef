"""Configurations of the GPT lineage by name, each family as its difference from an earlier one."""

from copy import deepcopy
from itertools import cycle, islice
from typing import Any

from .model.configuration_gpt import GPTConfig
from .model.field_names import to_fields

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
    # The paper gives neither the width of the bands nor which layers have them. Both are chosen here.
    "sliding_window": 256,
}
GPT_NEO: Delta = GPT3 | {  # Black et al. 2021, a replication of GPT-3
    "sliding_window": 256,  # published, unlike that of GPT-3
    "attention_bias": False,
    "attention_output_bias": True,
    "attention_scale": 1.0,
    "embedding_dropout": 0.0,
    "residual_dropout": 0.0,
    "attention_dropout": 0.0,
}
GPT_J: Delta = {  # Wang and Komatsuzaki 2021
    "vocab_size": 50400,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
    "parallel_residual": True,
    "shared_norm": True,
    "attention_bias": False,
    "lm_head_bias": True,
    "tie_word_embeddings": False,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
GPT_NEOX: Delta = GPT_J | {  # Black et al. 2022, section 2.1
    "vocab_size": 50432,
    "shared_norm": False,
    "attention_bias": True,
    "lm_head_bias": False,
    "classifier_dropout": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
PYTHIA: Delta = GPT_NEOX | {  # Biderman et al. 2023, table 1
    "vocab_size": 50304,
    "hidden_act": "gelu",
}
OPT: Delta = GPT2 | {  # Zhang et al. 2022, section 2.1
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
    "position_offset": 2,
    "hidden_act": "relu",
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
    "classifier_dropout": 0.0,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
LLAMA_3: Delta = {  # Dubey et al. 2024, section 3.2
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "num_key_value_heads": 8,
    "attention_bias": False,
    "norm_type": "rms_norm",
    "mlp_type": "glu",
    "mlp_bias": False,
    "hidden_act": "silu",
    "intermediate_size": 14336,
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
MIXTRAL: Delta = LLAMA_3 | {  # Jiang et al. 2024, section 2
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.02,
    "router_aux_loss_type": "pooled",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT_OSS: Delta = MIXTRAL | {  # OpenAI 2025, section 2
    "vocab_size": 201088,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150_000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    },
    "attention_patterns": ["banded", "dense"],
    "sliding_window": 128,
    "attention_sinks": True,
    "attention_bias": True,
    "mlp_type": "clamped_glu",
    "mlp_bias": True,
    "intermediate_size": 2880,
    "num_experts_per_tok": 4,
    "router_bias": True,
    "router_aux_loss_coef": 0.9,
    "pad_token_id": 199999,
    "bos_token_id": None,
    "eos_token_id": 200002,
}


def _sized(layers: int, hidden: int, heads: int, head_dim: int | None = None) -> Delta:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return sizes if head_dim is None else sizes | {"head_dim": head_dim}


# `preset_config` repeats `attention_patterns` until every layer has one.
PRESETS: dict[str, Delta] = {
    "gpt": GPT | _sized(12, 768, 12),
    "gpt2": GPT2 | _sized(12, 768, 12),
    "gpt2-medium": GPT2 | _sized(24, 1024, 16),
    "gpt2-large": GPT2 | _sized(36, 1280, 20),
    "gpt2-xl": GPT2 | _sized(48, 1600, 25),
    # Table 2.1 as printed. In XL and 13B, num_attention_heads x head_dim differs from hidden_size.
    "gpt3-small": GPT3 | _sized(12, 768, 12, 64),
    "gpt3-medium": GPT3 | _sized(24, 1024, 16, 64),
    "gpt3-large": GPT3 | _sized(24, 1536, 16, 96),
    "gpt3-xl": GPT3 | _sized(24, 2048, 24, 128),
    "gpt3-2.7b": GPT3 | _sized(32, 2560, 32, 80),
    "gpt3-6.7b": GPT3 | _sized(32, 4096, 32, 128),
    "gpt3-13b": GPT3 | _sized(40, 5140, 40, 128),
    "gpt3-175b": GPT3 | _sized(96, 12288, 96, 128),
    "gpt-neo-125m": GPT_NEO | _sized(12, 768, 12),
    "gpt-neo-1.3b": GPT_NEO | _sized(24, 2048, 16),
    "gpt-neo-2.7b": GPT_NEO | _sized(32, 2560, 20),
    "gpt-j-6b": GPT_J | _sized(28, 4096, 16),
    "gpt-neox-20b": GPT_NEOX | _sized(44, 6144, 64),
    "pythia-14m": PYTHIA | _sized(6, 128, 4),
    "pythia-31m": PYTHIA | _sized(6, 256, 8),
    "pythia-70m": PYTHIA | _sized(6, 512, 8),
    "pythia-160m": PYTHIA | _sized(12, 768, 12),
    "pythia-410m": PYTHIA | _sized(24, 1024, 16),
    "pythia-1b": PYTHIA | _sized(16, 2048, 8),
    "pythia-1.4b": PYTHIA | _sized(24, 2048, 16),
    "pythia-2.8b": PYTHIA | _sized(32, 2560, 32),
    # Vocabularies padded to a multiple of more devices.
    "pythia-6.9b": PYTHIA | _sized(32, 4096, 32) | {"vocab_size": 50432},
    "pythia-12b": PYTHIA | _sized(36, 5120, 40) | {"vocab_size": 50688},
    "opt-125m": OPT | _sized(12, 768, 12),
    "opt-350m": OPT | _sized(24, 1024, 16) | {"norm_position": "post", "embedding_size": 512},
    "opt-1.3b": OPT | _sized(24, 2048, 32),
    "opt-2.7b": OPT | _sized(32, 2560, 32),
    "opt-6.7b": OPT | _sized(32, 4096, 32),
    "opt-13b": OPT | _sized(40, 5120, 40),
    "opt-30b": OPT | _sized(48, 7168, 56),
    "opt-66b": OPT | _sized(64, 9216, 72),
    "opt-175b": OPT | _sized(96, 12288, 96),
    "llama-3-8b": LLAMA_3 | _sized(32, 4096, 32),
    "mixtral-8x7b": MIXTRAL | _sized(32, 4096, 32),
    "gpt-oss-20b": GPT_OSS | _sized(24, 2880, 64, 64) | {"num_local_experts": 32},
    "gpt-oss-120b": GPT_OSS | _sized(36, 2880, 64, 64) | {"num_local_experts": 128},
}


def preset_names() -> list[str]:
    """Returns the names for `preset_config`, by family and then by size."""
    return list(PRESETS)


def preset_config(name: str, **overrides: Any) -> GPTConfig:
    """Returns the configuration of a model of the lineage.

    Args:
        name: one of `preset_names()`.
        overrides: fields of GPTConfig, under any name that it accepts, which replace those of the preset.

    Raises:
        ValueError: no preset has this name, or the overridden configuration is not valid.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}: expected one of {', '.join(PRESETS)}")
    preset = deepcopy(PRESETS[name])
    overrides = to_fields(overrides, preset.get("rope_parameters"))
    values = preset | overrides
    if "attention_patterns" in preset and "attention_patterns" not in overrides:
        layers = values["num_hidden_layers"]
        values["attention_patterns"] = list(islice(cycle(preset["attention_patterns"]), layers))
    return GPTConfig(**values)
