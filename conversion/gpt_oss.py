"""gpt-oss (OpenAI 2025): `GptOssForCausalLM`. Attention sinks, banded layers, clamped gates; MXFP4 as published."""

import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ..model.configuration_gpt import ATTENTION_PATTERNS, GPTConfig
from .family import Family, same
from .llama import FIELDS, INV_FREQ, SAME_NAMES, full_rotation
from .mixtral import POOLED, ROUTING
from .storage import Fields, Storage
from .weights import LAYER, Operation, Tensors, each_tensor, rule


def _dequantize(tensors: Tensors, _: GPTConfig) -> Tensors:
    blocks, scales = tensors
    if blocks.device.type == "meta":
        experts, rows, groups, size = blocks.shape
        return [torch.empty(experts, 2 * groups * size, rows, dtype=torch.bfloat16, device="meta")]
    values = convert_moe_packed_tensors(blocks, scales)
    if not values.isfinite().all():
        raise ValueError("experts in MXFP4 contain NaN or infinity: a scale is beyond the range of bfloat16")
    return [values]


def _packed_shapes(tensors: Tensors, _: GPTConfig) -> Tensors:
    """Returns shapes alone, because quantizing would lose bits: a byte has two values of 4 bits, a scale has 32."""
    experts, columns, rows = tensors[0].shape
    shape = (experts, rows, columns // 32)
    return [torch.empty(*shape, 16, dtype=torch.uint8, device="meta"), tensors[0].new_empty(shape, dtype=torch.uint8)]


# The published format, 4 bits per weight. Every value is exact in bfloat16; only bfloat16 is written.
MXFP4 = Operation(_dequantize, _packed_shapes)
# The columns of gate and up projection alternate, where hf_gpt has them one after the other.
INTERLEAVED_GATE_UP = Operation(
    each_tensor(lambda tensor, _: torch.cat((tensor[..., 0::2], tensor[..., 1::2]), dim=-1)),
    each_tensor(lambda tensor, _: torch.stack(tensor.chunk(2, dim=-1), dim=-1).flatten(-2)),
)

EXPERTS = f"{LAYER}mlp.experts."
DECODER = (
    *SAME_NAMES,
    rule(f"{LAYER}self_attn.sinks", f"{LAYER}self_attn.sinks"),
    rule(f"{LAYER}mlp.router.*", f"{LAYER}mlp.router.*"),
    rule(f"{EXPERTS}gate_up_proj_bias", f"{EXPERTS}gate_up_proj_bias", INTERLEAVED_GATE_UP),
    rule(f"{EXPERTS}down_proj_bias", f"{EXPERTS}down_proj_bias"),
)
CONSTANT_BEFORE = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}  # not yet fields in transformers 5.17


def canonical(native: Fields) -> Fields:
    window = native["sliding_window"] if "sliding_attention" in native["layer_types"] else None
    return CONSTANT_BEFORE | full_rotation(native) | {"sliding_window": window}


def read(native: Fields) -> Fields:
    return {"attention_patterns": [ATTENTION_PATTERNS.get(each, each) for each in native["layer_types"]]}


def write(config: GPTConfig) -> Fields:
    return {"layer_types": config.layer_types}


GPT_OSS = Family(
    storage=Storage("gpt_oss", quantization="mxfp4"),
    fields=FIELDS | ROUTING | same("attention_bias", "sliding_window", "swiglu_alpha", "swiglu_limit"),
    constants=POOLED
    | {"norm_type": "rms_norm", "mlp_type": "clamped_glu", "attention_sinks": True, "router_bias": True},
    read=read,
    write=write,
    canonical=canonical,
    layouts=(
        (
            *DECODER,
            rule(f"{EXPERTS}gate_up_proj", f"{EXPERTS}gate_up_proj", INTERLEAVED_GATE_UP),
            rule(f"{EXPERTS}down_proj", f"{EXPERTS}down_proj"),
        ),
        (
            *DECODER,
            rule(
                (f"{EXPERTS}gate_up_proj_blocks", f"{EXPERTS}gate_up_proj_scales"),
                f"{EXPERTS}gate_up_proj",
                MXFP4,
                INTERLEAVED_GATE_UP,
            ),
            rule(
                (f"{EXPERTS}down_proj_blocks", f"{EXPERTS}down_proj_scales"),
                f"{EXPERTS}down_proj",
                MXFP4,
            ),
        ),
    ),
    base_model_prefix="model.",
    computed=INV_FREQ,
)
