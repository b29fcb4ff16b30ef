"""Reference attention: each pattern by its definition, key by key."""

import torch

# Whether the query at logical position q sees the key at k <= q.
PATTERNS = {
    "dense": lambda q, k, config: True,
    "banded": lambda q, k, config: q - k < config.sliding_window,
    "strided": lambda q, k, config: q - k < config.attention_stride or (q - k) % config.attention_stride == 0,
    "fixed": lambda q, k, config: (
        q // config.attention_stride == k // config.attention_stride
        or k % config.attention_stride >= config.attention_stride - config.attention_summary_size
    ),
}


def visible(pattern, config, mask, sequences=None):
    """Returns which keys a query may see: tokens of its sequence up to itself, without padding. (B, T, T)"""
    rows, length = mask.shape
    allowed = torch.zeros(rows, length, length, dtype=torch.bool)
    for row in range(rows):
        numbers = [0] * length if sequences is None else sequences[row].tolist()
        positions, seen = [], {}
        for slot in range(length):
            positions.append(seen.get(numbers[slot], 0))
            seen[numbers[slot]] = positions[-1] + int(mask[row, slot])
        for q in range(length):
            for k in range(q + 1):
                together = mask[row, q] and mask[row, k] and numbers[q] == numbers[k]
                allowed[row, q, k] = bool(together) and PATTERNS[pattern](positions[q], positions[k], config)
    return allowed


def attention(query, key, value, allowed, scaling, sinks=None):
    """Returns softmax(q k * scaling) v over the allowed keys and the sink. (B, T, heads, head_dim)

    Args:
        query: (B, heads, T, head_dim).
        key, value: (B, kv_heads, keys, head_dim).
        allowed: (B, T, keys). A query without an allowed key gives zeros.
        sinks: (heads,).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~allowed[:, None], -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[None, :, None, None].expand(*scores.shape[:-1], 1)), dim=-1)
    empty = scores.isneginf().all(-1, keepdim=True)
    probabilities = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)[..., : key.shape[2]]
    return (probabilities @ value).transpose(1, 2)
