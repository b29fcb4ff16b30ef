"""The two norms of the lineage."""

from torch import nn

from .configuration_gpt import GPTConfig

NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}


def build_norm(config: GPTConfig, width: int) -> nn.Module:
    """The configured norm over the last dimension, of `width`."""
    return NORMS[config.norm_type](width, eps=config.norm_eps)
