"""Losses: that of a language model without its logits, and what transformers' own loss functions leave out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import distributed, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .linear import compute_dtype, is_bare, is_plain, matmul
from .positions import check_indices

IGNORED = -100

# Logits that exist at once. A CPU's allocator uses memory again below 32 MiB, and maps it anew above.
CHUNK_BYTES = {"cpu": 28 * 2**20}
CHUNK_BYTES_ELSEWHERE = 256 * 2**20
# Rows of them that become gradients at once, so that they stay in the processor's cache.
CACHED_ROWS = 16
# Into how many chunks a head goes that other processes wait for at each call, or that is compiled.
PIECES = 8
# Rows of the weight's gradient that are added to at once, where that is not done by the product itself.
ADDED_ROWS = 1024


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
    return mean_loss * targets.ne(IGNORED).sum() / num_items_in_batch


class Terms(NamedTuple):
    """What is added up for each token: the cross-entropy, with labels smoothed towards the uniform distribution
    (Szegedy et al. 2016, section 7), and the square of the logarithm of the partition function (PaLM, section 5)."""

    label_smoothing: float = 0.0
    z_loss_coef: float = 0.0

    def of(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Their sum, a scalar, for logits of (N, vocabulary), in float32 at least, and targets of (N,)."""
        loss = nn.functional.cross_entropy(
            logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=self.label_smoothing
        )
        if self.z_loss_coef:
            loss = loss + self.z_loss_coef * logits.logsumexp(dim=1).masked_fill(targets == IGNORED, 0).square().sum()
        return loss

    def with_gradient(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same where no target is ignored, and its gradient by the logits."""
        targets, size = targets[:, None], logits.shape[1]
        gradient = logits.softmax(dim=1)
        # The largest probability is 1 / sum(exp(z - max z)).
        partition = logits.amax(dim=1, keepdim=True) - gradient.amax(dim=1, keepdim=True).log()
        loss = (partition - (1 - self.label_smoothing) * logits.gather(1, targets)).sum()
        if self.z_loss_coef:
            loss += self.z_loss_coef * partition.square().sum()
            gradient *= 1 + 2 * self.z_loss_coef * partition
        if self.label_smoothing:
            loss -= self.label_smoothing / size * logits.sum()
            gradient -= self.label_smoothing / size
        gradient.scatter_add_(1, targets, gradient.new_full(targets.shape, self.label_smoothing - 1))
        return loss, gradient


class LinearCrossEntropy(torch.autograd.Function):
    """The sum of `terms` over a divisor, for logits x W^T + b that exist chunk by chunk, forward and backward at once:
    gradients are made while a chunk is there, so that nothing is multiplied twice."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        divisor: torch.Tensor,
        terms: Terms,
    ) -> torch.Tensor:
        """States, (N, D), in the precision of the products; weight, (vocabulary, D); bias, (vocabulary,); targets,
        (N,), each in [0, vocabulary)."""
        of_states, of_weight, of_bias = ctx.needs_input_grad[:3]
        columns, offset = weight.to(states.dtype).t(), None if bias is None else bias.to(states.dtype)
        precise = torch.promote_types(states.dtype, torch.float32)
        loss = states.new_zeros((), dtype=precise)
        to_states = torch.empty_like(states) if of_states else None
        to_weight = torch.empty_like(weight, dtype=precise) if of_weight else None
        to_bias = torch.zeros_like(bias, dtype=precise) if of_bias else None
        rows = chunk_rows(states, len(weight))
        if of_weight and not len(states):
            to_weight.zero_()
        for start in range(0, len(states), rows):
            chunk = states[start : start + rows]
            logits = matmul(chunk, columns, offset)  # (rows, vocabulary)
            some_targets = targets[start : start + rows].split(CACHED_ROWS)
            for some, target in zip(logits.split(CACHED_ROWS), some_targets, strict=True):
                part, gradient = terms.with_gradient(some.to(precise), target)
                loss += part
                some.copy_(gradient.div_(divisor))
            if of_states:
                to_states[start : start + rows] = matmul(logits, columns.t())
            if of_weight:
                add_product(to_weight, logits.t(), chunk, first=start == 0)
            if of_bias:
                to_bias += logits.sum(dim=0, dtype=precise)
        kept = zip((to_states, to_weight, to_bias), (states, weight, bias), strict=True)
        ctx.save_for_backward(*(None if each is None else each.to(like.dtype) for each, like in kept))
        return loss / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept = ctx.saved_tensors
        if gradient.device.type != "cpu" or gradient.item() != 1:
            kept = [None if each is None else each * gradient.to(each.dtype) for each in kept]
        return *kept, None, None, None


def chunk_rows(states: torch.Tensor, vocab_size: int) -> int:
    """How many rows of logits to make at once: about as many in every chunk."""
    most = CHUNK_BYTES.get(states.device.type, CHUNK_BYTES_ELSEWHERE) // (vocab_size * states.element_size())
    chunks = max(1, -(-len(states) // max(1, most)))
    return max(1, -(-len(states) // chunks))


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, first: bool) -> None:
    """Add left x right to `total`, whose values do not count the first time."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=0 if first else 1)
        return
    for start in range(0, len(total), ADDED_ROWS):
        part, product = total[start : start + ADDED_ROWS], left[start : start + ADDED_ROWS] @ right
        part.copy_(product) if first else part.add_(product)


def language_model_loss(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    *,
    terms: Terms,
    vocab_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    ignore_index: int = IGNORED,
    tied_weight: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """The loss of predicting each next token, from what enters the output layer; the logits of all tokens never exist
    at once.

    A plain linear head makes its gradients chunk by chunk; any other module, and any head inside a compiled graph, is
    called once more for each chunk in the backward pass.

    Args:
        head: the output layer, (..., D) to (..., vocab_size).
        hidden_states: (B, T, D).
        labels: (B, T); the label at t + 1 is the target at t.
        num_items_in_batch: divisor of the sum; by default the number of targets.
        shift_labels: (B, T), targets that stand where they are predicted; instead of `labels`.
        ignore_index: what is no target. Without any target the mean is NaN, as in PyTorch.
        tied_weight: the weight of the head as `look_up_tied` gives it.

    Raises:
        ValueError: a label outside the vocabulary (on the CPU; an accelerator asserts).
    """
    targets = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:] if shift_labels is None else shift_labels
    targets = targets.to(hidden_states.device).flatten()
    targets = targets.masked_fill(targets == ignore_index, IGNORED)
    states = hidden_states.flatten(0, -2)  # (N, D)
    counted = targets != IGNORED
    divisor = counted.sum() if num_items_in_batch is None else num_items_in_batch
    divisor = torch.as_tensor(divisor, device=states.device)
    if not torch.compiler.is_compiling():
        check_indices("labels", targets[counted], "vocab_size", vocab_size)
    if isinstance(head, nn.Module) and is_bare(head) and is_plain(states, head.weight, head.bias):
        kept = counted.nonzero()[:, 0]
        states = states.index_select(0, kept).to(compute_dtype(states))
        weight = head.weight if tied_weight is None else tied_weight
        return LinearCrossEntropy.apply(states, weight, head.bias, targets[kept], divisor, terms)

    def loss_of(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = head(states)
        return terms.of(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)

    rows = -(-len(states) // PIECES)
    if not (torch.compiler.is_compiling() or (distributed.is_available() and distributed.is_initialized())):
        rows = chunk_rows(states, vocab_size)
    pieces = zip(states.split(max(1, rows)), targets.split(max(1, rows)), strict=True)
    loss = sum(checkpoint(loss_of, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces)
    return loss / divisor
