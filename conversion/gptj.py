"""GPT-J (Wang and Komatsuzaki 2021): one norm before both branches, and a rotation of neighbouring dimensions."""

import math

from ..model.configuration_gpt import GPTConfig
from .family import Family
from .gpt2 import FIELDS, canonical
from .storage import Fields, Storage
from .weights import ROTARY_PAIRS, rule

BLOCK, OURS = "transformer.h.{layer}.", "model.layers.{layer}."


def read(native: Fields) -> Fields:
    head_dim = native["n_embd"] // native["n_head"]
    if not 0 < native["rotary_dim"] <= head_dim:
        raise ValueError(f"rotary_dim={native['rotary_dim']}: expected 2 to {head_dim}, the width of a head")
    factor = native["rotary_dim"] / head_dim
    if int(head_dim * factor) < native["rotary_dim"]:
        factor = math.nextafter(factor, 1.0)  # the division was rounded down
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": factor},
    }


def write(config: GPTConfig) -> Fields:
    return {"rotary_dim": config.rotary_dim}


GPTJ = Family(
    name="gptj",
    storage=Storage("gptj"),
    fields=FIELDS | {"n_inner": "intermediate_size", "activation_function": "hidden_act", "use_cache": "use_cache"},
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
            rule(f"{BLOCK}ln_1.*", f"{OURS}self_attn_norm.*"),
            rule(f"{BLOCK}attn.q_proj.*", f"{OURS}self_attn.q_proj.*", ROTARY_PAIRS),
            rule(f"{BLOCK}attn.k_proj.*", f"{OURS}self_attn.k_proj.*", ROTARY_PAIRS),
            rule(f"{BLOCK}attn.v_proj.*", f"{OURS}self_attn.v_proj.*"),
            rule(f"{BLOCK}attn.out_proj.*", f"{OURS}self_attn.o_proj.*"),
            rule(f"{BLOCK}mlp.fc_in.*", f"{OURS}mlp.up_proj.*"),
            rule(f"{BLOCK}mlp.fc_out.*", f"{OURS}mlp.down_proj.*"),
            rule("transformer.ln_f.*", "model.norm.*"),
            rule("lm_head.*", "lm_head.*"),
        ),
    ),
    bare_prefix="transformer.",
)
