"""What a configuration costs: parameters, arithmetic and cache, counted without making a weight."""

from typing import NamedTuple

import torch
from torch import nn

from .model.attention_patterns import build_pattern
from .model.configuration_gpt import GPTConfig
from .model.experts import Experts
from .model.modeling_gpt import GPTForCausalLM
from .model.moe import TopKRouter


class LayerAccount(NamedTuple):
    attention_pattern: str
    parameters: int
    cache_bytes_per_token: int  # of keys and values that stay
    cached_tokens: int  # of a whole context
    activation_bytes_per_token: int  # kept from forward to backward


class Account(NamedTuple):
    """Costs of a language model at a context length and for one cache dtype."""

    parameters: int
    active_parameters: int  # those that work on one token: of the experts, the chosen ones
    forward_flops_per_token: float  # mean over the context; a multiplication and an addition are two
    layers: list[LayerAccount]

    @property
    def training_flops_per_token(self) -> float:
        return 3 * self.forward_flops_per_token  # backward: once more for the inputs, once more for the weights

    @property
    def activation_bytes_per_token(self) -> int:
        """What a training step in float32 keeps of each token between forward and backward, but for the loss."""
        return sum(layer.activation_bytes_per_token for layer in self.layers)

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes that one more token adds to the cache, as long as no layer's window is full."""
        return sum(layer.cache_bytes_per_token for layer in self.layers)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache of one row at the full context."""
        return sum(layer.cache_bytes_per_token * layer.cached_tokens for layer in self.layers)


# How many widths of a feed-forward layer are kept for its backward pass: what enters the activation, and its steps.
KEPT_WIDTHS = {"mlp": 2, "glu": 4, "clamped_glu": 7}


def kept_for_backward(config: GPTConfig, layer_idx: int) -> int:
    """Numbers that a block keeps for each token from forward to backward, in training on a CPU without dropout: what
    enters every product and norm, what attention reads and writes, and the steps of the activation, as long as they are
    small enough to be kept (`feed_forward.KEPT_BYTES`)."""
    width, query = config.hidden_size, config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    norms = 1 if config.shared_norm else 2
    steps = 1 if config.norm_type == "layer_norm" else 2  # RMSNorm is taken to pieces
    streams = 1 if config.parallel_residual else 2
    attention = query + 2 * key + query  # queries, keys, values, and the output
    if config.position_embedding_type == "rope":
        attention += query + key
    if config.qk_norm:
        attention += steps * (query + key)
    if config.mlp_layer_types[layer_idx] == "dense":
        feed_forward = KEPT_WIDTHS[config.mlp_type] * config.intermediate_size
    else:
        entering = 1 if config.mlp_type == "mlp" else 2
        feed_forward = entering * config.num_experts_per_tok * config.moe_intermediate_size
        feed_forward += KEPT_WIDTHS[config.mlp_type] * config.num_shared_experts * config.moe_intermediate_size
    return (streams + steps * norms) * width + attention + feed_forward


def account(config: GPTConfig, context: int | None = None, dtype: torch.dtype = torch.bfloat16) -> Account:
    """Count on the meta device, so that 175 billion parameters take a moment and no memory.

    Args:
        context: tokens in a row, `max_position_embeddings` by default.
        dtype: of the cached keys and values.
    """
    context = context or config.max_position_embeddings
    with torch.device("meta"):
        model = GPTForCausalLM(config)
    total = sum(p.numel() for p in model.parameters())
    experts = [p for module in model.modules() if isinstance(module, Experts) for p in module.parameters()]
    idle = 1 - config.num_experts_per_tok / (config.num_local_experts or config.num_experts_per_tok)
    active = total - round(idle * sum(p.numel() for p in experts))
    matrices = [module.weight for module in model.modules() if isinstance(module, (nn.Linear, TopKRouter))]
    multiplied = sum(m.numel() for m in matrices) + round((1 - idle) * sum(p.numel() for p in experts if p.ndim == 3))

    per_token = 2 * config.num_key_value_heads * config.head_dim * dtype.itemsize
    patterns = {name: build_pattern(config, name) for name in config.attention_patterns}
    seen = {name: sum(map(pattern.keys_seen, range(context))) / context for name, pattern in patterns.items()}
    keys_seen = sum(seen[name] for name in config.attention_patterns)
    layers = [
        LayerAccount(
            name,
            sum(p.numel() for p in block.parameters()),
            per_token,
            patterns[name].keys_kept(context),
            4 * kept_for_backward(config, layer_idx),
        )
        for layer_idx, (name, block) in enumerate(zip(config.attention_patterns, model.model.layers, strict=True))
    ]
    attention = 4 * config.num_attention_heads * config.head_dim * keys_seen  # scores, and the sum of values
    return Account(total, active, 2 * multiplied + attention, layers)
