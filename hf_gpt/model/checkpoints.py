"""Loading and saving of checkpoints: clear errors for broken or foreign ones, and quantized weights."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from .configuration_gpt import GPTConfig
from .quantized_weights import install_kernels

NEEDS_TORCHAO = "quantized weights need torchao: pip install 'hf_gpt[quant]'"


class CheckpointFiles:
    """The part of a model class that loads and saves checkpoints."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a checkpoint, as in the base class.

        Raises:
            OSError: a weight file is missing or truncated.
            ValueError: the checkpoint has another architecture; or it is quantized, and `quantization_config` asks to
                quantize it again.
            ImportError: the checkpoint is quantized by torchao, which is not installed.
        """
        if kwargs.get("config") is not None and (Path(pretrained_model_name_or_path or "") / "config.json").is_file():
            cls.config_class.get_config_dict(pretrained_model_name_or_path)  # raises for another architecture
        if kwargs.get("quantization_config") is not None:
            refuse_quantized(kwargs.get("config") or cls.config_class.from_pretrained(pretrained_model_name_or_path))
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("torchao"):
                raise ImportError(NEEDS_TORCHAO) from None
            raise
        except SafetensorError as error:
            file = damaged_file(pretrained_model_name_or_path)
            raise OSError(f"{file} is truncated or damaged: {error}") from None
        install_kernels(loaded[0] if isinstance(loaded, tuple) else loaded)  # a tuple with output_loading_info
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Save weights, configuration and code, as in the base class."""
        self._keys_to_ignore_on_save = tied_quantized_parts(self)
        if getattr(self, "hf_quantizer", None) is not None:
            kwargs["save_original_format"] = False  # transformers cannot restore the original format after loading
        super().save_pretrained(save_directory, *args, **kwargs)


def refuse_quantized(config: GPTConfig) -> None:
    """Raises a ValueError if the weights are quantized."""
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("quantization_config: the model is quantized already, expected the original model")


def tied_quantized_parts(model: PreTrainedModel) -> list[str]:
    """Returns the names of the tensors in which quantized, tied weights would be saved a second time.

    torchao copies tied weights; transformers recognizes other tied weights by their memory.
    """
    names = []
    for tied, source in model.all_tied_weights_keys.items():
        module, _, name = tied.rpartition(".")
        weight = model.get_parameter(source)
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
