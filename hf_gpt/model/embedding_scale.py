"""The scale of the token embeddings: a factor on them, and the initial weights beside sinusoids and projections."""

import torch
from torch import nn

from .configuration_gpt import GPTConfig

# The initial deviation of scaled embeddings beside sinusoids, whose deviation is sqrt(1/2). With 1, as in
# implementations of Vaswani et al. 2017 (d^-1/2, scaled by sqrt(d)), a tied model predicts its input token first: it
# starts at a loss of 9.4 nats instead of 5.8 and learns later (benchmarks/RESULTS.md, initial weights).
SCALED_STD = 0.5


class ScaledEmbedding(nn.Embedding):
    """Token embeddings times `embedding_scale` (Vaswani et al. 2017, section 3.4).

    The module scales, as in Gemma: `inputs_embeds` that it computes are scaled, and the decoder uses them unchanged.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.vocab_size, config.embedding_size)
        self.embed_scale = config.embedding_scale  # PEFT reads the attribute to scale its adapters too

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * self.embed_scale


def build_embedding(config: GPTConfig) -> nn.Embedding:
    """Returns the token embeddings; no padding_idx, because padding may be <eos>.

    With sinusoidal positions the scaled embeddings are drawn with the deviation `SCALED_STD`: from embeddings of 0.02
    beside sinusoids of 0.7, a model hardly learns.
    """
    if config.embedding_scale == 1:
        embedding = nn.Embedding(config.vocab_size, config.embedding_size)
    else:
        embedding = ScaledEmbedding(config)
    if config.position_embedding_type == "sinusoidal":
        embedding.initial_std = SCALED_STD / config.embedding_scale
    return embedding


def build_projection(config: GPTConfig, inputs: int, outputs: int) -> nn.Module:
    """Returns a linear layer between the widths of the embeddings and the residual stream, or the identity if they are
    equal.

    Both directions are drawn with deviation embedding_size^-1/2. The first keeps the variance of the embeddings, the
    second that of the gradients (Glorot and Bengio 2010, equations 10 and 11), and so the variance of the logits: that
    of a model without projections.
    """
    if inputs == outputs:
        return nn.Identity()
    projection = nn.Linear(inputs, outputs, bias=False)
    projection.initial_std = config.embedding_size**-0.5
    return projection
