"""Mixture of experts: a router chooses k experts for each token."""

from collections.abc import Callable

import torch
from torch import nn

from .balancing import update_after_steps
from .configuration_gpt import GPTConfig
from .experts import Experts
from .feed_forward import build_mlp


def softmax_of_chosen(chosen: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the chosen experts (gpt-oss), equal to a softmax over all experts whose k largest weights are
    normalized (Mixtral)."""
    return chosen.softmax(dim=-1)


def softmax_of_all(chosen: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Softmax over all experts, not normalized over the chosen ones (Switch, OLMoE)."""
    return (chosen - logits.logsumexp(dim=-1, keepdim=True)).exp()


def sigmoid_of_chosen(chosen: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Sigmoid, normalized over the chosen experts (DeepSeek-V3)."""
    weights = chosen.sigmoid()
    return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)  # as in DeepSeek-V3, against a sum of 0


def sigmoid(chosen: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Sigmoid, not normalized."""
    return chosen.sigmoid()


# By `router_score_function` and `norm_topk_prob`: logits of the chosen experts, (N, k), and of all, (N, experts), to
# the weights of the chosen ones, (N, k).
EXPERT_WEIGHTS: dict[tuple[str, bool], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    ("softmax", True): softmax_of_chosen,
    ("softmax", False): softmax_of_all,
    ("sigmoid", True): sigmoid_of_chosen,
    ("sigmoid", False): sigmoid,
}
SCORES = {"softmax": lambda logits: logits.softmax(dim=-1), "sigmoid": torch.sigmoid}


class TopKRouter(nn.Module):
    """Chooses the k experts with the largest logits for each token, and their weights in its output.

    Not an `nn.Linear`, because tools that replace linear layers by class (LoRA, quantization) must leave it alone.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))
        self.register_parameter("bias", nn.Parameter(torch.empty(len(self.weight))) if config.router_bias else None)
        self.top_k = config.num_experts_per_tok
        self.expert_weights = EXPERT_WEIGHTS[config.router_score_function, config.norm_topk_prob]
        self.scaling = config.routed_scaling_factor

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, hidden_size) to all logits, (N, experts), and the weights and indices of the chosen experts, (N, k)."""
        logits = nn.functional.linear(tokens, self.weight, self.bias)
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        chosen, indices = self.choose(precise)
        return logits, self.expert_weights(chosen, precise) * self.scaling, indices

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the logits and indices of the chosen experts, (N, k) each."""
        return logits.topk(self.top_k, dim=-1)


class BiasedChoiceRouter(TopKRouter):
    """Chooses by score plus a bias that is no part of the weights and moves against the load of each expert
    (Wang et al. 2024, algorithm 1; DeepSeek-V3, section 2.1.2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.score = config.router_score_function
        self.rate = config.router_bias_update_rate
        zeros = torch.zeros(config.num_local_experts, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", zeros)
        # Loads since the last optimizer step. Not saved: checkpoints are written between steps, where they are 0.
        self.register_buffer("tokens_per_expert", zeros.clone(), persistent=False)
        update_after_steps(self)

    def _apply(self, *args, **kwargs):  # small steps and counts need float32, also if the weights are cast
        super()._apply(*args, **kwargs)
        self.e_score_correction_bias = self.e_score_correction_bias.float()
        self.tokens_per_expert = self.tokens_per_expert.float()
        return self

    def __setstate__(self, state: dict) -> None:  # a copied or unpickled router
        super().__setstate__(state)
        update_after_steps(self)

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = SCORES[self.score](logits) + self.e_score_correction_bias
        indices = scores.topk(self.top_k, dim=-1).indices
        return logits.gather(-1, indices), indices

    @torch.no_grad()
    def update_bias(self) -> None:
        """Raises the bias of experts with a load below the mean, and lowers it above."""
        load = self.tokens_per_expert
        self.e_score_correction_bias += self.rate * (load.mean() - load).sign()
        load.zero_()


def build_router(config: GPTConfig) -> TopKRouter:
    """Returns the router that the configuration describes."""
    return TopKRouter(config) if config.router_bias_update_rate is None else BiasedChoiceRouter(config)


class SparseMLP(nn.Module):
    """A router and its experts, instead of one feed-forward layer: (B, T, hidden_size) to the same shape."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.jitter = config.router_jitter_noise
        self.router = build_router(config)
        self.experts = Experts(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.flatten(0, -2)  # (N, hidden_size)
        if self.training and self.jitter:
            tokens = tokens * torch.empty_like(tokens).uniform_(1 - self.jitter, 1 + self.jitter)
        _, weights, indices = self.router(tokens)
        return self.experts(tokens, indices, weights).view_as(hidden_states)


class SharedSparseMLP(SparseMLP):
    """Experts chosen by the router, plus shared experts for every token (Dai et al. 2024, section 3.2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.shared_experts = build_mlp(config, config.num_shared_experts * config.moe_intermediate_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + self.shared_experts(hidden_states)


def build_feed_forward(config: GPTConfig, layer_idx: int) -> nn.Module:
    """Returns the feed-forward layer of one block: dense, or a mixture of experts."""
    if config.mlp_layer_types[layer_idx] == "dense":
        return build_mlp(config, config.intermediate_size)
    return SharedSparseMLP(config) if config.num_shared_experts else SparseMLP(config)
