"""Names that other classes have for the fields of `GPTConfig`.

transformers stores an unknown keyword as an attribute, where it has no effect. Here the names of the classes that this
model expresses are translated if they mean one field, and raise an error with the right names if they do not.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any

import numpy as np
from transformers.utils import logging

from .field_rules import shown
from .rope_parameters import DEFAULT_ROPE

logger = logging.get_logger(__name__)

Fields = dict[str, Any]

# Fields, and other names for them with the same values: of transformers' classes, nanoGPT, minGPT and litgpt.
RENAMED: dict[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model", "embed_size"),
    "embedding_size": ("word_embed_proj_dim",),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "intermediate_size": ("n_inner", "ffn_dim"),
    "max_position_embeddings": ("n_positions", "n_ctx", "block_size"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "heads"),
    "num_key_value_heads": ("n_kv_heads", "num_kv_heads", "n_head_kv", "n_query_groups"),
    "head_dim": ("head_size",),
    "qk_norm": ("norm_qk", "use_qk_norm"),
    "sliding_window": ("window_size", "sliding_window_size"),
    "norm_eps": ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps"),
    "parallel_residual": ("use_parallel_residual",),
    "shared_norm": ("shared_attention_norm",),
    "hidden_act": ("activation_function",),
    "num_local_experts": ("num_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("num_experts_per_token",),
    "num_shared_experts": ("n_shared_experts", "n_shared_expert"),
    "router_score_function": ("scoring_func",),
    "embedding_dropout": ("embd_pdrop", "embed_dropout"),
    "residual_dropout": ("resid_pdrop", "resid_dropout"),
    "attention_dropout": ("attn_pdrop",),
    "initializer_range": ("init_std",),
}
FIELD_OF = {name: ours for ours, names in RENAMED.items() for name in names}

# Names that are no attributes for reading: their presence means another architecture to some tools (DeepSeek, DBRX).
UNREADABLE = {"n_routed_experts", "n_shared_experts", "n_shared_expert", "moe_num_experts"}

# What GPT-1 calls `gelu` is the approximation by tanh.
GPT1_ACTIVATIONS = {"gelu": "gelu_new"}
LITGPT_NORMS = {"LayerNorm": "layer_norm", "RMSNorm": "rms_norm"}

# Names of one field with other values, as functions from the value to the field.
CONVERTED: dict[str, Callable[[Any], Fields]] = {
    "afn": lambda name: {"hidden_act": GPT1_ACTIVATIONS.get(name, name)},
    "scale_attn_weights": lambda scaled: {"attention_scale": None if scaled else 1.0},
    "do_layer_norm_before": lambda before: {"norm_position": "pre" if before else "post"},
    "_remove_final_layer_norm": lambda removed: {"final_norm": False if removed else None},
    "layer_norm_elementwise_affine": lambda affine: {"norm_parameters": None if affine else "none"},
    "norm_class_name": lambda name: {"norm_type": LITGPT_NORMS.get(name, name)},
    "attention_scores_scalar": lambda width: {"attention_scale": width and width**-0.5},
    "n_expert": lambda experts: {"num_local_experts": experts or None},
    "n_expert_per_token": lambda experts: {"num_experts_per_tok": experts or None},
}

# Names of an entry of `rope_parameters`.
ROPE_ENTRIES = {
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "rope_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
    "rotary_percentage": "partial_rotary_factor",
}
ROPE_NAMES = {*ROPE_ENTRIES, "rope_scaling"}

# Names of several fields, or of none with the same meaning, and what to do instead.
REFUSED: dict[str, str] = {
    "dropout": "set residual_dropout, embedding_dropout and attention_dropout",
    "hidden_dropout": "set residual_dropout and embedding_dropout",
    "bias": "set attention_bias, mlp_bias and norm_parameters",
    "use_bias": "set attention_bias, mlp_bias and norm_parameters",
    "enable_bias": "set attention_bias and mlp_bias",
    "qkv_bias": "set attention_bias and attention_output_bias",
    "attn_bias": "set attention_bias and attention_output_bias",
    "attention_types": "set attention_patterns to `dense` or `banded` for each layer",
    "attention_layers": "set attention_patterns to `dense` or `banded` for each layer",
    "sliding_window_indices": "set attention_patterns to `dense` or `banded` for each layer",
    "rotary_dim": "set rope_parameters with partial_rotary_factor = rotary_dim / head_dim",
    "rope_condense_ratio": "set rope_parameters with rope_type='linear' and factor",
    "rope_adjustments": "set rope_parameters with rope_type='llama3' and its factors",
    "forward_expansion": "set intermediate_size = forward_expansion x hidden_size",
    "mlp_class_name": "set mlp_type and hidden_act",
    "gelu_approximate": "set hidden_act to `gelu` or `gelu_pytorch_tanh`",
    "padded_vocab_size": "set vocab_size to the number of rows of the embeddings",
    "padding_multiple": "set vocab_size to the number of rows of the embeddings",
    "scale_embeddings": "set embedding_scale to sqrt(hidden_size), or to 1",
    "hf_config": "leave it out",
}

# Features that this model lacks, and the value that says so.
LACKING: dict[str, Any] = {
    "add_cross_attention": False,
    "reorder_and_upcast_attn": False,
    "pretraining_tp": 1,
    "summary_type": None,
    "summary_use_proj": None,
    "summary_activation": None,
    "summary_proj_to_labels": None,
    "summary_first_dropout": None,
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "latent_attention": None,
    "norm_1": True,
    "norm_2": True,
    "norm_qk_type": "default",
    "post_attention_norm": False,
    "post_mlp_norm": False,
    "rope_indices": None,
    "rope_local_base_freq": None,
}

# Fields that earlier versions did not save, and the values that their models have.
UNSAVED = {"embedding_scale": 1.0}

OTHER_NAMES = {*FIELD_OF, *CONVERTED, *ROPE_NAMES, *REFUSED, *LACKING}


def to_fields(given: Mapping[str, Any], rope: Fields | None = None) -> Fields:
    """Returns keyword arguments under the names of the fields of GPTConfig; unknown ones are unchanged.

    Args:
        given: keyword arguments. Numbers of numpy become numbers of Python.
        rope: the present `rope_parameters`, which entries like `rope_theta` change.

    Raises:
        ValueError: a name has no single field, or two names give one field different values. The message has the right
            names.
    """
    given = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
    for name, value in given.items():
        if name in REFUSED:
            raise ValueError(f"{name}={shown(value)} is not a field of GPTConfig: {REFUSED[name]}")
        if name in LACKING and value != LACKING[name]:
            raise ValueError(f"{name}={shown(value)}: this model has no such feature, expected {LACKING[name]!r}")
    fields = _collect(
        (name, field, translated)
        for name, value in given.items()
        if name not in ROPE_NAMES
        for field, translated in _translate(name, value).items()
    )
    if not given.keys().isdisjoint({"rope_parameters", *ROPE_NAMES}):
        fields["rope_parameters"] = _merge_rope(given, rope)
    return fields


def saved_fields(stored: Mapping[str, Any]) -> Fields:
    """As `to_fields`, for a configuration that may have been saved. There the fields are complete, but for those of
    `UNSAVED`, and other names beside them had no effect on the model: they are ignored, with a warning."""
    if not is_saved(stored):
        return to_fields(stored)
    rope, has_rope = stored.get("rope_parameters"), stored["position_embedding_type"] == "rope"
    effective = set() if not has_rope else {"rope_scaling"} if rope else ROPE_NAMES
    kept = UNSAVED | dict(stored)
    for name, value in stored.items():
        is_true = name in LACKING and value == LACKING[name]
        if name not in OTHER_NAMES or is_true or (name in effective and value is not None):
            continue
        del kept[name]
        if value is not None:
            logger.warning(f"{name}={shown(value)} had no effect when this configuration was saved, and is ignored")
    if "rope_scaling" in kept:
        kept.pop("rope_parameters", None)
    return to_fields(kept, rope)


def is_saved(stored: Mapping[str, Any]) -> bool:
    """True for what `save_pretrained` or `to_dict` wrote: all fields are there."""
    return stored.keys() >= {"transformers_version", "position_embedding_type"}


def accept_other_names(cls: type) -> type:
    """Decorates a class whose constructor takes fields: it takes their other names too."""
    construct = cls.__init__

    @wraps(construct)
    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        if "self" in kwargs:  # the constructor of the base class has the name
            raise ValueError(f"self={shown(kwargs['self'])} is not a field of GPTConfig: leave it out")
        construct(self, *args, **to_fields(kwargs))

    cls.__init__ = __init__
    return cls


def _translate(name: str, value: Any) -> Fields:
    if name not in CONVERTED:
        return {FIELD_OF.get(name, name): value}
    try:
        return CONVERTED[name](value)
    except (TypeError, ArithmeticError):
        raise ValueError(f"{name}={shown(value)} has no meaning here") from None


def _collect(given: Iterable[tuple[str, str, Any]]) -> Fields:
    """Returns values by field from triples of a name, its field and the value."""
    fields, names = {}, {}
    for name, field, value in given:
        if field in fields and fields[field] != value:
            raise ValueError(
                f"{name}={shown(value)} contradicts {names[field]}={shown(fields[field])}: give one of the two"
            )
        fields[field], names[field] = value, name
    return fields


def _merge_rope(given: Mapping[str, Any], present: Fields | None) -> Any:
    """Returns `rope_parameters`: the given ones, or the present ones with the given entries. `rope_scaling` replaces
    all that belongs to the type."""
    whole, scaling = given.get("rope_parameters"), given.get("rope_scaling")
    for name, value in {"rope_parameters": whole, "rope_scaling": scaling}.items():
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{name}={shown(value)}: expected a flat dict or None")
    if "rope_parameters" in given:
        present = None
    elif "rope_scaling" in given:
        present = {name: value for name, value in (present or {}).items() if name in ROPE_ENTRIES}
    changes = _collect(
        [
            *(
                (f"{name}[{shown(key)}]", "rope_type" if key == "type" else key, value)  # `type` is the old spelling
                for name, entries in (("rope_parameters", whole), ("rope_scaling", scaling))
                for key, value in (entries or {}).items()
            ),
            *((name, entry, given[name]) for name, entry in ROPE_ENTRIES.items() if name in given),
        ]
    )
    merged = (present or {}) | changes
    merged = {name: value for name, value in merged.items() if value is not None or name not in ROPE_ENTRIES}
    return DEFAULT_ROPE | merged if merged else None
