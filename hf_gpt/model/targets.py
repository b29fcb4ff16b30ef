"""What is predicted: the targets of a loss, how many there are, and their part of the whole batch."""

from typing import Any, NamedTuple

import torch
from torch import nn

from .backends import is_traced

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
    states: torch.Tensor,
    *,
    shift_labels: torch.Tensor | None = None,
    ignore_index: int = IGNORED,
    num_items_in_batch: torch.Tensor | int | None = None,
    **_: Any,
) -> Targets:
    """Returns the targets of a language model. Other keywords of `forward` are ignored.

    Args:
        labels: (B, T); the label at t + 1 is the target at t.
        states: (B, T, D), from which the targets are predicted.
        shift_labels: (B, T), targets at the positions where they are predicted, instead of `labels`.
        ignore_index: the label that is no target.
        num_items_in_batch: number of targets in the whole batch.

    Raises:
        ValueError: labels of another shape, or not integers; a label of -100 with another `ignore_index` (on a CPU).
    """
    if shift_labels is None:
        labels = as_indices("labels", labels, states)
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    ids = as_indices("shift_labels", shift_labels, states).to(states.device).flatten()
    if ignore_index != IGNORED and ids.is_cpu and not is_traced() and (ids == IGNORED).any():
        raise ValueError(f"labels contain {IGNORED}: expected token ids, or ignore_index={ignore_index}")
    return Targets(ids.masked_fill(ids == ignore_index, IGNORED), num_items_in_batch)


def as_indices(name: str, labels: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
    """Returns integer labels of any size as int64. Raises a ValueError for other dtypes, and as `check_shape`."""
    check_shape(name, labels, predictions)
    if labels.dtype == torch.bool or labels.is_floating_point():
        raise ValueError(f"{name} of {labels.dtype}: expected integers")
    return labels.long()


def check_shape(name: str, labels: torch.Tensor, predictions: torch.Tensor) -> None:
    """Raises a ValueError if labels do not have the shape of the predictions, (..., D), without their last dimension.

    Misaligned labels would be broadcast or flattened silently.
    """
    expected = predictions.shape[:-1]
    if labels.shape != expected:
        raise ValueError(
            f"{name} of shape {tuple(labels.shape)}: expected {tuple(expected)}, one for each input position, also for "
            "the embeddings of a soft prompt (-100: nothing is predicted)"
        )


def check_rows(name: str, labels: torch.Tensor, predictions: torch.Tensor) -> None:
    """Raises a ValueError if there are not as many labels as rows of predictions or, where labels are numbers, as
    predictions: one would be broadcast silently."""
    if labels.shape[:1] != predictions.shape[:1]:
        raise ValueError(f"{name} of shape {tuple(labels.shape)}: expected {len(predictions)} rows")
    if labels.is_floating_point() and labels.numel() != predictions.numel():
        raise ValueError(f"{name} of shape {tuple(labels.shape)}: expected {tuple(predictions.shape)}")
