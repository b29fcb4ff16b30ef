"""The allowed values of the fields that every configuration of transformers has, and of attributes beside the fields.

transformers accepts anything there. A wrong type raises where the field is read, in training or at saving.
"""

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import torch
from transformers import PreTrainedConfig

from .field_rules import MOST_UNITS, Rule, is_int, is_json

DTYPES = ("float32", "float64", "float16", "bfloat16")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _is_auto_map(value: Any) -> bool:
    names = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(name, (str, list)) for name in names)


def _is_json_dict(value: Any) -> bool:
    return isinstance(value, dict) and is_json(value)


def _is_dtype(value: Any) -> bool:
    name = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
    return isinstance(name, str) and name in DTYPES


def _is_number_of_labels(value: Any) -> bool:
    return is_int(value) and 0 < value <= MOST_UNITS


def _is_chunk_size(value: Any) -> bool:
    """True for a value that a model may ignore: chunks of the feed-forward layer change its memory alone."""
    return is_int(value) and 0 <= value <= MOST_UNITS


def _is_label_of_index(value: Any) -> bool:
    return _is_json_dict(value) and bool(value) and {*map(str, value)} == {*map(str, range(len(value)))}


def _is_quantization(value: Any) -> bool:
    return hasattr(value, "to_dict") or (_is_json_dict(value) and isinstance(value.get("quant_method"), str))


FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
FLAG_OR_INDICES = Rule(
    lambda value: isinstance(value, bool) or is_int(value) or _is_list_of(int, value),
    "True, False, or the indices of hidden states",
)
DICT = Rule(_is_json_dict, "a dict of JSON")
DTYPE = Rule(_is_dtype, f"one of {', '.join(DTYPES)}")
IMPLEMENTATION = Rule(lambda value: isinstance(value, (str, dict)), "the name of an implementation")
TEXT = Rule(lambda value: isinstance(value, str), "a string")
TEXTS = Rule(lambda value: _is_list_of(str, value), "a list of strings")
LACKING = Rule(lambda value: isinstance(value, (bool, int)) and not value, "nothing, as this model has no such feature")
ABSENT = Rule(lambda value: False, LACKING.expects)

# Fields, private attributes and keywords, and their values beside None.
RULES = {
    "_attn_implementation": IMPLEMENTATION,
    "_experts_implementation": IMPLEMENTATION,
    "_heterogeneity_spec": ABSENT,
    "_output_attentions": FLAG,
    "architectures": TEXTS,
    "attn_implementation": IMPLEMENTATION,
    "auto_map": Rule(_is_auto_map, "a dict of names of classes"),
    "chunk_size_feed_forward": Rule(_is_chunk_size, f"an integer from 0 to {MOST_UNITS}"),
    "derived_fields": TEXTS,
    "dtype": DTYPE,
    "experts_implementation": IMPLEMENTATION,
    "id2label": Rule(_is_label_of_index, "a dict with the keys 0, 1, 2 and so on"),
    "is_encoder_decoder": LACKING,
    "label2id": DICT,
    "name_or_path": Rule(lambda value: isinstance(value, (str, PurePath)), "a string or a path"),
    "model_type": TEXT,
    "num_labels": Rule(_is_number_of_labels, f"an integer from 1 to {MOST_UNITS}"),
    "output_attentions": FLAG,
    "output_hidden_states": FLAG_OR_INDICES,
    "per_layer_config": ABSENT,
    "problem_type": Rule(
        lambda value: isinstance(value, str) and value in PROBLEM_TYPES, f"one of {', '.join(PROBLEM_TYPES)}"
    ),
    "quantization_config": Rule(_is_quantization, "a dict with a quant_method"),
    "return_dict": FLAG,
    "tie_last_hidden_states": FLAG,
    "torch_dtype": DTYPE,
    "transformers_version": TEXT,
}
# Private attributes that keywords set.
KEYWORD_OF = {"_heterogeneity_spec": "per_layer_config", "_output_attentions": "output_attentions"}
# Other attributes.
STORABLE = Rule(lambda value: is_json(value) or hasattr(value, "to_dict"), "a value that config.json can contain")


def check_common_fields(attributes: Mapping[str, Any]) -> None:
    """Checks the attributes of a configuration that are not its own fields. Private ones are those of transformers.

    Raises:
        ValueError: one has an invalid value, or cannot be saved.
    """
    for name, value in attributes.items():
        if value is not None and (name in RULES or not name.startswith("_")):
            RULES.get(name, STORABLE).check(KEYWORD_OF.get(name, name), value)


def check_property(config_class: type[PreTrainedConfig], name: str, value: Any) -> None:
    """Checks a value that is assigned to a property: its setter would make a label for each number, for example.

    Raises:
        ValueError: the value is invalid.
    """
    if isinstance(getattr(config_class, name, None), property):
        check_common_fields({name: value})


# Private attributes that are keywords too. Others, which earlier versions of transformers saved, have no meaning in a
# file.
PRIVATE_KEYWORDS = {"_name_or_path", "_attn_implementation", "_experts_implementation"}


def public_attributes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns keyword arguments without private attributes."""
    return {name: value for name, value in given.items() if name in PRIVATE_KEYWORDS or not name.startswith("_")}


def refuse_members(config_class: type[PreTrainedConfig], names: Iterable[str]) -> None:
    """Raises a ValueError for the name of a method or property of the class, which would replace it."""
    for name in names:
        if hasattr(config_class, name) and name not in RULES:
            raise ValueError(f"{name} is an attribute of the class of a configuration, not a field: leave it out")


def check_keywords(config_class: type[PreTrainedConfig], kwargs: Mapping[str, Any]) -> None:
    """Checks keyword arguments of `from_pretrained`, some of which become attributes.

    Raises:
        ValueError: one has an invalid value, or is the name of a method or property.
    """
    refuse_members(config_class, kwargs)
    check_common_fields({name: kwargs[name] for name in kwargs.keys() & RULES.keys()})
