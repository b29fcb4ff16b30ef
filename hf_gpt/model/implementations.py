"""The attention and experts implementations that a model accepts.

Allow-lists: an implementation that has not been tested against the definition for what a model contains raises
ValueError, because it would leave a part out silently.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .configuration_gpt import LAYER_TYPES, GPTConfig


class Support(NamedTuple):
    """What an attention implementation computes."""

    patterns: tuple[str, ...]
    sinks: bool


# The contract of transformers' attention interface, which all other implementations have: a mask or a window. They may
# ignore `s_aux`, and a model with sinks would run without them.
CONTRACT = Support(("dense", "banded"), sinks=False)
SUPPORT = {
    "eager": Support(tuple(LAYER_TYPES), sinks=True),
    "sdpa": Support(tuple(LAYER_TYPES), sinks=True),
    "flex_attention": Support(tuple(LAYER_TYPES), sinks=True),  # raises for sinks on a CPU
    "paged|eager": Support(CONTRACT.patterns, sinks=True),
}
EXPERTS_IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
GROUPED_MM_MULTIPLE = 8  # grouped_mm needs sizes that are multiples of 16 bytes, also in bfloat16


def missing_parts(config: GPTConfig, implementation: str) -> list[str]:
    """Returns the parts of a model that an attention implementation does not compute."""
    support = SUPPORT.get(implementation, CONTRACT)
    patterns = [name for name in LAYER_TYPES if name in config.attention_patterns and name not in support.patterns]
    missing = [f"{' or '.join(patterns)} layers (attention_patterns)"] if patterns else []
    return missing + ["attention sinks (attention_sinks)"] * (config.attention_sinks and not support.sinks)


def check_attention_implementation(config: GPTConfig, implementation: str) -> None:
    """Raises ValueError for an attention implementation that does not compute a part of the model."""
    if missing := missing_parts(config, implementation):
        raise ValueError(
            f"attn_implementation={implementation!r} does not compute {' and '.join(missing)}: choose sdpa, eager or "
            "flex_attention"
        )


class HasExperts:
    """The method `_can_set_experts_implementation`: transformers calls it on models, its test suite on classes.

    A model answers by its configuration. A class answers whether it has built a mixture of experts, which no model
    depends on: the suite only skips the tests of experts otherwise.
    """

    def __init__(self) -> None:
        self.classes: set[type] = set()

    def __get__(self, model: Any, model_class: type) -> Callable[[], bool]:
        if model is None:
            return lambda: model_class in self.classes
        has_experts = model.config.num_local_experts is not None
        if has_experts:
            self.classes.add(model_class)
        return lambda: has_experts


class ImplementationChoice:
    """The part of a model class by which transformers chooses attention and experts implementations."""

    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_set_experts_implementation = HasExperts()

    @property
    def _supports_flash_attn(self) -> bool:
        return not missing_parts(self.config, "flash_attention_2")

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        """Choose the attention implementation, as in the base class.

        Raises:
            ValueError: it does not compute a part of the model.
        """
        check_attention_implementation(self.config, attn_implementation or "sdpa")
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Choose the experts implementation, as in the base class; on a CPU `eager`, which is the fastest there.

        Raises:
            ValueError: it is not tested with these experts.
        """
        has_experts = self._can_set_experts_implementation()
        if requested_experts is None and not (has_experts and torch.accelerator.is_available()):
            return "eager"
        if requested_experts not in (None, *EXPERTS_IMPLEMENTATIONS):
            raise ValueError(
                f"experts_implementation={requested_experts!r} is not supported: expected one of "
                f"{', '.join(EXPERTS_IMPLEMENTATIONS)}"
            )
        if requested_experts not in (None, "eager") and not has_experts:
            raise ValueError(
                f"experts_implementation={requested_experts!r}: expected None or 'eager' for a model without experts "
                "(num_local_experts=None)"
            )
        return super().get_correct_experts_implementation(requested_experts)

    def _grouped_mm_can_dispatch(self) -> bool:
        for name in ("hidden_size", "moe_intermediate_size"):
            size = getattr(self.config, name) or 0
            if size % GROUPED_MM_MULTIPLE:
                raise ValueError(f"{name}={size}: grouped_mm expects multiples of {GROUPED_MM_MULTIPLE}")
        return super()._grouped_mm_can_dispatch()
