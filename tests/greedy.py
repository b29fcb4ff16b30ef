"""Greedy decoding without a cache: the reference for generate()."""

import torch

GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


def without_cache(model, ids, mask=None, steps=8):
    """Returns (B, T + steps) token ids, with one full forward pass for each new token."""
    mask = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        for _ in range(steps):
            token = model(ids, attention_mask=mask, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
    return ids
