"""The loss of a language model, computed without holding the logits of all tokens."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint

from .backends import is_observed, is_traced, matmul, matmul_float32
from .differentiation import differentiate, is_transformed
from .linear import Route, cast, compute_dtype, project, route
from .positions import check_indices
from .targets import IGNORED, Targets

# Bytes of logits that are computed at once. The allocator of a CPU reuses memory below 32 MiB and maps it anew above.
CHUNK_BYTES = {"cpu": 28 * 2**20}
CHUNK_BYTES_ELSEWHERE = 256 * 2**20
# Rows of logits that a CPU turns into gradients at once, so that they stay in its cache. An accelerator takes all rows:
# there each call is a kernel launch.
CACHED_ROWS = 16
# Number of chunks where the head is compiled, or where each call of it synchronizes processes.
COMPILED_CHUNKS = 8
# Rows of the weight gradient that a CPU adds to at once, where the product cannot accumulate by itself.
ADDED_ROWS = 1024
# Factor on the gradients of logits in float16. Without it, and without the divisor, probabilities below 6e-8 are lost.
FLOAT16_UNIT = 1024.0


class LossTerms(NamedTuple):
    """The terms of the loss of one token: the cross-entropy, with labels smoothed toward the uniform distribution
    (Szegedy et al. 2016, section 7), and the z-loss, the squared logarithm of the partition function (PaLM, section 5).
    """

    label_smoothing: float = 0.0
    z_loss_coef: float = 0.0

    def sum(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the sum over all tokens, a scalar, for logits of (N, vocab_size), in float32 at least, and targets of
        (N,), in which `IGNORED` does not count."""
        loss = nn.functional.cross_entropy(
            logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=self.label_smoothing
        )
        if self.z_loss_coef:
            loss = loss + self.z_loss_coef * logits.logsumexp(dim=1).masked_fill(targets == IGNORED, 0).square().sum()
        return loss

    def with_gradient(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the same sum and its gradient with respect to the logits, where no target is `IGNORED`."""
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


def replace_by_gradient(
    buffer: torch.Tensor, targets: torch.Tensor, divisor: torch.Tensor, terms: LossTerms
) -> torch.Tensor:
    """Replaces logits in place by the gradient of their loss over a divisor.

    Args:
        buffer: (rows, vocab_size), logits before and gradients after.
        targets: (rows,), each in [0, vocab_size).

    Returns:
        The sum of the terms, a scalar in float32 at least.
    """
    precise = torch.promote_types(buffer.dtype, torch.float32)
    loss = buffer.new_zeros((), dtype=precise)
    rows = CACHED_ROWS if buffer.is_cpu else len(buffer)
    for some, some_targets in zip(buffer.split(rows), targets.split(rows), strict=True):
        part, gradient = terms.with_gradient(some.to(precise), some_targets)
        loss += part
        some.copy_(gradient.div_(divisor))
    return loss


class LinearCrossEntropy(torch.autograd.Function):
    """The sum of `terms` over a divisor for logits x W^T + b.

    Forward computes the logits chunk by chunk and the gradients with them, so that no product is computed twice and
    backward only scales what forward has kept. A second backward, and one that `is_transformed`, computes the gradients
    by `linear_cross_entropy`.

    In float16 the loss is scaled before backward, so that small gradients are not lost, and forward does not know the
    scale yet. Its gradients are of the sum times `FLOAT16_UNIT`, in float32; backward divides them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        divisor: torch.Tensor,
        terms: LossTerms,
    ) -> torch.Tensor:
        """States, (N, D), in the dtype of the products; weight, (vocab_size, D); bias, (vocab_size,); targets, (N,),
        each in [0, vocab_size); divisor, a scalar. Returns a scalar in float32 at least."""
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        columns, offset = cast(weight, states.dtype).t(), cast(bias, states.dtype)
        is_half = states.dtype == torch.float16
        unit = torch.full_like(divisor, 1 / FLOAT16_UNIT, dtype=torch.float32) if is_half else divisor
        multiply = matmul_float32 if is_half else matmul
        precise = torch.promote_types(states.dtype, torch.float32)
        loss = states.new_zeros((), dtype=precise)
        to_states = torch.empty_like(states, dtype=precise if is_half else None) if needs_states else None
        to_weight = torch.empty_like(weight, dtype=precise) if needs_weight else None
        to_bias = torch.zeros_like(bias, dtype=precise) if needs_bias else None
        rows = chunk_rows(states, len(weight))
        if needs_weight and not len(states):
            to_weight.zero_()
        for start in range(0, len(states), rows):
            chunk = states[start : start + rows]
            to_logits = matmul(chunk, columns, offset)  # (rows, vocab_size), logits until they are replaced
            if is_observed():  # a selective checkpoint keeps the product
                to_logits = to_logits.clone()
            loss += replace_by_gradient(to_logits, targets[start : start + rows], unit, terms)
            if needs_states:
                to_states[start : start + rows] = multiply(to_logits, columns.t())
            if needs_weight:
                add_product(to_weight, to_logits.t(), chunk, is_first=start == 0)
            if needs_bias:
                to_bias += to_logits.sum(dim=0, dtype=precise)
        ctx.gradients, ctx.divisor_left, ctx.terms = (to_states, to_weight, to_bias), divisor / unit, terms
        if not is_half:
            dtypes = (states.dtype, weight.dtype, None if bias is None else bias.dtype)
            ctx.gradients, ctx.divisor_left = cast_all(ctx.gradients, dtypes), None
        ctx.save_for_backward(states, weight, bias, targets, divisor)
        return loss / divisor

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or is_transformed(gradient):
            inputs = (*ctx.saved_tensors, ctx.terms)
            return differentiate(linear_cross_entropy, inputs, ctx.needs_input_grad, gradient)
        if ctx.divisor_left is not None:
            gradient = gradient / ctx.divisor_left
        if gradient.device.type != "cpu" or gradient.item() != 1:
            gradients = [None if each is None else each * gradient.to(each.dtype) for each in gradients]
        dtypes = [None if each is None else each.dtype for each in ctx.saved_tensors[:3]]
        return *cast_all(gradients, dtypes), None, None, None


def cast_all(tensors: Sequence[torch.Tensor | None], dtypes: Sequence[torch.dtype | None]) -> list[torch.Tensor | None]:
    """Returns each tensor that there is in the dtype of the same index."""
    return [cast(each, dtype) for each, dtype in zip(tensors, dtypes, strict=True)]


def linear_cross_entropy(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    divisor: torch.Tensor,
    terms: LossTerms,
) -> torch.Tensor:
    """`LinearCrossEntropy` in differentiable operations, with all logits at once."""
    logits = nn.functional.linear(states, cast(weight, states.dtype), cast(bias, states.dtype))
    return terms.sum(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets) / divisor


def chunk_rows(states: torch.Tensor, vocab_size: int) -> int:
    """Returns how many rows of logits to compute at once, so that all chunks have about the same size."""
    most = CHUNK_BYTES.get(states.device.type, CHUNK_BYTES_ELSEWHERE) // (vocab_size * states.element_size())
    chunks = max(1, -(-len(states) // max(1, most)))
    return max(1, -(-len(states) // chunks))


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, is_first: bool) -> None:
    """Adds left x right to `total`, or overwrites it with the first product.

    A product of float16 is in float32: its sum over the tokens of one class may exceed the range.
    """
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=0 if is_first else 1)
        return
    rows = ADDED_ROWS if total.is_cpu else len(total)
    for some, some_left in zip(total.split(rows), left.split(rows), strict=True):
        product = matmul_float32(some_left, right) if left.dtype == torch.float16 else some_left @ right
        some.copy_(product) if is_first else some.add_(product)


def language_model_loss(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    targets: Targets,
    terms: LossTerms,
    *,
    vocab_size: int,
    tied_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the loss of predicting each next token from the input of the output layer, a scalar.

    The logits of all tokens never exist at once. A plain linear head computes its gradients chunk by chunk in forward;
    any other head, and any head inside a compiled graph, is called again for each chunk in backward.

    Args:
        head: the output layer, (..., D) to (..., vocab_size); or the identity, if `hidden_states` are logits.
        hidden_states: (B, T, D).
        targets: B x T targets. Without any, and without the number of items in the batch, the loss is NaN.
        terms: the loss of one token.
        vocab_size: number of classes, to check the targets.
        tied_weight: the weight of the head as `look_up_tied` returns it.

    Raises:
        ValueError: a label outside the vocabulary (on a CPU; an accelerator asserts).
    """
    states = hidden_states.flatten(0, -2)  # (N, D)
    if not is_traced(states):
        check_indices("labels", targets.ids[targets.is_target], "vocab_size", vocab_size)
    if route(head, states) in (Route.PLAIN, Route.ONEDNN):
        predicting = targets.is_target.nonzero()[:, 0]
        states = states.index_select(0, predicting).to(compute_dtype(states))
        weight = head.weight if tied_weight is None else tied_weight
        return LinearCrossEntropy.apply(states, weight, head.bias, targets.ids[predicting], targets.divisor, terms)

    def sum_of_chunk(states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits = project(head, states)
        return terms.sum(logits.to(torch.promote_types(logits.dtype, torch.float32)), ids)

    if is_traced(states) and not torch.compiler.is_compiling():  # torch.func and jit.trace do not support checkpoints
        return sum_of_chunk(states, targets.ids) / targets.divisor
    rows = max(1, -(-len(states) // COMPILED_CHUNKS))
    if not (torch.compiler.is_compiling() or (distributed.is_available() and distributed.is_initialized())):
        rows = chunk_rows(states, vocab_size)
    chunks = zip(states.split(rows), targets.ids.split(rows), strict=True)
    loss = sum(checkpoint(sum_of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks)
    return loss / targets.divisor
