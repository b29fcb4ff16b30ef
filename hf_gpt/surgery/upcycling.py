"""The weights of a mixture of experts out of those of a dense model, a tensor at a time.

Copies: Komatsuzaki et al. 2023. Virtual groups of fine-grained experts: He et al. 2024. Partial reinitialisation:
Nakamura et al. 2025.
"""

import json
import math
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..conversion.checkpoints import Weights
from ..conversion.engine import SHARD_SIZE, read_ours, weights_of, write_ours
from ..conversion.sources import locate
from ..model.configuration_gpt import GPTConfig

Read = Callable[[str], torch.Tensor]

# Fields of the routing that leave what a model computes at first as it is.
ROUTING = (
    "router_score_function",
    "router_bias",
    "router_jitter_noise",
    "router_aux_loss_coef",
    "router_aux_loss_type",
    "router_z_loss_coef",
    "router_bias_update_rate",
    "output_router_logits",
)
NEW = re.compile(r"(?P<mlp>.*layers\.\d+\.mlp\.)(experts|router)\.(?P<tensor>\w+)")


class Upcycling(NamedTuple):
    """What becomes of a dense model; `of` checks and completes it. Each tensor of a router and of experts has a method
    by its name, which makes it of those of the dense layer, whose names begin with `mlp`."""

    config: GPTConfig
    """Of the mixture of experts."""
    granularity: int
    noise: float
    reinitialise: float
    seed: int

    @classmethod
    def of(
        cls,
        dense: GPTConfig,
        num_experts: int,
        num_experts_per_tok: int,
        *,
        granularity: int = 1,
        layers: Iterable[int] | None = None,
        noise: float = 0.0,
        reinitialise: float = 0.0,
        seed: int = 0,
        **routing: Any,
    ) -> "Upcycling":
        """The arguments and errors are those of `hf_gpt.surgery.upcycle`."""
        if "sparse" in dense.mlp_layer_types:
            raise ValueError(f"num_local_experts={dense.num_local_experts}: the model is a mixture of experts already")
        if unknown := [name for name in routing if name not in ROUTING]:
            raise ValueError(
                f"{unknown[0]} is no field of the routing that upcycling leaves open: expected some of "
                f"{', '.join(ROUTING)}"
            )
        if not (isinstance(granularity, int) and granularity >= 1):
            raise ValueError(f"granularity={granularity!r}: expected an integer of at least 1")
        if not (isinstance(noise, (int, float)) and 0 <= noise < math.inf):
            raise ValueError(f"noise={noise!r}: expected a number of at least 0")
        if not (isinstance(reinitialise, (int, float)) and 0 <= reinitialise <= 1):
            raise ValueError(f"reinitialise={reinitialise!r}: expected a part, from 0 to 1")
        fields = {
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "router_jitter_noise": 0.0,
            **routing,
            "num_local_experts": num_experts,
            "num_experts_per_tok": num_experts_per_tok,
            "moe_intermediate_size": max(1, dense.intermediate_size // granularity),
            "mlp_layer_types": _layer_types(layers, dense.num_hidden_layers),
        }
        config = type(dense).from_dict(dense.to_dict(), **fields)
        sizes = {"num_experts": num_experts, "num_experts_per_tok": num_experts_per_tok}
        for name, size in (sizes | {"intermediate_size": dense.intermediate_size}).items():
            if size % granularity:
                raise ValueError(f"granularity={granularity} does not divide {name}={size}")
        return cls(config, granularity, noise, reinitialise, seed)

    def make(self, name: str, read: Read) -> torch.Tensor:
        """A tensor of the mixture of experts, from those of the dense model."""
        new = NEW.fullmatch(name)
        if new is None:
            return read(name)
        made = getattr(self, f"_{new['tensor']}")(new["mlp"], read)
        return made.to(read(f"{new['mlp']}down_proj.weight").dtype)

    def _weight(self, mlp: str, read: Read) -> torch.Tensor:
        """Of the router: alike for the experts of one virtual group, which are chosen together for it."""
        groups = self.config.num_local_experts // self.granularity
        weight = torch.randn(groups, self.config.hidden_size, generator=self._random(f"{mlp}router"))
        return (weight * self.config.initializer_range).repeat_interleave(self.granularity, dim=0)

    def _bias(self, mlp: str, read: Read) -> torch.Tensor:
        return torch.zeros(self.config.num_local_experts)

    _e_score_correction_bias = _bias

    def _up_proj(self, mlp: str, read: Read) -> torch.Tensor:
        return self._into(mlp, "up_proj", read)

    def _gate_up_proj(self, mlp: str, read: Read) -> torch.Tensor:
        return torch.cat([self._into(mlp, name, read) for name in ("gate_proj", "up_proj")], dim=-1)

    def _up_proj_bias(self, mlp: str, read: Read) -> torch.Tensor:
        return self._deal_out(read(f"{mlp}up_proj.bias"))

    def _gate_up_proj_bias(self, mlp: str, read: Read) -> torch.Tensor:
        return torch.cat([self._deal_out(read(f"{mlp}{name}.bias")) for name in ("gate_proj", "up_proj")], dim=-1)

    def _down_proj(self, mlp: str, read: Read) -> torch.Tensor:
        """The shares of a group's experts add up to that of one whole layer: each part is so much larger."""
        weight = self._deal_out(read(f"{mlp}down_proj.weight").t()) * self.granularity  # (experts, inner, hidden_size)
        return self._disturb(weight, mlp, "down_proj", inner_dim=1)

    def _down_proj_bias(self, mlp: str, read: Read) -> torch.Tensor:
        return read(f"{mlp}down_proj.bias").expand(self.config.num_local_experts, -1)

    def _into(self, mlp: str, name: str, read: Read) -> torch.Tensor:
        weight = self._deal_out(read(f"{mlp}{name}.weight")).transpose(1, 2)  # (experts, hidden_size, inner)
        return self._disturb(weight, mlp, name, inner_dim=2)

    def _deal_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """The parts of a tensor, (intermediate_size, ...), to the experts of one group, and so again to every group."""
        parts = tensor.unflatten(0, (self.granularity, -1))
        return parts.repeat(self.config.num_local_experts // self.granularity, *[1] * tensor.ndim)

    def _disturb(self, weight: torch.Tensor, mlp: str, name: str, inner_dim: int) -> torch.Tensor:
        """Add noise, and draw part of the inner width anew; so that experts become different."""
        if not (self.noise or self.reinitialise):
            return weight
        weight = weight.float()
        mean, std = weight.mean(), weight.std()
        fresh = torch.randn(weight.shape, generator=self._random(f"{mlp}{name}")).to(weight) * std
        # which units, is the same for what goes into them and what comes out
        order = torch.rand(len(weight), weight.shape[inner_dim], generator=self._random(f"{mlp}units")).argsort(dim=1)
        units = (order < round(self.reinitialise * order.shape[1])).to(weight.device)  # (experts, inner)
        return torch.where(units.unsqueeze(3 - inner_dim), mean + fresh, weight + self.noise * fresh)

    def _random(self, what: str) -> torch.Generator:
        """So that a tensor does not depend on the others that were made before it."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {what}".encode()))


def _layer_types(layers: Iterable[int] | None, count: int) -> list[str]:
    if not (layers is None or isinstance(layers, Iterable)):
        raise ValueError(f"layers={layers!r}: expected the indices of some layers")
    kinds = ["dense"] * count
    for layer_idx in range(count) if layers is None else layers:
        if layer_idx not in range(-count, count):
            raise ValueError(f"layers: there is no layer {layer_idx!r} of num_hidden_layers={count}")
        kinds[layer_idx] = "sparse"
    if "sparse" not in kinds:
        raise ValueError("layers: expected at least one")
    return kinds


def upcycle_checkpoint(
    src: str | Path,
    out: str | Path,
    num_experts: int = 8,
    num_experts_per_tok: int = 2,
    *,
    max_shard_size: int | str = SHARD_SIZE,
    show_progress: bool = False,
    **options: Any,
) -> Path:
    """`hf_gpt.surgery.upcycle` from folder to folder, a tensor at a time: memory follows `max_shard_size`.

    Called again after an interruption, it goes on where it was.

    Args:
        src: folder or Hub id of a language model of hf_gpt.
        out: folder to write, new or empty. It appears when it is complete.
        options: the further arguments of `upcycle`.

    Returns:
        `out`.

    Raises:
        ValueError: as `upcycle`; or the weights are not what the configuration promises, or not finite.
        OSError: files are missing or damaged, `out` holds something, or the disk is full.
    """
    source = locate(src)
    dense, checkpoint, _ = read_ours(source)
    plan = Upcycling.of(dense, num_experts, num_experts_per_tok, **options)
    dtype = next(iter(checkpoint.meta.values())).dtype
    meta = {name: checkpoint.meta.get(name, tensor.to(dtype)) for name, tensor in weights_of(plan.config).items()}
    weights = Weights(meta, lambda name: plan.make(name, checkpoint.read))
    target = json.dumps([plan.config.to_dict(), *plan[1:]], sort_keys=True)
    return write_ours(out, source, target, plan.config, weights, max_shard_size, show_progress)
