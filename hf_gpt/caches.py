"""Cache layers of the sparse patterns; dense and banded layers have those of transformers."""

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from .configuration_gpt import GPTConfig


class GrowingLayer(DynamicLayer):
    """A dynamic cache layer that leaves room for the next tokens, instead of copying everything at each of them.

    It is for strided layers, which read few of the keys that they must keep.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rooms: tuple[torch.Tensor, ...] = ()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # which want no memory that is written again
            return super().update(key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past, new = self.get_seq_length(), (key_states, value_states)
        if not self._fits(past + key_states.shape[2]):
            shapes = [(*states.shape[:2], self._ample(past + states.shape[2]), states.shape[3]) for states in new]
            rooms = tuple(states.new_empty(shape) for states, shape in zip(new, shapes, strict=True))
            for room, states in zip(rooms, (self.keys, self.values), strict=True):
                if past:
                    room[:, :, :past] = states
            self.rooms = rooms
        for room, states in zip(self.rooms, new, strict=True):
            room[:, :, past : past + states.shape[2]] = states
        self.keys, self.values = (room[:, :, : past + key_states.shape[2]] for room in self.rooms)
        return self.keys, self.values

    def _fits(self, length: int) -> bool:
        """The keys still begin a room that is large enough: as after `crop`, not as after `reorder_cache`."""
        if not self.rooms or self.rooms[0].is_inference() != torch.is_inference_mode_enabled():
            return False
        return self.rooms[0].shape[2] >= length and self.rooms[0].data_ptr() == self.keys.data_ptr()

    @staticmethod
    def _ample(length: int) -> int:
        return length + max(64, length // 16)


class FixedLayer(DynamicLayer):
    """A dynamic cache layer that drops, once a block is complete, the keys that no later query sees.

    Each row counts its own logical positions, so the blocks of left-padded rows end at different times; what a shorter
    row does not need of the common width stands first, at position -1.
    """

    def __init__(self, stride: int, summary: int) -> None:
        super().__init__()
        self.stride = stride
        self.summary = summary
        self.record_past = False
        self.forget()

    def forget(self) -> None:
        self.cumulative_length = 0
        self.positions: torch.Tensor | None = None  # (B, kept), logical, -1 for padding
        self.expected: torch.Tensor | None = None
        self.due = 0  # the length at which a block of some row is complete
        self.pruned_at = 0

    def activate_past_recording(self) -> None:
        """Keep everything until the next `crop`, as transformers' sliding layers do."""
        self.record_past = True

    def expect(self, positions: torch.Tensor) -> None:
        """Tell the logical positions of the tokens of the next update, (B, T), -1 for padding."""
        self.expected = positions

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append T keys and values, (B, kv_heads, T, head_dim); return them after all that were kept."""
        keys, values = super().update(key_states, value_states)
        batch, length = key_states.shape[0], key_states.shape[2]
        new = self.expected
        if new is None:
            new = torch.arange(self.cumulative_length, self.cumulative_length + length, device=keys.device)[None]
        new = new.to(keys.device).expand(batch, -1)
        self.expected = None
        self.positions = new if self.positions is None else torch.cat((self.positions, new), dim=1)
        self.cumulative_length += length
        if self.cumulative_length >= self.due and not self.record_past:
            self.prune()
        return keys, values

    def prune(self) -> None:
        """Keep what the next queries may see."""
        following = self.positions.amax(dim=1, keepdim=True) + 1
        own = self.positions // self.stride == following // self.stride
        kept = (self.positions >= 0) & (own | (self.positions % self.stride >= self.stride - self.summary))
        width = int(kept.sum(dim=1).max())
        if width < kept.shape[1]:
            order = kept.long().argsort(dim=1, stable=True)[:, kept.shape[1] - width :]  # the kept ones stand last
            self.positions = self.positions.masked_fill(~kept, -1).gather(1, order)
            order = order[:, None, :, None]
            self.keys = self.keys.gather(2, order.expand(-1, self.keys.shape[1], -1, self.keys.shape[3]))
            self.values = self.values.gather(2, order.expand(-1, self.values.shape[1], -1, self.values.shape[3]))
        self.pruned_at = self.cumulative_length
        self.due = self.cumulative_length + int((self.stride - following % self.stride).min())

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        kept = 0 if self.positions is None else self.positions.shape[1]
        return kept + query_length, self.cumulative_length - kept

    def reset(self) -> None:
        super().reset()
        self.forget()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens: a negative number of them, or a positive length to keep."""
        if not self.is_initialized:
            return
        remove = self.cumulative_length - tokens_to_remove if tokens_to_remove > 0 else -tokens_to_remove
        removable = self.cumulative_length - self.pruned_at
        if remove > removable and not self.record_past:
            raise RuntimeError(
                f"cannot remove {remove} tokens: only {removable} have come since a block was complete and its keys "
                "were dropped. Call activate_past_recording() on the cache first."
            )
        if remove > 0:
            kept = self.positions.shape[1] - remove
            self.keys, self.values = self.keys[:, :, :kept], self.values[:, :, :kept]
            self.positions = self.positions[:, :kept]
            self.cumulative_length -= remove
        if self.record_past and self.cumulative_length:
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


def shape_cache(config: GPTConfig, cache: Cache | None, attention_mask: torch.Tensor | None, length: int) -> None:
    """Give the layers of a dynamic cache, while they are empty, the form of their patterns, and tell the fixed ones
    where the next `length` tokens stand."""
    for layer_idx, pattern in enumerate(config.attention_patterns):
        layer = layer_of(cache, layer_idx)
        if type(layer) is DynamicLayer and not layer.is_initialized:
            if pattern == "strided":
                cache.layers[layer_idx] = GrowingLayer()
            elif pattern == "fixed":
                layer = cache.layers[layer_idx] = FixedLayer(config.attention_stride, config.attention_summary_size)
        if isinstance(layer, FixedLayer) and isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            layer.expect(logical_positions(attention_mask.bool())[:, -length:])


def layer_of(cache: Cache | None, layer_idx: int) -> CacheLayerMixin | None:
    """One layer of a cache; None where there is none yet."""
    layers = getattr(cache, "layers", ())
    return layers[layer_idx] if layer_idx < len(layers) else None


def logical_positions(mask: torch.Tensor) -> torch.Tensor:
    """How many tokens stand before each in its row; -1 for padding. (B, slots), True where there is a token."""
    return torch.where(mask, mask.long().cumsum(dim=-1) - 1, -1)
