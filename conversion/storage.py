"""How a native model lies in its folder: `config.json` and weights, as transformers writes them."""

import json
from dataclasses import fields as declared
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import CONFIG_NAME

from .checkpoints import Checkpoint, Track, Weights, write_shards

Fields = dict[str, Any]

# Written anew, absorbed by `rope_parameters` or `attention_types`, or, as what names code to run, never handed on.
NOT_KEPT = {
    *("model_type", "architectures", "dtype", "torch_dtype", "transformers_version"),
    *("rope_scaling", "rope_theta", "partial_rotary_factor", "rotary_pct", "rotary_emb_base"),
    *("original_max_position_embeddings", "attention_layers"),
    *("auto_map", "quantization_config", "_name_or_path", "_commit_hash"),
}


def read_json(file: Path) -> Fields:
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object")
    return content


class Storage:
    """A family of transformers, by its `model_type`."""

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type

    def read_fields(self, folder: Path) -> tuple[Fields, Fields]:
        """Every field that the native class declares, defaults filled in; and what else config.json holds."""
        stored = read_json(folder / CONFIG_NAME)
        quantised = stored.get("quantization_config")
        if quantised is not None and quantised.get("quant_method") != "mxfp4":
            method = quantised.get("quant_method")
            raise ValueError(f"quantization_config: weights quantised by {method} cannot be converted")
        native = CONFIG_MAPPING[self.model_type]
        try:
            config = native.from_dict({name: value for name, value in stored.items() if name != "quantization_config"})
        except (StrictDataclassError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / CONFIG_NAME} is no configuration of {self.model_type}: {error}") from None
        common = {field.name for field in declared(PreTrainedConfig)}
        values = {field.name: getattr(config, field.name) for field in declared(native) if field.name not in common}
        values |= {name: getattr(config, name) for name in ("attention_layers",) if hasattr(config, name)}
        if values.get("rope_parameters"):
            config.standardize_rope_params()  # as every model does: a field beside them may have a say
            values["rope_parameters"] = {n: value for n, value in config.rope_parameters.items() if n != "type"}
        known = {*values, *NOT_KEPT, *native.attribute_map}
        return values, {name: value for name, value in stored.items() if name not in known}

    def open(self, folder: Path) -> Checkpoint:
        return Checkpoint(folder)

    def write(self, folder: Path, fields: Fields, weights: Weights, max_shard_size: int | str, track: Track) -> None:
        write_shards(folder, weights, max_shard_size, track)
        kept = {name: value for name, value in fields.items() if name not in NOT_KEPT}
        config = CONFIG_MAPPING[self.model_type].from_dict(kept)
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.model_type]]
        config.dtype = weights.dtype
        config.save_pretrained(folder)

    def load(self, folder: Path) -> PreTrainedModel:
        """The native model itself, in float32, for comparison."""
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
