"""Extends the context length of a model that has weights: new `rope_parameters`, or a longer table of positions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..model.configuration_gpt import GPTConfig
from ..model.positions import GPTRotaryEmbedding
from ..model.rope_parameters import ROPE_RULES
from .rebuild import Model, ReadWeight, copy_weight, rebuild

Fields = dict[str, Any]


def linear(config: GPTConfig, length: int) -> Fields:
    """Divides all frequencies by the growth (Chen et al. 2023, section 2.3)."""
    return {"factor": config.rope_parameters.get("factor", 1.0) * length / config.max_position_embeddings}


def ntk(config: GPTConfig, length: int, rope_theta: float | None = None) -> Fields:
    """Raises the base, so that the lowest frequency is divided by the growth and the highest does not change (Peng et
    al. 2023, section 3.1)."""
    theta, dim = config.rope_parameters["rope_theta"], config.rotary_dim
    if rope_theta is not None:
        if not ROPE_RULES["rope_theta"].holds(rope_theta) or rope_theta <= theta:
            raise ValueError(f"rope_theta={rope_theta!r}: expected a number above that of the model, {theta}")
        return {"rope_theta": rope_theta}
    if dim < 4:
        raise ValueError(f"method='ntk' with {dim} rotated dimensions: expected at least 4, or a rope_theta")
    return {"rope_theta": theta * (length / config.max_position_embeddings) ** (dim / (dim - 2))}


def dynamic(config: GPTConfig, length: int) -> Fields:
    """Raises the base by the growth of each sequence (Peng et al. 2023, section 3.3). A `factor` of 1 adds no more."""
    return {
        "factor": config.rope_parameters.get("factor", 1.0),
        "original_max_position_embeddings": original_length(config),
    }


def yarn(config: GPTConfig, length: int, **options: Any) -> Fields:
    """Divides low frequencies by the growth, does not change high ones, and scales the attention logits (Peng et al.
    2023, section 3.4). A frequency is high above `beta_fast` rotations over the original length, low below `beta_slow`.
    """
    original = original_length(config)
    return {
        "factor": length / original,
        "original_max_position_embeddings": original,
        "attention_factor": None,
    } | options


def longrope(config: GPTConfig, length: int, **options: Any) -> Fields:
    """Divides each frequency by its own factor: `long_factor` in sequences beyond the original length, `short_factor`
    within it (Ding et al. 2024, section 3). The defaults are the factors of YaRN, and 1."""
    short_factor = config.rope_parameters.get("short_factor", [1.0] * (config.rotary_dim // 2))
    factors = {"short_factor": short_factor, "long_factor": yarn_factors(config, length)}
    return yarn(config, length) | factors | options


def yarn_factors(config: GPTConfig, length: int) -> list[float]:
    """Returns the divisor that YaRN gives each frequency, rotary_dim / 2 numbers."""
    base = {name: config.rope_parameters[name] for name in BASE_FIELDS if name in config.rope_parameters}
    extended = with_positions(config, length, base | yarn(config, length) | {"rope_type": "yarn"})
    frequencies, _ = GPTRotaryEmbedding.compute_default_rope_parameters(extended)
    return (frequencies / ROPE_INIT_FUNCTIONS["yarn"](extended)[0]).tolist()


def original_length(config: GPTConfig) -> int:
    """Returns the context length of the model before its first extension."""
    return config.rope_parameters.get("original_max_position_embeddings", config.max_position_embeddings)


class Method(NamedTuple):
    """A method of extending rotary positions."""

    extend: Callable[..., Fields]
    """Returns the fields of `rope_parameters` that change, from a configuration, a length and the options."""
    rope_type: str
    """The type of the result. The method applies to models without scaling and to models of this type."""
    options: tuple[str, ...] = ()


BASE_FIELDS = ("rope_theta", "partial_rotary_factor")
YARN_OPTIONS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
METHODS = {
    "linear": Method(linear, "linear"),
    "ntk": Method(ntk, "default", ("rope_theta",)),
    "dynamic": Method(dynamic, "dynamic"),
    "yarn": Method(yarn, "yarn", YARN_OPTIONS),
    "longrope": Method(longrope, "longrope", ("short_factor", "long_factor", "attention_factor")),
}
# The methods for each position_embedding_type. Those without a method have no length limit.
APPLICABLE = {"rope": tuple(METHODS), "learned": ("linear",), "sinusoidal": (), "none": ()}


def extend_context(model: Model, length: int, method: str = "yarn", **options: Any) -> Model:
    """Returns a copy of a model with a longer context, to use unchanged or to fine-tune.

        long = extend_context(model, 4096, "yarn")

    | method | change, for a growth of `length / max_position_embeddings` | options |
    |---|---|---|
    | `linear` | RoPE: divides all frequencies by the growth. Learned positions: interpolates the table (Chen et al. \
2023) | |
    | `ntk` | raises the base by growth^(d / (d - 2)), or to `rope_theta` (Peng et al. 2023) | `rope_theta` |
    | `dynamic` | the same by the growth of each sequence: sequences within the old length do not change | |
    | `yarn` | divides only low frequencies by the growth (Peng et al. 2023) | as in `rope_parameters` |
    | `longrope` | divides each frequency by its own factor, that of YaRN by default (Ding et al. 2024) | \
`long_factor`, `short_factor`, `attention_factor` |

    A model that the same method has extended before is extended from its original length. `ntk` only changes the base,
    so any method can follow it. For rotary positions the weights do not change (see `extended_config`).

    Args:
        model: any hf_gpt model that is not quantized.
        length: the new `max_position_embeddings`, in tokens.
        method: a method of the table.
        options: options of the method.

    Raises:
        ValueError: the method or an option is unknown, the positions of the model do not support the method, `length`
            does not exceed that of the model, or another method has scaled the model.
    """
    config = extended_config(model.config, length, method, **options)

    def make_weight(name: str, read: ReadWeight) -> torch.Tensor:
        if name.endswith("embed_positions.weight"):
            return interpolate_positions(read(name), config.position_offset, length)
        return copy_weight(name, read)

    return rebuild(model, config, make_weight)


def extended_config(config: GPTConfig, length: int, method: str = "yarn", **options: Any) -> GPTConfig:
    """Returns the configuration of a longer context. A checkpoint with rotary positions loads with it.

        config = extended_config(GPTConfig.from_pretrained("my-gpt"), 4096, "yarn")
        model = GPTForCausalLM.from_pretrained("my-gpt", config=config)

    Learned positions also require a longer table: `extend_context` makes both.

    Args:
        config: the configuration of the model.
        length, method, options: as in `extend_context`.

    Raises:
        ValueError: as `extend_context`.
    """
    check_method(config, length, method, options)
    if config.position_embedding_type == "learned":
        return with_positions(config, length)
    chosen = METHODS[method]
    rope = config.rope_parameters | chosen.extend(config, length, **options) | {"rope_type": chosen.rope_type}
    return with_positions(config, length, rope)


def interpolate_positions(table: torch.Tensor, offset: int, length: int) -> torch.Tensor:
    """Interpolates a table of learned positions linearly.

    Position p of the new table is at p x L / length in the old one; positions beyond the last row repeat it. The
    `offset` rows before position 0 do not change.

    Args:
        table: learned positions, (offset + L, hidden_size).
        offset: `position_offset` of the configuration.
        length: the new number of positions.

    Returns:
        (offset + length, hidden_size)
    """
    before, rows = table.split([offset, len(table) - offset])
    places = torch.arange(length, device=table.device, dtype=torch.double) * len(rows) / length
    places = places.clamp(max=len(rows) - 1)
    below, above = places.floor().long(), places.ceil().long()
    fraction = (places - below)[:, None].to(rows.dtype)
    return torch.cat((before, rows[below].lerp(rows[above], fraction)))


def with_positions(config: GPTConfig, length: int, rope_parameters: Fields | None = None) -> GPTConfig:
    """Returns a configuration of another length and, unless None, other `rope_parameters`; None in them removes a
    field."""
    fields: Fields = {"max_position_embeddings": length}
    if rope_parameters is not None:
        fields["rope_parameters"] = {name: value for name, value in rope_parameters.items() if value is not None}
    return config.replace(**fields)


def check_method(config: GPTConfig, length: int, method: str, options: Fields) -> None:
    """Checks that a method can extend a model to a length.

    Raises:
        ValueError: it cannot.
    """
    positions, limit = config.position_embedding_type, config.max_position_embeddings
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    if not APPLICABLE[positions]:
        raise ValueError(
            f"method={method!r} does not apply to position_embedding_type={positions!r}, which has no length limit: "
            f"set max_position_embeddings={length} in the configuration"
        )
    if method not in APPLICABLE[positions]:
        raise ValueError(
            f"method={method!r} does not apply to position_embedding_type={positions!r}: expected "
            f"{' or '.join(APPLICABLE[positions])}"
        )
    if isinstance(length, bool) or not isinstance(length, int) or length <= limit:
        raise ValueError(f"length={length!r}: expected an integer above max_position_embeddings={limit}")
    allowed = METHODS[method].options
    if unknown := options.keys() - set(allowed):
        expected = " or ".join(allowed) or "none"
        raise ValueError(f"{min(unknown)} is not an option of method={method!r}: expected {expected}")
    result = METHODS[method].rope_type
    if positions == "rope" and config.rope_parameters["rope_type"] not in ("default", result):
        raise ValueError(
            f"rope_parameters: rope_type={config.rope_parameters['rope_type']!r} is already scaled and method="
            f"{method!r} cannot extend it: expected {' or '.join(dict.fromkeys(('default', result)))}"
        )
