"""What generate() does besides transformers' own: packed weights, long prompts in chunks, cache layers of the patterns,
and the change of longrope from its short factors to the long ones."""

import math
from functools import wraps

import torch
from transformers import Cache, GenerationConfig, GenerationMixin
from transformers.generation.candidate_generator import CandidateGenerator

from .attention_masks import create_masks_for_generate
from .batch_layout import cached_slots, padding_mask
from .caches import install_layers, reset_if_torn
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
        """Continue token ids, as in transformers. Long prompts are read in chunks, and bfloat16 weights are packed.

        A call that an exception or Ctrl-C ends leaves nothing behind. A cache of the caller then holds all tokens that
        were read; it is empty if the exception came from within a forward pass.
        """
        token = PACKED.set(None)
        try:
            return super().generate(*args, **kwargs)
        except BaseException as error:
            reset_if_torn(kwargs.get("past_key_values"), self.model.layers, error)
            raise
        finally:
            packed = PACKED.get()
            PACKED.reset(token)
            if packed is not None:
                packed.release()

    @property
    def _previous_max_cache_length(self) -> int:
        """The length of the longest static cache so far, which transformers reads and sets: the next one is as long,
        so that the compiled step is not compiled again. -1 on a CPU, where generate() does not compile: there a cache
        has the length of its own call, and the logits do not depend on earlier ones."""
        return vars(self).get("_longest_cache", -1)

    @_previous_max_cache_length.setter
    def _previous_max_cache_length(self, length: int) -> None:
        if self.device.type != "cpu":
            self._longest_cache = length

    def _get_candidate_generator(self, generation_config, *args, model_kwargs, **kwargs) -> CandidateGenerator:
        # transformers drafts with the first layers by a smaller num_hidden_layers in the configuration meanwhile, which
        # other threads would see, and which an interrupted call would leave.
        early_exit, generation_config.assistant_early_exit = generation_config.assistant_early_exit, None
        if early_exit is not None:
            model_kwargs, kwargs["assistant_model"] = model_kwargs | {"early_exit": early_exit}, self
        return super()._get_candidate_generator(generation_config, *args, model_kwargs=model_kwargs, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        mask = model_kwargs.get("attention_mask")
        prompt = mask.shape[1] if isinstance(mask, torch.Tensor) else 0
        if generation_config.max_length - prompt >= PackedWeights.MIN_CALLS:
            PACKED.set(PackedWeights())
        generation_config.prefill_chunk_size = self.prefill_chunk(prompt, generation_config, model_kwargs)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        install_layers(self.config, cache)
        if generation_config.is_assistant and cache is not None:
            cache.activate_past_recording()  # also on the layers that were just installed

    def prefill_chunk(self, prompt: int, generation_config: GenerationConfig, model_kwargs: dict) -> int | None:
        """Returns how many tokens of a prompt are read at once; None for all, as always where rotary frequencies depend
        on how many are read at once."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        if rope.get("rope_type") in ("dynamic", "longrope"):
            return None
        has_ids_and_cache = generation_config.use_cache and model_kwargs.get("inputs_embeds") is None
        is_chosen = generation_config.is_assistant or generation_config.prefill_chunk_size is not None
        if prompt < 2 * PREFILL_CHUNK or is_chosen or not has_ids_and_cache:
            return generation_config.prefill_chunk_size
        return PREFILL_CHUNK

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
        before, now = (int(rows.sum(dim=-1).max()) for rows in (mask[:, : int(cached_slots(cache))], mask))
        return 0 < before <= threshold < now

    def init_continuous_batching(self, *args, **kwargs):
        """Start continuous batching (`generate_batch`), as in transformers.

        Raises:
            ValueError: the paged attention implementation does not compute a part of the model.
        """
        paged = "paged|" + self.config._attn_implementation.removeprefix("paged|")
        check_attention_implementation(self.config, paged)
        return super().init_continuous_batching(*args, **kwargs)
