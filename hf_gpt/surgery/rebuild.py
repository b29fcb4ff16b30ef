"""Builds a model of another configuration from one that has weights."""

from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

import torch
from transformers.initialization import no_init_weights

from ..compatibility import enable_activation_checkpointing
from ..model.checkpoints import refuse_quantized
from ..model.configuration_gpt import GPTConfig
from ..model.modeling_gpt import GPTPreTrainedModel

Model = TypeVar("Model", bound=GPTPreTrainedModel)

ReadWeight = Callable[[str], torch.Tensor]
"""Returns the weight of the original model that has a name."""
MakeWeight = Callable[[str, ReadWeight], torch.Tensor]
"""Returns the weight of the new model that has a name, computed from weights of the original model."""


def copy_weight(name: str, read: ReadWeight) -> torch.Tensor:
    """Returns the weight of the same name."""
    return read(name)


def rebuild(model: Model, config: GPTConfig, make_weight: MakeWeight = copy_weight) -> Model:
    """Returns a new model of another configuration; the original model does not change.

    The new model has the class, dtype, device, attention implementation, frozen parameters, training mode, activation
    checkpointing and generation configuration of the original model.

    Args:
        model: any hf_gpt model that is not quantized.
        config: the configuration of the new model.
        make_weight: computes each weight of the new model.

    Raises:
        ValueError: the model is quantized.
    """
    refuse_quantized(model.config)
    with no_init_weights():
        changed = type(model)._from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    changed.tie_weights()
    weights = model.state_dict()
    changed.load_state_dict({name: make_weight(name, weights.__getitem__) for name in changed.state_dict()})
    original = dict(model.named_parameters())
    for name, parameter in changed.named_parameters():
        if name in original:
            parameter.requires_grad_(original[name].requires_grad)
    if model.base_model.gradient_checkpointing:
        enable_activation_checkpointing(changed)
    if model.can_generate():
        changed.generation_config = deepcopy(model.generation_config)
    return changed.to(model.device).train(model.training)
