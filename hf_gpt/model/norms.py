"""The two norms of the lineage."""

from torch import nn

from .configuration_gpt import GPTConfig


def build_norm(config: GPTConfig, width: int) -> nn.Module:
    """The configured norm over the last dimension, of `width`."""
    weight = config.norm_parameters != "none"
    if config.norm_type == "rms_norm":
        return nn.RMSNorm(width, eps=config.norm_eps, elementwise_affine=weight)
    bias = config.norm_parameters == "weight_and_bias"
    return nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=weight, bias=bias)
