"""Change the architecture of a model that has weights: a new model, to be fine-tuned."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TypeVar

from .configuration_gpt import PATTERN_FIELDS
from .modeling_gpt import GPTPreTrainedModel

Model = TypeVar("Model", bound=GPTPreTrainedModel)


def set_attention_patterns(model: Model, patterns: str | Sequence[str] | Mapping[int, str], **sizes: int) -> Model:
    """A copy of a model whose layers attend by other patterns, with the same weights.

        local = set_attention_patterns(model, {0: "banded", 2: "banded"}, sliding_window=256)

    Args:
        model: any hf_gpt model.
        patterns: `dense`, `banded`, `strided` or `fixed`: one for all layers, one for each, or some by their index,
            from the end where it is negative.
        sizes: `sliding_window`, `attention_stride`, `attention_summary_size`, as the patterns need them; those of the
            model by default.

    Raises:
        ValueError: a layer that the model has not, an unknown pattern, a size that is missing or belongs to no layer.
    """
    config, layers = model.config, model.config.num_hidden_layers
    if not isinstance(patterns, (str, Sequence, Mapping)):
        raise ValueError(f"patterns={patterns!r}: expected a pattern, a list of them, or a dict from layers to them")
    if isinstance(patterns, Mapping):
        chosen = list(config.attention_patterns)
        for layer_idx, pattern in patterns.items():
            if layer_idx not in range(-layers, layers):
                raise ValueError(f"patterns: there is no layer {layer_idx} of num_hidden_layers={layers}")
            chosen[layer_idx] = pattern
    else:
        chosen = [patterns] * layers if isinstance(patterns, str) else list(patterns)
    if unknown := sizes.keys() - PATTERN_FIELDS.keys():
        raise ValueError(f"{min(unknown)} is no size of a pattern: expected some of {', '.join(PATTERN_FIELDS)}")
    kept = {name: getattr(config, name) for name, users in PATTERN_FIELDS.items() if set(users) & set(chosen)}
    fields = {**dict.fromkeys(PATTERN_FIELDS), **kept, **sizes, "attention_patterns": chosen}

    changed = (
        type(model)
        ._from_config(
            type(config).from_dict(config.to_dict(), **fields),
            dtype=model.dtype,
            attn_implementation=config._attn_implementation,
        )
        .to(model.device)
    )
    changed.load_state_dict(model.state_dict())
    for name, parameter in model.named_parameters():
        changed.get_parameter(name).requires_grad_(parameter.requires_grad)
    if model.is_gradient_checkpointing:
        changed.gradient_checkpointing_enable()
    if model.can_generate():
        changed.generation_config = deepcopy(model.generation_config)
    return changed.train(model.training)
