"""How a model is split over processes: tensor parallelism splits each matrix, expert parallelism distributes experts,
pipeline parallelism distributes blocks.

The first two kinds of plans map names of modules and parameters to transformers' styles. A style is named for the (out,
in) of a linear layer: on experts, which are (experts, in, out), `rowwise` splits the output features and `colwise` the
input features.
"""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from torch import nn

from .backends import ALL_PARALLEL_STYLES, MoeExpertsParallel

ATTENTION, MLP = "layers.*.self_attn", "layers.*.mlp"
EXPERTS, SHARED = f"{MLP}.experts", f"{MLP}.shared_experts"

PLAIN = {"up_proj": "colwise", "down_proj": "rowwise"}
GATED = {"gate_proj": "colwise"} | PLAIN
PLAIN_EXPERTS = {"up_proj": "rowwise", "up_proj_bias": "rowwise", "down_proj": "colwise"}
GATED_EXPERTS = {"gate_up_proj": "packed_rowwise", "gate_up_proj_bias": "packed_rowwise", "down_proj": "colwise"}


class Plan:
    """A plan that is computed from a configuration when it is read, as an attribute."""

    def __init__(self, compute: Callable[[Any], dict[str, Any] | None]) -> None:
        self.compute = compute

    def __get__(self, config: Any, owner: type | None = None) -> dict[str, Any] | None:
        return None if config is None else self.compute(config)


def tensor_parallel_plan(config: Any) -> dict[str, str]:
    """Returns the plan that splits heads and the intermediate features of feed-forward layers, and sums the outputs."""
    plan = {f"{ATTENTION}.{name}_proj": "colwise" for name in "qkv"}
    if config.qk_norm:  # every rank normalizes its own heads with the same weights
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
    """Returns the plan that gives each rank whole experts and sends tokens to them; the rest is replicated. None
    without experts."""
    if "sparse" not in config.mlp_layer_types:
        return None
    weights = ["up_proj" if config.mlp_type == "mlp" else "gate_up_proj", "down_proj"]
    biases = [f"{name}_bias" for name in weights] if config.mlp_bias else []
    return {f"{EXPERTS}.{name}": "grouped_gemm" for name in weights + biases} | {EXPERTS: "ep_dispatch_experts"}


def pipeline_parallel_plan(config: Any) -> dict[str, tuple[list[str], list[str]]]:
    """Returns the children of `GPTModel` that compute something, in order, with their inputs and outputs. All before
    `layers` belong to the first stage, all after it to the last one."""
    is_narrow = config.embedding_size != config.hidden_size
    adds_positions = config.position_embedding_type in ("learned", "sinusoidal")
    steps = {
        "embed_tokens": (True, ["input_ids"], ["inputs_embeds"]),
        "project_in": (is_narrow, ["inputs_embeds"], ["hidden_states"]),
        "embed_positions": (adds_positions, ["hidden_states", "position_ids"], ["hidden_states"]),
        "layers": (True, ["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (config.final_norm, ["hidden_states"], ["hidden_states"]),
        "project_out": (is_narrow, ["hidden_states"], ["hidden_states"]),
    }
    return {name: (inputs, outputs) for name, (computes, inputs, outputs) in steps.items() if computes}


def is_missing(module: nn.Module) -> bool:
    """True for what transformers and vLLM put in place of a module of another pipeline stage. Neither replaces all that
    is outside the blocks, and for tied embeddings the last stage has all that precedes the blocks."""
    return isinstance(module, nn.Identity)


class BiasedExpertsParallel(MoeExpertsParallel):
    """Experts with a replicated `down_proj_bias`, of which each rank adds 1 / ranks, so that their sum has it once."""

    @contextmanager
    def context_around_forward(self, module: nn.Module, mesh: Any):
        bias = module._parameters["down_proj_bias"]
        with super().context_around_forward(module, mesh):
            # 1 / ranks of the value, but the whole gradient, which is not summed over ranks
            module._parameters["down_proj_bias"] = bias - bias.detach() * (1 - 1 / mesh.size())
            try:
                yield
            finally:
                module._parameters["down_proj_bias"] = bias


if ALL_PARALLEL_STYLES is not None:
    ALL_PARALLEL_STYLES.register("moe_tp_biased_experts", BiasedExpertsParallel())
