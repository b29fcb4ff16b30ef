"""How the tensors of a native checkpoint map to those of hf_gpt: rules of names and reversible operations.

A rule pairs the names of native tensors with names of hf_gpt. In a name, `{layer}` and `{expert}` stand for each layer
and each expert, and a final `*` for `weight` and for `bias`. A rule applies to the tensors that the model has, so
biases, norms and heads that a configuration leaves out need no condition.

An operation splits, stacks, transposes or permutes tensors. It computes nothing, so the bits of every element stay the
same in both directions.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from ..model.configuration_gpt import GPTConfig

LAYER = "model.layers.{layer}."  # prefix of the tensors of a layer in hf_gpt

Tensors = list[torch.Tensor]
Step = Callable[[Tensors, GPTConfig], Tensors]
Read = Callable[[str], torch.Tensor]  # returns a tensor by its name


class Operation(NamedTuple):
    """A step from the native tensors of a rule to those of hf_gpt, and the step back."""

    from_native: Step
    to_native: Step


class Rule(NamedTuple):
    """Names of tensors with placeholders, and the operations between the two sides."""

    native: tuple[str, ...]
    ours: tuple[str, ...]
    operations: tuple[Operation, ...]


class TensorMapping(NamedTuple):
    """A rule for one layer: the full names of its tensors on both sides."""

    native: list[str]
    ours: list[str]
    operations: tuple[Operation, ...]

    def from_native(self, read: Read, config: GPTConfig) -> dict[str, torch.Tensor]:
        """Returns the tensors of hf_gpt by name.

        Args:
            read: returns a native tensor.
        """
        tensors = [read(name) for name in self.native]
        for operation in self.operations:
            tensors = operation.from_native(tensors, config)
        return dict(zip(self.ours, tensors, strict=True))

    def to_native(self, read: Read, config: GPTConfig) -> dict[str, torch.Tensor]:
        """Returns the native tensors by name.

        Args:
            read: returns a tensor of hf_gpt.
        """
        tensors = [read(name) for name in self.ours]
        for operation in reversed(self.operations):
            tensors = operation.to_native(tensors, config)
        return dict(zip(self.native, tensors, strict=True))


def rule(native: str | tuple[str, ...], ours: str | tuple[str, ...], *operations: Operation) -> Rule:
    """Returns a rule; a single name may be a plain string."""
    as_tuple = lambda names: (names,) if isinstance(names, str) else tuple(names)  # noqa: E731
    return Rule(as_tuple(native), as_tuple(ours), operations)


def expand(rules: Iterable[Rule], config: GPTConfig, names: Iterable[str]) -> list[TensorMapping]:
    """Returns the mappings of the tensors `names` of hf_gpt, in the order of `names`.

    Raises:
        ValueError: a tensor has no rule.
    """
    by_name = {name: mapping for each in rules for mapping in _expand_rule(each, config) for name in mapping.ours}
    if unknown := [name for name in names if name not in by_name]:
        raise ValueError(f"{unknown[0]} has no place in this family")
    in_order = {id(by_name[name]): by_name[name] for name in names}
    return list(in_order.values())


def _expand_rule(each: Rule, config: GPTConfig) -> Iterator[TensorMapping]:
    layers = range(config.num_hidden_layers) if "{layer}" in each.ours[0] else [None]
    endings = ("weight", "bias") if each.ours[0].endswith("*") else ("",)
    for layer in layers:
        for ending in endings:
            native = [name.replace("*", ending).replace("{layer}", str(layer)) for name in each.native]
            ours = [name.replace("*", ending).replace("{layer}", str(layer)) for name in each.ours]
            yield TensorMapping(list(_expand_experts(native, config)), ours, each.operations)


def _expand_experts(names: list[str], config: GPTConfig) -> Iterator[str]:
    for name in names:
        experts = range(config.num_local_experts or 0) if "{expert}" in name else [None]
        yield from (name.replace("{expert}", str(expert)) for expert in experts)


def each_tensor(step: Callable[[torch.Tensor, GPTConfig], torch.Tensor]) -> Step:
    """Returns a step that applies a function to each tensor of a rule."""
    return lambda tensors, config: [step(tensor, config) for tensor in tensors]


def _transpose(tensor: torch.Tensor, _: GPTConfig) -> torch.Tensor:
    return tensor.transpose(-1, -2) if tensor.ndim > 1 else tensor  # a bias has one dimension


def _pairs_to_halves(tensor: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    heads = tensor.view(-1, config.head_dim, *tensor.shape[1:])
    rotated, rest = heads[:, : config.rotary_dim], heads[:, config.rotary_dim :]
    return torch.cat((rotated[:, 0::2], rotated[:, 1::2], rest), dim=1).view(tensor.shape)


def _halves_to_pairs(tensor: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    heads = tensor.view(-1, config.head_dim, *tensor.shape[1:])
    rotated, rest = heads[:, : config.rotary_dim], heads[:, config.rotary_dim :]
    pairs = torch.stack(rotated.chunk(2, dim=1), dim=2).flatten(1, 2)
    return torch.cat((pairs, rest), dim=1).view(tensor.shape)


def _split(tensors: Tensors, config: GPTConfig) -> Tensors:
    kv_rows = config.num_key_value_heads * config.head_dim
    return list(tensors[0].split((config.num_attention_heads * config.head_dim, kv_rows, kv_rows)))


def _split_by_head(tensors: Tensors, config: GPTConfig) -> Tensors:
    rest = tensors[0].shape[1:]
    return [part.flatten(0, 1) for part in tensors[0].view(-1, 3, config.head_dim, *rest).unbind(1)]


def _join_by_head(tensors: Tensors, config: GPTConfig) -> Tensors:
    rest = tensors[0].shape[1:]
    return [torch.stack([part.view(-1, config.head_dim, *rest) for part in tensors], dim=1).flatten(0, 2)]


def _stack(tensors: Tensors, config: GPTConfig) -> Tensors:
    experts = config.num_local_experts
    projections = [torch.stack(tensors[start : start + experts]) for start in range(0, len(tensors), experts)]
    return [torch.cat(projections, dim=1).transpose(1, 2)]


def _unstack(projections: int) -> Step:
    def unstack(tensors: Tensors, _: GPTConfig) -> Tensors:
        stacked = tensors[0].transpose(1, 2).chunk(projections, dim=1)
        return [expert for projection in stacked for expert in projection.unbind()]

    return unstack


# A linear layer stored as (in, out), as transformers' Conv1D does, where hf_gpt has (out, in); or the other way round
# for stacked experts, which hf_gpt stores as (experts, in, out).
TRANSPOSED = Operation(each_tensor(_transpose), each_tensor(_transpose))
# Query, key and value in one tensor: the rows of all queries, of all keys, of all values.
FUSED_QKV = Operation(_split, lambda tensors, _: [torch.cat(tensors)])
# Query, key and value in one tensor: for each head, the rows of its query, its key and its value.
FUSED_QKV_BY_HEAD = Operation(_split_by_head, _join_by_head)
# RoPE on the interleaved dimensions (2i, 2i + 1), where hf_gpt rotates (i, i + rotary_dim / 2): permutes the rows of
# each head of a query or key projection.
INTERLEAVED_ROPE = Operation(each_tensor(_pairs_to_halves), each_tensor(_halves_to_pairs))
# One tensor (out, in) per expert, where hf_gpt stacks them as (experts, in, out).
UNSTACKED_EXPERTS = Operation(_stack, _unstack(1))
# The same for two projections: all gates, then all up projections, which hf_gpt concatenates along `out`.
UNSTACKED_GATED_EXPERTS = Operation(_stack, _unstack(2))
