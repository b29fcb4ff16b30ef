"""Tiny models, and the variants of the configuration that every behavior is tested on."""

import torch
from transformers import set_seed

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.model.attention_masks import create_attention_masks
from hf_gpt.model.batch_layout import BatchLayout

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large enough that every part changes the logits
}

VARIANTS = {
    "default": {},
    "learned": {"position_embedding_type": "learned"},
    "sinusoidal": {"position_embedding_type": "sinusoidal"},
    "no_positions": {"position_embedding_type": "none"},
    "partial_rotary": {"rope_parameters": {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5}},
    "post_norm": {"norm_position": "post"},
    "parallel": {"parallel_residual": True},
    "grouped": {"num_key_value_heads": 2},
    "multi_query": {"num_key_value_heads": 1, "head_dim": 16},
    "llama": {
        "norm_type": "rms_norm",
        "mlp_type": "glu",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "qk_norm": True,
    },
    "factorized": {"embedding_size": 24},
    "banded": {"attention_patterns": ["banded", "dense"], "sliding_window": 4},
    "strided": {"attention_patterns": ["strided", "dense"], "attention_stride": 3, "num_key_value_heads": 2},
    "fixed": {"attention_patterns": ["dense", "fixed"], "attention_stride": 4, "attention_summary_size": 2},
    "sparse_transformer": {
        "attention_patterns": ["fixed", "strided"],
        "attention_stride": 3,
        "attention_summary_size": 1,
        "attention_sinks": True,
        "position_embedding_type": "learned",
    },
    "gptj": {
        "parallel_residual": True,
        "shared_norm": True,
        "attention_bias": False,
        "lm_head_bias": True,
        "tie_word_embeddings": False,
    },
    "bare": {
        "position_embedding_type": "learned",
        "position_offset": 2,
        "attention_bias": False,
        "attention_output_bias": True,
        "attention_scale": 1.0,
        "scale_attn_by_inverse_layer_idx": True,
        "norm_parameters": "none",
        "final_norm": False,
    },
    "mixtral": {
        "norm_type": "rms_norm",
        "mlp_type": "glu",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "num_local_experts": 4,
        "mlp_layer_types": ["sparse", "dense"],
        "moe_intermediate_size": 24,
    },
    "gpt_oss": {
        "norm_type": "rms_norm",
        "mlp_type": "clamped_glu",
        "attention_sinks": True,
        "attention_patterns": ["banded", "dense"],
        "sliding_window": 4,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
        "router_bias": True,
    },
    "deepseek": {
        "norm_type": "rms_norm",
        "mlp_type": "glu",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "num_local_experts": 6,
        "num_shared_experts": 2,
        "moe_intermediate_size": 16,
        "mlp_layer_types": ["dense", "sparse"],
        "router_score_function": "sigmoid",
        "routed_scaling_factor": 1.5,
        "router_bias_update_rate": 1e-4,
    },
}


IMPLEMENTATIONS = [(variant, implementation) for variant in VARIANTS for implementation in ("eager", "sdpa")]

# Variants that FlashAttention and continuous batching support: neither has strided or fixed layers.
FLASH = [
    variant
    for variant, fields in VARIANTS.items()
    if not {"strided", "fixed"} & set(fields.get("attention_patterns", ()))
]


LONGROPE = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]}  # of a head of 8
# Parameters of each scaled RoPE type, for an original length of 16.
ROPES = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0, "original_max_position_embeddings": 16},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 16, **LONGROPE},
    "llama3": {
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}


def make_config(variant: str = "default", **overrides) -> GPTConfig:
    return GPTConfig(**{**TINY, **VARIANTS[variant], **overrides})


def make_model(variant: str = "default", model_class=GPTForCausalLM, attention: str | None = None, **overrides):
    """A seeded model in evaluation mode."""
    set_seed(0)
    config = make_config(variant, **overrides)
    return model_class._from_config(config, attn_implementation=attention).eval()


def random_ids(*shape: int, seed: int = 1, low: int = 3, high: int = TINY["vocab_size"]) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


# Sizes of each attention pattern.
PATTERN_SIZES = {
    "dense": {},
    "banded": {"sliding_window": 5},
    "strided": {"attention_stride": 4},
    "fixed": {"attention_stride": 4, "attention_summary_size": 2},
}


def sparse_config(pattern: str, **overrides) -> GPTConfig:
    """Two layers of one pattern."""
    return make_config(attention_patterns=[pattern] * 2, **{**PATTERN_SIZES[pattern], **overrides})


LENGTH = 9
# The number of the packed sequence of each token, and its position there. (3, LENGTH)
PACKED_SEQUENCES = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 2, 2, 2, 2, 2, 2], [0] * LENGTH])
PACKED_POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 0, 1, 0, 1, 2, 3, 4, 5], [*range(LENGTH)]])


def padding(kind: str, rows: int = 3, length: int = LENGTH) -> torch.Tensor:
    """An attention mask, (rows, length), with more padding in each row: on the left, on the right, or scattered.

    The last row has none; nor has any row for another kind ("none", "packed").
    """
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(rows - 1):
        cut = 2 * row + 2
        if kind == "left":
            mask[row, :cut] = 0
        elif kind == "right":
            mask[row, -cut:] = 0
        elif kind == "scattered":
            mask[row, 1 : 2 * cut : 2] = 0
    return mask


def masks_by_pattern(config: GPTConfig, mask=None, positions=None, rows: int = 3, length: int = LENGTH) -> dict:
    """What the layers of each pattern get as their attention mask, without a cache."""
    tokens = BatchLayout(rows, length, torch.device("cpu"), mask, positions)
    return create_attention_masks(config, torch.empty(rows, length, 1), tokens)


def logits(model, ids: torch.Tensor, mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, attention_mask=mask, **kwargs).logits
