"""gpt-oss (OpenAI 2025): sinks, every other layer banded, experts with clamped gates; also as published, in MXFP4."""

from ..model.configuration_gpt import ATTENTION_PATTERNS, GPTConfig
from .family import Family
from .llama import BLOCK, FIELDS, SAME_NAMES, whole_rotation
from .mixtral import POOLED, ROUTING
from .storage import Fields, Storage
from .weights import IN_TURNS, MXFP4, rule

EXPERTS = f"{BLOCK}mlp.experts."
DECODER = (
    *SAME_NAMES,
    rule(f"{BLOCK}self_attn.sinks", f"{BLOCK}self_attn.sinks"),
    rule(f"{BLOCK}mlp.router.*", f"{BLOCK}mlp.router.*"),
    rule(f"{EXPERTS}gate_up_proj_bias", f"{EXPERTS}gate_up_proj_bias", IN_TURNS),
    rule(f"{EXPERTS}down_proj_bias", f"{EXPERTS}down_proj_bias"),
)
FIXED_IN_OLD_VERSIONS = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}  # no fields of transformers 5.17


def canonical(native: Fields) -> Fields:
    window = native["sliding_window"] if "sliding_attention" in native["layer_types"] else None
    return FIXED_IN_OLD_VERSIONS | whole_rotation(native) | {"sliding_window": window}


def read(native: Fields) -> Fields:
    return {"attention_patterns": [ATTENTION_PATTERNS.get(each, each) for each in native["layer_types"]]}


def write(config: GPTConfig) -> Fields:
    return {"layer_types": config.layer_types}


GPT_OSS = Family(
    name="gpt_oss",
    storage=Storage("gpt_oss"),
    fields=FIELDS
    | ROUTING
    | {
        "attention_bias": "attention_bias",
        "sliding_window": "sliding_window",
        "swiglu_alpha": "swiglu_alpha",
        "swiglu_limit": "swiglu_limit",
    },
    constants=POOLED
    | {"norm_type": "rms_norm", "mlp_type": "clamped_glu", "attention_sinks": True, "router_bias": True},
    read=read,
    write=write,
    canonical=canonical,
    layouts=(
        (
            *DECODER,
            rule(f"{EXPERTS}gate_up_proj", f"{EXPERTS}gate_up_proj", IN_TURNS),
            rule(f"{EXPERTS}down_proj", f"{EXPERTS}down_proj"),
        ),
        (
            *DECODER,
            rule(
                (f"{EXPERTS}gate_up_proj_blocks", f"{EXPERTS}gate_up_proj_scales"),
                f"{EXPERTS}gate_up_proj",
                MXFP4,
                IN_TURNS,
            ),
            rule(
                (f"{EXPERTS}down_proj_blocks", f"{EXPERTS}down_proj_scales"),
                f"{EXPERTS}down_proj",
                MXFP4,
            ),
        ),
    ),
    bare_prefix="model.",
)
