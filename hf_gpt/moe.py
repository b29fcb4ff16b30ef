"""Mixture of experts: a router, and the experts that it chooses from for each token."""

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from .configuration_gpt import GPTConfig
from .feed_forward import GATES, build_activation
from .linear import Linear


class TopKRouter(Linear):
    """Chooses the k experts of largest logit, and weighs them by a softmax over these k (gpt-oss).

    Mixtral's order, a softmax over all experts and the k largest of it normalised, is the same function.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.hidden_size, config.num_local_experts, bias=config.router_bias)
        self.top_k = config.num_experts_per_tok

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, hidden_size) to all logits, (N, experts), and the weights and indices of the chosen, (N, k)."""
        logits = super().forward(tokens)
        chosen, indices = logits.topk(self.top_k, dim=-1)
        return logits, chosen.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32)), indices


def eager_experts(
    experts: nn.Module, tokens: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Each expert in turn, on the tokens that chose it: the definition the other implementations must equal.

    Args:
        tokens: (N, hidden_size).
        indices, weights: (N, k), which experts a token goes to, and their shares in its output.
    """
    output = torch.zeros_like(tokens)
    for expert in indices.unique().tolist():
        token, rank = torch.where(indices == expert)  # (n,)
        share = experts.run_one(expert, tokens[token]) * weights[token, rank, None]
        output.index_add_(0, token, share.to(output.dtype))
    return output


class Experts(nn.Module):
    """The feed-forward layers of all experts, their weights stacked, run by transformers' experts interface.

    Weights are (experts, in, out), as in gpt-oss: a single token is multiplied faster so. A gated expert's
    `gate_up_proj` holds the columns of its gate, then those of `up`.
    """

    # The layout, as the interface asks for it.
    is_transposed = True
    is_concatenated = True
    has_post_expert_norm = False
    _is_expert_parallel = False

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_experts = config.num_local_experts
        self.has_gate = config.mlp_type in GATES
        self.has_bias = config.mlp_bias
        width, inner = config.hidden_size, config.moe_intermediate_size
        if self.has_gate:
            self.first, first_width = "gate_up_proj", 2 * inner
            self.combine = GATES[config.mlp_type](config)
        else:
            self.first, first_width = "up_proj", inner
            self.act_fn = build_activation(config)
        for name, into, out in ((self.first, width, first_width), ("down_proj", inner, width)):
            self.register_parameter(name, nn.Parameter(torch.empty(self.num_experts, into, out)))
            bias = nn.Parameter(torch.empty(self.num_experts, out)) if self.has_bias else None
            self.register_parameter(f"{name}_bias", bias)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self.combine(*gate_up.chunk(2, dim=-1))

    def run_one(self, expert: int, tokens: torch.Tensor) -> torch.Tensor:
        """What one expert makes of `tokens`, (n, hidden_size)."""
        hidden_states = self.project(self.first, expert, tokens)
        hidden_states = self._apply_gate(hidden_states) if self.has_gate else self.act_fn(hidden_states)
        return self.project("down_proj", expert, hidden_states)

    def project(self, name: str, expert: int, states: torch.Tensor) -> torch.Tensor:
        states = states @ getattr(self, name)[expert]
        return states + getattr(self, f"{name}_bias")[expert] if self.has_bias else states

    def forward(self, tokens: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        run = ALL_EXPERTS_FUNCTIONS.get_interface(self.config._experts_implementation, eager_experts)
        return run(self, tokens, indices, weights)


class SparseMLP(nn.Module):
    """A router and its experts in the place of one feed-forward layer, (B, T, hidden_size) to the same."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.jitter = config.router_jitter_noise
        self.router = TopKRouter(config)
        self.experts = Experts(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.flatten(0, -2)  # (N, hidden_size)
        if self.training and self.jitter:
            tokens = tokens * torch.empty_like(tokens).uniform_(1 - self.jitter, 1 + self.jitter)
        _, weights, indices = self.router(tokens)
        return self.experts(tokens, indices, weights).view_as(hidden_states)
