"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): `GPTNeoXForCausalLM`."""

from ..model.configuration_gpt import GPTConfig
from .family import COMMON, Family, same
from .rope import drop_ignored_rope
from .storage import Fields, Storage
from .weights import FUSED_QKV_BY_HEAD, LAYER, rule

BLOCK = "gpt_neox.layers.{layer}."

DECODER = (
    rule("gpt_neox.embed_in.weight", "model.embed_tokens.weight"),
    rule(f"{BLOCK}input_layernorm.*", f"{LAYER}self_attn_norm.*"),
    rule(
        f"{BLOCK}attention.query_key_value.*",
        tuple(f"{LAYER}self_attn.{part}_proj.*" for part in "qkv"),
        FUSED_QKV_BY_HEAD,
    ),
    rule(f"{BLOCK}attention.dense.*", f"{LAYER}self_attn.o_proj.*"),
    rule(f"{BLOCK}post_attention_layernorm.*", f"{LAYER}mlp_norm.*"),
    rule(f"{BLOCK}mlp.dense_h_to_4h.*", f"{LAYER}mlp.up_proj.*"),
    rule(f"{BLOCK}mlp.dense_4h_to_h.*", f"{LAYER}mlp.down_proj.*"),
    rule("gpt_neox.final_layer_norm.*", "model.norm.*"),
)


def read(native: Fields) -> Fields:
    return {"embedding_dropout": native["hidden_dropout"]}


def write(config: GPTConfig) -> Fields:
    rope = getattr(config, "rope_parameters", None)
    return {"rope_parameters": rope and {"partial_rotary_factor": 1.0} | rope}  # 0.25 where it is missing


GPT_NEOX = Family(
    storage=Storage("gpt_neox", replaced=("rotary_pct", "rotary_emb_base")),
    fields=COMMON
    | same("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    | same("max_position_embeddings", "rope_parameters", "attention_bias", "initializer_range", "use_cache")
    | same("attention_dropout", "classifier_dropout")
    | {
        "hidden_dropout": "residual_dropout",
        "layer_norm_eps": "norm_eps",
        "use_parallel_residual": "parallel_residual",
    },
    constants={},
    read=read,
    write=write,
    canonical=drop_ignored_rope,
    passthrough=frozenset({"is_decoder"}),
    layouts=(
        (*DECODER, rule("embed_out.weight", "lm_head.weight")),
        # Some fine-tuned checkpoints have the name of the module.
        (*DECODER, rule("lm_head.weight", "lm_head.weight")),
    ),
    base_model_prefix="gpt_neox.",
    computed=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
)
