"""Losses: what transformers' own loss functions leave out."""

import torch


def per_item(
    mean_loss: torch.Tensor, targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Turn the mean over the targets of one micro-batch into their share of the mean over a whole batch.

    Under gradient accumulation the Trainer hands every forward pass the number of targets in the whole batch, and adds
    up what comes back.

    Args:
        mean_loss: scalar, the mean over the entries of `targets` that are not -100.
        num_items_in_batch: the number of such entries in the whole batch; None where this is the whole batch.
    """
    if num_items_in_batch is None:
        return mean_loss
    return mean_loss * targets.ne(-100).sum() / num_items_in_batch
