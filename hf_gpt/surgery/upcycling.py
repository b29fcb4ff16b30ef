"""Makes a mixture of experts from a dense model, one tensor at a time.

Copied experts: Komatsuzaki et al. 2023. Virtual groups of fine-grained experts: He et al. 2024. Partial
reinitialization: Nakamura et al. 2025.
"""

import json
import math
import re
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..conversion.checkpoints import Weights
from ..conversion.engine import SHARD_SIZE, model_tensors, read_model, write_model
from ..conversion.sources import locate
from ..model.configuration_gpt import GPTConfig
from .rebuild import Model, ReadWeight, rebuild

# The routing fields that do not change what the model computes before it is trained.
ROUTING_FIELDS = (
    "router_score_function",
    "router_bias",
    "router_jitter_noise",
    "router_aux_loss_coef",
    "router_aux_loss_type",
    "router_z_loss_coef",
    "router_bias_update_rate",
    "output_router_logits",
)
NEW_WEIGHT = re.compile(r"(?P<mlp>.*layers\.\d+\.mlp\.)(experts|router)\.(?P<tensor>\w+)")


def upcycle(
    model: Model,
    num_experts: int = 8,
    num_experts_per_tok: int = 2,
    *,
    granularity: int = 1,
    layers: Iterable[int] | None = None,
    noise: float = 0.0,
    reinitialize: float = 0.0,
    seed: int = 0,
    **routing: Any,
) -> Model:
    """Returns a mixture of experts made from a dense model.

    Each expert is a copy of the feed-forward layer and each router has random weights (Komatsuzaki et al. 2023).
    Without noise and reinitialization the new model computes the same function as the dense one: for any routing with
    `granularity=1`, otherwise until the router is trained.

        experts = upcycle(model, num_experts=8, num_experts_per_tok=2, router_aux_loss_coef=0.02)

    Args:
        model: any dense hf_gpt model that is not quantized.
        num_experts: experts in each sparse layer.
        num_experts_per_tok: experts that the router selects for each token.
        granularity: splits the feed-forward layer into this number of narrower experts, a virtual group that the
            router selects together at first; there are `num_experts / granularity` copies of the group (He et al.
            2024, section 3.2). With `num_experts_per_tok=granularity` the FLOPs per token do not change.
        layers: indices of the layers that become sparse, all by default. Negative indices count from the last layer.
        noise: standard deviation of the noise added to each weight matrix of the experts, as a fraction of the
            standard deviation of the matrix.
        reinitialize: fraction of the inner units of each expert that are drawn again, others in each expert (Nakamura
            et al. 2025).
        seed: of all random numbers. The random state of PyTorch is neither used nor changed.
        routing: fields of the configuration for routing and balance, such as `router_aux_loss_coef`,
            `router_bias_update_rate` and `router_score_function`.

    Raises:
        ValueError: the model has experts already, a layer index is out of range, the sizes do not divide,
            `num_experts_per_tok` exceeds `num_experts`, or a routing field would change what the model computes.
    """
    plan = plan_upcycling(
        model.config,
        num_experts,
        num_experts_per_tok,
        granularity=granularity,
        layers=layers,
        noise=noise,
        reinitialize=reinitialize,
        seed=seed,
        **routing,
    )
    return rebuild(model, plan.config, plan.make_weight)


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
    """Applies `upcycle` to a checkpoint, one tensor at a time: `max_shard_size` limits the memory.

    Resumes if a call with the same arguments was interrupted.

    Args:
        src: folder or Hub id of a language model of hf_gpt.
        out: folder to write, new or empty. It appears when it is complete.
        num_experts, num_experts_per_tok: as in `upcycle`.
        max_shard_size: of a file of weights, as `"500MB"` or in bytes.
        show_progress: prints a progress bar.
        options: the other arguments of `upcycle`.

    Returns:
        `out`.

    Raises:
        ValueError: as `upcycle`; or the weights do not match the configuration, or are not finite.
        OSError: files are missing or damaged, `out` is not empty, or the disk is full.
    """
    source = locate(src)
    dense, checkpoint, _ = read_model(source)
    plan = plan_upcycling(dense, num_experts, num_experts_per_tok, **options)
    dtype = next(iter(checkpoint.meta.values())).dtype
    meta = {name: checkpoint.meta.get(name, tensor.to(dtype)) for name, tensor in model_tensors(plan.config).items()}
    weights = Weights(meta, lambda name: plan.make_weight(name, checkpoint.read))
    target = json.dumps([plan.config.to_dict(), *plan[1:]], sort_keys=True)
    return write_model(out, source, target, plan.config, weights, max_shard_size, show_progress)


class UpcyclingPlan(NamedTuple):
    """Computes each weight of a mixture of experts from the weights of a dense model.

    Each tensor of a router and of its experts has a method of its name. `mlp` is the prefix of the names in its layer.
    """

    config: GPTConfig
    """Of the mixture of experts."""
    granularity: int
    noise: float
    reinitialize: float
    seed: int

    def make_weight(self, name: str, read: ReadWeight) -> torch.Tensor:
        """Returns the weight of the mixture of experts that has a name; `read` returns those of the dense model."""
        new = NEW_WEIGHT.fullmatch(name)
        if new is None:
            return read(name)
        weight = getattr(self, f"_{new['tensor']}")(new["mlp"], read)
        return weight.to(read(f"{new['mlp']}down_proj.weight").dtype)

    def _weight(self, mlp: str, read: ReadWeight) -> torch.Tensor:
        """Router weight, (experts, hidden_size): equal for the experts of a virtual group, so that they are selected
        together."""
        groups = self.config.num_local_experts // self.granularity
        weight = torch.randn(groups, self.config.hidden_size, generator=self._generator(f"{mlp}router"))
        return (weight * self.config.initializer_range).repeat_interleave(self.granularity, dim=0)

    def _bias(self, mlp: str, read: ReadWeight) -> torch.Tensor:
        """Router bias, (experts,)."""
        return torch.zeros(self.config.num_local_experts)

    _e_score_correction_bias = _bias

    def _up_proj(self, mlp: str, read: ReadWeight) -> torch.Tensor:
        """(experts, hidden_size, inner)"""
        return self._input_projection(mlp, "up_proj", read)

    def _gate_up_proj(self, mlp: str, read: ReadWeight) -> torch.Tensor:
        """(experts, hidden_size, 2 inner)"""
        return torch.cat([self._input_projection(mlp, name, read) for name in ("gate_proj", "up_proj")], dim=-1)

    def _up_proj_bias(self, mlp: str, read: ReadWeight) -> torch.Tensor:
        """(experts, inner)"""
        return self._split(read(f"{mlp}up_proj.bias"))

    def _gate_up_proj_bias(self, mlp: str, read: ReadWeight) -> torch.Tensor:
        """(experts, 2 inner)"""
        return torch.cat([self._split(read(f"{mlp}{name}.bias")) for name in ("gate_proj", "up_proj")], dim=-1)

    def _down_proj(self, mlp: str, read: ReadWeight) -> torch.Tensor:
        """(experts, inner, hidden_size): times the granularity, because the weights of a group's experts add up to
        those of one whole layer."""
        weight = self._split(read(f"{mlp}down_proj.weight").t()) * self.granularity
        return self._perturb(weight, mlp, "down_proj", inner_dim=1)

    def _down_proj_bias(self, mlp: str, read: ReadWeight) -> torch.Tensor:
        """(experts, hidden_size)"""
        return read(f"{mlp}down_proj.bias").expand(self.config.num_local_experts, -1)

    def _input_projection(self, mlp: str, name: str, read: ReadWeight) -> torch.Tensor:
        weight = self._split(read(f"{mlp}{name}.weight")).transpose(1, 2)  # (experts, hidden_size, inner)
        return self._perturb(weight, mlp, name, inner_dim=2)

    def _split(self, tensor: torch.Tensor) -> torch.Tensor:
        """Splits a tensor, (intermediate_size, ...), over the experts of a group and repeats it for each group."""
        parts = tensor.unflatten(0, (self.granularity, -1))
        return parts.repeat(self.config.num_local_experts // self.granularity, *[1] * tensor.ndim)

    def _perturb(self, weight: torch.Tensor, mlp: str, name: str, inner_dim: int) -> torch.Tensor:
        """Adds noise and draws some inner units again, so that the experts differ."""
        if not (self.noise or self.reinitialize):
            return weight
        weight = weight.float()
        mean, std = weight.mean(), weight.std()
        fresh = torch.randn(weight.shape, generator=self._generator(f"{mlp}{name}")).to(weight) * std
        # the same units in the input and output projections of an expert
        order = torch.rand(len(weight), weight.shape[inner_dim], generator=self._generator(f"{mlp}units")).argsort(1)
        drawn_again = (order < round(self.reinitialize * order.shape[1])).to(weight.device)  # (experts, inner)
        return torch.where(drawn_again.unsqueeze(3 - inner_dim), mean + fresh, weight + self.noise * fresh)

    def _generator(self, tensor: str) -> torch.Generator:
        """Each tensor has its own generator, so that no tensor depends on the order in which they are made."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {tensor}".encode()))


def plan_upcycling(
    dense: GPTConfig,
    num_experts: int,
    num_experts_per_tok: int,
    *,
    granularity: int = 1,
    layers: Iterable[int] | None = None,
    noise: float = 0.0,
    reinitialize: float = 0.0,
    seed: int = 0,
    **routing: Any,
) -> UpcyclingPlan:
    """Checks the arguments of `upcycle` and completes the configuration of the mixture of experts.

    Raises:
        ValueError: as `upcycle`.
    """
    if "reinitialise" in routing:
        # 3: the caller of upcycle or upcycle_checkpoint
        warnings.warn("reinitialise is deprecated: use reinitialize", DeprecationWarning, stacklevel=3)
        reinitialize = routing.pop("reinitialise")
    if "sparse" in dense.mlp_layer_types:
        raise ValueError(f"num_local_experts={dense.num_local_experts}: the model is already a mixture of experts")
    if unknown := [name for name in routing if name not in ROUTING_FIELDS]:
        raise ValueError(f"upcycle does not accept {unknown[0]}: expected one of {', '.join(ROUTING_FIELDS)}")
    if not (isinstance(granularity, int) and granularity >= 1):
        raise ValueError(f"granularity={granularity!r}: expected an integer of at least 1")
    if not (isinstance(noise, (int, float)) and 0 <= noise < math.inf):
        raise ValueError(f"noise={noise!r}: expected a number of at least 0")
    if not (isinstance(reinitialize, (int, float)) and 0 <= reinitialize <= 1):
        raise ValueError(f"reinitialize={reinitialize!r}: expected a fraction from 0 to 1")
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
    config = dense.replace(**fields)
    sizes = {"num_experts": num_experts, "num_experts_per_tok": num_experts_per_tok}
    for name, size in (sizes | {"intermediate_size": dense.intermediate_size}).items():
        if size % granularity:
            raise ValueError(f"granularity={granularity} does not divide {name}={size}")
    return UpcyclingPlan(config, granularity, noise, reinitialize, seed)


def _layer_types(layers: Iterable[int] | None, count: int) -> list[str]:
    """Returns `sparse` for each of the layers and `dense` for the others."""
    if not (layers is None or isinstance(layers, Iterable)):
        raise ValueError(f"layers={layers!r}: expected a list of layer indices")
    types = ["dense"] * count
    for layer_idx in range(count) if layers is None else layers:
        if layer_idx not in range(-count, count):
            raise ValueError(f"layers: layer {layer_idx!r} is out of range for num_hidden_layers={count}")
        types[layer_idx] = "sparse"
    if "sparse" not in types:
        raise ValueError("layers: expected at least one layer index")
    return types
