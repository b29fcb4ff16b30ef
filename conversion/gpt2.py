"""GPT-2 (Radford et al. 2019): `GPT2LMHeadModel`."""

from ..model.configuration_gpt import GPTConfig
from .family import COMMON, Family, same
from .storage import Fields, Storage
from .weights import FUSED_QKV, LAYER, TRANSPOSED, rule

BLOCK = "transformer.h.{layer}."
Q_K_V = tuple(f"{LAYER}self_attn.{part}_proj.*" for part in "qkv")

# The block of GPT-1, GPT-2 and nanoGPT; nanoGPT does not transpose its linear layers.
CONV1D_BLOCK = (
    rule(f"{BLOCK}ln_1.*", f"{LAYER}self_attn_norm.*"),
    rule(f"{BLOCK}attn.c_attn.*", Q_K_V, TRANSPOSED, FUSED_QKV),
    rule(f"{BLOCK}attn.c_proj.*", f"{LAYER}self_attn.o_proj.*", TRANSPOSED),
    rule(f"{BLOCK}ln_2.*", f"{LAYER}mlp_norm.*"),
    rule(f"{BLOCK}mlp.c_fc.*", f"{LAYER}mlp.up_proj.*", TRANSPOSED),
    rule(f"{BLOCK}mlp.c_proj.*", f"{LAYER}mlp.down_proj.*", TRANSPOSED),
)

WEIGHTS = (
    rule("transformer.wte.weight", "model.embed_tokens.weight"),
    rule("transformer.wpe.weight", "model.embed_positions.weight"),
    *CONV1D_BLOCK,
    rule("transformer.ln_f.*", "model.norm.*"),
    rule("lm_head.weight", "lm_head.weight"),
)

# The fields that GPT-1, GPT-2 and GPT-J have in common.
FIELDS = (
    COMMON
    | same("initializer_range")
    | {
        "n_positions": "max_position_embeddings",
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "resid_pdrop": "residual_dropout",
        "embd_pdrop": "embedding_dropout",
        "attn_pdrop": "attention_dropout",
        "layer_norm_epsilon": "norm_eps",
    }
)

CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")


def read(native: Fields) -> Fields:
    return {"attention_scale": None if native["scale_attn_weights"] else 1.0}


def write(config: GPTConfig) -> Fields:
    return {
        "scale_attn_weights": config.attention_scale != 1.0,
        "add_cross_attention": False,
        "reorder_and_upcast_attn": False,
    }


def canonical(native: Fields) -> Fields:
    return native | {"n_inner": native["n_inner"] or 4 * native["n_embd"]}


GPT2 = Family(
    storage=Storage("gpt2"),
    fields=FIELDS
    | same("scale_attn_by_inverse_layer_idx", "use_cache")
    | {"n_inner": "intermediate_size", "activation_function": "hidden_act"},
    constants={"position_embedding_type": "learned"},
    read=read,
    write=write,
    canonical=canonical,
    passthrough=frozenset(
        f"summary_{part}" for part in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")
    ),
    layouts=(WEIGHTS,),
    base_model_prefix="transformer.",
    computed=CAUSAL_MASKS,
)
