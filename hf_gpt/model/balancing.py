"""How evenly the experts are used: measured in every training step, held to by losses, or steered by a bias.

Fedus et al. 2021 (Switch), section 2.2: the load-balancing loss. Zoph et al. 2022 (ST-MoE), section 3.3: the z-loss.
Wang et al. 2024, algorithm 1: balance without a loss.
"""

from functools import cache
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import distributed, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from .configuration_gpt import GPTConfig


class Balance(NamedTuple):
    """Of one forward pass, over all sparse layers together. Padding does not count."""

    tokens_per_expert: torch.Tensor
    """(sparse layers, experts): how many tokens chose each; in training, on all processes."""
    aux_loss: torch.Tensor
    """Scalar: the load-balancing loss, the number k of chosen experts where all are used alike."""
    z_loss: torch.Tensor
    """Scalar: the mean square of the logarithm of the router's partition function."""


def measure_balance(
    router_logits: tuple[torch.Tensor, ...],
    router_indices: tuple[torch.Tensor, ...],
    attention_mask: torch.Tensor | None,
    config: GPTConfig,
    over_processes: bool = False,
) -> Balance:
    """What the routers of a forward pass have done.

    Args:
        router_logits: for each sparse layer, (B * T, experts).
        router_indices: for each sparse layer, (B * T, k), the chosen experts.
        attention_mask: (B, past + T). A prepared mask says nothing about padding.
        over_processes: add up the loads of all processes, where there are several, so that the loss and its gradients
            are those of the whole batch (Qiu et al. 2025). Every process must then do so, as each does in training.
    """
    mask = token_mask(attention_mask, router_logits[0])  # (B * T,)
    chosen = [torch.zeros_like(logits, dtype=mask.dtype) for logits in router_logits]
    loads = [mask @ each.scatter_(-1, indices, 1.0) for each, indices in zip(chosen, router_indices, strict=True)]
    shares = [mask @ probabilities(logits.to(mask.dtype), config) for logits in router_logits]
    squares = [mask @ logits.to(mask.dtype).logsumexp(dim=-1).square() for logits in router_logits]

    tokens = mask.sum()
    load, everywhere = torch.stack(loads), tokens
    if over_processes and distributed.is_available() and distributed.is_initialized():
        load, everywhere = sum_over_processes(load, tokens)
    frequency = load / everywhere.clamp(min=1)  # (sparse layers, experts)
    share = torch.stack(shares) / tokens.clamp(min=1)
    if config.router_aux_loss_type == "pooled":
        frequency, share = frequency.mean(dim=0, keepdim=True), share.mean(dim=0, keepdim=True)
    aux_loss = config.num_local_experts * (frequency * share).sum(dim=1).mean()
    return Balance(load, aux_loss, torch.stack(squares).mean() / tokens.clamp(min=1))


def token_mask(attention_mask: torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor:
    """1.0 for a token, 0.0 for padding, (B * T,), in the precision of the losses."""
    ones = torch.ones(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
    if not (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2):
        return ones
    length = len(logits) // len(attention_mask)
    return attention_mask[:, -length:].flatten().to(ones)


def probabilities(logits: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    """The router's scores as a distribution over all experts."""
    if config.router_score_function == "softmax":
        return logits.softmax(dim=-1)
    scores = logits.sigmoid()  # DeepSeek-V3, equation 19
    return scores / scores.sum(dim=-1, keepdim=True)


def sum_over_processes(load: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks that share a batch count it as often as each other: ratios of the sums stay what they are."""
    packed = torch.cat((load.flatten(), tokens[None]))
    distributed.all_reduce(packed)
    return packed[:-1].view_as(load), packed[-1]


def weighted_losses(balance: Balance, config: GPTConfig) -> torch.Tensor | float:
    """What they add to the loss."""
    terms = ((config.router_aux_loss_coef, balance.aux_loss), (config.router_z_loss_coef, balance.z_loss))
    return sum(weight * loss for weight, loss in terms if weight)


# Routers with a bias that moves, wherever they are.
ROUTERS: WeakSet[nn.Module] = WeakSet()


def update_after_steps(router: nn.Module) -> None:
    """Have `router.update_bias()` called whenever an optimizer has changed its weights: once for all the micro-batches
    of a step, in whatever loop. (An optimizer that works on copies of the weights is not recognised.)"""
    ROUTERS.add(router)
    watch_optimizers()


@cache
def watch_optimizers() -> None:
    register_optimizer_step_post_hook(update_biases)


def update_biases(optimizer: Optimizer, *_: Any) -> None:
    changed = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for router in list(ROUTERS):
        if id(router.weight) in changed:
            router.update_bias()
