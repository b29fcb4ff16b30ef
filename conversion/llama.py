"""Llama (Touvron et al. 2023; Dubey et al. 2024): `LlamaForCausalLM`."""

from .family import COMMON, Family, same
from .rope import drop_ignored_rope
from .storage import Fields, Storage
from .weights import LAYER, rule

# The fields and tensors that Llama, Mixtral and gpt-oss have in common. Only the norms have other names in hf_gpt.
FIELDS = (
    COMMON
    | same("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    | same("intermediate_size", "hidden_act", "max_position_embeddings", "rope_parameters")
    | same("attention_dropout", "initializer_range", "use_cache")
    | {"rms_norm_eps": "norm_eps"}
)
CONSTANTS = {"norm_type": "rms_norm", "mlp_type": "glu"}
SAME_NAMES = (
    rule("model.embed_tokens.weight", "model.embed_tokens.weight"),
    rule(f"{LAYER}input_layernorm.weight", f"{LAYER}self_attn_norm.weight"),
    *(rule(name, name) for name in (f"{LAYER}self_attn.{part}_proj.*" for part in "qkvo")),
    rule(f"{LAYER}post_attention_layernorm.weight", f"{LAYER}mlp_norm.weight"),
    rule("model.norm.weight", "model.norm.weight"),
    rule("lm_head.weight", "lm_head.weight"),
)
INV_FREQ = (".rotary_emb.inv_freq",)


def full_rotation(native: Fields) -> Fields:
    """Returns a configuration without `partial_rotary_factor`: these classes rotate all dimensions of a head."""
    return drop_ignored_rope(native, "partial_rotary_factor")


def canonical(native: Fields) -> Fields:
    head_dim = native["head_dim"] or native["hidden_size"] // native["num_attention_heads"]
    return full_rotation(native) | {"head_dim": head_dim}


LLAMA = Family(
    storage=Storage("llama"),
    fields=FIELDS | same("attention_bias", "mlp_bias"),
    constants=CONSTANTS,
    canonical=canonical,
    passthrough=frozenset({"pretraining_tp"}),
    layouts=(
        (*SAME_NAMES, *(rule(name, name) for name in (f"{LAYER}mlp.{n}_proj.*" for n in ("gate", "up", "down")))),
    ),
    base_model_prefix="model.",
    computed=INV_FREQ,
)
