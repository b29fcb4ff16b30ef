"""Cache layers of the patterns; banded layers have those of transformers."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from .attention_patterns import Fixed, build_pattern
from .configuration_gpt import GPTConfig


class GrowingLayer(DynamicLayer):
    """A dynamic cache layer that leaves room for the next tokens, instead of copying everything at each of them.

    What was written once stays: a layer that goes back, or a copy that goes its own way, takes a room of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leave()

    def leave(self) -> None:
        """Take another room for the next tokens."""
        self.rooms: tuple[torch.Tensor, ...] = ()
        self.written = [0]  # slots of the rooms; one number for all copies of the layer that share them

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.leaves_room(key_states):
            return super().update(key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past, new = self.get_seq_length(), (key_states, value_states)
        length = past + key_states.shape[2]
        if not self._fits(past, new):
            self.leave()
            self.rooms = tuple(self._room(*each, past) for each in zip((self.keys, self.values), new, strict=True))
        for room, states in zip(self.rooms, new, strict=True):
            room[:, :, past:length] = states
        self.written[0] = length
        self.keys, self.values = (room[:, :, :length] for room in self.rooms)
        return self.keys, self.values

    def leaves_room(self, states: torch.Tensor) -> bool:
        """Gradients and compilers want no memory that is written again."""
        return not (torch.is_grad_enabled() or torch.compiler.is_compiling())

    def offload(self) -> None:
        self.leave()  # it would hold on to the device's memory
        super().offload()

    def _fits(self, past: int, new: tuple[torch.Tensor, ...]) -> bool:
        """What is kept begins the rooms, and fills what was written of them; and they take what is new as it is."""
        if (
            not self.rooms
            or self.written[0] != past
            or self.rooms[0].is_inference() != torch.is_inference_mode_enabled()
        ):
            return False
        for room, kept, states in zip(self.rooms, (self.keys, self.values), new, strict=True):
            alike = room.shape[:2] == kept.shape[:2] == states.shape[:2] and room.dtype == states.dtype
            if not alike or room.data_ptr() != kept.data_ptr() or room.shape[2] < past + states.shape[2]:
                return False
        return True

    @staticmethod
    def _room(kept: torch.Tensor, states: torch.Tensor, past: int) -> torch.Tensor:
        """Ample memory that begins with what is kept."""
        length = past + states.shape[2]
        shape = (*states.shape[:2], length + max(64, length // 16), states.shape[3])
        room = states.new_empty(shape, dtype=torch.promote_types(kept.dtype, states.dtype))
        if past:
            room[:, :, :past] = kept
        return room


class DenseLayer(GrowingLayer):
    """The same in float32 on a CPU alone. In bfloat16 oneDNN would copy keys that do not fill their memory, and on an
    accelerator it was not measured (benchmarks/RESULTS.md)."""

    def leaves_room(self, states: torch.Tensor) -> bool:
        return states.is_cpu and states.dtype == torch.float32 and super().leaves_room(states)


class FixedLayer(DynamicLayer):
    """A dynamic cache layer that drops, once a block is complete, the keys that no later query sees.

    Each row counts its own logical positions, so the blocks of left-padded rows end at different times; what a shorter
    row does not need of the common width stands first, at position -1.
    """

    def __init__(self, pattern: Fixed) -> None:
        super().__init__()
        self.pattern = pattern
        self.record_past = False
        self.forget()

    def forget(self) -> None:
        self.cumulative_length = 0
        self.positions: torch.Tensor | None = None  # (B, kept), logical, -1 for padding
        self.expected: torch.Tensor | None = None
        self.complete = 0  # the length to which tokens can be removed again
        self.due = 0  # the length at which the block of some row is complete

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
        begun = following[:, 0] % self.pattern.stride  # tokens of the block that goes on
        present = self.positions >= 0
        kept = present & self.pattern.visible(following, self.positions)
        width = int(kept.sum(dim=1).max())
        if width < kept.shape[1]:
            order = kept.long().argsort(dim=1, stable=True)[:, kept.shape[1] - width :]  # the kept ones stand last
            self.positions = self.positions.masked_fill(~kept, -1).gather(1, order)
            order = order[:, None, :, None]
            self.keys = self.keys.gather(2, order.expand(-1, self.keys.shape[1], -1, self.keys.shape[3]))
            self.values = self.values.gather(2, order.expand(-1, self.values.shape[1], -1, self.values.shape[3]))
        unbroken = present.flip(1).long().cumprod(dim=1).sum(dim=1)  # tokens since the last padding
        self.complete = self.cumulative_length - int(torch.minimum(begun, unbroken).min())
        self.due = self.cumulative_length + int((self.pattern.stride - begun).min())

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        kept = 0 if self.positions is None else self.positions.shape[1]
        return kept + query_length, self.cumulative_length - kept

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self.forget()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, a negative number of them."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): expected a negative number, of tokens to remove")
        if not self.is_initialized:
            return
        length = self.cumulative_length + tokens_to_remove
        if length < self.complete:
            raise RuntimeError(
                f"cannot remove {-tokens_to_remove} tokens: a block was complete after {self.complete} of "
                f"{self.cumulative_length}, and its keys were dropped. Call activate_past_recording() on a cache that "
                "holds something, before the tokens that may go."
            )
        if tokens_to_remove:
            self.keys, self.values = self.keys[:, :, :tokens_to_remove], self.values[:, :, :tokens_to_remove]
            self.positions = self.positions[:, :tokens_to_remove]
            self.cumulative_length = length
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


# What makes the layer of each pattern, where it is not transformers'.
LAYERS: dict[str, Callable[[GPTConfig], DynamicLayer]] = {
    "dense": lambda config: DenseLayer(),
    "strided": lambda config: GrowingLayer(),
    "fixed": lambda config: FixedLayer(build_pattern(config, "fixed")),
}


def shape_cache(config: GPTConfig, cache: Cache | None) -> None:
    """Give the layers of a dynamic cache, while they are empty, the form of their patterns."""
    for layer_idx, pattern in enumerate(config.attention_patterns):
        layer = layer_of(cache, layer_idx)
        if pattern in LAYERS and type(layer) is DynamicLayer and not layer.is_initialized:
            cache.layers[layer_idx] = LAYERS[pattern](config)


def expect_tokens(cache: Cache | None, attention_mask: torch.Tensor | Mapping[str, Any] | None, length: int) -> None:
    """Tell the fixed layers of a cache where the next `length` tokens stand.

    Raises:
        ValueError: a prepared mask, which does not tell, for a cache that has dropped keys.
    """
    fixed = [(idx, layer) for idx, layer in enumerate(getattr(cache, "layers", ())) if isinstance(layer, FixedLayer)]
    if not fixed or attention_mask is None:
        return
    positions = None
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        positions = logical_positions(attention_mask.bool())[:, -length:]
    for layer_idx, layer in fixed:
        if positions is not None:
            layer.expect(positions)
        elif layer.is_initialized:
            raise ValueError(
                "attention_mask: a prepared mask does not fit the cache of a fixed layer (attention_patterns), which "
                "has dropped keys; expected (B, past + T)"
            )
        else:
            cache.layers[layer_idx] = DynamicLayer()  # it keeps all keys


def layer_of(cache: Cache | None, layer_idx: int) -> CacheLayerMixin | None:
    """One layer of a cache; None where there is none yet."""
    layers = getattr(cache, "layers", ())
    return layers[layer_idx] if layer_idx < len(layers) else None


def logical_positions(mask: torch.Tensor) -> torch.Tensor:
    """How many tokens stand before each in its row; -1 for padding. (B, slots), True where there is a token."""
    return torch.where(mask, mask.long().cumsum(dim=-1) - 1, -1)
