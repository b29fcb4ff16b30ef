"""Change the architecture of a model that has weights: a new model, to be fine-tuned."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from transformers.initialization import no_init_weights

from ..model.configuration_gpt import PATTERN_FIELDS, GPTConfig
from ..model.modeling_gpt import GPTPreTrainedModel, refuse_quantized
from .context import extended_config
from .upcycling import Upcycling

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

    changed = _rebuild(model, type(config).from_dict(config.to_dict(), **fields))
    changed.load_state_dict(model.state_dict())
    return changed


def upcycle(
    model: Model,
    num_experts: int = 8,
    num_experts_per_tok: int = 2,
    *,
    granularity: int = 1,
    layers: Iterable[int] | None = None,
    noise: float = 0.0,
    reinitialise: float = 0.0,
    seed: int = 0,
    **routing: Any,
) -> Model:
    """A mixture of experts out of a dense model: each expert begins as a copy of the feed-forward layer, each router
    with random weights (Komatsuzaki et al. 2023). Without noise and reinitialisation it computes what the dense model
    did, whatever the routers choose.

        experts = upcycle(model, num_experts=8, num_experts_per_tok=2, router_aux_loss_coef=0.02)

    Args:
        model: any hf_gpt model.
        num_experts, num_experts_per_tok: how many there are, and how many of them work on a token.
        granularity: cut the feed-forward layer into so many experts, each a part as wide. They form a virtual group
            that the router chooses together at first, and there are `num_experts / granularity` copies of the group
            (He et al. 2024, section 3.2). With `num_experts_per_tok=granularity` a token costs what it did.
        layers: which become sparse, from the end where negative; all by default.
        noise: standard deviation of what is added to the experts' weights, as a part of their own.
        reinitialise: part of each expert's inner width that is drawn anew, another in each (Nakamura et al. 2025).
        seed: of everything random. It does not depend on, and does not move, PyTorch's own.
        routing: fields of the configuration about routing and balance, as `router_aux_loss_coef`,
            `router_bias_update_rate`, `router_score_function`.

    Raises:
        ValueError: the model has experts already, a layer that it has not, sizes that do not divide, more experts per
            token than experts, or a field that would make it compute something else.
    """
    plan = Upcycling.of(
        model.config,
        num_experts,
        num_experts_per_tok,
        granularity=granularity,
        layers=layers,
        noise=noise,
        reinitialise=reinitialise,
        seed=seed,
        **routing,
    )
    changed = _rebuild(model, plan.config)
    weights = model.state_dict()
    changed.load_state_dict({name: plan.make(name, weights.__getitem__) for name in changed.state_dict()})
    return changed


def extend_context(model: Model, length: int, method: str = "yarn", **options: Any) -> Model:
    """A copy of a model for a longer context, with the same weights. It can be used as it is, and be fine-tuned.

        long = extend_context(model, 4096, "yarn")

    | method | what happens | its options |
    |---|---|---|
    | `linear` | rope: all angles are divided by the growth; learned: the table is stretched (Chen et al. 2023) | |
    | `ntk` | the base is raised, by growth^(d / (d - 2)) or to the one given | `rope_theta` |
    | `dynamic` | the same, by each sequence's own growth: within the old length nothing changes | |
    | `yarn` | slow angles are divided by the growth, fast ones stay (Peng et al. 2023) | as in `rope_parameters` |
    | `longrope` | each angle has its own divisor (Ding et al. 2024), by default that of YaRN | `long_factor`, ... |

    A model that was extended before is extended from where it began, if by the same method; a raised base is one like
    any other, and every method may follow. For rotary positions it is all in the configuration
    (`hf_gpt.context.extended_config`).

    Args:
        model: any hf_gpt model.
        length: the new `max_position_embeddings`.
        method: one of the table.
        options: of the method.

    Raises:
        ValueError: an unknown method or option, one that the positions cannot take, a length that is no longer than
            the model's, or a model that another method has scaled.
    """
    config = extended_config(model.config, length, method, **options)
    changed = _rebuild(model, config)
    weights = model.state_dict()
    for name, weight in weights.items():
        if name.endswith("embed_positions.weight"):
            weights[name] = _stretch(weight, config.position_offset, length)
    changed.load_state_dict(weights)
    return changed


def _stretch(table: torch.Tensor, offset: int, length: int) -> torch.Tensor:
    """Learned positions, (offset + L, D), for a longer context: row p is that of p x L / length, between its neighbours
    if there is none, and the last row beyond them. What stands before position 0 stays."""
    before, rows = table.split([offset, len(table) - offset])
    places = torch.arange(length, device=table.device, dtype=torch.double) * len(rows) / length
    places = places.clamp(max=len(rows) - 1)
    below, above = places.floor().long(), places.ceil().long()
    share = (places - below)[:, None].to(rows.dtype)
    return torch.cat((before, rows[below].lerp(rows[above], share)))  # (offset + length, D)


def _rebuild(model: Model, config: GPTConfig) -> Model:
    """A model of another configuration, used and trained as the first one is; its weights are still to come."""
    refuse_quantized(model.config)
    attention = model.config._attn_implementation
    with no_init_weights():
        changed = type(model)._from_config(config, dtype=model.dtype, attn_implementation=attention)
    changed.tie_weights()
    kept = dict(model.named_parameters())
    for name, parameter in changed.named_parameters():
        if name in kept:
            parameter.requires_grad_(kept[name].requires_grad)
    if model.base_model.gradient_checkpointing:
        changed.gradient_checkpointing_enable()
    if model.can_generate():
        changed.generation_config = deepcopy(model.generation_config)
    return changed.to(model.device).train(model.training)
