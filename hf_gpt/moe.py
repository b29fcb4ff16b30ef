"""Mixture of experts: a router, and the experts that it chooses from for each token."""

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from .balancing import update_after_steps
from .configuration_gpt import GPTConfig
from .feed_forward import GATES, build_activation, build_mlp
from .linear import Linear, matmul


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


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


class TopKRouter(Linear):
    """Chooses the k experts of largest logit for each token, and the share that each has in its output."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.hidden_size, config.num_local_experts, bias=config.router_bias)
        self.top_k = config.num_experts_per_tok
        self.shares = SHARES[config.router_score_function, config.norm_topk_prob]
        self.scaling = config.routed_scaling_factor

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, hidden_size) to all logits, (N, experts), and the shares and indices of the chosen, (N, k)."""
        logits = super().forward(tokens)
        chosen, indices = self.choose(logits)
        return logits, self.shares(at_least_float32(chosen), at_least_float32(logits)) * self.scaling, indices

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
        scores = SCORES[self.score](at_least_float32(logits)) + self.e_score_correction_bias
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


class ExpertProjection(torch.autograd.Function):
    """One linear layer of every expert, over tokens in the order of their experts.

    Its backward writes the gradients of all experts into one tensor. Autograd would make a tensor as large as all of
    them for each expert, and add it up.
    """

    @staticmethod
    def forward(
        ctx, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, counts: list[int]
    ) -> torch.Tensor:
        """(N, in), (experts, in, out) and (experts, out) to (N, out); `counts` tokens are each expert's."""
        if torch.is_autocast_enabled(states.device.type):
            states = states.to(torch.get_autocast_dtype(states.device.type))
        output = states.new_empty(len(states), weight.shape[-1])
        for expert, rows in _rows(counts):
            expert_bias = None if bias is None else bias[expert].to(states.dtype)
            output[rows] = matmul(states[rows], weight[expert].to(states.dtype), expert_bias)
        ctx.save_for_backward(states, weight)
        ctx.counts, ctx.has_bias = counts, bias is not None
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        needs_states, needs_weight, needs_bias, _ = ctx.needs_input_grad
        to_states = torch.empty_like(states) if needs_states else None
        to_weight = torch.empty_like(weight) if needs_weight else None
        to_bias = weight.new_zeros(len(weight), weight.shape[-1]) if needs_bias else None
        for expert, rows in _rows(ctx.counts):
            if needs_states:
                to_states[rows] = matmul(gradient[rows], weight[expert].t().to(states.dtype))
            if needs_weight:
                to_weight[expert] = matmul(states[rows].t(), gradient[rows])
            if needs_bias:
                to_bias[expert] = gradient[rows].sum(dim=0)
        if needs_weight:
            to_weight[[expert for expert, count in enumerate(ctx.counts) if not count]] = 0
        return to_states, to_weight, to_bias, None


def _rows(counts: list[int]) -> list[tuple[int, slice]]:
    """The experts that have tokens, and where these are."""
    ends = accumulate(counts)
    spans = (slice(end - count, end) for count, end in zip(counts, ends, strict=True))
    return [(expert, span) for expert, span in enumerate(spans) if counts[expert]]


def eager_experts(
    experts: "Experts", tokens: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Each expert in turn, on the tokens that chose it.

    Args:
        tokens: (N, hidden_size).
        indices, weights: (N, k), which experts a token goes to, and their shares in its output. An index beyond the
            experts is that of one on another rank.
    """
    chosen, order = indices.flatten().sort(stable=True)  # (N * k,)
    counts = torch.bincount(chosen, minlength=experts.num_experts)[: experts.num_experts].tolist()
    order = order[: sum(counts)]
    origin = order // indices.shape[-1]
    states = experts.project(experts.first, tokens[origin], counts)
    states = experts._apply_gate(states) if experts.has_gate else experts.act_fn(states)
    states = experts.project("down_proj", states, counts) * weights.flatten()[order, None]
    return torch.zeros_like(tokens).index_add_(0, origin, states.to(tokens.dtype))


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

    def project(self, name: str, states: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return ExpertProjection.apply(states, getattr(self, name), getattr(self, f"{name}_bias"), counts)

    def forward(self, tokens: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        implementation = self.config._experts_implementation
        if implementation == "eager" and torch.compiler.is_compiling():
            implementation = "grouped_mm"  # a graph cannot hold how many tokens each expert gets
        run = ALL_EXPERTS_FUNCTIONS.get_interface(implementation, eager_experts)
        return run(self, tokens, indices, weights)


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
