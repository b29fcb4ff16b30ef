"""What a family is: the tables by which its configuration and its weights become ours, and go back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from transformers.utils import logging

from ..model.configuration_gpt import GPTConfig
from ..model.feed_forward import SAME_FUNCTION
from .storage import Fields, Storage
from .weights import Rule

logger = logging.get_logger(__name__)

TOKEN_IDS = {name: name for name in ("pad_token_id", "bos_token_id", "eos_token_id")}

# Our fields that only training or the defaults of a call know of: a family without them computes the same.
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
    """A native architecture beside ours. Everything that sets it apart is data, read in both directions.

    Nothing is dropped: a configuration is translated, translated back and compared. What does not come back is a
    feature that the other side lacks, and is refused by its name.
    """

    name: str
    """`model_type` in its config.json."""
    storage: Storage
    """How it lies in a folder."""
    fields: Mapping[str, str]
    """Native fields that are ours by another name."""
    layouts: tuple[tuple[Rule, ...], ...]
    """The forms in which its weights are stored. All are read, the first is written."""
    constants: Mapping[str, Any]
    """What is the same in all its members, in our fields."""
    read: Callable[[Fields], Fields] = lambda native: {}
    """Our fields that are no copies, from the native ones."""
    write: Callable[[GPTConfig], Fields] = lambda config: {}
    """Native fields that are no copies, from ours."""
    canonical: Callable[[Fields], Fields] = lambda native: native
    """One way to say it, where the native configuration has several, or says what has no effect."""
    aside: frozenset[str] = frozenset()
    """Native fields without a bearing on the language model: kept, and given back."""
    bare_prefix: str = ""
    """What names begin with, and lack where only the decoder without its head was saved."""

    def to_ours(self, native: Fields, extras: Fields | None = None) -> GPTConfig:
        """Our configuration for a native one.

        Args:
            native: every field that the family declares.
            extras: what else its config.json holds.

        Raises:
            ValueError: a field means something that we cannot express. The message names it.
        """
        meant = self._canonical(native)
        config = self._read(meant)
        back = self._write(config)
        meant_back = self._canonical(back)
        for name, value in meant.items():
            if name not in self.aside and meant_back.get(name) != value:
                raise ValueError(f"{name}={value!r} in the configuration of this {self.name} has no equal in hf_gpt")
        said = {name: value for name, value in native.items() if name in meant}
        said_otherwise = {name: value for name, value in said.items() if back.get(name) != value}
        config.native_fields = {"model_type": self.name, **said_otherwise, **(extras or {})}
        return config

    def to_native(self, config: GPTConfig) -> Fields:
        """The native configuration for one of ours, with what a conversion from this family kept aside.

        Raises:
            ValueError: a field means something that the family cannot express. The message names it.
        """
        native = self._write(config)
        back = self._read(self._canonical(native))
        for field in fields(GPTConfig):
            ours, theirs = getattr(config, field.name, None), getattr(back, field.name, None)
            if "rule" not in field.metadata or field.name == "native_fields":
                continue
            if _meaning(field.name, ours, config) == _meaning(field.name, theirs, back):
                continue
            if field.name not in NOT_ARCHITECTURE:
                raise ValueError(f"{field.name}={ours!r} cannot be expressed by {self.name}, which has {theirs!r}")
            logger.warning(f"{self.name} has no {field.name}={ours!r}: left out; the model computes the same")
        kept = dict(config.native_fields or {})
        if kept.pop("model_type", None) == self.name:
            for name, value in kept.items():
                unchanged = name not in native or self._canonical(native | {name: value}) == self._canonical(native)
                if unchanged:  # since the conversion
                    native[name] = value
        return native

    def _read(self, native: Fields) -> GPTConfig:
        copies = {ours: native[name] for name, ours in self.fields.items()}
        try:
            return GPTConfig(**{**self.constants, **copies, **self.read(native)})
        except ValueError as error:
            raise ValueError(f"{self._in_native_words(str(error))} (a {self.name} configuration)") from None

    def _write(self, config: GPTConfig) -> Fields:
        return {name: getattr(config, ours, None) for name, ours in self.fields.items()} | self.write(config)

    def _canonical(self, native: Fields) -> Fields:
        """Also without token ids outside the vocabulary: they never occur; and without what only ours heeds."""
        none_beyond = {name: _within(native[name], native["vocab_size"]) for name in TOKEN_IDS if name in native}
        heeded = {"rope_parameters": _heeded(rope)} if (rope := native.get("rope_parameters")) else {}
        return self.canonical({**native, **none_beyond, **heeded})

    def _in_native_words(self, message: str) -> str:
        for name, ours in self.fields.items():
            if message.startswith((f"{ours}=", f"{ours}:")):
                return name + message.removeprefix(ours)
        return message


def _within(token_id: int | list[int] | None, vocab_size: int) -> int | list[int] | None:
    if isinstance(token_id, list):
        return [each for each in token_id if 0 <= each < vocab_size] or None
    return token_id if token_id is not None and 0 <= token_id < vocab_size else None


def _heeded(rope: Fields) -> Fields:
    """What the native classes read: with dynamic scaling, `max_position_embeddings` is the original length there."""
    idle = "original_max_position_embeddings" if rope.get("rope_type") == "dynamic" else None
    return {name: value for name, value in rope.items() if name != idle}


def _meaning(name: str, value: Any, config: GPTConfig) -> Any:
    """A value of ours, so that equal values mean the same."""
    if name == "hidden_act":
        return SAME_FUNCTION.get(value, value)
    if name == "attention_scale":
        return value or config.head_dim**-0.5
    if name == "rope_parameters" and value is not None:
        return value | {"partial_rotary_factor": config.rotary_dim}
    return value
