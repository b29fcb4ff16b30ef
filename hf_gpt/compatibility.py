"""Names that transformers has changed since 5.17, the oldest version that hf_gpt supports."""

from typing import Any

from transformers import PreTrainedModel


def enable_activation_checkpointing(model: PreTrainedModel, **options: Any) -> None:
    """Recomputes the activations of each block in the backward pass instead of saving them.

    transformers renames `gradient_checkpointing_enable` to `activation_checkpointing_enable` in 5.23 and removes the
    old name in 6.

    Args:
        model: the model to change in place.
        options: the options that both names share, such as `every_n_layers`.
    """
    new_name, old_name = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    getattr(model, new_name if hasattr(model, new_name) else old_name)(**options)
