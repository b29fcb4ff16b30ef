"""The token embeddings: nn.Embedding, whose table may be quantised."""

import torch
from torch import nn

from .quantized_weights import look_up_int8


class Embedding(nn.Embedding):
    """(B, T) token ids to (B, T, embedding_dim)."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if type(self.weight).__name__ == "Int8Tensor":
            return look_up_int8(self.weight, ids)
        return super().forward(ids)
