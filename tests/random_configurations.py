"""Random configurations: each raises a ValueError that names a field, or its model works.

python tests/random_configurations.py 0 10000 --out cases.jsonl
"""

import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fuzzing import JSON_VALUES, Draw, Fault, draw_value, run_cases
from working import EXTRAS, MAX_WEIGHTS, assert_works, build, count_weights

from hf_gpt import GPTConfig
from hf_gpt.model.common_fields import RULES
from hf_gpt.model.configuration_gpt import ACTIVATIONS, LAYER_TYPES, own_fields
from hf_gpt.model.field_names import CONVERTED, FIELD_OF, LACKING, REFUSED, ROPE_ENTRIES
from hf_gpt.model.rope_parameters import ROPE_RULES, ROPE_TYPES

Fields = dict[str, Any]

OWN = sorted(own_fields(GPTConfig))
COMMON = [
    *sorted(RULES),
    *("use_bfloat16", "max_length", "temperature", "tokenizer_class", "sep_token_id", "task_specific_params"),
]
OTHER = [*FIELD_OF, *CONVERTED, *ROPE_ENTRIES, *REFUSED, *LACKING, "rope_scaling"]
# Names of no field; the first are those of members of the class.
MEMBERS = ("__class__", "base_model_ep_plan", "base_model_tp_plan", "replace", "rotary_dim", "to_dict", "validate")
UNKNOWN = ("", "a.b", "cls", "derived_field", "foo", "hidden_sise", "kwargs", "self")

EDGES = [
    *JSON_VALUES,
    *((1, 2), (), {1, 2}, b"x", object(), float, 1j, {0: {"head_dim": 4}}, range(3)),
    *(torch.tensor(3), torch.float16, torch.bfloat16),
]
MOST_CHARACTERS = 1000  # of a message
MOST_SECONDS = 1.0  # until a configuration is made, and its model if it is small


class Case(NamedTuple):
    """A configuration."""

    fields: Fields
    """Valid fields."""
    edits: Fields
    """Other values of some fields, often invalid, or other keywords."""
    way: str
    """How the edits are made, one of `WAYS`."""
    implementation: str
    extra: str


def draw_rope(draw: Draw, head_dim: int) -> Fields:
    """Returns valid `rope_parameters` for heads of some width."""
    rope_type, part = draw.choice(ROPE_TYPES), draw.choice([0.5, 1, 1.0] if head_dim == 8 else [1, 1.0])
    rope = {"rope_type": rope_type, "rope_theta": draw.choice([100.0, 10_000, 5e5]), "partial_rotary_factor": part}
    if rope_type != "default":
        rope["factor"] = draw.choice([1.0, 4.0, 2, 32.0])
    if rope_type in ("yarn", "longrope", "llama3") or (rope_type == "dynamic" and draw.boolean()):
        rope["original_max_position_embeddings"] = draw.choice([8, 16, 64])
    if rope_type == "longrope":
        pairs = int(head_dim * part) // 2
        rope |= {"short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs}
    if rope_type == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": draw.choice([2.0, 4.0])}
    if rope_type == "yarn":
        rope |= draw.choice([{}, {"beta_fast": 16.0, "beta_slow": 2}, {"mscale": 1.0, "mscale_all_dim": 0.7}])
        rope |= draw.choice([{}, {"truncate": draw.boolean()}])
    if rope_type in ("yarn", "longrope"):
        rope |= draw.choice([{}, {"attention_factor": 1.2}])
    return rope


# Fields without which a configuration would be large, or invalid.
NEEDED = {
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "max_position_embeddings"),
    *("attention_patterns", "sliding_window", "attention_stride", "attention_summary_size", "position_embedding_type"),
    *("num_local_experts", "mlp_layer_types", "num_experts_per_tok", "norm_position", "parallel_residual"),
}


def draw_fields(draw: Draw) -> Fields:
    """Returns a valid, tiny configuration; each field that can be is left out at random."""
    layers, heads, head_dim = draw.choice([1, 1, 2, 3]), draw.choice([1, 2, 4]), draw.choice([4, 6, 8])
    patterns = draw.choice([None, draw.choices(list(LAYER_TYPES), k=layers)])
    kinds = set(patterns or ())
    position = draw.choice(["rope", "rope", "learned", "sinusoidal", "none"])
    experts, parallel = draw.choice([None, None, 1, 3, 4]), draw.boolean()
    sparse = ["sparse", *draw.choices(["dense", "sparse"], k=layers - 1)]
    dropouts = [0.0, 0.0, 0.1, 0]
    fields = {
        "vocab_size": draw.choice([97, 128, 50, 3]),
        "hidden_size": draw.choice([heads * head_dim, 16, 24]),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "num_key_value_heads": draw.choice([None, 1, heads]),
        "max_position_embeddings": draw.choice([32, 64, 16, 8]),
        "intermediate_size": draw.choice([None, 12]),
        "embedding_size": draw.choice([None, None, 12]),
        "attention_bias": draw.boolean(),
        "attention_output_bias": draw.choice([None, True, False]),
        "attention_scale": draw.choice([None, 1.0, 1]),
        "scale_attn_by_inverse_layer_idx": draw.boolean(),
        "attention_sinks": draw.choice([False, False, False, True]),
        "qk_norm": draw.choice([False, False, False, True]),
        "attention_patterns": patterns,
        "sliding_window": draw.choice([2, 3, 50]) if "banded" in kinds else None,
        "attention_stride": draw.choice([2, 5]) if {"strided", "fixed"} & kinds else None,
        "attention_summary_size": draw.choice([1, 2]) if "fixed" in kinds else None,
        "position_embedding_type": position,
        "rope_parameters": draw_rope(draw, head_dim) if position == "rope" else None,
        "position_offset": draw.choice([0, 2]) if position == "learned" else 0,
        "embedding_scale": draw.choice([None, 1.0, 2, 5.7]),
        "norm_type": draw.choice(["layer_norm", "rms_norm"]),
        "norm_position": "pre" if parallel else draw.choice(["pre", "pre", "post"]),
        "norm_eps": draw.choice([1e-5, 1e-6]),
        "norm_parameters": draw.choice([None, None, "weight", "none"]),
        "final_norm": draw.choice([None, True, False]),
        "parallel_residual": parallel,
        "shared_norm": parallel and draw.boolean(),
        "mlp_type": draw.choice(["mlp", "glu", "clamped_glu"]),
        "mlp_bias": draw.boolean(),
        "hidden_act": draw.choice(ACTIVATIONS),
        "swiglu_alpha": draw.choice([1.702, 1.0]),
        "swiglu_limit": draw.choice([7.0, 0.5, 7]),
        "lm_head_bias": draw.boolean(),
        "num_local_experts": experts,
        "mlp_layer_types": draw.choice([None, None, sparse]) if experts else None,
        "num_experts_per_tok": draw.choice([None, 1, experts]) if experts != 1 else 1,
        "moe_intermediate_size": draw.choice([None, 5]),
        "num_shared_experts": draw.choice([0, 1, 2]) if experts else 0,
        "router_score_function": draw.choice(["softmax", "sigmoid"]),
        "norm_topk_prob": draw.boolean(),
        "routed_scaling_factor": draw.choice([1.0, 2.5]),
        "router_bias": draw.boolean(),
        "router_jitter_noise": draw.choice(dropouts),
        "router_aux_loss_coef": draw.choice([0.0, 0.01, 1]),
        "router_aux_loss_type": draw.choice(["layerwise", "pooled"]),
        "router_z_loss_coef": draw.choice([0.0, 0.001]),
        "router_bias_update_rate": draw.choice([None, 0.0, 0.01]) if experts else None,
        "output_router_logits": draw.choice([None, True, False]),
        "label_smoothing": draw.choice(dropouts),
        "lm_z_loss_coef": draw.choice([0.0, 1e-4]),
        "embedding_dropout": draw.choice(dropouts),
        "residual_dropout": draw.choice(dropouts),
        "attention_dropout": draw.choice(dropouts),
        "classifier_dropout": draw.choice(dropouts),
        "layerdrop": 0 if experts else draw.choice(dropouts),
        "initializer_range": draw.choice([0.02, 0.2, 0.001]),
        "tie_word_embeddings": draw.boolean(),
        "use_cache": draw.boolean(),
        "pad_token_id": draw.choice([None, 0, 2]),
        "bos_token_id": draw.choice([None, 1]),
        "eos_token_id": draw.choice([None, 2, [1, 2]]),
        "native_fields": draw.choice([None, {}, {"model_type": "gpt2", "a": [1, {"b": None}]}]),
        "num_labels": draw.choice([1, 2, 3]),
        "problem_type": draw.choice([None, None, "multi_label_classification"]),
        "dtype": draw.choice([None, "float32", "bfloat16", torch.float32]),
        "output_hidden_states": draw.choice([False, False, True]),
    }
    return {name: value for name, value in fields.items() if name in NEEDED or draw.random() < 0.7}


def edit_own(draw: Draw, fields: Fields) -> Fields:
    name = draw.choice(OWN)
    return {name: draw_value(draw, fields.get(name), EDGES)}


def edit_common(draw: Draw, fields: Fields) -> Fields:
    name = draw.choice(COMMON)
    return {name: draw_value(draw, fields.get(name), EDGES)}


def edit_other_name(draw: Draw, fields: Fields) -> Fields:
    name = draw.choice(OTHER)
    present = fields.get(FIELD_OF.get(name))
    return {name: draw.choice([present, draw_value(draw, present, EDGES)])}


def edit_rope(draw: Draw, fields: Fields) -> Fields:
    rope = dict(fields.get("rope_parameters") or {"rope_type": "default", "rope_theta": 10_000.0})
    name = draw.choice([*ROPE_RULES, "type", "rope_tetha"])
    if draw.random() < 0.15:
        rope.pop(name, None)
    else:
        rope[name] = draw_value(draw, rope.get(name), EDGES)
    return {"rope_parameters": rope}


def edit_unknown(draw: Draw, fields: Fields) -> Fields:
    return {draw.choice([*MEMBERS, *UNKNOWN]): draw.choice(EDGES)}


def swap(draw: Draw, fields: Fields) -> Fields:
    return {draw.choice(list(fields)): fields[draw.choice(list(fields))]}


def take_from_another(draw: Draw, fields: Fields) -> Fields:
    """A valid value, but perhaps not beside the others."""
    return dict([draw.choice(list(draw_fields(draw).items()))])


EDITS = {  # and how often
    edit_own: 8,
    edit_common: 3,
    edit_other_name: 2,
    edit_rope: 3,
    edit_unknown: 0.3,
    swap: 1,
    take_from_another: 12,
}


def draw_edits(draw: Draw, fields: Fields) -> Fields:
    edits: Fields = {}
    for edit in draw.choices(list(EDITS), list(EDITS.values()), k=draw.choice([0, 1, 1, 1, 2, 3])):
        edits |= edit(draw, fields)
    return edits


def assigned(fields: Fields, edits: Fields) -> GPTConfig:
    config = GPTConfig(**fields)
    for name, value in edits.items():
        # Python's own rules hold for these: they may replace a method, or what transformers keeps in the object
        if name not in (*MEMBERS, *UNKNOWN, "derived_fields") and not name.startswith("_"):
            setattr(config, name, value)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
    return config


def saved(fields: Fields, edits: Fields) -> GPTConfig:
    with tempfile.TemporaryDirectory() as folder:
        GPTConfig(**fields).save_pretrained(folder)
        return GPTConfig.from_pretrained(folder, **keywords(edits))


def keywords(edits: Fields) -> Fields:
    """Returns the edits that Python accepts as keywords of a method."""
    return {name: value for name, value in edits.items() if name not in ("self", "cls")}


WAYS: dict[str, Callable[[Fields, Fields], GPTConfig]] = {
    "constructor": lambda fields, edits: GPTConfig(**fields | edits),
    "from_dict": lambda fields, edits: GPTConfig.from_dict(fields | edits),
    "overrides of from_dict": lambda fields, edits: GPTConfig.from_dict(
        GPTConfig(**fields).to_dict(), **keywords(edits)
    ),
    "replace": lambda fields, edits: GPTConfig(**fields).replace(**keywords(edits)),
    "assignment": assigned,
    "overrides of from_pretrained": saved,
}


def draw_case(number: int) -> Case:
    draw = Draw(number)
    fields = draw_fields(draw)
    edits, way = draw_edits(draw, fields), draw.choice(list(WAYS))
    return Case(fields, edits, way, draw.choice(["eager", "sdpa"]), draw.choice(list(EXTRAS)))


def check(case: Case) -> str:
    """Returns what became of a case: `refused`, `works`, or `described` for a model that is too large to build.

    Raises:
        Fault: anything else.
    """
    start = time.monotonic()
    try:
        config = WAYS[case.way](case.fields, case.edits)
        model = build(config, case.implementation) if count_weights(config) <= MAX_WEIGHTS else None
    except ValueError as error:
        check_message(str(error), case)
        return "refused"
    if (seconds := time.monotonic() - start) > MOST_SECONDS:
        raise Fault(f"made after {seconds} seconds")
    if model is None:
        return "described"
    with tempfile.TemporaryDirectory() as folder:
        assert_works(model, Path(folder), case.extra)
    return "works"


def check_message(message: str, case: Case) -> None:
    names = filter(None, {*case.fields, *case.edits, *OWN, *COMMON})
    if not any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) for name in names):
        raise Fault(f"no field is named: {message[:MOST_CHARACTERS]}")
    if len(message) > MOST_CHARACTERS:
        raise Fault(f"a message of {len(message)} characters: {message[:MOST_CHARACTERS]}")


def prepare(number: int) -> tuple[str, Callable[[], str]]:
    case = draw_case(number)
    return f"{case.way}: {case.edits}"[:400], lambda: check(case)


if __name__ == "__main__":
    run_cases(prepare)
