"""What generate() does besides transformers' own: packed weights, long prompts in chunks, cache layers of the patterns,
and the change of longrope from its short factors to the long ones."""

import math
from functools import wraps

import torch
from transformers import Cache, GenerationMixin

from .attention_masks import create_masks_for_generate
from .batch_layout import padding_mask
from .caches import install_layers
from .implementations import check_attention_implementation
from .linear import PACKED, PackedWeights
from .positions import longrope_threshold

# Prompts of at least twice this many tokens are read in chunks of it, which bounds the memory of activations.
PREFILL_CHUNK = 4096


class GPTGenerationMixin(GenerationMixin):
    """`GenerationMixin` for the decoder of this package."""

    # Masks of a static cache depend on the patterns, which transformers' own function does not know.
    create_masks_for_generate = staticmethod(create_masks_for_generate)

    @wraps(GenerationMixin.generate)
    def generate(self, *args, **kwargs):
        """Continue token ids, as in transformers. Long prompts are read in chunks, and bfloat16 weights are packed."""
        token = PACKED.set(None)
        try:
            return super().generate(*args, **kwargs)
        finally:
            PACKED.reset(token)  # releases the packed weights

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        mask = model_kwargs.get("attention_mask")
        prompt = mask.shape[1] if isinstance(mask, torch.Tensor) else 0
        if generation_config.max_length - prompt >= PackedWeights.MIN_CALLS:
            PACKED.set(PackedWeights())
        if prompt >= 2 * PREFILL_CHUNK and self.can_prefill_in_chunks(generation_config, model_kwargs):
            generation_config.prefill_chunk_size = PREFILL_CHUNK
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        install_layers(self.config, cache)
        if generation_config.is_assistant and cache is not None:
            cache.activate_past_recording()  # also on the layers that were just installed

    def can_prefill_in_chunks(self, generation_config, model_kwargs) -> bool:
        """True if a long prompt can be read in chunks: there is a cache, the prompt is token ids, the caller has not
        chosen a chunk size, and rotary frequencies do not depend on how much is read at once."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        has_ids_and_cache = generation_config.use_cache and model_kwargs.get("inputs_embeds") is None
        is_chosen = generation_config.is_assistant or generation_config.prefill_chunk_size is not None
        return has_ids_and_cache and not is_chosen and rope.get("rope_type") not in ("dynamic", "longrope")

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # transformers inspects its signature
    def prepare_inputs_for_generation(self, input_ids, *args, past_key_values=None, **kwargs):
        if past_key_values is not None and self.outgrows_short_factors(past_key_values, *input_ids.shape, **kwargs):
            past_key_values = kwargs["next_sequence_length"] = None  # recompute all keys
        return super().prepare_inputs_for_generation(input_ids, *args, past_key_values=past_key_values, **kwargs)

    def outgrows_short_factors(
        self, cache: Cache, batch: int, length: int, attention_mask: torch.Tensor | None = None, **_
    ) -> bool:
        """True if the new tokens are the first beyond the threshold of longrope: from here on it uses its long factors,
        but the cached keys are rotated by the short ones. The longest row decides, without its padding."""
        threshold = longrope_threshold(self.config)
        if math.isinf(threshold):
            return False
        mask = padding_mask(attention_mask)
        if mask is None:
            mask = torch.ones(batch, length, dtype=torch.bool)
        before, now = (int(rows.sum(dim=-1).max()) for rows in (mask[:, : int(cache.get_seq_length())], mask))
        return 0 < before <= threshold < now

    def init_continuous_batching(self, *args, **kwargs):
        """Start continuous batching (`generate_batch`), as in transformers.

        Raises:
            ValueError: the paged attention implementation does not compute a part of the model.
        """
        paged = "paged|" + self.config._attn_implementation.removeprefix("paged|")
        check_attention_implementation(self.config, paged)
        return super().init_continuous_batching(*args, **kwargs)
