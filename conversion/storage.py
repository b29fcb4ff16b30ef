"""How a native model is stored in its folder: `config.json` and weight files, as transformers writes them."""

from dataclasses import dataclass
from dataclasses import fields as declared_fields
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import CONFIG_NAME

from ..folders import PartialFolder
from ..json_files import read_json
from ..model.field_rules import MOST_LAYERS
from ..model.remote_code import CODE_ENTRIES, IMPLEMENTATION_ENTRIES, refuse_kernels
from .checkpoints import Checkpoint, Track, Weights, write_shards

Fields = dict[str, Any]

# Fields of config.json that are not copied: rewritten, replaced by `rope_parameters`, describing quantized weights or
# the origin, or naming code to run.
NOT_COPIED = {
    *("model_type", "architectures", "dtype", "torch_dtype", "transformers_version"),
    *("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"),
    *("quantization_config", "_name_or_path", "_commit_hash"),
    *(*CODE_ENTRIES, *IMPLEMENTATION_ENTRIES),
}

LAYER_COUNTS = {"num_hidden_layers", "n_layer", "num_layers", "n_layers"}  # native classes make lists of this length
REASON_CHARACTERS = 300  # of an error of transformers, which repeats the value


@dataclass(frozen=True)
class Storage:
    """The folder of a model of transformers."""

    name: str
    """Name of the family: the `model_type` of its class in transformers."""
    attributes: tuple[str, ...] = ()
    """Attributes of the native configuration that are not fields, but that config.json contains and the class reads."""
    replaced: tuple[str, ...] = ()
    """Earlier fields of config.json that the native class replaces by others."""
    quantization: str | None = None
    """The `quant_method` of quantized weights that one of the family's layouts dequantizes."""

    file: ClassVar[str] = CONFIG_NAME
    """The file by which a folder is recognized."""

    def recognizes(self, folder: Path, stored: Fields | None) -> bool:
        """True if a folder contains a model of this family.

        Args:
            stored: the content of its config.json, None without one.
        """
        return stored is not None and stored.get("model_type") == self.name

    def read_fields(self, folder: Path) -> tuple[Fields, Fields]:
        """Returns every field that the native class declares, with defaults, and what else config.json contains.

        Raises:
            ValueError: config.json is not valid, names code in a repository, or describes weights in a quantization
                that is not read.
        """
        stored = read_json(folder / CONFIG_NAME)
        refuse_kernels(stored)
        if (quantization := stored.pop("quantization_config", None)) is not None:
            method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
            if method is None or method != self.quantization:
                raise ValueError(f"quantization_config: weights quantized by {method} cannot be converted")
        native = CONFIG_MAPPING[self.name]
        for name in LAYER_COUNTS & stored.keys():
            if isinstance(stored[name], int) and stored[name] > MOST_LAYERS:
                raise ValueError(f"{name}={stored[name]}: expected at most {MOST_LAYERS}")
        try:
            config = native.from_dict(dict(stored))
        except (StrictDataclassError, KeyError, TypeError) as error:
            reason = shorten(str(error), REASON_CHARACTERS, placeholder="...")
            raise ValueError(f"{folder / CONFIG_NAME} is not a configuration of {self.name}: {reason}") from None
        common = {field.name for field in declared_fields(PreTrainedConfig)}
        own = [field.name for field in declared_fields(native) if field.name not in common]
        values = {name: getattr(config, name) for name in (*own, *self.attributes)}
        if values.get("rope_parameters"):
            config.standardize_rope_params()  # as every model does: merges the fields beside `rope_parameters`
            values["rope_parameters"] = {n: value for n, value in config.rope_parameters.items() if n != "type"}
        known = {*values, *NOT_COPIED, *self.replaced, *native.attribute_map}
        return values, {name: value for name, value in stored.items() if name not in known}

    def open(self, folder: Path) -> Checkpoint:
        """Returns the tensors of a folder."""
        return Checkpoint(folder)

    def write(
        self, folder: PartialFolder, fields: Fields, weights: Weights, max_shard_size: int | str, track: Track
    ) -> None:
        """Writes the weights and the configuration of a native model."""
        write_shards(folder, weights, max_shard_size, track)
        omitted = {*NOT_COPIED, *self.replaced, *self.attributes}
        copied = {name: value for name, value in fields.items() if name not in omitted}
        config = CONFIG_MAPPING[self.name].from_dict(copied)
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.name]]
        config.dtype = weights.dtype
        with folder.writing() as unfinished:
            config.save_pretrained(unfinished)

    def load(self, folder: Path) -> PreTrainedModel:
        """Returns the native model in float32, for comparison."""
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
