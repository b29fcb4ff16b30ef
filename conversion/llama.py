"""Llama (Touvron et al. 2023; Dubey et al. 2024)."""

from .family import TOKEN_IDS, Family
from .storage import Fields, Storage
from .weights import rule

BLOCK = "model.layers.{layer}."

# What Llama, Mixtral and gpt-oss have in common, and name as we do but for the norms.
FIELDS = TOKEN_IDS | {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden_act": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "rms_norm_eps": "norm_eps",
    "use_cache": "use_cache",
    "tie_word_embeddings": "tie_word_embeddings",
    "rope_parameters": "rope_parameters",
    "attention_dropout": "attention_dropout",
}
CONSTANTS = {"norm_type": "rms_norm", "mlp_type": "glu"}
SAME_NAMES = (
    rule("model.embed_tokens.weight", "model.embed_tokens.weight"),
    rule(f"{BLOCK}input_layernorm.weight", f"{BLOCK}self_attn_norm.weight"),
    *(rule(name, name) for name in (f"{BLOCK}self_attn.{part}_proj.*" for part in "qkvo")),
    rule(f"{BLOCK}post_attention_layernorm.weight", f"{BLOCK}mlp_norm.weight"),
    rule("model.norm.weight", "model.norm.weight"),
    rule("lm_head.weight", "lm_head.weight"),
)


def whole_rotation(native: Fields) -> Fields:
    """These classes rotate whole heads, whatever `partial_rotary_factor` says."""
    rope = {name: value for name, value in native["rope_parameters"].items() if name != "partial_rotary_factor"}
    return native | {"rope_parameters": rope}


def canonical(native: Fields) -> Fields:
    head_dim = native["head_dim"] or native["hidden_size"] // native["num_attention_heads"]
    return whole_rotation(native) | {"head_dim": head_dim}


LLAMA = Family(
    name="llama",
    storage=Storage("llama"),
    fields=FIELDS | {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    constants=CONSTANTS,
    canonical=canonical,
    aside=frozenset({"pretraining_tp"}),
    layouts=(
        (*SAME_NAMES, *(rule(name, name) for name in (f"{BLOCK}mlp.{n}_proj.*" for n in ("gate", "up", "down")))),
    ),
    bare_prefix="model.",
)
