"""`hf-gpt info`: the architecture and the costs of a configuration."""

from typing import Annotated

import torch
import typer
from rich.table import Table

from ..accounting import Account, account
from ..model.attention_patterns import build_pattern
from ..model.configuration_gpt import GPTConfig
from ..recipes import find_origin
from .console import console
from .options import SetFields, parse_fields

commands = typer.Typer()


@commands.command()
def info(
    model: Annotated[str, typer.Argument(help="A preset, a config.json, or a folder of a model.")],
    set_fields: SetFields = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Context length in tokens. Default: the maximum of the model.")
    ] = None,
) -> None:
    """Print the parameters, FLOPs, cache and layers of a configuration, without allocating or reading weights."""
    config = find_origin(model, parse_fields(set_fields)).config
    context = context or config.max_position_embeddings
    costs = account(config, context, torch.bfloat16)
    console.print(cost_table(model, costs, context))
    console.print(
        f"FLOPs at {context:,} tokens of context; cache of one row in bfloat16; activations in float32 on a CPU, "
        "without dropout and activation checkpointing.",
        style="dim",
    )
    console.print(layer_table(config, costs))


def cost_table(title: str, costs: Account, context: int) -> Table:
    """Returns the costs of the whole model."""
    table = Table(title=title, show_header=False)
    table.add_row("parameters", f"{costs.parameters:,}")
    table.add_row("active parameters", f"{costs.active_parameters:,}")
    table.add_row("FLOPs per token, forward", f"{costs.forward_flops_per_token:,.0f}")
    table.add_row("FLOPs per token, training", f"{costs.training_flops_per_token:,.0f}")
    table.add_row("activation bytes per token, training", f"{costs.activation_bytes_per_token:,}")
    table.add_row("cache bytes per token", f"{costs.cache_bytes_per_token:,}")
    table.add_row(f"cache bytes at {context:,} tokens", f"{costs.cache_bytes:,}")
    return table


def layer_table(config: GPTConfig, costs: Account) -> Table:
    """Returns the architecture and the parameters of each layer."""
    table = Table("layer", "attention", "heads", "kv heads", "head", "feed-forward", "parameters")
    for layer_idx, layer in enumerate(costs.layers):
        pattern = layer.attention_pattern
        table.add_row(
            str(layer_idx),
            " ".join((pattern, *map(str, build_pattern(config, pattern)))),
            str(config.num_attention_heads),
            str(config.num_key_value_heads),
            str(config.head_dim),
            describe_feed_forward(config, layer_idx),
            f"{layer.parameters:,}",
        )
    return table


def describe_feed_forward(config: GPTConfig, layer_idx: int) -> str:
    """Returns the type and width of a feed-forward layer, with shared + selected/all experts in a sparse layer."""
    if config.mlp_layer_types[layer_idx] == "dense":
        return f"{config.mlp_type} {config.intermediate_size}"
    shared = f"{config.num_shared_experts} + " if config.num_shared_experts else ""
    experts = f"{config.num_experts_per_tok}/{config.num_local_experts}"
    return f"{shared}{experts} {config.mlp_type} {config.moe_intermediate_size}"
