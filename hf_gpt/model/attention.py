"""Self-attention: project, rotate, cache, attend through transformers' attention interface, project back."""

import torch
from torch import nn
from transformers import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_masks import GatheredKeys, Pieces
from .backends import by_key_head, by_query_head
from .configuration_gpt import GPTConfig
from .linear import project, project_together
from .norms import build_norm
from .positions import build_rotation, identity
from .sparse_attention import Batch, Piece, attend_by_pieces

# From this many keys on, one query in bfloat16 on a CPU is slow in the kernel of `sdpa` (benchmarks/RESULTS.md, long
# inputs).
MANY_KEYS = 256


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    s_aux: torch.Tensor | None = None,
    **_,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by its definition (Vaswani et al. 2017, section 3.2.1), which all other implementations must equal.

    Args:
        query: (B, heads, T, head_dim).
        key, value: (B, key_value_heads, keys, head_dim).
        attention_mask: (B, 1, T, keys), added to the scores, or True where a key is seen; None if all are seen.
        s_aux: (heads,), the score of a key without a value: an attention sink.

    Returns:
        The output, (B, T, heads, head_dim), and the probabilities, (B, heads, T, keys).
    """
    groups = key.shape[:2]  # (B, key_value_heads)
    scores = by_key_head(query, groups) @ key.transpose(-2, -1) * scaling
    scores = by_query_head(scores, query.shape[2])  # (B, heads, T, keys)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    if s_aux is not None:
        scores = torch.cat((scores, s_aux[:, None, None].expand(*scores.shape[:-1], 1)), dim=-1)
    precision = torch.promote_types(query.dtype, torch.float32)
    probabilities = scores.softmax(dim=-1, dtype=precision).to(query.dtype)[..., : key.shape[-2]]
    probabilities = nn.functional.dropout(probabilities, dropout, training=module.training)
    output = by_key_head(probabilities, groups) @ value
    return by_query_head(output, query.shape[2]).transpose(1, 2).contiguous(), probabilities


def sdpa_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Pieces | GatheredKeys | None,
    scaling: float,
    dropout: float = 0.0,
    s_aux: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """The same as `eager_attention` by kernels: sparse patterns and sinks in pieces, the rest by transformers' sdpa."""
    if isinstance(attention_mask, Pieces):
        return attend_by_pieces(query, key, value, s_aux, attention_mask.jobs, scaling, dropout), None
    if isinstance(attention_mask, GatheredKeys):
        key, value, attention_mask = attention_mask.gather(key), attention_mask.gather(value), attention_mask.mask
    if query.shape[2] == 1 and query.dtype == torch.bfloat16 and query.is_cpu and key.shape[2] >= MANY_KEYS:
        return eager_attention(module, query, key, value, attention_mask, scaling, dropout, s_aux)[0], None
    if s_aux is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    is_causal = attention_mask is None and query.shape[2] > 1
    if is_causal:  # a static cache has slots that are not filled yet
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    jobs = [(Batch(), [Piece(identity, identity, is_causal, attention_mask)])]
    return attend_by_pieces(query, key, value, s_aux, jobs, scaling, dropout), None


# Implementations of this module: both have attention sinks, and `sdpa` the pieces of sparse patterns.
OURS = {"eager": eager_attention, "sdpa": sdpa_attention}


class GPTAttention(nn.Module):
    """Causal self-attention with grouped queries.

    MHA  q q q q      GQA  q q q q      MQA  q q q q
         | | | |           |_| |_|           |_|_|_|
         k k k k            k   k               k         (v as k)
    """

    is_causal = True  # read by the attention interface

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.attention_scale or config.head_dim**-0.5
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1
        self.attention_dropout = config.attention_dropout
        banded = config.attention_patterns[layer_idx] == "banded"
        self.sliding_window = config.sliding_window if banded else None

        query_width = config.num_attention_heads * config.head_dim
        key_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=config.attention_output_bias)
        self.o_proj.writes_to_residual = True  # for its initial weights
        if config.attention_sinks:  # transformers reads the presence of the attribute
            self.sinks = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.q_norm = build_norm(config, config.head_dim) if config.qk_norm else identity
        self.k_norm = build_norm(config, config.head_dim) if config.qk_norm else identity
        self.rotate = build_rotation(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, hidden_size) to the same shape, and the attention probabilities if the implementation returns them."""
        batch_and_length = hidden_states.shape[:-1]
        by_head = (*batch_and_length, -1, self.head_dim)
        query, key, value = (
            states.view(by_head) for states in project_together(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        )
        query = self.q_norm(query).transpose(1, 2)  # (B, heads, T, head_dim)
        key, value = self.k_norm(key).transpose(1, 2), value.transpose(1, 2)  # (B, kv_heads, T, head_dim)
        query, key = self.rotate(query, position_embeddings), self.rotate(key, position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        implementation = self.config._attn_implementation
        attend = OURS.get(implementation) or ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        output, probabilities = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            sliding_window=self.sliding_window,
            s_aux=getattr(self, "sinks", None),  # a replica or a wrapper may hold it as a plain attribute
            **kwargs,
        )
        return project(self.o_proj, output.reshape(*batch_and_length, -1)), probabilities
