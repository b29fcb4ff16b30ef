"""Mixture of experts: a router chooses k experts for each token."""

from collections.abc import Callable

import torch
from torch import nn

from .backends import is_traced
from .balancing import expert_load, is_learning, sum_over_processes, update_after_steps
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
        self.register_buffer("e_score_correction_bias", torch.zeros(config.num_local_experts, dtype=torch.float32))
        self.chosen: torch.Tensor | None = None
        # No buffers: DDP would overwrite them by those of rank 0. Replicas of nn.DataParallel share the dictionary.
        self.loads: dict[torch.device, torch.Tensor] = {}
        update_after_steps(self)

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)
        self.keep_float32()
        return self

    def __setstate__(self, state: dict) -> None:  # a copied or unpickled router
        super().__setstate__(state)
        update_after_steps(self)

    def keep_float32(self) -> None:
        """Undoes a cast of the bias (`model.to(dtype)`, mixed precision of FSDP 1), in which small steps are lost."""
        self.e_score_correction_bias = self.e_score_correction_bias.float()

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = SCORES[self.score](logits) + self.e_score_correction_bias
        indices = scores.topk(self.top_k, dim=-1).indices
        if self.training:
            self.chosen = indices
        return logits.gather(-1, indices), indices

    def count(self, mask: torch.Tensor | None) -> None:
        """Adds the choices of one forward pass to the loads, if the router is trained.

        Args:
            mask: (B, past + T), True where there is a token; None without padding.
        """
        chosen, self.chosen = self.chosen, None
        if chosen is not None and self.weight.requires_grad:
            load = expert_load(chosen, mask, len(self.e_score_correction_bias))
            self.loads.setdefault(load.device, torch.zeros_like(load)).add_(load)

    @property
    def tokens_per_expert(self) -> torch.Tensor:
        """(experts,), the number of tokens routed to each expert in this process since the last optimizer step."""
        zeros = torch.zeros_like(self.e_score_correction_bias, dtype=torch.float32)
        return sum((load.to(zeros.device) for load in self.loads.values()), start=zeros)

    @torch.no_grad()
    def update_bias(self) -> None:
        """Raises the bias of experts with a load below the mean over all processes, and lowers it above. Every process
        must call this function, as an optimizer step does."""
        if not self.rate:
            return
        load = sum_over_processes(self.tokens_per_expert)
        self.keep_float32()
        self.e_score_correction_bias += self.rate * (load.mean() - load).sign()
        for counted in self.loads.values():
            counted.zero_()


def routers_to_count(decoder: nn.Module) -> list[BiasedChoiceRouter]:
    """Returns the routers that count the choices of a forward pass: in training, outside of torch.func and tracing.

    Older choices are dropped: gradient checkpointing makes them again in backward.
    """
    is_updated = decoder.config.router_bias_update_rate and is_learning(decoder)
    if not is_updated or (is_traced() and not torch.compiler.is_compiling()):
        return []
    routers = decoder.routers
    for router in routers:
        router.chosen = None
    return routers


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
