"""Cache layers of the attention patterns; banded layers use those of transformers."""

from collections.abc import Callable, Sequence
from traceback import walk_tb
from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from .attention_patterns import Fixed, build_pattern
from .backends import is_traced
from .batch_layout import BatchLayout
from .configuration_gpt import GPTConfig
from .parallel_plans import is_missing


class PreallocatedLayer(DynamicLayer):
    """A dynamic cache layer with preallocated buffers, so that a new token does not copy all earlier ones.

    Written slots are never overwritten: a layer that is cropped allocates buffers of its own, and so does a copy.
    `keys` and `values` view what is written. The buffers, whose other slots are uninitialized, are not in `__dict__`,
    where exporters look for the tensors of a cache.
    """

    __slots__ = ("buffers", "written")
    buffers: tuple[torch.Tensor, ...]  # absent before the first update that preallocates
    written: int  # slots of the buffers

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Appends T keys and values, (B, kv_heads, T, head_dim); returns all of the layer."""
        if not self.can_preallocate(key_states):
            return super().update(key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past, new = self.get_seq_length(), (key_states, value_states)
        length = past + key_states.shape[2]
        if not self._fits(past, new):
            self.buffers = tuple(self._buffer(*each, past) for each in zip((self.keys, self.values), new, strict=True))
        for buffer, states in zip(self.buffers, new, strict=True):
            buffer[:, :, past:length] = states
        self.written = length
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)
        return self.keys, self.values

    def can_preallocate(self, states: torch.Tensor) -> bool:
        """True outside autograd and traces, which do not allow memory to be written again."""
        return not (torch.is_grad_enabled() or is_traced())

    def offload(self) -> None:
        self.release_buffers()  # a reference would keep the memory of the device allocated
        super().offload()

    def reset(self) -> None:
        self.release_buffers()
        super().reset()

    def release_buffers(self) -> None:
        """Makes the next update allocate new buffers."""
        self.buffers = ()

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state of a copy or a pickle: what is written, without the other slots."""
        state = vars(self).copy()
        for name in ("keys", "values"):
            if state[name] is not None:
                state[name] = state[name].clone(memory_format=torch.contiguous_format)
        return state

    def _fits(self, past: int, new: tuple[torch.Tensor, ...]) -> bool:
        """True if the cached states are all that is written to the buffers, and the new ones fit behind them."""
        buffers = getattr(self, "buffers", ())
        if not buffers or self.written != past or buffers[0].is_inference() != torch.is_inference_mode_enabled():
            return False
        for buffer, cached, states in zip(buffers, (self.keys, self.values), new, strict=True):
            is_alike = buffer.shape[:2] == cached.shape[:2] == states.shape[:2] and buffer.dtype == states.dtype
            if not is_alike or buffer.data_ptr() != cached.data_ptr() or buffer.shape[2] < past + states.shape[2]:
                return False
        return True

    @staticmethod
    def _buffer(cached: torch.Tensor, states: torch.Tensor, past: int) -> torch.Tensor:
        """Returns a buffer with the cached states, and with slots for the new and later ones."""
        length = past + states.shape[2]
        shape = (*states.shape[:2], length + max(64, length // 16), states.shape[3])
        buffer = states.new_empty(shape, dtype=torch.promote_types(cached.dtype, states.dtype))
        if past:
            buffer[:, :, :past] = cached
        return buffer


class DenseLayer(PreallocatedLayer):
    """Preallocates in float32 on a CPU alone: in bfloat16 oneDNN copies keys that are not contiguous, and accelerators
    were not measured (benchmarks/RESULTS.md, long inputs)."""

    def can_preallocate(self, states: torch.Tensor) -> bool:
        return states.is_cpu and states.dtype == torch.float32 and super().can_preallocate(states)


class FixedLayer(DynamicLayer):
    """A dynamic cache layer that drops the keys of a complete block that no later query sees.

    Each row counts its own logical positions, so the blocks of left-padded rows end at different times. Rows with fewer
    keys are padded on the left, at position -1. A trace keeps all keys: their number would depend on values.
    """

    def __init__(self, pattern: Fixed) -> None:
        super().__init__()
        self.stride, self.summary = pattern  # numbers: exporters rebuild a tuple without the names of its fields
        self.record_past = False
        self.reset_positions()

    def reset_positions(self) -> None:
        self.positions: torch.Tensor | None = None  # (B, cached keys), logical, -1 for padding
        self.expected: torch.Tensor | None = None
        self.dropped = 0  # slots without a key; the cached keys are in the slots behind, as the mask functions count
        self.shortest_crop = 0  # length down to which tokens can be cropped
        self.next_prune = 0  # length at which the block of some row is complete

    @property
    def pattern(self) -> Fixed:
        return Fixed(self.stride, self.summary)

    def activate_past_recording(self) -> None:
        """Keeps all keys until the next `crop`, as transformers' sliding layers do."""
        self.record_past = True

    def expect(self, positions: torch.Tensor | None) -> None:
        """Sets the logical positions of the tokens of the next update, (B, T), -1 for padding; None if all rows go on
        without padding."""
        self.expected = positions

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Appends T keys and values, (B, kv_heads, T, head_dim); returns them behind all cached ones."""
        batch, length, past = key_states.shape[0], key_states.shape[2], self.get_seq_length()
        keys, values = super().update(key_states, value_states)
        new = self.expected
        if new is None:
            new = torch.arange(past, past + length, device=keys.device)[None]
        new = new.to(keys.device).expand(batch, -1)
        self.expected = None
        self.positions = new if self.positions is None else torch.cat((self.positions, new), dim=1)
        if not (is_traced(keys) or self.record_past) and past + length >= self.next_prune:
            self.prune()
        return keys, values

    def prune(self) -> None:
        """Drops the keys that no later query sees."""
        length = self.get_seq_length()
        following = self.positions.amax(dim=1, keepdim=True) + 1
        begun = following[:, 0] % self.stride  # tokens of the incomplete block
        is_token = self.positions >= 0
        is_needed = is_token & self.pattern.visible(following, self.positions)
        width = int(is_needed.sum(dim=1).max())
        if width < is_needed.shape[1]:
            order = is_needed.long().argsort(dim=1, stable=True)  # needed keys last
            order = order[:, is_needed.shape[1] - width :]
            self.positions = self.positions.masked_fill(~is_needed, -1).gather(1, order)
            order = order[:, None, :, None]
            self.keys = self.keys.gather(2, order.expand(-1, self.keys.shape[1], -1, self.keys.shape[3]))
            self.values = self.values.gather(2, order.expand(-1, self.values.shape[1], -1, self.values.shape[3]))
            self.dropped = length - width
        unbroken = is_token.flip(1).long().cumprod(dim=1).sum(dim=1)  # tokens since the last padding
        self.shortest_crop = length - int(torch.minimum(begun, unbroken).min())
        self.next_prune = length + int((self.stride - begun).min())

    def get_seq_length(self) -> int:
        return self.dropped + super().get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns the number of keys after an update with `query_length` tokens, and the slot of the first."""
        return super().get_seq_length() + query_length, self.dropped

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self.reset_positions()

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last tokens, given as a negative number.

        Raises:
            ValueError: a positive number.
            RuntimeError: the keys of a complete block were dropped.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): expected a negative number of tokens to remove")
        if not self.is_initialized:
            return
        length = self.get_seq_length() + tokens_to_remove
        if length < self.shortest_crop:
            raise RuntimeError(
                f"cannot remove {-tokens_to_remove} tokens: a block was complete after {self.shortest_crop} of "
                f"{self.get_seq_length()}, and its keys were dropped. Call activate_past_recording() on a cache that "
                "holds something, before the tokens that may go."
            )
        if tokens_to_remove:
            self.keys, self.values = self.keys[:, :, :tokens_to_remove], self.values[:, :, :tokens_to_remove]
            self.positions = self.positions[:, :tokens_to_remove]
        if self.record_past and length:
            self.prune()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        if self.positions is not None:
            self.positions = self.positions.index_select(0, beam_idx.to(self.positions.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.positions is not None:
            self.positions = self.positions.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        if self.positions is not None:
            self.positions = self.positions[indices]


# The cache layer of each pattern for which transformers' own is not used.
LAYERS: dict[str, Callable[[GPTConfig], DynamicLayer]] = {
    "dense": lambda config: DenseLayer(),
    "strided": lambda config: PreallocatedLayer(),
    "fixed": lambda config: FixedLayer(build_pattern(config, "fixed")),
}


def install_layers(config: GPTConfig, cache: Cache | None) -> None:
    """Replaces the empty layers of a dynamic cache by those of their patterns."""
    for layer_idx, pattern in enumerate(config.attention_patterns):
        layer = layer_of(cache, layer_idx)
        if pattern in LAYERS and type(layer) is DynamicLayer and not layer.is_initialized:
            cache.layers[layer_idx] = LAYERS[pattern](config)


def prepare_cache(config: GPTConfig, cache: Cache | None, tokens: BatchLayout) -> None:
    """Prepares a cache for the next tokens: an empty one gets the layers of the patterns, and fixed layers get the
    logical positions. Prepared masks do not show the positions: then fixed layers keep all keys."""
    if isinstance(tokens.past, int) and not tokens.past:
        install_layers(config, cache)
    for layer_idx, layer in enumerate(getattr(cache, "layers", ())):
        if not isinstance(layer, FixedLayer):
            continue
        if tokens.is_prepared:
            cache.layers[layer_idx] = DynamicLayer()
        else:
            layer.expect(None if tokens.mask is None else tokens.logical_positions[:, -tokens.length :])


def reset_if_torn(cache: Cache | None, blocks: Sequence[nn.Module], error: BaseException) -> None:
    """Empties a cache whose layers do not hold the same tokens, because an exception was raised inside a block or
    between two. There is no way back: sliding and fixed layers have dropped keys."""
    if not isinstance(cache, Cache):
        return
    running = {id(frame.f_locals.get("self")) for frame, _ in walk_tb(error.__traceback__)}
    lengths = {int(cache.get_seq_length(layer)) for layer, block in enumerate(blocks) if not is_missing(block)}
    if len(lengths) > 1 or running & {*map(id, blocks)}:
        cache.reset()


def layer_of(cache: Cache | None, layer_idx: int) -> CacheLayerMixin | None:
    """Returns one layer of a cache, or None before it exists."""
    layers = getattr(cache, "layers", ())
    return layers[layer_idx] if layer_idx < len(layers) else None
