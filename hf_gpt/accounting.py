"""Counts the parameters, FLOPs, cached bytes and saved activations of a configuration, without allocating weights."""

from typing import NamedTuple

import torch
from torch import nn

from .model.attention_patterns import build_pattern
from .model.configuration_gpt import GPTConfig
from .model.experts import Experts
from .model.modeling_gpt import GPTForCausalLM
from .model.moe import TopKRouter


class LayerAccount(NamedTuple):
    """Costs of a layer."""

    attention_pattern: str
    parameters: int
    cache_bytes_per_token: int
    """Bytes of the keys and values of one token."""
    cached_tokens: int
    """Number of tokens that the layer caches at the full context."""
    activation_bytes_per_token: int
    """Bytes per token that are saved for backward."""


class Account(NamedTuple):
    """Costs of a language model at a context length and for a dtype of the cache."""

    parameters: int
    active_parameters: int
    """Parameters that are used for one token: all but those of the experts that the router does not select."""
    forward_flops_per_token: float
    """Mean over the context. A multiplication and an addition are two FLOPs."""
    layers: list[LayerAccount]

    @property
    def training_flops_per_token(self) -> float:
        return 3 * self.forward_flops_per_token  # backward: the gradients of the inputs and those of the weights

    @property
    def activation_bytes_per_token(self) -> int:
        """Bytes per token that a training step in float32 saves for backward, without those of the loss."""
        return sum(layer.activation_bytes_per_token for layer in self.layers)

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes that one more token adds to the cache, until the window of a layer is full."""
        return sum(layer.cache_bytes_per_token for layer in self.layers)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache of one row at the full context."""
        return sum(layer.cache_bytes_per_token * layer.cached_tokens for layer in self.layers)


# Tensors of the intermediate width that a feed-forward layer saves for backward: the input and the steps of the
# activation function.
SAVED_WIDTHS = {"mlp": 2, "glu": 4, "clamped_glu": 7}


def saved_per_token(config: GPTConfig, layer_idx: int) -> int:
    """Returns how many numbers per token a block saves for backward, in training on a CPU without dropout.

    These are the inputs of products and norms, the inputs and the output of attention, and the steps of the activation
    function, if they are small enough to be saved (`feed_forward.RECOMPUTED_BYTES`).
    """
    width, query = config.hidden_size, config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    norms = 1 if config.shared_norm else 2
    steps = 1 if config.norm_type == "layer_norm" else 2  # RMSNorm consists of two operations
    streams = 1 if config.parallel_residual else 2
    attention = query + 2 * key + query  # queries, keys, values and output
    if config.position_embedding_type == "rope":
        attention += query + key
    if config.qk_norm:
        attention += steps * (query + key)
    if config.mlp_layer_types[layer_idx] == "dense":
        feed_forward = SAVED_WIDTHS[config.mlp_type] * config.intermediate_size
    else:
        projections = 1 if config.mlp_type == "mlp" else 2
        feed_forward = projections * config.num_experts_per_tok * config.moe_intermediate_size
        feed_forward += SAVED_WIDTHS[config.mlp_type] * config.num_shared_experts * config.moe_intermediate_size
    return (streams + steps * norms) * width + attention + feed_forward


def account(config: GPTConfig, context: int | None = None, dtype: torch.dtype = torch.bfloat16) -> Account:
    """Counts the costs of a language model on the meta device, which allocates no memory.

    Args:
        config: the configuration of the model.
        context: context length in tokens; `max_position_embeddings` by default.
        dtype: dtype of the cached keys and values.
    """
    context = context or config.max_position_embeddings
    with torch.device("meta"):
        model = GPTForCausalLM(config)
    total = sum(p.numel() for p in model.parameters())
    experts = [p for module in model.modules() if isinstance(module, Experts) for p in module.parameters()]
    inactive = 1 - config.num_experts_per_tok / config.num_local_experts if experts else 0
    active = total - round(inactive * sum(p.numel() for p in experts))
    matrices = [module.weight for module in model.modules() if isinstance(module, (nn.Linear, TopKRouter))]
    multiplied = sum(m.numel() for m in matrices) + round(
        (1 - inactive) * sum(p.numel() for p in experts if p.ndim == 3)
    )

    per_token = 2 * config.num_key_value_heads * config.head_dim * dtype.itemsize
    patterns = {name: build_pattern(config, name) for name in config.attention_patterns}
    seen = {name: pattern.pairs(context) / context for name, pattern in patterns.items()}
    keys_seen = sum(seen[name] for name in config.attention_patterns)
    layers = [
        LayerAccount(
            name,
            sum(p.numel() for p in block.parameters()),
            per_token,
            patterns[name].keys_cached(context),
            4 * saved_per_token(config, layer_idx),
        )
        for layer_idx, (name, block) in enumerate(zip(config.attention_patterns, model.model.layers, strict=True))
    ]
    attention = 4 * config.num_attention_heads * config.head_dim * keys_seen  # logits and weighted sum of values
    return Account(total, active, 2 * multiplied + attention, layers)
