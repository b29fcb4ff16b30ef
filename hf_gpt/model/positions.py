"""Position embeddings: learned and sinusoidal ones, added to the token embeddings, and rotary ones, in attention."""

import math
from collections.abc import Callable
from copy import copy

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .backends import is_traced
from .configuration_gpt import GPTConfig


def check_indices(name: str, indices: torch.Tensor, field: str, limit: int) -> None:
    """Raises a ValueError if an index is not in [0, limit), where `limit` is the value of the configuration's `field`.

    It checks on a CPU alone, outside traces: on an accelerator it would synchronize at every call, and PyTorch itself
    asserts the index there.
    """
    if indices.device.type != "cpu" or not indices.numel() or is_traced():
        return
    least, most = torch.aminmax(indices)
    if least < 0 or most >= limit:
        raise ValueError(f"{name} from {least} to {most}: expected 0 to {limit - 1}, by {field}={limit}")


class NoPositions(nn.Module):
    """Returns the hidden states unchanged."""

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return hidden_states


class LearnedPositions(nn.Embedding):
    """One learned vector for each position up to `max_position_embeddings` (GPT-1, section 3.1)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.position_offset + config.max_position_embeddings, config.hidden_size)
        self.limit = config.max_position_embeddings
        self.offset = config.position_offset

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        if position_ids.is_floating_point():
            kind = str(position_ids.dtype).removeprefix("torch.")
            raise ValueError(
                f"position_ids of type {kind}: expected integers, the rows of a table of learned positions"
            )
        check_indices("position_ids", position_ids, "max_position_embeddings", self.limit)
        return hidden_states + super().forward(position_ids + self.offset if self.offset else position_ids)


class SinusoidalPositions(nn.Module):
    """sin(p / 10000^(2i/d)) in even, cos in odd dimensions (Vaswani et al. 2017, section 3.5)."""

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        width = hidden_states.shape[-1]
        even = torch.arange(0, width, 2, device=hidden_states.device, dtype=torch.float)
        angles = position_ids[..., None].float() * 10_000.0 ** (-even / width)  # (B, T, D / 2)
        waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (B, T, D)
        return hidden_states + waves.to(hidden_states.dtype)


class NoRotary(nn.Module):
    """Returns None: attention does not rotate."""

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> None:
        return None


class RotaryEmbeddingFrequencies(nn.Module):
    """The inverse frequencies of the rotary angles, theta^(-2i / rotary_dim), with their scaling.

    transformers restores the buffers after loading by the names of this class and of its attributes.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        compute_parameters = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = compute_parameters(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: GPTConfig, *_, **__) -> tuple[torch.Tensor, float]:
        """Returns the inverse frequencies without scaling, and the attention factor, 1."""
        dim = config.rotary_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float) / dim), 1.0


class GPTRotaryEmbedding(RotaryEmbeddingFrequencies):
    """Cosines and sines of the rotary angles, (B, T, rotary_dim) each (Su et al. 2021; scaling as in transformers).

    A forward pass writes nothing to the module, so that threads can share it.
    """

    def __init__(self, config: GPTConfig) -> None:
        rope_type = config.rope_parameters["rope_type"]
        super().__init__(with_original_length(config) if rope_type == "dynamic" else config)
        if rope_type == "longrope":  # a module of its own, so that its frequencies are restored too
            self.beyond = RotaryEmbeddingFrequencies(with_long_factors(config))

    @torch.no_grad()
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frequencies = self.inverse_frequencies(position_ids).to(hidden_states.device).float()
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)  # (B, T, rotary_dim)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)

    def inverse_frequencies(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Returns the inverse frequencies for one forward pass, (rotary_dim / 2)."""
        match self.rope_type:
            case "dynamic":
                return self.grown_frequencies(position_ids.max() + 1)
            case "longrope":
                is_beyond = position_ids.max() + 1 > longrope_threshold(self.config)
                return torch.where(is_beyond.to(self.inv_freq.device), self.beyond.inv_freq, self.inv_freq)
            case _:
                return self.inv_freq

    def grown_frequencies(self, length: torch.Tensor) -> torch.Tensor:
        """Dynamic NTK: returns the frequencies for a sequence of some length (Peng et al. 2023, section 3.3).

        They do not depend on earlier calls; transformers' models use those of the longest sequence so far. Cached keys
        are not rotated again, here or there: beyond the original length, decoding with a cache differs from decoding
        without. transformers' own function reads the configuration anew, which torch.compile cannot trace.
        """
        rope, dim, original = self.config.rope_parameters, self.config.rotary_dim, self.original_max_seq_len
        growth = rope["factor"] * length / original - (rope["factor"] - 1)
        theta = rope["rope_theta"] * growth ** (dim / (dim - 2))
        grown = 1.0 / theta ** (torch.arange(0, dim, 2, device=theta.device).float() / dim)
        return torch.where(length > original, grown, self.inv_freq.to(theta.device))


def with_original_length(config: GPTConfig) -> GPTConfig:
    """Returns a copy whose `max_position_embeddings` is the original length, from which transformers counts growth."""
    config = copy(config)
    original = config.rope_parameters.get("original_max_position_embeddings", config.max_position_embeddings)
    config.max_position_embeddings = min(original, config.max_position_embeddings)
    return config


def with_long_factors(config: GPTConfig) -> GPTConfig:
    """Returns a copy with the long factors of longrope for sequences of all lengths (Ding et al. 2024)."""
    config = copy(config)
    config.rope_parameters = config.rope_parameters | {"short_factor": config.rope_parameters["long_factor"]}
    return config


def build_positions(config: GPTConfig) -> tuple[nn.Module, nn.Module]:
    """Returns the module that adds positions to the hidden states, and the one that computes rotary embeddings for
    attention. Both take `(hidden_states, position_ids)`, of (B, T, D) and (B or 1, T)."""
    match config.position_embedding_type:
        case "learned":
            return LearnedPositions(config), NoRotary()
        case "sinusoidal":
            return SinusoidalPositions(), NoRotary()
        case "rope":
            return NoPositions(), GPTRotaryEmbedding(config)
        case _:
            return NoPositions(), NoRotary()


def longrope_threshold(config: GPTConfig) -> float:
    """Returns the longest sequence that longrope rotates by its short factors; infinite for other types."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else math.inf


Rotation = Callable[[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None], torch.Tensor]


def identity(states: torch.Tensor, *_) -> torch.Tensor:
    """Returns the states, for a step that the model does not have. Faster than a call of nn.Identity."""
    return states


def rotate(states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates each pair of dimensions (i, i + rotary_dim / 2) of `states`, (B, H, T, rotary_dim)."""
    cos, sin = rotary
    first, second = states.chunk(2, dim=-1)
    rotated_half = torch.cat((-second, first), dim=-1)
    return states * cos[:, None] + rotated_half * sin[:, None]


def rotate_part(states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates the first rotary_dim dimensions of `states`, (B, H, T, head_dim), not the others (GPT-J, GPT-NeoX)."""
    rotary_dim = rotary[0].shape[-1]
    return torch.cat((rotate(states[..., :rotary_dim], rotary), states[..., rotary_dim:]), dim=-1)


def build_rotation(config: GPTConfig) -> Rotation:
    """Returns the function that applies rotary embeddings to queries and keys."""
    if not config.rotary_dim:
        return identity
    return rotate if config.rotary_dim == config.head_dim else rotate_part
