"""How the tensors of a native checkpoint become ours and go back: rules of names, and reversible operations.

A rule pairs native names with ours. In a name, `{layer}` and `{expert}` stand for each layer and each expert, and a
last `*` for `weight` and for `bias`. A rule holds wherever our model has its tensors; so biases, norms and heads that a
configuration leaves out need no mention. An operation moves elements and computes nothing: bits stay what they are.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ..model.configuration_gpt import GPTConfig

Tensors = list[torch.Tensor]
Step = Callable[[Tensors, GPTConfig], Tensors]


class Operation(NamedTuple):
    """A step from the native tensors of a rule to ours, and the step back."""

    to_ours: Step
    to_native: Step


class Rule(NamedTuple):
    native: tuple[str, ...]
    ours: tuple[str, ...]
    operations: tuple[Operation, ...]


class Piece(NamedTuple):
    """A rule for one layer: the full names of its tensors on both sides."""

    native: list[str]
    ours: list[str]
    operations: tuple[Operation, ...]

    def to_ours(self, tensors: Tensors, config: GPTConfig) -> Tensors:
        for operation in self.operations:
            tensors = operation.to_ours(tensors, config)
        return tensors

    def to_native(self, tensors: Tensors, config: GPTConfig) -> Tensors:
        for operation in reversed(self.operations):
            tensors = operation.to_native(tensors, config)
        return tensors


def rule(native: str | tuple[str, ...], ours: str | tuple[str, ...], *operations: Operation) -> Rule:
    as_tuple = lambda names: (names,) if isinstance(names, str) else tuple(names)  # noqa: E731
    return Rule(as_tuple(native), as_tuple(ours), operations)


def pieces(rules: Iterable[Rule], config: GPTConfig, names: Iterable[str]) -> list[Piece]:
    """The rules written out for a model of ours that has the tensors `names`, in their order.

    Raises:
        ValueError: no rule is about a tensor.
    """
    by_name = {name: piece for each in rules for piece in _write_out(each, config) for name in piece.ours}
    if unknown := [name for name in names if name not in by_name]:
        raise ValueError(f"{unknown[0]} has no place in this family")
    in_order = {id(by_name[name]): by_name[name] for name in names}
    return list(in_order.values())


def _write_out(each: Rule, config: GPTConfig) -> Iterator[Piece]:
    layers = range(config.num_hidden_layers) if "{layer}" in each.ours[0] else [None]
    endings = ("weight", "bias") if each.ours[0].endswith("*") else ("",)
    for layer in layers:
        for ending in endings:
            native = [name.replace("*", ending).replace("{layer}", str(layer)) for name in each.native]
            ours = [name.replace("*", ending).replace("{layer}", str(layer)) for name in each.ours]
            yield Piece(list(_each_expert(native, config)), ours, each.operations)


def _each_expert(names: list[str], config: GPTConfig) -> Iterator[str]:
    for name in names:
        experts = range(config.num_local_experts or 0) if "{expert}" in name else [None]
        yield from (name.replace("{expert}", str(expert)) for expert in experts)


def _one_by_one(step: Callable[[torch.Tensor, GPTConfig], torch.Tensor]) -> Step:
    return lambda tensors, config: [step(tensor, config) for tensor in tensors]


def _transpose(tensor: torch.Tensor, _: GPTConfig) -> torch.Tensor:
    return tensor.transpose(-1, -2) if tensor.ndim > 1 else tensor  # a bias has one side


def _pairs_to_halves(tensor: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    heads = tensor.view(-1, config.head_dim, *tensor.shape[1:])
    turned, rest = heads[:, : config.rotary_dim], heads[:, config.rotary_dim :]
    return torch.cat((turned[:, 0::2], turned[:, 1::2], rest), dim=1).view(tensor.shape)


def _halves_to_pairs(tensor: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    heads = tensor.view(-1, config.head_dim, *tensor.shape[1:])
    turned, rest = heads[:, : config.rotary_dim], heads[:, config.rotary_dim :]
    pairs = torch.stack(turned.chunk(2, dim=1), dim=2).flatten(1, 2)
    return torch.cat((pairs, rest), dim=1).view(tensor.shape)


def _split(tensors: Tensors, config: GPTConfig) -> Tensors:
    keys = config.num_key_value_heads * config.head_dim
    return list(tensors[0].split((config.num_attention_heads * config.head_dim, keys, keys)))


def _split_by_head(tensors: Tensors, config: GPTConfig) -> Tensors:
    rest = tensors[0].shape[1:]
    return [part.flatten(0, 1) for part in tensors[0].view(-1, 3, config.head_dim, *rest).unbind(1)]


def _join_by_head(tensors: Tensors, config: GPTConfig) -> Tensors:
    rest = tensors[0].shape[1:]
    return [torch.stack([part.view(-1, config.head_dim, *rest) for part in tensors], dim=1).flatten(0, 2)]


def _stack(tensors: Tensors, config: GPTConfig) -> Tensors:
    experts = config.num_local_experts
    kinds = [torch.stack(tensors[start : start + experts]) for start in range(0, len(tensors), experts)]
    return [torch.cat(kinds, dim=1).transpose(1, 2)]


def _unstack(kinds: int) -> Step:
    def unstack(tensors: Tensors, _: GPTConfig) -> Tensors:
        return [each for kind in tensors[0].transpose(1, 2).chunk(kinds, dim=1) for each in kind.unbind()]

    return unstack


def _dequantise(tensors: Tensors, _: GPTConfig) -> Tensors:
    blocks, scales = tensors
    if blocks.device.type == "meta":
        experts, rows, groups, size = blocks.shape
        return [torch.empty(experts, 2 * groups * size, rows, dtype=torch.bfloat16, device="meta")]
    values = convert_moe_packed_tensors(blocks, scales)
    if not values.isfinite().all():
        raise ValueError("experts in MXFP4 hold NaN or infinity: a scale is beyond all numbers")
    return [values]


def _shapes_of_mxfp4(tensors: Tensors, _: GPTConfig) -> Tensors:
    """Two four-bit values in a byte, 32 values in a group. Only shapes: quantising would lose bits."""
    experts, columns, rows = tensors[0].shape
    shape = (experts, rows, columns // 32)
    return [torch.empty(*shape, 16, dtype=torch.uint8, device="meta"), tensors[0].new_empty(shape, dtype=torch.uint8)]


# GPT-1 and GPT-2 store a linear layer as (in, out): transformers' Conv1D. So are our experts, and not Mixtral's.
TRANSPOSED = Operation(_one_by_one(_transpose), _one_by_one(_transpose))
# Rows of all queries, of all keys, of all values.
QKV = Operation(_split, lambda tensors, _: [torch.cat(tensors)])
# For each head, the rows of its query, its key and its value.
QKV_BY_HEAD = Operation(_split_by_head, _join_by_head)
# GPT-J rotates neighbours, (2i, 2i + 1), where we rotate (i, i + rotary_dim / 2): the rows of each head change places.
ROTARY_PAIRS = Operation(_one_by_one(_pairs_to_halves), _one_by_one(_halves_to_pairs))
# One tensor (out, in) for each expert, where ours are stacked (experts, in, out); of gated ones, all the gates and then
# all that they multiply.
EXPERTS = Operation(_stack, _unstack(1))
GATED_EXPERTS = Operation(_stack, _unstack(2))
# gpt-oss stores the columns of gate and up in turns, where ours are one after the other.
IN_TURNS = Operation(
    _one_by_one(lambda tensor, _: torch.cat((tensor[..., 0::2], tensor[..., 1::2]), dim=-1)),
    _one_by_one(lambda tensor, _: torch.stack(tensor.chunk(2, dim=-1), dim=-1).flatten(-2)),
)
# gpt-oss as published, four bits to a weight; every value is exact in bfloat16. There is no way back.
MXFP4 = Operation(_dequantise, _shapes_of_mxfp4)
