"""Names that transformers has changed since 5.17, the oldest version that hf_gpt supports."""

from typing import Any

from transformers import PreTrainedModel


def enable_activation_checkpointing(
    model: PreTrainedModel, checkpoint_options: dict[str, Any] | None = None, **options: Any
) -> None:
    """Recomputes the activations of each block in the backward pass instead of saving them.

    transformers renames `gradient_checkpointing_enable` to `activation_checkpointing_enable` in 5.23 and removes the
    old name in 6.

    Args:
        model: the model to change in place.
        checkpoint_options: keyword arguments of `torch.utils.checkpoint.checkpoint`, such as `use_reentrant`.
        options: other options of both names, such as `every_n_layers`.
    """
    new_name, old_name = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    getattr(model, new_name if hasattr(model, new_name) else old_name)(checkpoint_options, **options)
