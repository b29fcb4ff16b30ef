"""nanoGPT and minGPT, written from their definitions."""

import math

import torch
from torch import nn


class NanoGPT(nn.Module):
    """GPT-2 of plain linear layers. nanoGPT: biases optional, exact GELU. minGPT: `tied=False`, GELU by tanh."""

    def __init__(self, n_layer, n_head, n_embd, block_size, vocab_size, bias, dropout=0.0, tied=True, act=nn.GELU):
        super().__init__()
        norm = lambda: nn.LayerNorm(n_embd, bias=bias)  # noqa: E731
        blocks = [
            nn.ModuleDict(
                {
                    "ln_1": norm(),
                    "attn": nn.ModuleDict(
                        {
                            "c_attn": nn.Linear(n_embd, 3 * n_embd, bias=bias),
                            "c_proj": nn.Linear(n_embd, n_embd, bias=bias),
                        }
                    ),
                    "ln_2": norm(),
                    "mlp": nn.ModuleDict(
                        {
                            "c_fc": nn.Linear(n_embd, 4 * n_embd, bias=bias),
                            "c_proj": nn.Linear(4 * n_embd, n_embd, bias=bias),
                        }
                    ),
                }
            )
            for _ in range(n_layer)
        ]
        wte, wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(block_size, n_embd)
        self.transformer = nn.ModuleDict({"wte": wte, "wpe": wpe, "h": nn.ModuleList(blocks), "ln_f": norm()})
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = wte.weight
        self.n_head, self.act = n_head, act()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns logits of shape (B, T, vocab_size) for token ids of shape (B, T)."""
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        causal = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
        for block in self.transformer["h"]:
            q, k, v = block["attn"]["c_attn"](block["ln_1"](x)).chunk(3, dim=-1)
            q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in (q, k, v))
            scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~causal, -math.inf)
            x = x + block["attn"]["c_proj"]((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
            x = x + block["mlp"]["c_proj"](self.act(block["mlp"]["c_fc"](block["ln_2"](x))))
        return self.lm_head(self.transformer["ln_f"](x))
