"""GPT-Neo (Black et al. 2021): `GPTNeoForCausalLM`. Local layers are `banded`; attention scores are not scaled."""

from transformers import GPTNeoConfig

from ..model.configuration_gpt import GPTConfig
from .family import COMMON, Family, same
from .gpt2 import BLOCK
from .storage import Fields, Storage
from .weights import LAYER, rule

PATTERNS = {"global": "dense", "local": "banded"}
TYPES = {pattern: attention_type for attention_type, pattern in PATTERNS.items()}


def canonical(native: Fields) -> Fields:
    types = GPTNeoConfig.expand_attention_types_params(native["attention_types"])
    layers = native.get("attention_layers", types)  # config.json may contain both; the class reads the layers
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
    storage=Storage("gpt_neo", attributes=("attention_layers",)),
    fields=COMMON
    | same("max_position_embeddings", "hidden_size", "intermediate_size", "initializer_range", "use_cache")
    | same("attention_dropout", "classifier_dropout")
    | {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "window_size": "sliding_window",
        "activation_function": "hidden_act",
        "resid_dropout": "residual_dropout",
        "embed_dropout": "embedding_dropout",
        "layer_norm_epsilon": "norm_eps",
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
            rule(f"{BLOCK}ln_1.*", f"{LAYER}self_attn_norm.*"),
            *(rule(f"{BLOCK}attn.attention.{part}_proj.*", f"{LAYER}self_attn.{part}_proj.*") for part in "qkv"),
            rule(f"{BLOCK}attn.attention.out_proj.*", f"{LAYER}self_attn.o_proj.*"),
            rule(f"{BLOCK}ln_2.*", f"{LAYER}mlp_norm.*"),
            rule(f"{BLOCK}mlp.c_fc.*", f"{LAYER}mlp.up_proj.*"),
            rule(f"{BLOCK}mlp.c_proj.*", f"{LAYER}mlp.down_proj.*"),
            rule("transformer.ln_f.*", "model.norm.*"),
            rule("lm_head.weight", "lm_head.weight"),
        ),
    ),
    base_model_prefix="transformer.",
    computed=(".attn.attention.bias", ".attn.attention.masked_bias"),
)
