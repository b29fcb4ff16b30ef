"""`GPTConfig`: the architectural choices of the GPT lineage, each documented and validated."""

import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, field, fields
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any, NamedTuple

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

from .parallel_plans import expert_parallel_plan, tensor_parallel_plan

logger = logging.get_logger(__name__)

# Attention patterns, and the standard layer type of each, by which other tools choose its cache.
LAYER_TYPES = {
    "dense": "full_attention",
    "banded": "sliding_attention",
    "strided": "full_attention",
    "fixed": "full_attention",
}
# The pattern of a layer type without `attention_patterns`.
ATTENTION_PATTERNS = {"full_attention": "dense", "sliding_attention": "banded"}

# Patterns without a layer type of their own, which only this model's attention implements.
OWN_PATTERNS = tuple(name for name, layer_type in LAYER_TYPES.items() if ATTENTION_PATTERNS[layer_type] != name)

# The sizes of the patterns, and the patterns that need each.
PATTERN_FIELDS = {
    "sliding_window": ("banded",),
    "attention_stride": ("strided", "fixed"),
    "attention_summary_size": ("fixed",),
}

MLP_LAYER_TYPES = ("dense", "sparse")

# Names that other families have for our fields: transformers would store them as attributes without effect.
OTHER_NAMES = {
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "num_layers": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "num_heads": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_ctx": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
    "num_experts": "num_local_experts",
    "n_routed_experts": "num_local_experts",
    "n_shared_experts": "num_shared_experts",
    "scoring_func": "router_score_function",
}

ROUTER_SCORE_FUNCTIONS = ("softmax", "sigmoid")
ROUTER_AUX_LOSS_TYPES = ("layerwise", "pooled")

# The norms, and the parameters that each may have; the first is its default.
NORM_PARAMETERS = {"layer_norm": ("weight_and_bias", "weight", "none"), "rms_norm": ("weight", "none")}

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")

# All of transformers' but those with parameters or device requirements.
ACTIVATIONS = tuple(name for name in ACT2FN if name not in ("prelu", "xielu"))


class Rule(NamedTuple):
    """The allowed values of a field: a test, and its description for the error message."""

    holds: Callable[[Any], bool]
    expects: str


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _ruled(default: Any, holds: Callable[[Any], bool], expects: str) -> Any:
    return field(default=default, metadata={"rule": Rule(holds, expects)})


def size(default: int | None, least: int = 1) -> Any:
    """A field for an integer of at least `least`, or None if that is the default."""
    optional = default is None
    return _ruled(
        default,
        lambda value: (optional and value is None) or (_is_int(value) and value >= least),
        f"an integer of at least {least}" + (" or None" if optional else ""),
    )


def one_of(default: str | None, choices: tuple[str, ...]) -> Any:
    """A field for one of several names, or None if that is the default."""
    return _ruled(default, lambda value: value in (*choices, default), f"one of {', '.join(choices)}")


def flag(default: bool | None) -> Any:
    """A field for True or False, or None if that is the default."""
    optional = default is None
    return _ruled(
        default,
        lambda value: isinstance(value, bool) or (optional and value is None),
        "True or False" + (" or None" if optional else ""),
    )


def probability() -> Any:
    return _ruled(0.0, lambda value: _is_number(value) and 0 <= value < 1, "a number in [0, 1)")


def positive(default: float | None) -> Any:
    """A field for a positive number, or None if that is the default."""
    optional = default is None
    return _ruled(
        default,
        lambda value: (_is_number(value) and value > 0) or (optional and value is None),
        "a positive number" + (" or None" if optional else ""),
    )


def coefficient(default: float | None) -> Any:
    """A field for a number of at least 0, or None if that is the default."""
    optional = default is None
    return _ruled(
        default,
        lambda value: (_is_number(value) and value >= 0) or (optional and value is None),
        "a number of at least 0" + (" or None" if optional else ""),
    )


def strings() -> Any:
    return _ruled(
        None,
        lambda value: value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value)),
        "a list of strings, one for each layer, or None",
    )


def token_id(several: bool = False) -> Any:
    def holds(value: Any) -> bool:
        ids = value if several and isinstance(value, list) else [value]
        return value is None or (bool(ids) and all(_is_int(item) and item >= 0 for item in ids))

    return _ruled(None, holds, "a token id" + (", a list of them" if several else "") + " or None")


def mapping() -> Any:
    return _ruled(None, lambda value: value is None or isinstance(value, dict), "a dict or None")


ROPE_PARAMETERS = Rule(
    lambda value: value is None or (isinstance(value, dict) and not any(isinstance(v, dict) for v in value.values())),
    "a flat dict or None",
)


def _positives(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(item) and item > 0 for item in value)


# The allowed entries of `rope_parameters`. transformers checks which of them a type needs.
ROPE_RULES = {
    "rope_type": Rule(lambda value: value in ROPE_TYPES, f"one of {', '.join(ROPE_TYPES)}"),
    "rope_theta": Rule(lambda value: _is_number(value) and value > 1, "a number above 1"),
    "partial_rotary_factor": Rule(lambda value: _is_number(value) and 0 < value <= 1, "a number in (0, 1]"),
    "factor": Rule(lambda value: _is_number(value) and value >= 1, "a number of at least 1"),
    "original_max_position_embeddings": Rule(lambda value: _is_int(value) and value > 1, "an integer above 1"),
    "low_freq_factor": Rule(lambda value: _is_number(value) and value > 0, "a positive number"),
    "high_freq_factor": Rule(lambda value: _is_number(value) and value > 0, "a positive number"),
    "short_factor": Rule(_positives, "a list of positive numbers"),
    "long_factor": Rule(_positives, "a list of positive numbers"),
    "attention_factor": Rule(lambda value: value is None or (_is_number(value) and value > 0), "a positive number"),
    "beta_fast": Rule(lambda value: _is_number(value) and value > 0, "a positive number"),
    "beta_slow": Rule(lambda value: _is_number(value) and value > 0, "a positive number"),
    "mscale": Rule(lambda value: _is_number(value) and value > 0, "a positive number"),
    "mscale_all_dim": Rule(lambda value: _is_number(value) and value > 0, "a positive number"),
    "truncate": Rule(lambda value: isinstance(value, bool), "True or False"),
}


def _derive_head_dim(config: "GPTConfig") -> int | None:
    if config.hidden_size % config.num_attention_heads == 0:
        return config.hidden_size // config.num_attention_heads
    if config.head_dim is not None:
        return None
    raise ValueError(
        f"num_attention_heads={config.num_attention_heads} does not divide hidden_size={config.hidden_size}: "
        "choose a divisor, or set head_dim"
    )


def _derive_attention_patterns(config: "GPTConfig") -> list[str]:
    if config.layer_types is None:
        return ["dense"] * config.num_hidden_layers
    # An unknown layer type is left as it is, for `_check_patterns` to report.
    return [ATTENTION_PATTERNS.get(layer_type, layer_type) for layer_type in config.layer_types]


# Fields that are derived from others where they are None, in the order in which they depend on each other.
DERIVATIONS: dict[str, Callable[["GPTConfig"], Any]] = {
    "head_dim": _derive_head_dim,
    "num_key_value_heads": lambda config: config.num_attention_heads,
    "embedding_size": lambda config: config.hidden_size,
    "intermediate_size": lambda config: 4 * config.hidden_size,
    "attention_output_bias": lambda config: config.attention_bias,
    "norm_parameters": lambda config: NORM_PARAMETERS[config.norm_type][0],
    "final_norm": lambda config: config.norm_position == "pre",
    "moe_intermediate_size": lambda config: None if config.num_local_experts is None else config.intermediate_size,
    "output_router_logits": lambda config: None if config.num_local_experts is None else False,
    "mlp_layer_types": lambda config: (
        ["dense" if config.num_local_experts is None else "sparse"] * config.num_hidden_layers
    ),
    "attention_patterns": _derive_attention_patterns,
    "layer_types": lambda config: [LAYER_TYPES.get(pattern, pattern) for pattern in config.attention_patterns],
}


def is_derived(name: str, config: Any) -> bool:
    """True if a field has its derived value, or if that cannot be derived from the other fields."""
    try:
        return getattr(config, name) == DERIVATIONS[name](config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return True


# Two fields for one decision: whoever sets one replaces the other.
SAME_DECISION = {"attention_patterns": "layer_types", "layer_types": "attention_patterns"}

# Fields that a configuration has only where they have a meaning: transformers reads the presence of the attributes, not
# their values. They have no default on the class, and are deleted from an instance without the condition.
PRESENT_IF: dict[str, Callable[["GPTConfig"], bool]] = {
    "rope_parameters": lambda config: config.position_embedding_type == "rope",
    "output_router_logits": lambda config: config.num_local_experts is not None,
}


class GPTConfig(PreTrainedConfig):
    """The architecture of one member of the GPT lineage.

    The defaults are GPT-2 small with rotary positions, without dropout and special tokens. A field whose default is
    None is derived from the others if it is left out; `derived_fields` lists these, in config.json too, so that they
    are derived again when a configuration is loaded with other values. All fields are checked when a configuration is
    made, when a model is built from it, and when it is saved.

    Raises:
        ValueError: a field has an invalid value, or contradicts another. The message names the field, its value and
            what is expected.
    """

    model_type = "hf_gpt"
    keys_to_ignore_at_inference = ["past_key_values", "lm_loss", "aux_loss", "z_loss", "tokens_per_expert"]
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    # --- sizes ---------------------------------------------------------------------------------------------------
    vocab_size: int = size(50257)
    """Number of token ids."""
    hidden_size: int = size(768)
    """Width of the residual stream."""
    embedding_size: int | None = size(None)
    """Width of the token embeddings, if not `hidden_size`: a projection follows them and the last norm (OPT 350M)."""
    num_hidden_layers: int = size(12)
    """Number of blocks."""
    intermediate_size: int | None = size(None)
    """Intermediate features of the feed-forward layer; 4 x `hidden_size` by default."""
    max_position_embeddings: int = size(1024)
    """Longest sequence: a limit for learned positions, the trained length for rotary ones."""

    # --- attention -----------------------------------------------------------------------------------------------
    num_attention_heads: int = size(12)
    """Number of query heads."""
    num_key_value_heads: int | None = size(None)
    """Number of key and value heads. As many as query heads by default (MHA), fewer (GQA), or one (MQA)."""
    head_dim: int | None = size(None)
    """Width of a head; `hidden_size / num_attention_heads` by default (gpt-oss: wider)."""
    attention_bias: bool = flag(True)
    """Biases on the query, key and value projections (Llama: none)."""
    attention_output_bias: bool | None = flag(None)
    """Bias on the output projection; `attention_bias` by default (GPT-Neo: only this one)."""
    attention_scale: float | None = positive(None)
    """Factor on the scores; 1 / sqrt(`head_dim`) by default (GPT-Neo: 1)."""
    scale_attn_by_inverse_layer_idx: bool = flag(False)
    """Divide the scores of layer i, counted from 0, by i + 1 (an option of GPT-2)."""
    attention_sinks: bool = flag(False)
    """A learned score for each head, in the softmax like that of a key, but without a value (gpt-oss)."""
    qk_norm: bool = flag(False)
    """Normalize queries and keys over each head before positions are applied."""
    attention_patterns: list[str] | None = strings()
    """`dense`, `banded` (GPT-3, GPT-Neo, gpt-oss), `strided` or `fixed` (Child et al. 2019, section 4.3) for each
    layer; all dense by default."""
    layer_types: list[str] | None = strings()
    """The layer types by which other tools choose caches: `sliding_attention` for banded, else `full_attention`.
    Derived from `attention_patterns`, or the other way round."""
    sliding_window: int | None = size(None, least=2)
    """Number of keys, its own included, that a query of a banded layer sees; at least 2, for transformers' caches."""
    attention_stride: int | None = size(None, least=2)
    """Keys in a block of a fixed layer; in a strided layer, keys in the band and distance of the columns (128 in Child
    et al. 2019)."""
    attention_summary_size: int | None = size(None)
    """Number of last keys of each block that later blocks of a fixed layer see (8 to 32 in Child et al. 2019)."""

    # --- positions -----------------------------------------------------------------------------------------------
    position_embedding_type: str = one_of("rope", ("learned", "sinusoidal", "rope", "none"))
    """`learned` (GPT-1, 2, 3, OPT), `sinusoidal` (Vaswani et al. 2017, 3.5), `rope` (GPT-NeoX and later) or `none`."""
    rope_parameters: dict | None = field(default_factory=lambda: None, metadata={"rule": ROPE_PARAMETERS})
    """`rope_type` (default, linear, dynamic, yarn, longrope, llama3), `rope_theta`, `partial_rotary_factor` and the
    entries that the type needs, as in transformers; `dynamic` may also have `original_max_position_embeddings`, the
    length from which it grows. The attribute exists with rotary positions only."""

    position_offset: int = size(0, least=0)
    """Number of rows of the learned positions before that of position 0 (OPT: 2)."""

    # --- block ---------------------------------------------------------------------------------------------------
    norm_type: str = one_of("layer_norm", ("layer_norm", "rms_norm"))
    """`layer_norm`, or `rms_norm` (Llama, gpt-oss)."""
    norm_position: str = one_of("pre", ("pre", "post"))
    """`pre`: norms before each sub-layer and at the end. `post`: after each residual sum (GPT-1, OPT 350M)."""
    norm_eps: float = positive(1e-5)
    """Added to the variance in each norm."""
    norm_parameters: str | None = one_of(None, NORM_PARAMETERS["layer_norm"])
    """Parameters of a norm: `weight_and_bias` (the default of `layer_norm`), `weight` (of `rms_norm`) or `none`."""
    final_norm: bool | None = flag(None)
    """A norm after the last block; by default if `norm_position` is `pre`."""
    parallel_residual: bool = flag(False)
    """Attention and feed-forward both read the input of the block, and their outputs are summed (GPT-NeoX, GPT-J)."""
    shared_norm: bool = flag(False)
    """The two branches of a parallel block share one norm (GPT-J)."""
    mlp_type: str = one_of("mlp", ("mlp", "glu", "clamped_glu"))
    """`mlp`: down(act(up(x))). `glu`: down(act(gate(x)) * up(x)) (Llama). `clamped_glu`: down(g * sigmoid(alpha * g) *
    (u + 1)), where g is gate(x) and u is up(x), clamped (gpt-oss)."""
    mlp_bias: bool = flag(True)
    """Biases on the feed-forward projections (Llama: none)."""
    hidden_act: str = one_of("gelu_pytorch_tanh", ACTIVATIONS)
    """Activation of the feed-forward layer, by its name in transformers; `clamped_glu` has its own."""
    swiglu_alpha: float = positive(1.702)
    """Gain inside the sigmoid of a clamped gate."""
    swiglu_limit: float = positive(7.0)
    """Limit of a clamped gate: of `gate` from above, of `up` on both sides."""
    lm_head_bias: bool = flag(False)
    """Bias on the output layer of the language model (GPT-J)."""

    # --- experts -------------------------------------------------------------------------------------------------
    mlp_layer_types: list[str] | None = strings()
    """`dense` (one feed-forward layer) or `sparse` (experts) for each block; all sparse by default with experts."""
    num_local_experts: int | None = size(None)
    """Number of experts in each sparse layer (Mixtral: 8)."""
    num_experts_per_tok: int = size(2)
    """Number of experts that the router chooses for each token."""
    moe_intermediate_size: int | None = size(None)
    """Intermediate features of an expert; `intermediate_size` by default."""
    num_shared_experts: int = size(0, least=0)
    """Experts for every token, beside the chosen ones: one feed-forward layer with this many times the intermediate
    features of an expert (DeepSeek-V3: 1)."""
    router_score_function: str = one_of("softmax", ROUTER_SCORE_FUNCTIONS)
    """Function from the router's logits to expert weights: `softmax` (Mixtral, gpt-oss) or `sigmoid` (DeepSeek-V3)."""
    norm_topk_prob: bool = flag(True)
    """The weights of the chosen experts sum to 1 (Switch, OLMoE: not)."""
    routed_scaling_factor: float = positive(1.0)
    """Factor on the expert weights (DeepSeek-V3: 2.5)."""
    router_bias: bool = flag(False)
    """Bias on the router's logits (gpt-oss)."""
    router_jitter_noise: float = probability()
    """In training, the inputs of router and experts are multiplied by uniform noise between 1 - this and 1 + this
    (Mixtral)."""
    router_aux_loss_coef: float = coefficient(0.01)
    """Coefficient of the load-balancing loss in training (Fedus et al. 2021, section 2.2)."""
    router_aux_loss_type: str = one_of("layerwise", ROUTER_AUX_LOSS_TYPES)
    """`layerwise`: the mean of the losses of the layers, which balances each layer. `pooled`: one loss of the mean load
    of all layers, which may hide differences between them (Mixtral and gpt-oss in transformers)."""
    router_z_loss_coef: float = coefficient(0.0)
    """Coefficient in training of the z-loss, which keeps the router's logits small (Zoph et al. 2022, section 3.3)."""
    router_bias_update_rate: float | None = coefficient(None)
    """Balance without a loss: after each optimizer step, a bias for each expert, which affects the choice but not the
    weights, moves by this (Wang et al. 2024; DeepSeek-V3: 0.001). 0 freezes the bias; None: no bias."""
    output_router_logits: bool | None = field(
        default_factory=lambda: None, metadata={"rule": flag(None).metadata["rule"]}
    )
    """Return the router's logits, and compute the balancing losses outside training too; False by default. The
    attribute exists with experts only."""

    # --- training ------------------------------------------------------------------------------------------------
    label_smoothing: float = probability()
    """Probability that the loss distributes over the whole vocabulary in training (Szegedy et al. 2016, section 7)."""
    lm_z_loss_coef: float = coefficient(0.0)
    """Coefficient in training of the z-loss, the squared logarithm of the partition function (PaLM: 1e-4)."""
    embedding_dropout: float = probability()
    """Dropout on the sum of token and position embeddings."""
    residual_dropout: float = probability()
    """Dropout on the output of each sub-layer."""
    attention_dropout: float = probability()
    """Dropout on the attention probabilities."""
    classifier_dropout: float = probability()
    """Dropout before the output layer of a task head."""
    layerdrop: float = probability()
    """Probability that a whole block is skipped in training (Fan et al. 2020; OPT)."""
    initializer_range: float = positive(0.02)
    """Standard deviation of initial weights, divided by sqrt(2 x layers) for projections into the residual stream
    (GPT-2, section 2.3)."""

    # --- other ---------------------------------------------------------------------------------------------------
    tie_word_embeddings: bool = flag(True)
    """The output layer shares the weights of the token embeddings."""
    use_cache: bool = flag(True)
    """Return keys and values for the next call by default."""
    pad_token_id: int | None = token_id()
    """Padding token. Heads that score the last token use it to find that token without an attention mask."""
    bos_token_id: int | None = token_id()
    """Token that begins a text."""
    eos_token_id: int | list[int] | None = token_id(several=True)
    """Token that ends a text; generation stops there."""
    native_fields: dict | None = mapping()
    """Fields of a converted checkpoint's configuration beyond its architecture, for export."""

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_misspelled(kwargs)
        self._check_fields()
        self.derived_fields = self._derive_fields(kwargs.pop("derived_fields", None) or ())
        self._refuse_unused_sizes()
        if self.position_embedding_type != "rope":
            self._refuse_rope(kwargs)
        for name, is_present in PRESENT_IF.items():
            if not is_present(self):
                delattr(self, name)
        self.base_model_tp_plan = tensor_parallel_plan(self)  # neither plan is serialized
        self.base_model_ep_plan = expert_parallel_plan(self)
        super().__post_init__(**kwargs)
        self.validate()

    def __eq__(self, other: Any) -> bool:
        # The method that dataclasses generate reads attributes that may be absent.
        return type(other) is type(self) and other.to_dict() == self.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, as in the base class."""
        return {name: value for name, value in super().to_dict().items() if name != "derived_fields"}

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns what config.json contains, as in the base class, and which fields are derived."""
        return super().to_diff_dict() | {"derived_fields": self.derived_fields}

    def replace(self, **overrides: Any) -> "GPTConfig":
        """Returns a new configuration with some fields replaced. Fields that were derived are derived again.

        Raises:
            ValueError: the new configuration is invalid.
        """
        return type(self).from_dict(self.to_dict() | {"derived_fields": self.derived_fields}, **overrides)

    @property
    def rotary_dim(self) -> int:
        """Number of dimensions of each head that are rotated; 0 without rotary positions."""
        if self.position_embedding_type != "rope":
            return 0
        return int(self.head_dim * self.rope_parameters.get("partial_rotary_factor", 1.0))

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json`, as in the base class.

        Raises:
            ValueError: the configuration of another architecture.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type")
        if model_type != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path}: config.json has model_type={model_type!r}, expected "
                f"{cls.model_type!r}. Convert a native checkpoint to hf_gpt first (hf-gpt convert), or load it with "
                "the Auto classes of transformers."
            )
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Make a configuration, as in the base class. Keywords that are fields replace the stored ones."""
        overrides = {f.name: kwargs.pop(f.name) for f in fields(cls) if "rule" in f.metadata and f.name in kwargs}
        return super().from_dict(cls.override(config_dict, overrides), **kwargs)

    @classmethod
    def override(cls, stored: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """Returns stored fields, valid or not, with some replaced, and without those that are derived: they are derived
        again."""
        if not overrides:
            return stored
        defaults = {f.name: None if f.default is MISSING else f.default for f in fields(cls)}
        config = SimpleNamespace(**defaults | stored)
        listed = stored.get("derived_fields") or ()
        derived = [name for name in DERIVATIONS if name in listed and is_derived(name, config)]
        replaced = {*derived, "derived_fields", *map(SAME_DECISION.get, overrides)}
        return {name: value for name, value in stored.items() if name not in replaced} | overrides

    def validate(self) -> None:
        """Checks each field, and the fields against each other. Called at construction, by models and by
        `save_pretrained`. A size that no layer uses is set to None, with a warning."""
        self._check_fields()
        self._check_heads()
        self._drop_unused_sizes()
        self._check_patterns()
        self._check_experts()
        self._check_token_ids()
        if self.parallel_residual and self.norm_position != "pre":
            raise ValueError(f"norm_position={self.norm_position!r} with parallel_residual=True: expected 'pre'")
        if self.shared_norm and not self.parallel_residual:
            raise ValueError("shared_norm=True with parallel_residual=False: expected parallel_residual=True")
        if self.norm_parameters not in (allowed := NORM_PARAMETERS[self.norm_type]):
            raise ValueError(
                f"norm_parameters={self.norm_parameters!r} with norm_type={self.norm_type!r}: expected one of "
                f"{', '.join(allowed)}"
            )
        if self.position_embedding_type == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size={self.hidden_size}: expected an even number for sinusoidal positions")
        if self.position_offset and self.position_embedding_type != "learned":
            raise ValueError(
                f"position_offset={self.position_offset} with position_embedding_type="
                f"{self.position_embedding_type!r}: expected 'learned'"
            )
        if self.position_embedding_type == "rope":
            self._check_rope()

    def _validate_dynamic_rope_parameters(self, rope_parameters: dict, ignore_keys: set[str] | None = None) -> None:
        # Here `dynamic` may have the original length, because `max_position_embeddings` may be extended.
        known = {*(ignore_keys or ()), "original_max_position_embeddings"}
        super()._validate_dynamic_rope_parameters(rope_parameters, ignore_keys=known)

    def _refuse_misspelled(self, unknown: dict[str, Any]) -> None:
        # transformers stores unknown keywords as attributes: a misspelled field would silently build another model
        names = [f.name for f in fields(self)]
        for name in unknown:
            if close := OTHER_NAMES.get(name) or next(iter(get_close_matches(name, names, n=1, cutoff=0.9)), None):
                raise ValueError(f"{name} is not a field of GPTConfig: did you mean {close}?")

    def _refuse_rope(self, kwargs: dict[str, Any]) -> None:
        given = {"rope_parameters": self.rope_parameters, **kwargs}
        for name in ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"):
            if given.get(name):
                raise ValueError(
                    f"{name}={given[name]!r} with position_embedding_type={self.position_embedding_type!r}: leave it "
                    "out, or set position_embedding_type='rope'"
                )

    def _check_fields(self) -> None:
        for f in fields(self):
            rule, value = f.metadata.get("rule"), getattr(self, f.name, None)
            if rule is not None and not rule.holds(value):
                raise ValueError(f"{f.name}={value!r}: expected {rule.expects}")

    def _derive_fields(self, stored: Iterable[str]) -> list[str]:
        """Sets the fields that are None, and returns the names of all that have their derived values: these, and of
        those that the stored configuration had derived the ones that are unchanged."""
        derived = []
        for name, derive in DERIVATIONS.items():
            value = getattr(self, name)
            if value is None:
                setattr(self, name, derive(self))
            if getattr(self, name) is not None and (value is None or (name in stored and is_derived(name, self))):
                derived.append(name)
        return derived

    def _check_heads(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} does not divide "
                f"num_attention_heads={self.num_attention_heads}"
            )

    def _check_patterns(self) -> None:
        for name, allowed in (
            ("attention_patterns", LAYER_TYPES),
            ("layer_types", ATTENTION_PATTERNS),
            ("mlp_layer_types", MLP_LAYER_TYPES),
        ):
            values = getattr(self, name)
            if unknown := [value for value in values if value not in allowed]:
                raise ValueError(f"{name} holds {unknown[0]!r}: expected {' or '.join(allowed)}")
            if len(values) != self.num_hidden_layers:
                raise ValueError(
                    f"{name} has {len(values)} entries: expected num_hidden_layers={self.num_hidden_layers}"
                )
        if self.layer_types != [LAYER_TYPES[pattern] for pattern in self.attention_patterns]:
            raise ValueError(
                f"layer_types={self.layer_types} contradicts attention_patterns={self.attention_patterns}: "
                "give one of the two"
            )
        for name, patterns in PATTERN_FIELDS.items():
            if getattr(self, name) is None and (needed := set(patterns) & set(self.attention_patterns)):
                kind = " and ".join(sorted(needed))
                raise ValueError(f"{name}=None: the {kind} layers in attention_patterns need a number of keys")
        if self.attention_summary_size is not None and self.attention_summary_size > self.attention_stride:
            raise ValueError(
                f"attention_summary_size={self.attention_summary_size}: expected at most "
                f"attention_stride={self.attention_stride}"
            )

    def _check_experts(self) -> None:
        experts, sparse = self.num_local_experts, "sparse" in self.mlp_layer_types
        if sparse and experts is None:
            raise ValueError("num_local_experts=None: the sparse layers in mlp_layer_types need a number of experts")
        if not sparse and experts is not None:
            raise ValueError(
                f"num_local_experts={experts} without a sparse layer: leave it out, or name the sparse layers in "
                "mlp_layer_types"
            )
        if sparse and self.num_experts_per_tok > experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok}: expected at most num_local_experts={experts}"
            )
        for name, absent in (("num_shared_experts", 0), ("router_bias_update_rate", None)):
            if getattr(self, name) != absent and not sparse:
                raise ValueError(f"{name}={getattr(self, name)} without a sparse layer: leave it out")
        if sparse and self.layerdrop:
            raise ValueError(f"layerdrop={self.layerdrop} with experts: expected 0, skipped experts cannot be balanced")

    def _unused_sizes(self) -> dict[str, str]:
        """Returns the sizes that are set although no layer has a pattern that needs them, and these patterns."""
        return {
            name: " or ".join(patterns)
            for name, patterns in PATTERN_FIELDS.items()
            if getattr(self, name) is not None and not set(patterns) & set(self.attention_patterns)
        }

    def _refuse_unused_sizes(self) -> None:
        for name, kind in self._unused_sizes().items():
            raise ValueError(
                f"{name}={getattr(self, name)} without a {kind} layer: leave it out, or name the {kind} layers in "
                "attention_patterns"
            )

    def _drop_unused_sizes(self) -> None:
        # No error, unlike for an argument: transformers' own tests set such sizes on a finished configuration.
        for name, kind in self._unused_sizes().items():
            logger.warning(f"{name}={getattr(self, name)} is ignored and set to None: no layer is {kind}")
            setattr(self, name, None)

    def _check_token_ids(self) -> None:
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            for item in value if isinstance(value, list) else [value]:
                if item is not None and item >= self.vocab_size:
                    raise ValueError(f"{name}={value}: expected less than vocab_size={self.vocab_size}")

    def _check_rope(self) -> None:
        rope = getattr(self, "rope_parameters", None)
        if not isinstance(rope, dict):
            raise ValueError(f"rope_parameters={rope!r}: expected a dict with rope_type and rope_theta")
        for name, value in rope.items():
            if name not in ROPE_RULES:
                raise ValueError(f"rope_parameters: {name} is unknown, expected some of {', '.join(ROPE_RULES)}")
            if not ROPE_RULES[name].holds(value):
                raise ValueError(f"rope_parameters: {name}={value!r}, expected {ROPE_RULES[name].expects}")
        try:
            self.validate_rope()
        except KeyError as error:
            raise ValueError(f"rope_parameters={rope}: {error.args[0]}") from error

        rope_type, least = rope["rope_type"], 4 if rope["rope_type"] == "dynamic" else 2
        if self.rotary_dim < least or self.rotary_dim % 2:
            raise ValueError(
                f"rope_parameters rotate int(head_dim x partial_rotary_factor) = {self.rotary_dim} dimensions of "
                f"head_dim={self.head_dim}: expected an even number of at least {least}"
            )
        if rope_type == "yarn" and rope.get("beta_fast", 32) < rope.get("beta_slow", 1):
            raise ValueError("rope_parameters: beta_fast must not be below beta_slow")
        if rope_type == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
            raise ValueError("rope_parameters: high_freq_factor must be above low_freq_factor")
        if rope_type == "longrope":
            for name in ("short_factor", "long_factor"):
                if len(rope[name]) != self.rotary_dim // 2:
                    raise ValueError(
                        f"rope_parameters: {name} has {len(rope[name])} entries, expected {self.rotary_dim // 2}, "
                        "one for each rotated pair of dimensions"
                    )
