"""A longer context by configuration: what a method of extension makes of `rope_parameters`. The weights stay."""

from collections.abc import Callable
from typing import Any, NamedTuple

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..model.configuration_gpt import ROPE_RULES, GPTConfig
from ..model.positions import GPTRotaryEmbedding

Fields = dict[str, Any]


def linear(config: GPTConfig, length: int) -> Fields:
    """All angles are divided by the growth (Chen et al. 2023, section 2.3)."""
    return {"factor": config.rope_parameters.get("factor", 1.0) * length / config.max_position_embeddings}


def ntk(config: GPTConfig, length: int, rope_theta: float | None = None) -> Fields:
    """The base is raised, so that the slowest angle is divided by the growth and the fastest stays (Peng et al. 2023,
    section 3.1)."""
    theta, dim = config.rope_parameters["rope_theta"], config.rotary_dim
    if rope_theta is not None:
        if not ROPE_RULES["rope_theta"].holds(rope_theta) or rope_theta <= theta:
            raise ValueError(f"rope_theta={rope_theta!r}: expected a number above that of the model, {theta}")
        return {"rope_theta": rope_theta}
    if dim < 4:
        raise ValueError(f"method='ntk' with {dim} rotated dimensions: expected at least 4, or a rope_theta")
    return {"rope_theta": theta * (length / config.max_position_embeddings) ** (dim / (dim - 2))}


def dynamic(config: GPTConfig, length: int) -> Fields:
    """The base is raised by each sequence's own growth (Peng et al. 2023, section 3.3): `factor` 1 says that."""
    return {
        "factor": config.rope_parameters.get("factor", 1.0),
        "original_max_position_embeddings": original_length(config),
    }


def yarn(config: GPTConfig, length: int, **options: Any) -> Fields:
    """Slow angles are divided by the growth, fast ones stay, and attention is sharpened (Peng et al. 2023, section
    3.4). Which are fast follows from `beta_fast` and `beta_slow`, by how often they turn in the original length."""
    original = original_length(config)
    return {
        "factor": length / original,
        "original_max_position_embeddings": original,
        "attention_factor": None,
    } | options


def longrope(config: GPTConfig, length: int, **options: Any) -> Fields:
    """Each angle is divided by a number of its own, `long_factor`, in a sequence beyond the original length, and by
    `short_factor` in one within it (Ding et al. 2024, section 3). Where nobody has searched for them, they are YaRN's
    and 1."""
    short_factor = config.rope_parameters.get("short_factor", [1.0] * (config.rotary_dim // 2))
    factors = {"short_factor": short_factor, "long_factor": yarn_factors(config, length)}
    return yarn(config, length) | factors | options


def yarn_factors(config: GPTConfig, length: int) -> list[float]:
    """What YaRN divides each angle by."""
    base = {name: config.rope_parameters[name] for name in BASE if name in config.rope_parameters}
    stretched = with_positions(config, length, base | yarn(config, length) | {"rope_type": "yarn"})
    plain, _ = GPTRotaryEmbedding.compute_default_rope_parameters(stretched)
    return (plain / ROPE_INIT_FUNCTIONS["yarn"](stretched)[0]).tolist()


def original_length(config: GPTConfig) -> int:
    """What the model was trained for before it was extended."""
    return config.rope_parameters.get("original_max_position_embeddings", config.max_position_embeddings)


class Method(NamedTuple):
    """One way to extend."""

    extend: Callable[..., Fields]
    """What changes in `rope_parameters`, from a configuration, a length and the options."""
    rope_type: str
    """What it makes. It begins from a model without scaling, or extends further what it has made before."""
    options: tuple[str, ...] = ()


BASE = ("rope_theta", "partial_rotary_factor")
YARN_OPTIONS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
METHODS = {
    "linear": Method(linear, "linear"),
    "ntk": Method(ntk, "default", ("rope_theta",)),
    "dynamic": Method(dynamic, "dynamic"),
    "yarn": Method(yarn, "yarn", YARN_OPTIONS),
    "longrope": Method(longrope, "longrope", ("short_factor", "long_factor", "attention_factor")),
}
# The methods that a kind of positions can take; those without any have no limit.
APPLICABLE = {"rope": tuple(METHODS), "learned": ("linear",), "sinusoidal": (), "none": ()}


def extended_config(config: GPTConfig, length: int, method: str = "yarn", **options: Any) -> GPTConfig:
    """The configuration of a longer context, with which a checkpoint with rotary positions loads as it is.

        config = extended_config(GPTConfig.from_pretrained("my-gpt"), 4096, "yarn")
        model = GPTForCausalLM.from_pretrained("my-gpt", config=config)

    `hf_gpt.surgery.extend_context` says what the arguments are, and does the same for learned positions, whose table
    grows.

    Raises:
        ValueError: as `extend_context`.
    """
    check_method(config, length, method, options)
    if config.position_embedding_type == "learned":
        return with_positions(config, length)
    chosen = METHODS[method]
    rope = config.rope_parameters | chosen.extend(config, length, **options) | {"rope_type": chosen.rope_type}
    return with_positions(config, length, rope)


def with_positions(config: GPTConfig, length: int, rope_parameters: Fields | None = None) -> GPTConfig:
    """A configuration of another length, and other `rope_parameters` without those that are None."""
    fields: Fields = {"max_position_embeddings": length}
    if rope_parameters is not None:
        fields["rope_parameters"] = {name: value for name, value in rope_parameters.items() if value is not None}
    return type(config).from_dict(config.to_dict(), **fields)


def check_method(config: GPTConfig, length: int, method: str, options: Fields) -> None:
    """Raise a ValueError if a method cannot extend a model to a length."""
    positions, limit = config.position_embedding_type, config.max_position_embeddings
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    if not APPLICABLE[positions]:
        raise ValueError(
            f"position_embedding_type={positions!r} takes no method={method!r}, for it has no limit: set "
            f"max_position_embeddings={length} alone"
        )
    if method not in APPLICABLE[positions]:
        raise ValueError(
            f"method={method!r} cannot extend position_embedding_type={positions!r}: expected "
            f"{' or '.join(APPLICABLE[positions])}"
        )
    if isinstance(length, bool) or not isinstance(length, int) or length <= limit:
        raise ValueError(f"length={length!r}: expected an integer above max_position_embeddings={limit}")
    allowed = METHODS[method].options
    if unknown := options.keys() - set(allowed):
        raise ValueError(f"{min(unknown)} is no option of method={method!r}: expected {' or '.join(allowed) or 'none'}")
    made = METHODS[method].rope_type
    if positions == "rope" and config.rope_parameters["rope_type"] not in ("default", made):
        raise ValueError(
            f"rope_parameters: rope_type={config.rope_parameters['rope_type']!r} is scaled already, and "
            f"method={method!r} cannot go on from there: expected {' or '.join(dict.fromkeys(('default', made)))}"
        )
