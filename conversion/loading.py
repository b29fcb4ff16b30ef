"""Loads language models for commands. Every weight of the result comes from the checkpoint and is finite.

transformers draws missing tensors at random and warns.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME
from transformers.utils.quantization_config import QuantizationMethod

from ..json_files import read_json
from ..model.configuration_gpt import GPTConfig
from ..model.remote_code import refuse_kernels
from .checkpoints import Checkpoint, is_finite, open_safetensors, weight_files
from .engine import NamedTensors, check, model_tensors, raise_for, read_model
from .sources import locate


def load_model(source: str | Path, **options: Any) -> PreTrainedModel:
    """Returns a language model of hf_gpt or of transformers.

    All weights are read once to find NaN and infinity, as they are to decode one token.

    Args:
        source: folder or Hub id of a model, or of an adapter of PEFT.
        options: of `from_pretrained`, such as `dtype`.

    Raises:
        ValueError: a tensor is missing, or not finite; or a tensor of a model of hf_gpt has another name, shape or type
            than its configuration requires. The message names the tensor and the folder.
        OSError: a file is missing or damaged.
    """
    folder = locate(source)
    base = _base_of(folder)
    stored = read_json(base / CONFIG_NAME)
    refuse_kernels(stored)
    if stored.get("model_type") == GPTConfig.model_type:
        check_tensors(base)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, trust_remote_code=False, **options
    )
    raise_for(sorted(report["missing_keys"]), folder, "is missing")
    tensors = model.state_dict().items()
    not_finite = [name for name, tensor in tensors if not all(map(is_finite, _parts_of(tensor)))]
    raise_for(not_finite, folder, "contains NaN or infinity")
    return model


def check_tensors(folder: Path) -> None:
    """Compares the headers of the weight files of a language model of hf_gpt with its configuration.

    Raises:
        ValueError: a tensor is missing, or has another name, shape or type. Quantized tensors are checked if their
            classes are in `STORED_PARTS`.
        OSError: a file is missing or damaged.
    """
    config = GPTConfig.from_pretrained(folder)
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        read_model(folder)
    elif quantization.get("quant_method") == QuantizationMethod.TORCHAO:
        quantized, expected = _quantized_tensors(folder), model_tensors(config)
        if all(tensor.kind in STORED_PARTS for tensor in quantized.values()):
            for name in quantized.keys() & expected.keys():
                if expected[name].ndim == 2:  # others are not quantized
                    expected |= _stored(name, expected.pop(name), quantized[name])
            check(Checkpoint(folder), expected)


def _base_of(folder: Path) -> Path:
    """Returns the folder of the model: the base model if a folder only contains an adapter."""
    if (folder / CONFIG_NAME).is_file() or not (folder / ADAPTER_CONFIG_NAME).is_file():
        return folder
    base = read_json(folder / ADAPTER_CONFIG_NAME).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{folder / ADAPTER_CONFIG_NAME} names no model: expected base_model_name_or_path")
    return locate(base)


# --- tensors of torchao -------------------------------------------------------------------------------------------


def _int8_parts(weight: torch.Tensor, blocks: list[int]) -> NamedTensors:
    integer = torch.int8
    return {
        "qdata": weight.to(integer),
        "scale": weight.new_empty(blocks),
        "zero_point": weight.new_empty(blocks, dtype=integer),
    }


def _int4_parts(weight: torch.Tensor, blocks: list[int]) -> NamedTensors:
    rows, columns = weight.shape
    return {
        "qdata": weight.new_empty(rows, columns // 2, dtype=torch.int8),  # two numbers in a byte
        "scale": weight.new_empty(blocks[::-1]),
        "zero_point": weight.new_empty(blocks[::-1]),
    }


# By the class of a tensor: its parts in a file, from the weight and the number of blocks along each dimension.
STORED_PARTS: dict[str, Callable[[torch.Tensor, list[int]], NamedTensors]] = {
    "Int8Tensor": _int8_parts,
    "Int4Tensor": _int4_parts,
}


class _Quantized(NamedTuple):
    """What torchao describes of a quantized tensor."""

    kind: str
    """Its class."""
    block: tuple[int, ...]
    """Size of the blocks that share a scale."""


def _quantized_tensors(folder: Path) -> dict[str, _Quantized]:
    """Returns the quantized tensors that are described in the metadata of the files."""
    metadata = {}
    for file in weight_files(folder):
        with open_safetensors(file) as opened:
            metadata |= opened.metadata() or {}
    described = {name: text for name, text in metadata.items() if '"_tensor_data_names"' in text}
    try:
        return {name: _parse(text) for name, text in described.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder} describes a quantized tensor as torchao does not: {error}") from None


def _parse(description: str) -> _Quantized:
    content = json.loads(description)
    kind, block = content["_type"], tuple(content["_data"].get("block_size", ()))
    if kind in STORED_PARTS and not (len(block) == 2 and all(type(size) is int and size > 0 for size in block)):
        raise ValueError(f"block_size={block}")
    return _Quantized(kind, block)


def _stored(name: str, weight: torch.Tensor, quantized: _Quantized) -> NamedTensors:
    """Returns the parts of a quantized matrix by their names in a file."""
    module, _, tensor = name.rpartition(".")
    blocks = [size // step for size, step in zip(weight.shape, quantized.block, strict=True)]
    parts = STORED_PARTS[quantized.kind](weight, blocks)
    return {f"{module}._{tensor}_{part}": stored for part, stored in parts.items()}


def _parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Returns the plain tensors of a quantized tensor, or the tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
