"""The two norms of the lineage, layer norm and RMS norm."""

from torch import nn

from .configuration_gpt import GPTConfig


def build_norm(config: GPTConfig, width: int) -> nn.Module:
    """Returns the norm that `config.norm_type` names, over a last dimension of size `width`."""
    has_weight = config.norm_parameters != "none"
    if config.norm_type == "rms_norm":
        return nn.RMSNorm(width, eps=config.norm_eps, elementwise_affine=has_weight)
    has_bias = config.norm_parameters == "weight_and_bias"
    return nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=has_weight, bias=has_bias)
