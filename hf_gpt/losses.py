"""Losses: what transformers' own loss functions leave out."""

import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from .configuration_gpt import GPTConfig


def per_item(
    mean_loss: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Turn the mean over the labels of one micro-batch into their share of the mean over a whole batch.

    Under gradient accumulation the Trainer hands every forward pass the number of labels in the whole batch, and adds
    up what comes back.

    Args:
        mean_loss: scalar, the mean over the entries of `labels` that are not -100.
        num_items_in_batch: the number of such entries in the whole batch; None where this is the whole batch.
    """
    if num_items_in_batch is None:
        return mean_loss
    return mean_loss * labels.ne(-100).sum() / num_items_in_batch


def balancing_loss(
    router_logits: tuple[torch.Tensor, ...], attention_mask: torch.Tensor | None, config: GPTConfig
) -> torch.Tensor:
    """How unevenly the experts are used, at least k: Fedus et al. 2021, section 2.2, over all sparse layers together.

    Args:
        router_logits: for each sparse layer, (B * T, experts).
        attention_mask: (B, past + T); padding does not count. A prepared mask says nothing about padding.
    """
    if attention_mask is not None and not (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2):
        attention_mask = None
    if attention_mask is not None:
        attention_mask = attention_mask[:, -(len(router_logits[0]) // len(attention_mask)) :]
    return load_balancing_loss_func(router_logits, config.num_local_experts, config.num_experts_per_tok, attention_mask)
