"""Mixture of experts: a router, and the experts that it chooses from for each token."""

from collections.abc import Callable

import torch
from torch import nn

from .balancing import update_after_steps
from .configuration_gpt import GPTConfig
from .experts import Experts
from .feed_forward import build_mlp


def softmax_of_chosen(chosen: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """A softmax over the chosen (gpt-oss), which is one over all experts with its largest shares normalised
    (Mixtral)."""
    return chosen.softmax(dim=-1)


def softmax_of_all(chosen: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return (chosen - logits.logsumexp(dim=-1, keepdim=True)).exp()


def sigmoid_of_chosen(chosen: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    shares = chosen.sigmoid()
    return shares / (shares.sum(dim=-1, keepdim=True) + 1e-20)  # which DeepSeek-V3 adds against a sum of 0


def sigmoid(chosen: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return chosen.sigmoid()


# By `router_score_function` and `norm_topk_prob`: from the logits of the chosen, (N, k), and of all, (N, experts).
SHARES: dict[tuple[str, bool], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    ("softmax", True): softmax_of_chosen,
    ("softmax", False): softmax_of_all,
    ("sigmoid", True): sigmoid_of_chosen,
    ("sigmoid", False): sigmoid,
}
SCORES = {"softmax": lambda logits: logits.softmax(dim=-1), "sigmoid": torch.sigmoid}


class TopKRouter(nn.Module):
    """Chooses the k experts of largest logit for each token, and the share that each has in its output.

    No `nn.Linear`: what replaces linear layers by name of their class (LoRA, quantisation) would take it for one.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))
        self.register_parameter("bias", nn.Parameter(torch.empty(len(self.weight))) if config.router_bias else None)
        self.top_k = config.num_experts_per_tok
        self.shares = SHARES[config.router_score_function, config.norm_topk_prob]
        self.scaling = config.routed_scaling_factor

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, hidden_size) to all logits, (N, experts), and the shares and indices of the chosen, (N, k)."""
        logits = nn.functional.linear(tokens, self.weight, self.bias)
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        chosen, indices = self.choose(precise)
        return logits, self.shares(chosen, precise) * self.scaling, indices

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits and indices of the chosen."""
        return logits.topk(self.top_k, dim=-1)


class BiasedChoiceRouter(TopKRouter):
    """Chooses by score plus a bias, which has no part in the shares, and moves against the load of each expert
    (Wang et al. 2024, algorithm 1; DeepSeek-V3, section 2.1.2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.score = config.router_score_function
        self.rate = config.router_bias_update_rate
        zeros = torch.zeros(config.num_local_experts, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", zeros)
        # Since the last step of the optimizer. Checkpoints are written between steps.
        self.register_buffer("tokens_per_expert", zeros.clone(), persistent=False)
        update_after_steps(self)

    def _apply(self, *args, **kwargs):  # small steps and counts need float32, whatever the weights are cast to
        super()._apply(*args, **kwargs)
        self.e_score_correction_bias = self.e_score_correction_bias.float()
        self.tokens_per_expert = self.tokens_per_expert.float()
        return self

    def __setstate__(self, state: dict) -> None:  # copied, or unpickled
        super().__setstate__(state)
        update_after_steps(self)

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = SCORES[self.score](logits) + self.e_score_correction_bias
        indices = scores.topk(self.top_k, dim=-1).indices
        return logits.gather(-1, indices), indices

    @torch.no_grad()
    def update_bias(self) -> None:
        """Towards the experts that had less than the mean, away from those that had more."""
        load = self.tokens_per_expert
        self.e_score_correction_bias += self.rate * (load.mean() - load).sign()
        load.zero_()


def build_router(config: GPTConfig) -> TopKRouter:
    return TopKRouter(config) if config.router_bias_update_rate is None else BiasedChoiceRouter(config)


class SparseMLP(nn.Module):
    """A router and its experts in the place of one feed-forward layer, (B, T, hidden_size) to the same."""

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
    """Beside the chosen experts, some that work on every token (Dai et al. 2024, section 3.2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.shared_experts = build_mlp(config, config.num_shared_experts * config.moe_intermediate_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + self.shared_experts(hidden_states)


def build_feed_forward(config: GPTConfig, layer_idx: int) -> nn.Module:
    """One plain or gated layer, or experts."""
    if config.mlp_layer_types[layer_idx] == "dense":
        return build_mlp(config, config.intermediate_size)
    return SharedSparseMLP(config) if config.num_shared_experts else SparseMLP(config)
