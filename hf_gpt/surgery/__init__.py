"""Changes the architecture of a model that has weights: patterns, context length, experts, quantization."""

from .context import extend_context, extended_config
from .patterns import set_attention_patterns
from .quantization import quantize
from .upcycling import upcycle, upcycle_checkpoint

__all__ = ["extend_context", "extended_config", "quantize", "set_attention_patterns", "upcycle", "upcycle_checkpoint"]
