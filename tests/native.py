"""Tiny native models of every family, with random configurations; and nanoGPT, from its definition."""

import math
import random
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LENGTH = 48
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
    """The one type whose factors depend on the width of a head."""
    factors = [1.0 + i / 4 for i in range(rotary_dim // 2)]
    own = {"factor": 4.0, "short_factor": factors, "long_factor": factors[::-1]}
    return {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 16, **own}


class Draw(random.Random):
    """Random fields, the same for the same seed."""

    def yes(self) -> bool:
        return self.random() < 0.5

    def dropouts(self, *names: str) -> dict:
        return {name: self.choice([0.0, 0.1, 0.25]) for name in names}

    def common(self) -> dict:
        return {
            "vocab_size": self.randrange(50, 130),
            "initializer_range": self.choice([0.01, 0.02]),
            "tie_word_embeddings": self.yes(),
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
            "output_router_logits": self.yes(),
            "router_aux_loss_coef": self.choice([0.001, 0.02]),
        }


def openai_gpt(draw: Draw) -> dict:
    return draw.common() | draw.conv1d_sizes() | {"afn": draw.choice(["gelu", "relu", "silu", "swish"])}


def gpt2(draw: Draw) -> dict:
    return (
        draw.common()
        | draw.conv1d_sizes()
        | {
            "n_inner": draw.choice([None, 37]),
            "activation_function": draw.choice(ACTIVATIONS),
            "scale_attn_weights": draw.yes(),
            "scale_attn_by_inverse_layer_idx": draw.yes(),
            "summary_type": draw.choice(["cls_index", "last"]),
            "task_specific_params": {"text-generation": {"max_length": 50}},
        }
    )


def gpt_neo(draw: Draw) -> dict:
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


def gpt_neox(draw: Draw) -> dict:
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
            "use_parallel_residual": draw.yes(),
            "attention_bias": draw.yes(),
            "rope_parameters": draw.choice(ROPE) | {"partial_rotary_factor": draw.choice([0.25, 0.5, 1.0])},
        }
    )


def gptj(draw: Draw) -> dict:
    heads, head_dim = draw.randrange(1, 4), draw.choice([6, 10, 22])
    own = {"n_head": heads, "n_embd": heads * head_dim, "rotary_dim": draw.randrange(2, head_dim + 1, 2)}
    activation = {"activation_function": draw.choice(ACTIVATIONS), "n_inner": draw.choice([None, 31])}
    return draw.common() | draw.conv1d_sizes() | own | activation


def opt(draw: Draw) -> dict:
    heads = draw.randrange(1, 5)
    width = heads * draw.choice([5, 8])
    values = draw.common() | {
        "num_hidden_layers": draw.randrange(1, 4),
        "num_attention_heads": heads,
        "hidden_size": width,
        "word_embed_proj_dim": draw.choice([width, 6]),
        "ffn_dim": draw.randrange(11, 40),
        "max_position_embeddings": LENGTH,
        "do_layer_norm_before": draw.yes(),
        "_remove_final_layer_norm": draw.yes(),
        "enable_bias": draw.yes(),
        "layer_norm_elementwise_affine": draw.yes(),
        "activation_function": draw.choice(ACTIVATIONS),
        **draw.dropouts("dropout", "attention_dropout", "layerdrop"),
    }
    return {"init_std" if name == "initializer_range" else name: value for name, value in values.items()}


def llama(draw: Draw) -> dict:
    sizes = draw.grouped_sizes()
    rope = draw.choice([*ROPE, longrope(sizes["head_dim"])])
    flags = {"attention_bias": draw.yes(), "mlp_bias": draw.yes(), "hidden_act": draw.choice(ACTIVATIONS)}
    return draw.common() | sizes | flags | {"rope_parameters": rope}


def mixtral(draw: Draw) -> dict:
    own = {"sliding_window": draw.choice([None, 5]), "router_jitter_noise": draw.choice([0.0, 0.01])}
    return draw.common() | draw.grouped_sizes() | draw.experts() | own | {"rope_parameters": draw.choice(ROPE)}


def gpt_oss(draw: Draw) -> dict:
    sizes = draw.grouped_sizes()
    kinds = ["sliding_attention", "full_attention"]
    own = {
        "layer_types": draw.choices(kinds, k=sizes["num_hidden_layers"]),
        "sliding_window": draw.randrange(2, 9),
        "attention_bias": draw.yes(),
        "swiglu_alpha": draw.choice([1.702, 1.0]),
        "swiglu_limit": draw.choice([7.0, 0.5]),
    }
    return draw.common() | sizes | draw.experts() | own | {"rope_parameters": draw.choice(ROPE)}


NATIVE = {
    "openai-gpt": openai_gpt,
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "gptj": gptj,
    "opt": opt,
    "gpt_oss": gpt_oss,
    "llama": llama,
    "mixtral": mixtral,
}


def native_config(family: str, seed: int = 0, **fields) -> PreTrainedConfig:
    return CONFIG_MAPPING[family](**{**NATIVE[family](Draw(f"{family} {seed}")), **fields})


def native_model(family: str, seed: int = 0, **fields) -> PreTrainedModel:
    """A model in evaluation mode, its weights strong enough that every part shows in the logits."""
    set_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(native_config(family, seed, **fields), dtype=torch.float32)
    strengthen(model)
    model.set_experts_implementation("eager")  # the others refuse odd widths
    return model.eval()


@torch.no_grad()
def strengthen(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.2)


def save_native(folder: Path, family: str, seed: int = 0, **fields) -> PreTrainedModel:
    model = native_model(family, seed, **fields)
    model.save_pretrained(folder)
    return model


class NanoGPT(nn.Module):
    """nanoGPT as its README describes it: GPT-2 of plain linear layers, with or without biases, and exact GELU."""

    def __init__(self, n_layer, n_head, n_embd, block_size, vocab_size, bias, dropout=0.0, tied=True, act=nn.GELU):
        super().__init__()
        norm = lambda: nn.LayerNorm(n_embd, bias=bias)  # noqa: E731
        blocks = [
            nn.ModuleDict(
                {
                    "ln_1": norm(),
                    "attn": nn.ModuleDict(
                        {
                            "c_attn": nn.Linear(n_embd, 3 * n_embd, bias=bias),
                            "c_proj": nn.Linear(n_embd, n_embd, bias=bias),
                        }
                    ),
                    "ln_2": norm(),
                    "mlp": nn.ModuleDict(
                        {
                            "c_fc": nn.Linear(n_embd, 4 * n_embd, bias=bias),
                            "c_proj": nn.Linear(4 * n_embd, n_embd, bias=bias),
                        }
                    ),
                }
            )
            for _ in range(n_layer)
        ]
        wte, wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(block_size, n_embd)
        self.transformer = nn.ModuleDict({"wte": wte, "wpe": wpe, "h": nn.ModuleList(blocks), "ln_f": norm()})
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = wte.weight
        self.n_head, self.act = n_head, act()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        causal = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
        for block in self.transformer["h"]:
            q, k, v = block["attn"]["c_attn"](block["ln_1"](x)).chunk(3, dim=-1)
            q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in (q, k, v))
            scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~causal, -math.inf)
            x = x + block["attn"]["c_proj"]((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
            x = x + block["mlp"]["c_proj"](self.act(block["mlp"]["c_fc"](block["ln_2"](x))))
        return self.lm_head(self.transformer["ln_f"](x))


def assert_close(actual, expected):
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
