"""GPT-Neo (Black et al. 2021): every other layer attends locally, and no score is scaled."""

from transformers import GPTNeoConfig

from ..model.configuration_gpt import GPTConfig
from .family import TOKEN_IDS, Family
from .storage import Fields, Storage
from .weights import rule

BLOCK, OURS = "transformer.h.{layer}.", "model.layers.{layer}."
PATTERNS = {"global": "dense", "local": "banded"}
TYPES = {pattern: attention_type for attention_type, pattern in PATTERNS.items()}


def canonical(native: Fields) -> Fields:
    types = GPTNeoConfig.expand_attention_types_params(native["attention_types"])
    layers = native.get("attention_layers", types)  # what the class goes by; it is stored beside the types
    return {name: value for name, value in native.items() if name != "attention_layers"} | {
        "attention_types": [[layers, 1]],
        "window_size": native["window_size"] if "local" in layers else None,
        "intermediate_size": native["intermediate_size"] or 4 * native["hidden_size"],
    }


def read(native: Fields) -> Fields:
    layers = GPTNeoConfig.expand_attention_types_params(native["attention_types"])
    return {"attention_patterns": [PATTERNS.get(layer, layer) for layer in layers]}


def write(config: GPTConfig) -> Fields:
    layers = [TYPES.get(pattern, TYPES["dense"]) for pattern in config.attention_patterns]
    period = next(n for n in range(1, len(layers) + 1) if layers == layers[:n] * (len(layers) // n))
    return {
        "attention_types": [[layers[:period], len(layers) // period]],
        "window_size": config.sliding_window or GPTNeoConfig.window_size,
    }


GPT_NEO = Family(
    name="gpt_neo",
    storage=Storage("gpt_neo"),
    fields=TOKEN_IDS
    | {
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_position_embeddings",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "window_size": "sliding_window",
        "activation_function": "hidden_act",
        "resid_dropout": "residual_dropout",
        "embed_dropout": "embedding_dropout",
        "attention_dropout": "attention_dropout",
        "classifier_dropout": "classifier_dropout",
        "layer_norm_epsilon": "norm_eps",
        "initializer_range": "initializer_range",
        "use_cache": "use_cache",
        "tie_word_embeddings": "tie_word_embeddings",
    },
    constants={
        "position_embedding_type": "learned",
        "attention_bias": False,
        "attention_output_bias": True,
        "attention_scale": 1.0,
    },
    read=read,
    write=write,
    canonical=canonical,
    layouts=(
        (
            rule("transformer.wte.weight", "model.embed_tokens.weight"),
            rule("transformer.wpe.weight", "model.embed_positions.weight"),
            rule(f"{BLOCK}ln_1.*", f"{OURS}self_attn_norm.*"),
            *(rule(f"{BLOCK}attn.attention.{part}_proj.*", f"{OURS}self_attn.{part}_proj.*") for part in "qkv"),
            rule(f"{BLOCK}attn.attention.out_proj.*", f"{OURS}self_attn.o_proj.*"),
            rule(f"{BLOCK}ln_2.*", f"{OURS}mlp_norm.*"),
            rule(f"{BLOCK}mlp.c_fc.*", f"{OURS}mlp.up_proj.*"),
            rule(f"{BLOCK}mlp.c_proj.*", f"{OURS}mlp.down_proj.*"),
            rule("transformer.ln_f.*", "model.norm.*"),
            rule("lm_head.weight", "lm_head.weight"),
        ),
    ),
    bare_prefix="transformer.",
)
