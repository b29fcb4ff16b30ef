"""`GPTConfig`: the architectural choices of the GPT lineage, each documented and validated."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from difflib import get_close_matches
from json import JSONDecodeError
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

from .common_fields import check_common_fields, check_keywords, check_property, public_attributes, refuse_members
from .field_names import FIELD_OF, OTHER_NAMES, UNREADABLE, accept_other_names, is_saved, saved_fields, to_fields
from .field_rules import (
    MOST_LAYERS,
    MOST_TOKENS,
    coefficient,
    flag,
    flat_mapping,
    is_int,
    mapping,
    one_of,
    positive,
    probability,
    shown,
    size,
    strings,
    token_id,
    without_default,
)
from .parallel_plans import Plan, expert_parallel_plan, pipeline_parallel_plan, tensor_parallel_plan
from .remote_code import keep_local_code, refuse_kernels
from .rope_parameters import DEFAULT_ROPE, check_rope

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

ROUTER_SCORE_FUNCTIONS = ("softmax", "sigmoid")
ROUTER_AUX_LOSS_TYPES = ("layerwise", "pooled")

# The norms, and the parameters that each may have; the first is its default.
NORM_PARAMETERS = {"layer_norm": ("weight_and_bias", "weight", "none"), "rms_norm": ("weight", "none")}

# All of transformers' but those with parameters or device requirements.
ACTIVATIONS = tuple(name for name in ACT2FN if name not in ("prelu", "xielu"))


def _has_experts(config: "GPTConfig") -> bool:
    return config.num_local_experts is not None


def _rotates(config: "GPTConfig") -> bool:
    return config.position_embedding_type == "rope"


def _derive_head_dim(config: "GPTConfig") -> int:
    if config.hidden_size % config.num_attention_heads == 0:
        return config.hidden_size // config.num_attention_heads
    raise ValueError(
        f"num_attention_heads={config.num_attention_heads} does not divide hidden_size={config.hidden_size}: "
        "choose a divisor, or set head_dim"
    )


def _for_each_layer(entry: str, config: "GPTConfig") -> list[str]:
    if config.num_hidden_layers > MOST_LAYERS:  # no such list is made
        raise ValueError(f"num_hidden_layers={shown(config.num_hidden_layers)}: expected at most {MOST_LAYERS}")
    return [entry] * config.num_hidden_layers


def _derive_attention_patterns(config: "GPTConfig") -> list[str]:
    if config.layer_types is None:
        return _for_each_layer("dense", config)
    # An unknown layer type is left as it is, for `_check_patterns` to report.
    return [ATTENTION_PATTERNS.get(layer_type, layer_type) for layer_type in config.layer_types]


def own_fields(config: Any) -> set[str]:
    """Returns the names of the fields of a configuration, or of its class, without those of every class."""
    return {f.name for f in fields(config) if "rule" in f.metadata}


# Fields that are derived from others where they are None, in the order in which they depend on each other.
DERIVATIONS: dict[str, Callable[["GPTConfig"], Any]] = {
    "head_dim": _derive_head_dim,
    "num_key_value_heads": lambda config: config.num_attention_heads,
    "embedding_size": lambda config: config.hidden_size,
    "embedding_scale": lambda config: (
        math.sqrt(config.hidden_size) if config.position_embedding_type == "sinusoidal" else 1.0
    ),
    "intermediate_size": lambda config: 4 * config.hidden_size,
    "attention_output_bias": lambda config: config.attention_bias,
    "norm_parameters": lambda config: NORM_PARAMETERS[config.norm_type][0],
    "final_norm": lambda config: config.norm_position == "pre",
    "rope_parameters": lambda config: dict(DEFAULT_ROPE) if _rotates(config) else None,
    "num_experts_per_tok": lambda config: 2 if _has_experts(config) else None,
    "moe_intermediate_size": lambda config: config.intermediate_size if _has_experts(config) else None,
    "output_router_logits": lambda config: False if _has_experts(config) else None,
    "mlp_layer_types": lambda config: _for_each_layer("sparse" if _has_experts(config) else "dense", config),
    "attention_patterns": _derive_attention_patterns,
    "layer_types": lambda config: [LAYER_TYPES.get(pattern, pattern) for pattern in config.attention_patterns],
}


def is_derived(name: str, config: Any) -> bool:
    """True if a field has its derived value, or if the fields that it depends on are invalid."""
    try:
        return getattr(config, name) == DERIVATIONS[name](config)
    except ValueError:  # there is no such value
        return False
    except (KeyError, TypeError, ArithmeticError):
        return True


# Two fields for one decision: whoever sets one replaces the other.
SAME_DECISION = {"attention_patterns": "layer_types", "layer_types": "attention_patterns"}

# The fields that are taken for derived where they have their derived values and `derived_fields` is missing. Of the two
# for one decision, one holds it.
LIKELY_DERIVED = [name for name in DERIVATIONS if name != "attention_patterns"]

# Fields with one entry for each layer.
PER_LAYER = ("attention_patterns", "layer_types", "mlp_layer_types")


def resized_lists(values: Mapping[str, Any], num_hidden_layers: Any) -> dict[str, list[str]]:
    """Returns the per-layer fields whose entries are all alike, for another number of layers."""
    if not (is_int(num_hidden_layers) and 0 < num_hidden_layers <= MOST_LAYERS):
        return {}
    lists = {name: values[name] for name in PER_LAYER if isinstance(values.get(name), list)}
    return {name: value[:1] * num_hidden_layers for name, value in lists.items() if value == value[:1] * len(value)}


# Fields that a configuration has only where they have a meaning: other tools read the presence of the attributes, not
# their values. They have no default on the class, and are deleted from an instance without the condition.
PRESENT_IF: dict[str, Callable[["GPTConfig"], bool]] = {
    "rope_parameters": _rotates,
    "num_experts_per_tok": _has_experts,
    "output_router_logits": _has_experts,
}


@accept_other_names
class GPTConfig(PreTrainedConfig):
    """The architecture of one member of the GPT lineage.

    The defaults are GPT-2 small with rotary positions, without dropout and special tokens. A field whose default is
    None is derived from the others if it is left out; `derived_fields` lists these, in config.json too, so that they
    are derived again when a configuration is loaded with other values, or when a field is set. Names that other classes
    have for a field (`n_layer`) are accepted. All fields are checked when a configuration is made, when a model is
    built from it, and when it is saved; between two assignments they may contradict each other.

    Raises:
        ValueError: a field has an invalid value, or contradicts another. The message names the field, its value and
            what is expected.
    """

    model_type = "hf_gpt"
    # An assignment has the effect of the keyword, instead of none until the file is loaded.
    attribute_map = {
        "attn_implementation": "_attn_implementation",
        "experts_implementation": "_experts_implementation",
    }
    keys_to_ignore_at_inference = ["past_key_values", "lm_loss", "aux_loss", "z_loss", "tokens_per_expert"]
    base_model_tp_plan = Plan(tensor_parallel_plan)
    base_model_ep_plan = Plan(expert_parallel_plan)
    base_model_pp_plan = Plan(pipeline_parallel_plan)

    # --- sizes ---------------------------------------------------------------------------------------------------
    vocab_size: int = size(50257, most=MOST_TOKENS)
    """Number of token ids."""
    hidden_size: int = size(768)
    """Width of the residual stream."""
    embedding_size: int | None = size(None)
    """Width of the token embeddings, if not `hidden_size`: a projection follows them and the last norm (OPT 350M)."""
    num_hidden_layers: int = size(12, most=MOST_LAYERS)
    """Number of blocks."""
    intermediate_size: int | None = size(None)
    """Intermediate features of the feed-forward layer; 4 x `hidden_size` by default."""
    max_position_embeddings: int = size(1024, most=MOST_TOKENS)
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
    sliding_window: int | None = size(None, least=2, most=MOST_TOKENS)
    """Number of keys, its own included, that a query of a banded layer sees; at least 2, for transformers' caches."""
    attention_stride: int | None = size(None, least=2, most=MOST_TOKENS)
    """Keys in a block of a fixed layer; in a strided layer, keys in the band and distance of the columns (128 in Child
    et al. 2019)."""
    attention_summary_size: int | None = size(None, most=MOST_TOKENS)
    """Number of last keys of each block that later blocks of a fixed layer see (8 to 32 in Child et al. 2019)."""

    # --- positions -----------------------------------------------------------------------------------------------
    position_embedding_type: str = one_of("rope", ("learned", "sinusoidal", "rope", "none"))
    """`learned` (GPT-1, 2, 3, OPT), `sinusoidal` (Vaswani et al. 2017, 3.5), `rope` (GPT-NeoX and later) or `none`."""
    rope_parameters: dict | None = without_default(flat_mapping())
    """`rope_type` (default, linear, dynamic, yarn, longrope, llama3), `rope_theta`, `partial_rotary_factor` and the
    entries that the type needs, as in transformers; `dynamic` may also have `original_max_position_embeddings`, the
    length from which it grows. The attribute exists with rotary positions only."""

    position_offset: int = size(0, least=0)
    """Number of rows of the learned positions before that of position 0 (OPT: 2)."""
    embedding_scale: float | None = positive(None)
    """Factor on the token embeddings: sqrt(`hidden_size`) by default with sinusoidal positions (Vaswani et al. 2017,
    section 3.4), else 1 (Gemma: sqrt(`hidden_size`))."""

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
    num_experts_per_tok: int | None = without_default(size(None))
    """Number of experts that the router chooses for each token; 2 by default. The attribute exists with experts
    only."""
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
    output_router_logits: bool | None = without_default(flag(None))
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
    initializer_range: float = positive(0.02, most=100)
    """Standard deviation of initial weights; in pre-norm blocks divided by sqrt(2 x layers) for projections into the
    residual stream (GPT-2, section 2.3). Token embeddings beside sinusoids, and the projections of narrow ones, have
    their own."""

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
        kwargs.pop("base_model_ep_plan", None)  # earlier versions saved it
        kwargs = public_attributes(kwargs)
        self._refuse_misspelled(kwargs)
        check_common_fields(kwargs)
        self._check_fields()
        derived = self._derive_fields(kwargs.pop("derived_fields", None) or ())
        self._refuse_unused_sizes()
        self._refuse_rope()
        self._delete_meaningless()
        super().__post_init__(**kwargs)
        self.derived_fields = derived  # from here on, an assignment changes what depends on it
        self.validate()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        accept_other_names(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        is_made = "derived_fields" in vars(self)
        if not (is_made and (name in OTHER_NAMES or name in own_fields(self))):
            check_property(GPTConfig, name, value)
            return super().__setattr__(name, value)
        self.derived_fields = [field for field in self.derived_fields if not self._is_edited(field)]
        for field, new in to_fields({name: value}, getattr(self, "rope_parameters", None)).items():
            super().__setattr__(field, new)
            self._follow(field)

    def __getattr__(self, name: str) -> Any:
        # Other tools read `n_embd`, or `num_experts`, whose presence means experts.
        value = getattr(self, FIELD_OF[name], None) if name in FIELD_OF and name not in UNREADABLE else None
        if value is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return value

    def __eq__(self, other: Any) -> bool:
        # The method that dataclasses generate reads attributes that may be absent.
        return type(other) is type(self) and other.to_dict() == self.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, as in the base class."""
        return {name: value for name, value in super().to_dict().items() if name != "derived_fields"}

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns what config.json contains, as in the base class, and which fields are derived."""
        return super().to_diff_dict() | {"derived_fields": self.derived_fields}

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Save `config.json` and this code, as in the base class, without entries that name code outside of the
        folder. All fields are checked first."""
        self.validate()
        keep_local_code(self, save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

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
                f"{pretrained_model_name_or_path}: config.json has model_type={shown(model_type)}, expected "
                f"{cls.model_type!r}. Convert a native checkpoint to hf_gpt first (hf-gpt convert), or load it with "
                "the Auto classes of transformers."
            )
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Make a configuration, as in the base class. Keywords that are fields replace the stored ones."""
        names = OTHER_NAMES | own_fields(cls)
        overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
        if kwargs.get("dtype") == "auto":  # that of the file
            del kwargs["dtype"]
        check_keywords(GPTConfig, kwargs)
        made = super().from_dict(cls.override(config_dict, overrides), **kwargs)
        (made[0] if isinstance(made, tuple) else made).validate()  # a tuple with return_unused_kwargs
        return made

    @classmethod
    def _dict_from_json_file(cls, json_file) -> dict[str, Any]:
        try:
            content = super()._dict_from_json_file(json_file)
        except RecursionError:
            raise ValueError(f"{json_file} is not valid JSON: it is nested too deeply") from None
        except (JSONDecodeError, UnicodeDecodeError):
            raise  # the base class names the file
        except ValueError as error:  # an integer of thousands of digits
            raise ValueError(f"{json_file} is not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{json_file}: expected a JSON object, got {type(content).__name__}")
        return content

    @classmethod
    def from_json_file(cls, json_file):
        """Make a configuration from a file, as in the base class."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def override(cls, stored: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """Returns stored fields, valid or not, with some replaced, and without those that are derived: they are derived
        again."""
        refuse_kernels(stored)
        stored = {"derived_fields": None} | saved_fields(stored)
        overrides = to_fields(overrides, stored.get("rope_parameters"))
        if stored["derived_fields"] is None:  # written by a version that did not list them, or by hand
            stored["derived_fields"] = [name for name in LIKELY_DERIVED if is_saved(stored)]
        if not overrides:
            return stored
        defaults = {f.name: None if f.default is MISSING else f.default for f in fields(cls)}
        config = SimpleNamespace(**defaults | stored)
        derived = [name for name in DERIVATIONS if name in stored["derived_fields"] and is_derived(name, config)]
        replaced = {*derived, "derived_fields", *map(SAME_DECISION.get, overrides)}
        if "num_hidden_layers" in overrides:
            stored |= resized_lists(stored, overrides["num_hidden_layers"])
        return {name: value for name, value in stored.items() if name not in replaced} | overrides

    def validate(self) -> None:
        """Checks each field, and the fields against each other. Called at construction, by models and by
        `save_pretrained`. A size that no layer uses is set to None, with a warning."""
        self._check_fields()
        for name in DERIVATIONS:
            if name in self.derived_fields:
                DERIVATIONS[name](self)  # raises if there is no such value
        self._check_heads()
        self._drop_unused_sizes()
        self.check_depth()
        self._check_patterns()
        self._check_experts()
        self.check_token_ids()
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
        self._refuse_rope()
        self._delete_meaningless()
        if _rotates(self):
            check_rope(self)

    def check_depth(self) -> None:
        """Raises a ValueError if a per-layer field does not have an entry for each layer."""
        lengths = {name: len(getattr(self, name)) for name in PER_LAYER}
        if {*lengths.values()} != {self.num_hidden_layers}:
            *names, last = (f"{name} (has {length})" for name, length in lengths.items())
            raise ValueError(
                f"num_hidden_layers={self.num_hidden_layers}: expected as many entries, one for each layer, in "
                f"{', '.join(names)} and {last}"
            )

    def check_token_ids(self) -> None:
        """Raises a ValueError if the padding, first or last token is outside the vocabulary."""
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            for item in value if isinstance(value, list) else [value]:
                if item is not None and item >= self.vocab_size:
                    raise ValueError(f"{name}={shown(value)}: expected less than vocab_size={self.vocab_size}")

    def _validate_dynamic_rope_parameters(self, rope_parameters: dict, ignore_keys: set[str] | None = None) -> None:
        # Here `dynamic` may have the original length, because `max_position_embeddings` may be extended.
        known = {*(ignore_keys or ()), "original_max_position_embeddings"}
        super()._validate_dynamic_rope_parameters(rope_parameters, ignore_keys=known)

    def _is_edited(self, name: str) -> bool:
        """True for a derived dict or list whose entries were changed in place: it is explicit from then on."""
        return isinstance(vars(self).get(name), (dict, list)) and not is_derived(name, self)

    def _follow(self, changed: str) -> None:
        """Derives again what depends on a field that was set, as far as its value can be derived."""
        if changed == "num_hidden_layers":
            vars(self).update(resized_lists(vars(self), self.num_hidden_layers))
        twin = SAME_DECISION.get(changed)
        if twin and not (getattr(self, changed) and is_derived("layer_types", self)):
            vars(self)[twin] = None
        if changed in ("position_embedding_type", "num_local_experts"):
            self._delete_meaningless()
        unset = {name for name in DERIVATIONS if getattr(self, name, None) is None}
        derived = {*self.derived_fields} - {changed} | unset
        for name in DERIVATIONS:
            if name in derived and self._has(name):
                with suppress(KeyError, TypeError, ValueError, ArithmeticError):  # `validate` raises them
                    vars(self)[name] = DERIVATIONS[name](self)
        self.derived_fields = [name for name in DERIVATIONS if name in derived and vars(self).get(name) is not None]

    def _delete_meaningless(self) -> None:
        for name in PRESENT_IF:
            if not self._has(name):
                vars(self).pop(name, None)

    def _has(self, name: str) -> bool:
        """False for a field without a meaning in this configuration."""
        return name not in PRESENT_IF or PRESENT_IF[name](self)

    def _refuse_misspelled(self, unknown: dict[str, Any]) -> None:
        # transformers stores unknown keywords as attributes: a misspelled field would silently build another model
        names = [f.name for f in fields(self)]
        for name in unknown:
            if close := next(iter(get_close_matches(name, names, n=1, cutoff=0.9)), None):
                raise ValueError(f"{name} is not a field of GPTConfig: did you mean {close}?")
        if (model_type := unknown.get("model_type", self.model_type)) != self.model_type:
            raise ValueError(f"model_type={shown(model_type)}: expected {self.model_type!r}")
        refuse_members(GPTConfig, unknown)

    def _refuse_rope(self) -> None:
        if not _rotates(self) and getattr(self, "rope_parameters", None):
            raise ValueError(
                f"rope_parameters={shown(self.rope_parameters)} with position_embedding_type="
                f"{self.position_embedding_type!r}: leave it out, or set position_embedding_type='rope'"
            )

    def _check_fields(self) -> None:
        own = own_fields(self)
        check_common_fields({name: value for name, value in vars(self).items() if name not in own})
        for f in fields(self):
            if f.name in own:
                f.metadata["rule"].check(f.name, getattr(self, f.name, None))

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
            if unknown := [value for value in getattr(self, name) if value not in allowed]:
                raise ValueError(f"{name} holds {shown(unknown[0])}: expected {' or '.join(allowed)}")
        if self.layer_types != [LAYER_TYPES[pattern] for pattern in self.attention_patterns]:
            raise ValueError(
                f"layer_types={shown(self.layer_types)} contradicts attention_patterns="
                f"{shown(self.attention_patterns)}: give one of the two"
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
