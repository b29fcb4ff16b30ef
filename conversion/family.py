"""What a family is: the tables that translate its configuration and its weights to hf_gpt and back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from transformers.utils import logging

from ..model.configuration_gpt import GPTConfig
from ..model.feed_forward import SAME_FUNCTION
from ..model.remote_code import without_code
from .storage import Fields, Storage
from .weights import Rule

logger = logging.get_logger(__name__)


def same(*names: str) -> dict[str, str]:
    """Returns `Family.fields` of names that are those of GPTConfig."""
    return {name: name for name in names}


TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
COMMON = same("vocab_size", "tie_word_embeddings", *TOKEN_IDS)  # the fields of every class of transformers

# Fields of GPTConfig that change training or the defaults of a call, not what a trained model computes.
NOT_ARCHITECTURE = {
    "embedding_dropout",
    "residual_dropout",
    "attention_dropout",
    "classifier_dropout",
    "layerdrop",
    "initializer_range",
    "use_cache",
    "router_jitter_noise",
    "router_aux_loss_coef",
    "router_aux_loss_type",
    "router_z_loss_coef",
    "output_router_logits",
}


@dataclass(frozen=True)
class Family:
    """A native architecture. Everything that is particular about it is declared here, for both directions.

    Nothing is dropped silently: a configuration is translated, translated back and compared. A field that does not
    come back is a feature that the other side lacks, and raises an error that names the field.
    """

    storage: Storage
    """How a model is stored in a folder."""
    fields: Mapping[str, str]
    """Native names of fields that are copied, and their names in GPTConfig."""
    layouts: tuple[tuple[Rule, ...], ...]
    """The forms in which the weights are stored. All of them are read, the first one is written."""
    constants: Mapping[str, Any]
    """Fields of GPTConfig that are the same for every model of the family."""
    read: Callable[[Fields], Fields] = lambda native: {}
    """Returns the fields of GPTConfig that are not copied."""
    write: Callable[[GPTConfig], Fields] = lambda config: {}
    """Returns the native fields that are not copied."""
    canonical: Callable[[Fields], Fields] = lambda native: native
    """Returns the native fields in one form, where several forms mean the same, or a value has no effect."""
    passthrough: frozenset[str] = frozenset()
    """Native fields without effect on a language model: stored in `native_fields` and exported unchanged."""
    base_model_prefix: str = ""
    """Prefix of all names but those of the head. It is absent where the decoder alone was saved."""
    computed: tuple[str, ...] = ()
    """Endings of the names of tensors that earlier checkpoints contain and the class computes: masks, RoPE tables."""

    @property
    def name(self) -> str:
        """The name by which `find_family` and the command line know the family."""
        return self.storage.name

    @property
    def head_modules(self) -> set[str]:
        """Names of the modules outside the base model."""
        native = {name for layout in self.layouts for rule in layout for name in rule.native}
        return {name.split(".")[0] for name in native if not name.startswith(self.base_model_prefix)}

    def from_native(self, native: Fields, extras: Fields | None = None) -> GPTConfig:
        """Returns the configuration of hf_gpt for a native one.

        Args:
            native: every field that the family declares.
            extras: other content of its config.json, stored in `native_fields`.

        Raises:
            ValueError: hf_gpt cannot express a field. The message names it.
        """
        canonical = self._canonical(native)
        config = self._read(canonical)
        written = self._write(config)
        restored = self._canonical(written)
        for name, value in canonical.items():
            if name not in self.passthrough and restored.get(name) != value:
                raise ValueError(f"{name}={value!r} of this {self.name} model cannot be expressed by hf_gpt")
        different = {name: native[name] for name in native if name in canonical and native[name] != written.get(name)}
        config.native_fields = {"model_type": self.name, **without_code({**different, **(extras or {})})}
        return config

    def to_native(self, config: GPTConfig) -> Fields:
        """Returns the native configuration, with what `native_fields` preserves of an earlier one.

        Raises:
            ValueError: the family cannot express a field. The message names it.
        """
        native = self._write(config)
        restored = self._read(self._canonical(native))
        for field in fields(GPTConfig):
            value, other = getattr(config, field.name, None), getattr(restored, field.name, None)
            if "rule" not in field.metadata or field.name == "native_fields":
                continue
            if _meaning(field.name, value, config) == _meaning(field.name, other, restored):
                continue
            if field.name not in NOT_ARCHITECTURE:
                raise ValueError(f"{field.name}={value!r} cannot be expressed by {self.name}, which has {other!r}")
            logger.warning(f"{self.name} has no {field.name}={value!r}: left out; the model computes the same")
        preserved = without_code(config.native_fields or {})
        if preserved.pop("model_type", None) == self.name:
            for name, value in preserved.items():
                same = name not in native or self._canonical(native | {name: value}) == self._canonical(native)
                if same:  # the model did not change since the conversion
                    native[name] = value
        return native

    def _read(self, native: Fields) -> GPTConfig:
        copies = {ours: native[name] for name, ours in self.fields.items()}
        try:
            return GPTConfig(**{**self.constants, **copies, **self.read(native)})
        except ValueError as error:
            raise ValueError(f"{self._with_native_name(str(error))} (a {self.name} configuration)") from None

    def _write(self, config: GPTConfig) -> Fields:
        return {name: getattr(config, ours, None) for name, ours in self.fields.items()} | self.write(config)

    def _canonical(self, native: Fields) -> Fields:
        """As `canonical`, and without token ids outside the vocabulary, which never occur."""
        token_ids = {name: _within(native[name], native["vocab_size"]) for name in TOKEN_IDS if name in native}
        return self.canonical(native | token_ids)

    def _with_native_name(self, message: str) -> str:
        for name, ours in self.fields.items():
            if message.startswith((f"{ours}=", f"{ours}:")):
                return name + message.removeprefix(ours)
        return message


def _within(token_id: int | list[int] | None, vocab_size: int) -> int | list[int] | None:
    if isinstance(token_id, list):
        return [each for each in token_id if 0 <= each < vocab_size] or None
    return token_id if token_id is not None and 0 <= token_id < vocab_size else None


def _meaning(name: str, value: Any, config: GPTConfig) -> Any:
    """Returns a value of GPTConfig in a form in which equal values mean the same."""
    if name == "hidden_act":
        return SAME_FUNCTION.get(value, value)
    if name == "attention_scale":
        return value or config.head_dim**-0.5
    if name == "rope_parameters" and value is not None:
        return value | {"partial_rotary_factor": config.rotary_dim}
    return value
