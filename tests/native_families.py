"""One row per native family: random configurations, and what was published with its models.

Every test that runs for each family, and every test of the presets, takes its cases from here.
"""

import json
import random
from collections.abc import Callable
from typing import NamedTuple

LENGTH = 48  # max_position_embeddings of random configurations
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu", "tanh", "relu2", "mish")
ROPE = (
    {"rope_type": "default", "rope_theta": 10_000.0},
    {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 2.0},
    {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
    {"rope_type": "yarn", "rope_theta": 1e5, "factor": 4.0, "original_max_position_embeddings": 16, "truncate": False},
    {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
)


def longrope(rotary_dim: int) -> dict:
    """Returns parameters of the one RoPE type whose factors depend on the size of a head."""
    factors = [1.0 + i / 4 for i in range(rotary_dim // 2)]
    own = {"factor": 4.0, "short_factor": factors, "long_factor": factors[::-1]}
    return {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 16, **own}


class Draw(random.Random):
    """Random native fields; the same for the same seed."""

    def boolean(self) -> bool:
        return self.random() < 0.5

    def dropouts(self, *names: str) -> dict:
        return {name: self.choice([0.0, 0.1, 0.25]) for name in names}

    def common(self) -> dict:
        return {
            "vocab_size": self.randrange(50, 130),
            "initializer_range": self.choice([0.01, 0.02]),
            "tie_word_embeddings": self.boolean(),
            "bos_token_id": self.choice([None, 1]),
            "eos_token_id": self.choice([None, 2, 50256]),
            "pad_token_id": self.choice([None, 0]),
        }

    def conv1d_sizes(self) -> dict:
        heads = self.randrange(1, 5)
        return {
            "n_layer": self.randrange(1, 4),
            "n_head": heads,
            "n_embd": heads * self.choice([5, 6, 8]),
            "n_positions": LENGTH,
            "layer_norm_epsilon": self.choice([1e-5, 1e-6]),
            **self.dropouts("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        }

    def grouped_sizes(self) -> dict:
        groups, kv_heads, head_dim = self.randrange(1, 4), self.randrange(1, 3), self.choice([6, 8, 12])
        heads = groups * kv_heads
        return {
            "num_hidden_layers": self.randrange(1, 4),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "hidden_size": heads * self.choice([7, 8, head_dim]),
            "intermediate_size": self.choice([13, 16, 24, 39]),
            "max_position_embeddings": LENGTH,
            "rms_norm_eps": self.choice([1e-5, 1e-6]),
            "attention_dropout": self.choice([0.0, 0.1]),
        }

    def experts(self) -> dict:
        experts = self.randrange(2, 7)
        return {
            "num_local_experts": experts,
            "num_experts_per_tok": self.randrange(1, experts + 1),
            "output_router_logits": self.boolean(),
            "router_aux_loss_coef": self.choice([0.001, 0.02]),
        }


class Model(NamedTuple):
    """A published model: sizes, number of parameters, and native fields that differ from those of its release."""

    layers: int
    hidden: int
    heads: int
    head_dim: int
    parameters: int | None = None
    config_json: dict = {}


class Release(NamedTuple):
    """Models that were published together."""

    config_json: dict | None
    """Native fields that their config.json files have in common; None if no file was published."""
    models: dict[str, Model]
    """By the name of the preset."""
    per_layer: Callable[[int], dict] = lambda layers: {}
    """Returns the native fields that depend on the number of layers."""


class NativeFamily(NamedTuple):
    """What the tests know of a family of transformers."""

    draw: Callable[[Draw], dict]
    """Returns a random configuration in native fields."""
    releases: tuple[Release, ...]
    counts_padding: bool
    """Whether padding shifts the native positions."""


NATIVE: dict[str, NativeFamily] = {}


def row(family: str, *releases: Release, counts_padding: bool = False) -> Callable:
    """Adds a family, with the decorated function as its `draw`."""

    def add(draw: Callable[[Draw], dict]) -> Callable[[Draw], dict]:
        NATIVE[family] = NativeFamily(draw, releases, counts_padding)
        return draw

    return add


@row(
    "openai-gpt",
    Release(
        json.loads("""{
            "vocab_size": 40478, "n_positions": 512,
            "afn": "gelu", "layer_norm_epsilon": 1e-05, "initializer_range": 0.02,
            "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1
        }"""),
        {"gpt": Model(12, 768, 12, 64)},
    ),
    counts_padding=True,
)
def _openai_gpt(draw: Draw) -> dict:
    return draw.common() | draw.conv1d_sizes() | {"afn": draw.choice(["gelu", "relu", "silu", "swish"])}


@row(
    "gpt2",
    Release(
        json.loads("""{
            "vocab_size": 50257, "n_positions": 1024, "bos_token_id": 50256, "eos_token_id": 50256,
            "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "initializer_range": 0.02,
            "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1
        }"""),
        {
            "gpt2": Model(12, 768, 12, 64, 124_439_808),
            "gpt2-medium": Model(24, 1024, 16, 64, 354_823_168),
            "gpt2-large": Model(36, 1280, 20, 64, 774_030_080),
            "gpt2-xl": Model(48, 1600, 25, 64, 1_557_611_200),
        },
    ),
    Release(  # GPT-3: the paper alone (Brown et al. 2020, table 2.1)
        None,
        {
            "gpt3-small": Model(12, 768, 12, 64),
            "gpt3-medium": Model(24, 1024, 16, 64),
            "gpt3-large": Model(24, 1536, 16, 96),
            "gpt3-xl": Model(24, 2048, 24, 128),
            "gpt3-2.7b": Model(32, 2560, 32, 80),
            "gpt3-6.7b": Model(32, 4096, 32, 128),
            "gpt3-13b": Model(40, 5140, 40, 128),
            "gpt3-175b": Model(96, 12288, 96, 128),
        },
    ),
)
def _gpt2(draw: Draw) -> dict:
    return (
        draw.common()
        | draw.conv1d_sizes()
        | {
            "n_inner": draw.choice([None, 37]),
            "activation_function": draw.choice(ACTIVATIONS),
            "scale_attn_weights": draw.boolean(),
            "scale_attn_by_inverse_layer_idx": draw.boolean(),
            "summary_type": draw.choice(["cls_index", "last"]),
            "task_specific_params": {"text-generation": {"max_length": 50}},
        }
    )


@row(
    "gpt_neo",
    Release(
        json.loads("""{
            "vocab_size": 50257, "max_position_embeddings": 2048, "bos_token_id": 50256, "eos_token_id": 50256,
            "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "initializer_range": 0.02,
            "intermediate_size": null, "window_size": 256,
            "resid_dropout": 0, "embed_dropout": 0, "attention_dropout": 0
        }"""),
        {
            "gpt-neo-125m": Model(12, 768, 12, 64),
            "gpt-neo-1.3b": Model(24, 2048, 16, 128, 1_315_575_808),
            "gpt-neo-2.7b": Model(32, 2560, 20, 128, 2_651_307_520),
        },
        per_layer=lambda layers: {"attention_types": [[["global", "local"], layers // 2]]},
    ),
)
def _gpt_neo(draw: Draw) -> dict:
    kinds = [[draw.choices(["global", "local"], k=draw.randrange(1, 3)), draw.randrange(1, 3)] for _ in range(2)]
    heads = draw.randrange(1, 5)
    return (
        draw.common()
        | draw.dropouts("resid_dropout", "embed_dropout", "attention_dropout", "classifier_dropout")
        | {
            "attention_types": kinds,
            "num_layers": sum(len(kind) * times for kind, times in kinds),
            "num_heads": heads,
            "hidden_size": heads * draw.choice([5, 8]),
            "intermediate_size": draw.choice([None, 29]),
            "max_position_embeddings": LENGTH,
            "window_size": draw.randrange(2, 9),
            "activation_function": draw.choice(ACTIVATIONS),
        }
    )


@row(
    "gptj",
    Release(
        json.loads("""{
            "vocab_size": 50400, "n_positions": 2048, "bos_token_id": 50256, "eos_token_id": 50256,
            "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "initializer_range": 0.02,
            "n_inner": null, "rotary_dim": 64, "tie_word_embeddings": false,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0
        }"""),
        {"gpt-j-6b": Model(28, 4096, 16, 256)},
    ),
)
def _gptj(draw: Draw) -> dict:
    heads, head_dim = draw.randrange(1, 4), draw.choice([6, 10, 22])
    own = {"n_head": heads, "n_embd": heads * head_dim, "rotary_dim": draw.randrange(2, head_dim + 1, 2)}
    activation = {"activation_function": draw.choice(ACTIVATIONS), "n_inner": draw.choice([None, 31])}
    return draw.common() | draw.conv1d_sizes() | own | activation


NEOX = json.loads("""{
    "vocab_size": 50432, "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 0,
    "hidden_act": "gelu_fast", "layer_norm_eps": 1e-05, "initializer_range": 0.02,
    "rotary_pct": 0.25, "rotary_emb_base": 10000, "tie_word_embeddings": false
}""")


@row(
    "gpt_neox",
    Release(NEOX, {"gpt-neox-20b": Model(44, 6144, 64, 96, 20_554_567_680)}),
    Release(
        NEOX
        | json.loads("""{
            "vocab_size": 50304, "hidden_act": "gelu", "use_parallel_residual": true, "attention_bias": true,
            "hidden_dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.1
        }"""),
        {
            "pythia-14m": Model(6, 128, 4, 32),
            "pythia-31m": Model(6, 256, 8, 32),
            "pythia-70m": Model(6, 512, 8, 64, 70_426_624),
            "pythia-160m": Model(12, 768, 12, 64, 162_322_944),
            "pythia-410m": Model(24, 1024, 16, 64, 405_334_016),
            "pythia-1b": Model(16, 2048, 8, 256, 1_011_781_632),
            "pythia-1.4b": Model(24, 2048, 16, 128, 1_414_647_808),
            "pythia-2.8b": Model(32, 2560, 32, 80, 2_775_208_960),
            "pythia-6.9b": Model(32, 4096, 32, 128, 6_857_302_016, {"vocab_size": 50432}),
            "pythia-12b": Model(36, 5120, 40, 128, 11_846_072_320, {"vocab_size": 50688}),
        },
    ),
)
def _gpt_neox(draw: Draw) -> dict:
    heads = draw.randrange(1, 4)
    return (
        draw.common()
        | draw.dropouts("attention_dropout", "hidden_dropout", "classifier_dropout")
        | {
            "num_hidden_layers": draw.randrange(1, 4),
            "num_attention_heads": heads,
            "hidden_size": heads * 16,
            "intermediate_size": draw.randrange(11, 40),
            "max_position_embeddings": LENGTH,
            "hidden_act": draw.choice(ACTIVATIONS),
            "use_parallel_residual": draw.boolean(),
            "attention_bias": draw.boolean(),
            "rope_parameters": draw.choice(ROPE) | {"partial_rotary_factor": draw.choice([0.25, 0.5, 1.0])},
        }
    )


OPT_350M = {"do_layer_norm_before": False, "word_embed_proj_dim": 512}


@row(
    "opt",
    Release(
        json.loads("""{
            "vocab_size": 50272, "max_position_embeddings": 2048,
            "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
            "activation_function": "relu", "do_layer_norm_before": true, "init_std": 0.02,
            "dropout": 0.1, "attention_dropout": 0.0, "layerdrop": 0.0
        }"""),
        {
            "opt-125m": Model(12, 768, 12, 64),
            "opt-350m": Model(24, 1024, 16, 64, 331_196_416, OPT_350M),
            "opt-1.3b": Model(24, 2048, 32, 64),
            "opt-2.7b": Model(32, 2560, 32, 80),
            "opt-6.7b": Model(32, 4096, 32, 128, 6_658_473_984),
            "opt-13b": Model(40, 5120, 40, 128),
            "opt-30b": Model(48, 7168, 56, 128),
            "opt-66b": Model(64, 9216, 72, 128),
            "opt-175b": Model(96, 12288, 96, 128),  # its config.json is not published
        },
    ),
)
def _opt(draw: Draw) -> dict:
    heads = draw.randrange(1, 5)
    width = heads * draw.choice([5, 8])
    fields = draw.common() | {
        "num_hidden_layers": draw.randrange(1, 4),
        "num_attention_heads": heads,
        "hidden_size": width,
        "word_embed_proj_dim": draw.choice([width, 6]),
        "ffn_dim": draw.randrange(11, 40),
        "max_position_embeddings": LENGTH,
        "do_layer_norm_before": draw.boolean(),
        "_remove_final_layer_norm": draw.boolean(),
        "enable_bias": draw.boolean(),
        "layer_norm_elementwise_affine": draw.boolean(),
        "activation_function": draw.choice(ACTIVATIONS),
        **draw.dropouts("dropout", "attention_dropout", "layerdrop"),
    }
    return {"init_std" if name == "initializer_range" else name: value for name, value in fields.items()}


@row(
    "llama",
    Release(
        json.loads("""{
            "vocab_size": 128256, "max_position_embeddings": 8192, "bos_token_id": 128000, "eos_token_id": 128001,
            "hidden_act": "silu", "rms_norm_eps": 1e-05, "initializer_range": 0.02,
            "intermediate_size": 14336, "num_key_value_heads": 8, "attention_bias": false,
            "attention_dropout": 0.0, "rope_theta": 500000.0, "rope_scaling": null, "tie_word_embeddings": false
        }"""),
        {"llama-3-8b": Model(32, 4096, 32, 128, 8_030_261_248)},
    ),
)
def _llama(draw: Draw) -> dict:
    sizes = draw.grouped_sizes()
    rope = draw.choice([*ROPE, longrope(sizes["head_dim"])])
    flags = {"attention_bias": draw.boolean(), "mlp_bias": draw.boolean(), "hidden_act": draw.choice(ACTIVATIONS)}
    return draw.common() | sizes | flags | {"rope_parameters": rope}


@row(
    "mixtral",
    Release(
        json.loads("""{
            "vocab_size": 32000, "max_position_embeddings": 32768, "bos_token_id": 1, "eos_token_id": 2,
            "hidden_act": "silu", "rms_norm_eps": 1e-05, "initializer_range": 0.02,
            "intermediate_size": 14336, "num_key_value_heads": 8, "attention_dropout": 0.0, "sliding_window": null,
            "num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02,
            "output_router_logits": false, "rope_theta": 1000000.0, "tie_word_embeddings": false
        }"""),
        {"mixtral-8x7b": Model(32, 4096, 32, 128, 46_702_792_704)},
    ),
)
def _mixtral(draw: Draw) -> dict:
    own = {"sliding_window": draw.choice([None, 5]), "router_jitter_noise": draw.choice([0.0, 0.01])}
    return draw.common() | draw.grouped_sizes() | draw.experts() | own | {"rope_parameters": draw.choice(ROPE)}


@row(
    "gpt_oss",
    Release(
        json.loads("""{
            "vocab_size": 201088, "max_position_embeddings": 131072, "pad_token_id": 199999, "eos_token_id": 200002,
            "hidden_act": "silu", "swiglu_limit": 7.0, "rms_norm_eps": 1e-05, "initializer_range": 0.02,
            "intermediate_size": 2880, "num_key_value_heads": 8, "head_dim": 64, "attention_bias": true,
            "attention_dropout": 0.0, "sliding_window": 128,
            "num_experts_per_tok": 4, "router_aux_loss_coef": 0.9, "output_router_logits": false,
            "rope_theta": 150000, "tie_word_embeddings": false,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096,
                "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false
            }
        }"""),
        {
            "gpt-oss-20b": Model(24, 2880, 64, 64, 20_914_757_184, {"num_local_experts": 32}),
            "gpt-oss-120b": Model(36, 2880, 64, 64, 116_829_156_672, {"num_local_experts": 128}),
        },
        per_layer=lambda layers: {"layer_types": ["sliding_attention", "full_attention"] * (layers // 2)},
    ),
)
def _gpt_oss(draw: Draw) -> dict:
    sizes = draw.grouped_sizes()
    kinds = ["sliding_attention", "full_attention"]
    own = {
        "layer_types": draw.choices(kinds, k=sizes["num_hidden_layers"]),
        "sliding_window": draw.randrange(2, 9),
        "attention_bias": draw.boolean(),
        "swiglu_alpha": draw.choice([1.702, 1.0]),
        "swiglu_limit": draw.choice([7.0, 0.5]),
    }
    return draw.common() | sizes | draw.experts() | own | {"rope_parameters": draw.choice(ROPE)}
