"""How evenly the experts are used: the loads of each forward pass, the losses that balance them, and the bias that does
so without a loss.

Fedus et al. 2021 (Switch), section 2.2: the load-balancing loss. Zoph et al. 2022 (ST-MoE), section 3.3: the z-loss.
Wang et al. 2024, algorithm 1: balance without a loss.
"""

from threading import Lock
from typing import Any, NamedTuple
from weakref import finalize, ref

import torch
from torch import distributed, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.utils import logging

from .batch_layout import padding_mask
from .configuration_gpt import GPTConfig
from .targets import Targets

logger = logging.get_logger(__name__)


class Balance(NamedTuple):
    """Statistics of the routers of one forward pass. Padding does not count."""

    tokens_per_expert: torch.Tensor
    """(sparse layers, experts): number of tokens routed to each expert; in training, over all processes."""
    aux_loss: torch.Tensor
    """Scalar: the load-balancing loss; its minimum, for a uniform load, is the number k of experts per token."""
    z_loss: torch.Tensor
    """Scalar: the mean squared logarithm of the router's partition function."""

    def weighted_sum(self, config: GPTConfig) -> torch.Tensor:
        """Returns the sum of the balancing losses, each times its coefficient, a scalar."""
        terms = ((config.router_aux_loss_coef, self.aux_loss), (config.router_z_loss_coef, self.z_loss))
        weighted = [coefficient * loss for coefficient, loss in terms if coefficient]
        return sum(weighted, start=torch.zeros_like(self.aux_loss))


def measure_balance(
    router_logits: tuple[torch.Tensor, ...],
    router_indices: tuple[torch.Tensor, ...],
    mask: torch.Tensor | None,
    config: GPTConfig,
    over_processes: bool = False,
) -> Balance:
    """Returns the statistics of the routers of one forward pass.

    Args:
        router_logits: for each sparse layer, (B * T, experts).
        router_indices: for each sparse layer, (B * T, k), the chosen experts.
        mask: (B, past + T), True where there is a token; None without padding.
        config: its coefficients are not applied.
        over_processes: sum the loads over all processes, so that the loss and its gradients are those of the whole
            batch (Qiu et al. 2025). All processes must then call this function, as they do in training.
    """
    weights = token_weights(mask, router_logits[0])  # (B * T,)
    chosen = [torch.zeros_like(logits, dtype=weights.dtype) for logits in router_logits]
    # mv: `weights @` would edit its product in place, which a selective checkpoint may have kept
    loads = [each.scatter_(-1, index, 1.0).t().mv(weights) for each, index in zip(chosen, router_indices, strict=True)]
    shares = [probabilities(logits.to(weights.dtype), config).t().mv(weights) for logits in router_logits]
    squares = [logits.to(weights.dtype).logsumexp(dim=-1).square().dot(weights) for logits in router_logits]

    tokens = weights.sum()
    load, all_tokens = torch.stack(loads), tokens
    if over_processes:
        summed = sum_over_processes(torch.cat((load.flatten(), tokens[None])))
        load, all_tokens = summed[:-1].view_as(load), summed[-1]
    frequency = load / all_tokens.clamp(min=1)  # (sparse layers, experts)
    share = torch.stack(shares) / tokens.clamp(min=1)
    if config.router_aux_loss_type == "pooled":
        frequency, share = frequency.mean(dim=0, keepdim=True), share.mean(dim=0, keepdim=True)
    aux_loss = config.num_local_experts * (frequency * share).sum(dim=1).mean()
    return Balance(load, aux_loss, torch.stack(squares).mean() / tokens.clamp(min=1))


def token_weights(mask: torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor:
    """Returns 1.0 for a token and 0.0 for padding, (B * T,), in the dtype of the losses."""
    ones = torch.ones(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
    if mask is None:
        return ones
    length = len(logits) // len(mask)
    return mask[:, -length:].flatten().to(ones)


def probabilities(logits: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    """Returns the router's scores as a distribution over all experts, (N, experts)."""
    if config.router_score_function == "softmax":
        return logits.softmax(dim=-1)
    scores = logits.sigmoid()  # DeepSeek-V3, equation 19
    return scores / scores.sum(dim=-1, keepdim=True)


def sum_over_processes(counts: torch.Tensor) -> torch.Tensor:
    """Returns the sum of the counts of all processes. Ranks with the same batch all count it, which leaves the ratios
    as they are."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(counts)
    return counts


def is_learning(model: nn.Module) -> bool:
    """True if a forward pass is part of a training step."""
    return model.training and torch.is_grad_enabled()


# Fields of the loss that a head computes from labels.
LANGUAGE_MODEL_TERMS = ("label_smoothing", "lm_z_loss_coef")
ROUTER_TERMS = ("router_aux_loss_coef", "router_z_loss_coef")


def warn_of_foreign_loss(
    model: nn.Module, has_router_logits: bool, fields: tuple[str, ...] = LANGUAGE_MODEL_TERMS + ROUTER_TERMS
) -> None:
    """Logs, once, which fields have no effect on a loss that is computed outside of the model.

    Args:
        model: a model of this package. In evaluation nothing is logged.
        has_router_logits: the caller requests router logits, and so computes the load-balancing loss.
        fields: those that the loss cannot include. Default values and 0 are not logged.
    """
    if not is_learning(model) or torch.compiler.is_compiling():
        return
    config, included = model.config, {"router_aux_loss_coef"} if has_router_logits else set()
    if "sparse" not in config.mlp_layer_types:
        included.update(ROUTER_TERMS)
    values = {name: getattr(config, name) for name in fields if name not in included}
    missing = [f"{name}={value}" for name, value in values.items() if value not in (0, getattr(type(config), name))]
    if missing:
        logger.warning_once(
            f"{', '.join(missing)}: not part of a loss that is computed outside of the model; pass labels to its head"
        )


def wants_router_logits(config: GPTConfig, arguments: dict[str, Any]) -> bool:
    """True if the arguments of `forward`, or else the configuration, request router logits."""
    return arguments.get("output_router_logits", getattr(config, "output_router_logits", False))


def warn_unless_called_by_head(decoder: nn.Module, arguments: dict[str, Any]) -> None:
    """Removes the mark of `run_decoder` from the arguments of a decoder's `forward`. Any other caller computes a loss
    of its own."""
    if not arguments.pop("called_by_head", False):
        warn_of_foreign_loss(decoder, wants_router_logits(decoder.config, arguments))


class BalancedDecoder:
    """The part of a model with a head that runs its decoder, `self.model`, and in training balances the experts."""

    def run_decoder(
        self, input_ids: torch.LongTensor | None, attention_mask: torch.Tensor | None, *, has_labels: bool, **kwargs
    ) -> tuple[MoeModelOutputWithPast, Balance | None]:
        """Returns the outputs of `GPTModel`, and the statistics of its routers: in training, or if
        `output_router_logits` requests them."""
        is_requested = wants_router_logits(self.config, kwargs)
        kwargs.pop("output_router_logits", None)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        inputs |= {"return_dict": True, "called_by_head": True}
        if not has_labels:
            warn_of_foreign_loss(self, is_requested)
        elif hasattr(self, "_loss_function"):
            warn_of_foreign_loss(self, is_requested, LANGUAGE_MODEL_TERMS)
        in_training = is_learning(self)
        if "sparse" not in self.config.mlp_layer_types or not (in_training or is_requested):
            return self.model(**inputs, output_router_logits=False), None
        outputs = self.model(**inputs, output_router_logits=True, output_router_indices=True)
        if not outputs.router_logits:  # an early exit, before the first sparse layer
            return outputs, None
        routed = (outputs.router_logits, outputs.router_indices, padding_mask(attention_mask))
        balance = measure_balance(*routed, self.config, over_processes=in_training)
        if in_training and self.model.gradient_checkpointing and not balance.aux_loss.requires_grad:
            logger.warning_once("reentrant gradient checkpointing: the balancing losses have no gradient")
        if not is_requested:
            outputs.router_logits = None
        return outputs, balance

    def add_balance(self, loss: torch.Tensor, balance: Balance | None, targets: Targets) -> torch.Tensor:
        """Returns a loss plus the balancing losses, each times its coefficient and this micro-batch's part of the
        whole batch."""
        return loss if balance is None else loss + targets.per_item(balance.weighted_sum(self.config))


# --- balance without a loss ---------------------------------------------------------------------------------------


def expert_load(indices: torch.Tensor, mask: torch.Tensor | None, num_experts: int) -> torch.Tensor:
    """Returns the number of tokens routed to each expert, (experts,).

    Args:
        indices: (B * T, k), the chosen experts.
        mask: (B, past + T), True where there is a token; None without padding.
        num_experts: number of experts.
    """
    is_chosen = torch.zeros(len(indices), num_experts, dtype=torch.bool, device=indices.device)
    is_chosen.scatter_(-1, indices, True)
    if mask is not None:
        length = len(indices) // len(mask)
        is_chosen &= mask[:, -length:].flatten()[:, None].to(indices.device)
    return is_chosen.sum(dim=0)


def holds(optimizer: Optimizer, module: nn.Module) -> bool:
    """True if an optimizer holds a parameter of the module, or a flat parameter of FSDP 1 that contains one."""
    own = {id(parameter) for parameter in module.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in own or any(part.module is module for part in getattr(parameter, "_param_infos", ())):
                return True
    return False


ROUTERS: dict[int, ref] = {}  # by id: all that exist
HOOKS: list[RemovableHandle] = []
LOCK = Lock()


def update_after_steps(router: nn.Module) -> None:
    """Calls `router.update_bias()` after each step of an optimizer that holds the router's parameters: once for all
    micro-batches of a step, in any training loop. An optimizer that works on copies of the parameters (DeepSpeed ZeRO)
    is not recognized.

    torch's hook is global, and one for all routers: hooks cannot be added or removed while a step calls them, but a
    router can be built in another thread then, or garbage-collected.
    """
    with LOCK:
        if not HOOKS:
            HOOKS.append(register_optimizer_step_post_hook(update_biases))
    ROUTERS[id(router)] = ref(router)
    finalize(router, ROUTERS.pop, id(router), None)


def update_biases(optimizer: Optimizer, *_: Any) -> None:
    """Updates the biases of the routers that an optimizer holds."""
    for reference in [*ROUTERS.values()]:
        router = reference()
        if router is not None and holds(optimizer, router):
            router.update_bias()
