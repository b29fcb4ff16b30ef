"""Trains small models of each position type for a few steps from their initial weights, on the bytes of a text.

python benchmarks/initial_weights.py --text FILE [--steps 250] [--width 128] [--narrow 16] [--positions sinusoidal ...]

Prints the loss on the last 60,000 bytes, which are held out, and the unigram entropy. The peer is the decoder of
tutorials: post-norm layers of torch, sinusoidal positions, embeddings of deviation 1, an output layer of its own.
"""

import argparse
import itertools
from pathlib import Path

import torch
from measure import print_json
from torch import nn

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.model.positions import SinusoidalPositions

LENGTH, BATCH, HELD_OUT, LEARNING_RATE = 64, 8, 60_000, 1e-3
POSITIONS = ("rope", "learned", "none", "sinusoidal")
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 100}


class TutorialDecoder(nn.Module):
    """A decoder of torch's layers with their initial weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(256, width), SinusoidalPositions()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(width, 256)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        states = self.positions(self.embedding(ids), torch.arange(ids.shape[1])[None])
        return self.head(self.layers(states, mask=mask, is_causal=True))


def loss_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    if isinstance(model, GPTForCausalLM):
        return model(ids, labels=ids).loss
    return nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def losses(model: nn.Module, data: torch.Tensor, steps: int) -> dict[str, float]:
    """Trains with AdamW and returns the loss at the first step, and that on held-out text at the end."""
    text, held_out = data[:-HELD_OUT], data[-HELD_OUT:][: LENGTH * 128].view(128, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    first = None
    for _ in range(steps):
        starts = torch.randint(len(text) - LENGTH, (BATCH, 1), generator=generator)
        loss = loss_of(model.train(), text[starts + torch.arange(LENGTH)])
        first = loss.item() if first is None else first
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        return {"first loss": first, "loss": loss_of(model.eval(), held_out).item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--narrow", type=int, help="also models with this embedding_size")
    parser.add_argument("--positions", nargs="+", choices=POSITIONS, default=POSITIONS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = torch.tensor(list(options.text.read_bytes()))
    unigram = torch.distributions.Categorical(data[:-HELD_OUT].bincount().double()).entropy().item()
    print(f"unigram entropy {unigram:.3f}", flush=True)
    rows: dict[str, dict[str, float]] = {}

    def measure(name: str, model: nn.Module) -> None:
        rows[name] = losses(model, data, options.steps)
        print(f"{name:50s} {rows[name]['first loss']:.2f} -> {rows[name]['loss']:.3f}", flush=True)

    torch.manual_seed(0)
    measure("peer: the decoder of tutorials", TutorialDecoder(options.width))
    sizes = [options.width, *([options.narrow] if options.narrow else [])]
    for size, position, tied, norm in itertools.product(sizes, options.positions, (True, False), ("pre", "post")):
        torch.manual_seed(0)
        fields = {"position_embedding_type": position, "tie_word_embeddings": tied, "norm_position": norm}
        config = GPTConfig(vocab_size=256, hidden_size=options.width, embedding_size=size, **SHAPE, **fields)
        name = f"{position}, {'tied' if tied else 'untied'}, {norm}-norm, embeddings of {size}"
        measure(name, GPTForCausalLM(config))
    print_json(unigram_entropy=unigram, rows=rows)


if __name__ == "__main__":
    main()
