"""OPT (Zhang et al. 2022): `OPTForCausalLM`. Position 0 is row 2 of the table; 350M is post-norm and factorized."""

from ..model.configuration_gpt import GPTConfig
from .family import COMMON, Family, same
from .storage import Fields, Storage
from .weights import LAYER, rule

DECODER = "model.decoder."
BLOCK = "model.decoder.layers.{layer}."


def canonical(native: Fields) -> Fields:
    removed = native["_remove_final_layer_norm"] and native["do_layer_norm_before"]
    return native | {"_remove_final_layer_norm": removed}


def read(native: Fields) -> Fields:
    before = native["do_layer_norm_before"]
    return {
        "norm_position": "pre" if before else "post",
        "final_norm": before and not native["_remove_final_layer_norm"],
        "norm_parameters": "weight_and_bias" if native["layer_norm_elementwise_affine"] else "none",
        "mlp_bias": native["enable_bias"],
    }


def write(config: GPTConfig) -> Fields:
    before = config.norm_position == "pre"
    return {
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.final_norm,
        "layer_norm_elementwise_affine": config.norm_parameters != "none",
    }


OPT = Family(
    storage=Storage("opt"),
    fields=COMMON
    | same("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    | same("attention_dropout", "layerdrop", "use_cache")
    | {
        "word_embed_proj_dim": "embedding_size",
        "ffn_dim": "intermediate_size",
        "activation_function": "hidden_act",
        "enable_bias": "attention_bias",
        "dropout": "residual_dropout",
        "init_std": "initializer_range",
    },
    constants={"position_embedding_type": "learned", "position_offset": 2},
    read=read,
    write=write,
    canonical=canonical,
    layouts=(
        (
            rule(f"{DECODER}embed_tokens.weight", "model.embed_tokens.weight"),
            rule(f"{DECODER}embed_positions.weight", "model.embed_positions.weight"),
            rule(f"{DECODER}project_in.weight", "model.project_in.weight"),
            rule(f"{BLOCK}self_attn_layer_norm.*", f"{LAYER}self_attn_norm.*"),
            *(rule(f"{BLOCK}self_attn.{part}_proj.*", f"{LAYER}self_attn.{part}_proj.*") for part in "qkv"),
            rule(f"{BLOCK}self_attn.out_proj.*", f"{LAYER}self_attn.o_proj.*"),
            rule(f"{BLOCK}final_layer_norm.*", f"{LAYER}mlp_norm.*"),
            rule(f"{BLOCK}fc1.*", f"{LAYER}mlp.up_proj.*"),
            rule(f"{BLOCK}fc2.*", f"{LAYER}mlp.down_proj.*"),
            rule(f"{DECODER}final_layer_norm.*", "model.norm.*"),
            rule(f"{DECODER}project_out.weight", "model.project_out.weight"),
            rule("lm_head.weight", "lm_head.weight"),
        ),
    ),
    base_model_prefix="model.",
)
