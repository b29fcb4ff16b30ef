"""Tiny native models of every family, and the contents of their folders."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from native_families import NATIVE, Draw
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_gpt.conversion import convert


def native_config(family: str, seed: int = 0, **fields) -> PreTrainedConfig:
    """Returns a random configuration with some fields set."""
    return CONFIG_MAPPING[family](**{**NATIVE[family].draw(Draw(f"{family} {seed}")), **fields})


def native_model(family: str, seed: int = 0, **fields) -> PreTrainedModel:
    """Returns a model in evaluation mode, with weights so large that every part affects the logits."""
    set_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(native_config(family, seed, **fields), dtype=torch.float32)
    enlarge_weights(model)
    model.set_experts_implementation("eager")  # the others raise for odd sizes
    return model.eval()


@torch.no_grad()
def enlarge_weights(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.2)


def save_native(folder: Path, family: str, seed: int = 0, **fields) -> PreTrainedModel:
    """Saves a `native_model` and returns it."""
    model = native_model(family, seed, **fields)
    model.save_pretrained(folder)
    return model


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Returns all tensors in the safetensors of a folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def replace_tensors(folder: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    """Replaces, adds, or (None) removes tensors in a folder with one weight file."""
    stored = load_file(folder / "model.safetensors") | tensors
    stored = {name: tensor for name, tensor in stored.items() if tensor is not None}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})


def rename_tensors(folder: Path, new_name) -> None:
    """Replaces every name in a folder with one weight file."""
    stored = load_file(folder / "model.safetensors")
    renamed = {new_name(name): tensor for name, tensor in stored.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


def read_config(folder: Path) -> dict:
    """Returns the content of config.json."""
    return json.loads((folder / "config.json").read_text())


def update_config(folder: Path, fields: dict) -> None:
    """Sets fields in config.json."""
    (folder / "config.json").write_text(json.dumps(read_config(folder) | fields))


def assert_close(actual, expected):
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def assert_same_bits(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name].view(torch.uint8), tensor.view(torch.uint8)), name


def read_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_convert_raises(
    folder: Path, message: str, error: type[Exception] | tuple[type[Exception], ...] = ValueError
) -> None:
    """Conversion raises, does not change its source, and leaves no output."""
    before, out = read_files(folder), folder.with_name("ours")
    with pytest.raises(error, match=message):
        convert(folder, out)
    assert read_files(folder) == before
    assert not out.exists()
    assert not list(out.parent.glob("*.partial"))
