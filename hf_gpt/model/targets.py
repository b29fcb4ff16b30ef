"""What is predicted: the targets of a loss, how many there are, and their part of the whole batch."""

from typing import Any, NamedTuple

import torch
from torch import nn

IGNORED = -100


class Targets(NamedTuple):
    """The targets of one micro-batch. The loss and the balancing losses of one forward pass share this object."""

    ids: torch.Tensor
    """(N,) for a language model, the labels of any shape for other heads; `IGNORED` where nothing is predicted."""
    num_items_in_batch: torch.Tensor | int | None = None
    """Number of targets in the whole batch; None if this micro-batch is the whole batch."""

    @property
    def is_target(self) -> torch.Tensor:
        """True where something is predicted, in the shape of `ids`."""
        return self.ids != IGNORED

    @property
    def count(self) -> torch.Tensor:
        """Scalar: the number of targets in this micro-batch."""
        return self.is_target.sum()

    @property
    def divisor(self) -> torch.Tensor:
        """Scalar: what a sum over these targets is divided by."""
        if self.num_items_in_batch is None:
            return self.count
        return torch.as_tensor(self.num_items_in_batch, device=self.ids.device)

    def per_item(self, mean_loss: torch.Tensor) -> torch.Tensor:
        """Turns a mean over these targets into their part of the mean over the whole batch.

        Under gradient accumulation the Trainer passes the number of targets of the whole batch to each forward pass,
        and adds up the losses. Without any target the mean is NaN, but its part of the whole batch is 0.
        """
        if self.num_items_in_batch is None:
            return mean_loss
        count = self.count.to(mean_loss.device)
        return torch.where(count > 0, mean_loss * count / self.num_items_in_batch, 0.0)


def next_token_targets(
    labels: torch.Tensor,
    device: torch.device,
    *,
    shift_labels: torch.Tensor | None = None,
    ignore_index: int = IGNORED,
    num_items_in_batch: torch.Tensor | int | None = None,
    **_: Any,
) -> Targets:
    """Returns the targets of a language model. Other keywords of `forward` are ignored.

    Args:
        labels: (B, T); the label at t + 1 is the target at t.
        device: where the targets are needed.
        shift_labels: (B, T), targets at the positions where they are predicted, instead of `labels`.
        ignore_index: the label that is no target.
        num_items_in_batch: number of targets in the whole batch.
    """
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    ids = shift_labels.to(device).flatten()
    return Targets(ids.masked_fill(ids == ignore_index, IGNORED), num_items_in_batch)
