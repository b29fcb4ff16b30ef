"""How a model is split over processes: tensor parallelism splits every matrix, expert parallelism deals out experts.

The plans pair names of modules and parameters with transformers' styles. A style is named for the (out, in) of a linear
layer: on experts, which are (experts, in, out), `rowwise` splits what goes out and `colwise` what comes in.
"""

from contextlib import contextmanager
from typing import Any

from torch import nn

try:
    from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
    from transformers.distributed.tensor_parallel import MoeExpertsParallel
except ImportError:  # transformers 5.17 knows no splitting of experts
    ALL_PARALLEL_STYLES, MoeExpertsParallel = None, object

ATTENTION, MLP = "layers.*.self_attn", "layers.*.mlp"
EXPERTS, SHARED = f"{MLP}.experts", f"{MLP}.shared_experts"

PLAIN = {"up_proj": "colwise", "down_proj": "rowwise"}
GATED = {"gate_proj": "colwise"} | PLAIN
PLAIN_EXPERTS = {"up_proj": "rowwise", "up_proj_bias": "rowwise", "down_proj": "colwise"}
GATED_EXPERTS = {"gate_up_proj": "packed_rowwise", "gate_up_proj_bias": "packed_rowwise", "down_proj": "colwise"}


def tensor_parallel_plan(config: Any) -> dict[str, str]:
    """Heads and the insides of feed-forward layers are split; their outputs are summed."""
    plan = {f"{ATTENTION}.{name}_proj": "colwise" for name in "qkv"}
    if config.qk_norm:  # every rank normalises its own heads with the same weights
        plan |= {f"{ATTENTION}.{name}_norm": "replicated_with_grad_allreduce" for name in "qk"}
    if config.attention_sinks:
        plan |= {f"{ATTENTION}.sinks": "colwise", ATTENTION: "local_params"}
    plan[f"{ATTENTION}.o_proj"] = "rowwise"
    gated, biased = config.mlp_type != "mlp", config.mlp_bias
    feed_forward = GATED if gated else PLAIN
    if "dense" in config.mlp_layer_types:
        plan |= {f"{MLP}.{name}": style for name, style in feed_forward.items()}
    if "sparse" in config.mlp_layer_types:
        experts = GATED_EXPERTS if gated else PLAIN_EXPERTS
        plan |= {f"{EXPERTS}.{name}": style for name, style in experts.items() if biased or not name.endswith("bias")}
        plan[EXPERTS] = "moe_tp_biased_experts" if biased else "moe_tp_experts"
    if config.num_shared_experts:
        plan |= {f"{SHARED}.{name}": style for name, style in feed_forward.items()}
    return plan


def expert_parallel_plan(config: Any) -> dict[str, str] | None:
    """Each rank holds some of the experts, whole, and tokens travel to them; the rest is on every rank."""
    if "sparse" not in config.mlp_layer_types:
        return None
    weights = ["up_proj" if config.mlp_type == "mlp" else "gate_up_proj", "down_proj"]
    biases = [f"{name}_bias" for name in weights] if config.mlp_bias else []
    return {f"{EXPERTS}.{name}": "grouped_gemm" for name in weights + biases} | {EXPERTS: "ep_dispatch_experts"}


class BiasedExpertsParallel(MoeExpertsParallel):
    """Experts whose last bias is whole on every rank: each adds its part, so that the sum over ranks has it once."""

    @contextmanager
    def context_around_forward(self, module: nn.Module, mesh: Any):
        whole = module._parameters["down_proj_bias"]
        with super().context_around_forward(module, mesh):
            # a part of the value, but the whole gradient, which every rank has to itself
            module._parameters["down_proj_bias"] = whole - whole.detach() * (1 - 1 / mesh.size())
            try:
                yield
            finally:
                module._parameters["down_proj_bias"] = whole


if ALL_PARALLEL_STYLES is not None:
    ALL_PARALLEL_STYLES.register("moe_tp_biased_experts", BiasedExpertsParallel())
