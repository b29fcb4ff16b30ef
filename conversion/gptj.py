"""GPT-J (Wang and Komatsuzaki 2021): `GPTJForCausalLM`. Parallel residual with one norm; interleaved RoPE."""

import math

from ..model.configuration_gpt import GPTConfig
from .family import Family, same
from .gpt2 import BLOCK, CAUSAL_MASKS, FIELDS, canonical
from .storage import Fields, Storage
from .weights import INTERLEAVED_ROPE, LAYER, rule


def read(native: Fields) -> Fields:
    head_dim = native["n_embd"] // native["n_head"]
    if not 0 < native["rotary_dim"] <= head_dim:
        raise ValueError(f"rotary_dim={native['rotary_dim']}: expected 2 to {head_dim}, the size of a head")
    factor = native["rotary_dim"] / head_dim
    if int(head_dim * factor) < native["rotary_dim"]:
        factor = math.nextafter(factor, 1.0)  # the quotient was rounded down
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": factor},
    }


def write(config: GPTConfig) -> Fields:
    return {"rotary_dim": config.rotary_dim}


GPTJ = Family(
    storage=Storage("gptj"),
    fields=FIELDS | same("use_cache") | {"n_inner": "intermediate_size", "activation_function": "hidden_act"},
    constants={
        "parallel_residual": True,
        "shared_norm": True,
        "attention_bias": False,
        "lm_head_bias": True,
    },
    read=read,
    write=write,
    canonical=canonical,
    layouts=(
        (
            rule("transformer.wte.weight", "model.embed_tokens.weight"),
            rule(f"{BLOCK}ln_1.*", f"{LAYER}self_attn_norm.*"),
            rule(f"{BLOCK}attn.q_proj.*", f"{LAYER}self_attn.q_proj.*", INTERLEAVED_ROPE),
            rule(f"{BLOCK}attn.k_proj.*", f"{LAYER}self_attn.k_proj.*", INTERLEAVED_ROPE),
            rule(f"{BLOCK}attn.v_proj.*", f"{LAYER}self_attn.v_proj.*"),
            rule(f"{BLOCK}attn.out_proj.*", f"{LAYER}self_attn.o_proj.*"),
            rule(f"{BLOCK}mlp.fc_in.*", f"{LAYER}mlp.up_proj.*"),
            rule(f"{BLOCK}mlp.fc_out.*", f"{LAYER}mlp.down_proj.*"),
            rule("transformer.ln_f.*", "model.norm.*"),
            rule("lm_head.*", "lm_head.*"),
        ),
    ),
    base_model_prefix="transformer.",
    computed=(*CAUSAL_MASKS, ".attn.embed_positions"),
)
