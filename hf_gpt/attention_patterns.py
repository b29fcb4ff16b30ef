"""Which keys a query sees. One mask for each pattern of a model, whatever the attention implementation."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .configuration_gpt import LAYER_TYPES, GPTConfig

# dense: every earlier key. banded: q - k < sliding_window. Both count logical positions, so that padding is invisible.
MASKS = {"dense": create_causal_mask, "banded": create_sliding_window_causal_mask}


def create_attention_masks(
    config: GPTConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | Mapping[str, Any] | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None = None,
    **_,
) -> dict[str, Any]:
    """The mask of each pattern that the model has, in the form that its attention implementation wants.

    Args:
        inputs_embeds: (B, T, D); only its shape, dtype and device matter.
        attention_mask: (B, past + T), 1 where there is a token, or None where there is no padding. A prepared mask,
            (B, 1, T, keys), or a mapping of masks by pattern or by layer type, is passed on.
        position_ids: (B, T), where the caller gave them: a restart marks a new packed sequence.
    """
    patterns = dict.fromkeys(config.attention_patterns)
    if isinstance(attention_mask, Mapping):
        by_pattern = {pattern: LAYER_TYPES[pattern] for pattern in patterns}
        return {p: attention_mask[p if p in attention_mask else by_pattern[p]] for p in patterns}
    with _eager_block_masks(config, inputs_embeds.device):
        return {
            pattern: MASKS[pattern](
                config=config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
            for pattern in patterns
        }


def _eager_block_masks(config: GPTConfig, device: torch.device) -> AbstractContextManager:
    # transformers compiles the block masks of FlexAttention; for padded rows on the CPU, torch 2.13 writes C++ that its
    # own compiler refuses
    if config._attn_implementation == "flex_attention" and device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
