"""A new model out of one that has weights: patterns, a longer context, experts, quantized weights."""

from .context import extended_config
from .models import extend_context, set_attention_patterns, upcycle
from .quantization import quantize
from .upcycling import upcycle_checkpoint

__all__ = ["extend_context", "extended_config", "quantize", "set_attention_patterns", "upcycle", "upcycle_checkpoint"]
