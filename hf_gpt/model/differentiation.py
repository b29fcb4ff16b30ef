"""Gradients by plain autograd, for backward passes of our own that are differentiated or vectorized themselves."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


def is_transformed(gradient: torch.Tensor) -> bool:
    """True in a backward pass under `create_graph`, or inside vmap, as under `is_grads_batched`.

    Inside vmap a gradient has no storage, stands for several and cannot be written into another tensor.
    """
    if torch.is_grad_enabled():
        return True
    try:
        gradient.untyped_storage()
    except NotImplementedError:
        return True
    return False


def differentiate(
    function: Callable[..., torch.Tensor],
    inputs: Sequence[Any],
    needs_gradient: Sequence[bool],
    gradient: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """Returns the gradient of each input; None where it is not needed.

    An autograd function calls it in a backward pass that `is_transformed`, where its own formulas would leave out the
    second derivative.

    Args:
        function: the same function as that of forward, in differentiable operations.
        inputs: its arguments, tensors or not, as they are in the graph: the saved tensors of the context.
        needs_gradient: whether each input needs a gradient.
        gradient: of the output.
    """
    with torch.enable_grad():
        # Views, because an input may depend on another one, as the states do on a tied weight.
        views = [each.view_as(each) if need else each for each, need in zip(inputs, needs_gradient, strict=True)]
        output = function(*views)
    needed = [view for view, need in zip(views, needs_gradient, strict=True) if need]
    gradients = iter(
        torch.autograd.grad(output, needed, gradient, create_graph=torch.is_grad_enabled(), materialize_grads=True)
    )
    return tuple(next(gradients) if need else None for need in needs_gradient)
