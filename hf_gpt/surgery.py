"""Change the architecture of a model that has weights: a new model, to be fine-tuned."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

from transformers.initialization import no_init_weights

from .configuration_gpt import PATTERN_FIELDS, GPTConfig
from .modeling_gpt import GPTPreTrainedModel, refuse_quantized
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
