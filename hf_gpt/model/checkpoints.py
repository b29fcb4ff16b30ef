"""Loading and saving of checkpoints: clear errors for broken or foreign ones, and quantized weights."""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from .class_names import auto_map
from .configuration_gpt import GPTConfig
from .quantized_weights import install_kernels
from .remote_code import keep_local_code

NEEDS_TORCHAO = "quantized weights need torchao: pip install 'hf_gpt[quant]'"
ALREADY_QUANTIZED = "quantization_config: the model is quantized already, expected the original model"

# Arguments of `from_pretrained` that say where a checkpoint is.
LOCATION = ("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "gguf_file")


class CheckpointFiles:
    """The part of a model class that loads and saves checkpoints."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a checkpoint, as in the base class.

        Raises:
            OSError: a weight file is missing or truncated.
            ValueError: the checkpoint has another architecture; or it is quantized, and `quantization_config` asks to
                quantize it again; or `quantization_config` has changed no layer.
            ImportError: the checkpoint is quantized by torchao, which is not installed.
        """
        location = {name: kwargs[name] for name in LOCATION if name in kwargs}
        check_architecture(cls.config_class, pretrained_model_name_or_path, kwargs.get("config"), location)
        if kwargs.get("quantization_config") is not None:
            source = kwargs.get("config") or pretrained_model_name_or_path
            if saved_quantization(source, location) is not None:
                raise ValueError(ALREADY_QUANTIZED)
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("torchao"):
                raise ImportError(NEEDS_TORCHAO) from None
            raise
        except SafetensorError as error:
            file = damaged_file(pretrained_model_name_or_path)
            raise OSError(f"{file} is truncated or damaged: {error}") from None
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info
        check_quantized(model)
        install_kernels(model)
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Save weights, configuration and this code, so that each Auto class loads the folder without hf_gpt installed
        (`trust_remote_code=True`). Entries that name code outside of the folder are not saved."""
        keep_local_code(self.config, save_directory)
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **auto_map()}
        if self.can_generate():
            keep_local_code(self.generation_config, save_directory)
        self._keys_to_ignore_on_save = tied_quantized_parts(self)
        if getattr(self, "hf_quantizer", None) is not None:
            kwargs["save_original_format"] = False  # transformers cannot restore the original format after loading
        super().save_pretrained(save_directory, *args, **kwargs)


def check_architecture(
    config_class: type[GPTConfig], checkpoint: str | Path | None, config: Any, location: dict[str, Any]
) -> None:
    """Raises a ValueError if a folder has the weights of another architecture, whatever configuration is passed."""
    if config is None or checkpoint is None:
        return
    if Path(checkpoint, location.get("subfolder") or "", "config.json").is_file():
        config_class.get_config_dict(checkpoint, **location)


def saved_quantization(source: PreTrainedConfig | str | Path | None, location: dict[str, Any]) -> Any:
    """Returns the `quantization_config` of a configuration, or of the config.json of a checkpoint. None if it is not
    quantized, or has no config.json: the folder of an adapter names its base model."""
    if source is None or isinstance(source, PreTrainedConfig):
        return getattr(source, "quantization_config", None)
    try:
        return PreTrainedConfig.get_config_dict(source, **location)[0].get("quantization_config")
    except OSError:  # transformers reports what is missing
        return None


def refuse_quantized(config: GPTConfig) -> None:
    """Raises a ValueError if the weights are quantized."""
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(ALREADY_QUANTIZED)


def check_quantized(model: PreTrainedModel) -> None:
    """Raises a ValueError if the model was loaded with a quantizer and no tensor in it is quantized."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or getattr(quantizer.quantization_config, "dequantize", False):
        return
    if not any(holds_quantized_values(tensor) for tensor in chain(model.parameters(), model.buffers())):
        raise ValueError(
            f"quantization_config={type(quantizer.quantization_config).__name__} has quantized no layer of "
            f"{type(model).__name__}, expected at least one. Either modules_to_not_convert names all of them, or the "
            "quantizer does not find the linear layers of this model"
        )


def holds_quantized_values(tensor: torch.Tensor) -> bool:
    """True for the tensor class of a quantizer, for integers, and for floating-point numbers of less than 16 bits."""
    is_plain = type(tensor).__name__ in ("Tensor", "Parameter", "DTensor")
    return not (is_plain and tensor.is_floating_point() and tensor.element_size() > 1)


def tied_quantized_parts(model: PreTrainedModel) -> list[str]:
    """Returns the names of the tensors in which quantized, tied weights would be saved a second time.

    torchao copies tied weights; transformers recognizes other tied weights by their memory. A weight inside a layer of
    PEFT has another name, and is not tied in this way.
    """
    weights, names = dict(model.named_parameters(remove_duplicate=False)), []
    for tied, source in model.all_tied_weights_keys.items():
        module, _, name = tied.rpartition(".")
        weight = weights.get(source)
        if hasattr(weight, "__tensor_flatten__"):
            names += [f"{module}._{name}_{part}" for part in weight.__tensor_flatten__()[0]]
    return names


def damaged_file(checkpoint: str | Path) -> str:
    """Returns the first weight file of a local folder that cannot be opened, or else the name of the checkpoint."""
    for path in sorted(Path(checkpoint).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            return str(path)
    return str(checkpoint)
