"""Compares the context extension methods: a small RoPE model, trained at 256 tokens and extended to 4,096 by each.

python benchmarks/context_extension.py [--text FILE ...] [--steps 800] [--tuning-steps 160] [--model FOLDER] [--plot]

Prints the perplexity on held-out text in three settings: extended to 4,096; extended to exactly the length of the
input; extended to 4,096 and fine-tuned there for a few steps, the same for each method. The targets are the same for
every length: the last 255 tokens of each held-out row of 4,096, predicted from its last 256, 512 ... 4,096 tokens, so
that only the context differs. `none` is the unchanged model.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from measure import print_json
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, Subset
from training import read_texts, train
from transformers import PreTrainedTokenizerFast, set_seed

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.data import TokenBlocks, encode_texts
from hf_gpt.surgery import extend_context
from hf_gpt.tokenization import open_tokenizer, train_tokenizer

SHORT, LONG = 256, 4096
LENGTHS = (256, 512, 1024, 2048, 4096)
METHODS = ("none", "linear", "ntk", "yarn", "dynamic", "longrope")
# At the fine-tuning length, dynamic equals ntk, and longrope equals yarn except for the attention scale.
TUNED_METHODS = METHODS[:4]
SMALL = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": SHORT,
    # 31 % of the pairs rotate by less than one turn in 256 tokens; Llama: 36 % in 2,048 tokens at base 10,000.
    "rope_parameters": {"rope_theta": 366.0},
}
PLOT = Path(__file__).with_name("context_extension.png")


class Data:
    """Training rows of both lengths, and long held-out rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
        tokens = encode_texts(tokenizer, texts)
        self.long, self.held_out = TokenBlocks(tokens, LONG).split(0.05)
        parts = LONG // SHORT
        rows = [row * parts + part for row in self.long.indices for part in range(parts)]
        self.short = Subset(TokenBlocks(tokens, SHORT), rows)


def load_or_train(folder: Path | None, texts: list[str], steps: int) -> tuple[GPTForCausalLM, Data]:
    """Returns a model trained at SHORT tokens, and its data. The folder holds the model between runs."""
    if folder is not None and (folder / "config.json").exists():
        return GPTForCausalLM.from_pretrained(folder), Data(open_tokenizer(folder), texts)
    tokenizer = train_tokenizer(texts, SMALL["vocab_size"])
    data = Data(tokenizer, texts)
    set_seed(0)
    model = GPTForCausalLM(GPTConfig(**SMALL))
    train(model, data.short, steps=steps, batch_size=16, learning_rate=3e-3)
    if folder is not None:
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return model, data


@torch.inference_mode()
def perplexities(model: GPTForCausalLM, rows: Dataset, lengths: tuple[int, ...] = LENGTHS) -> dict[int, float]:
    """Returns the perplexity of the last SHORT - 1 tokens of each row, for each length of the input."""
    model.eval()
    losses = dict.fromkeys(lengths, 0.0)
    for row in rows:
        ids = row["input_ids"].to(model.device)
        for length in lengths:
            logits = model(ids[None, -length:], logits_to_keep=SHORT).logits[0, :-1]  # (SHORT - 1, vocabulary)
            losses[length] += cross_entropy(logits, ids[1 - SHORT :]).item()
    return {length: math.exp(loss / len(rows)) for length, loss in losses.items()}


def extend(model: GPTForCausalLM, method: str, length: int = LONG) -> GPTForCausalLM:
    return model if method == "none" or length == SHORT else extend_context(model, length, method)


def evaluate(model: GPTForCausalLM, data: Data, tuning_steps: int) -> dict[str, dict[str, dict[int, float]]]:
    """Returns perplexities by setting, method and length."""
    rows, results = data.held_out, {}
    results["extended to 4,096"] = {method: perplexities(extend(model, method), rows) for method in METHODS}
    print_table("extended to 4,096", results)
    results["extended to the input length"] = {
        method: {length: perplexities(extend(model, method, length), rows, (length,))[length] for length in LENGTHS}
        for method in TUNED_METHODS
    }
    print_table("extended to the input length", results)
    tuned = f"fine-tuned for {tuning_steps} steps"
    results[tuned] = {}
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for method in TUNED_METHODS:
        model.load_state_dict(weights)
        changed = extend(model, method)
        train(changed, data.long, steps=tuning_steps, batch_size=1, learning_rate=1e-3)
        results[tuned][method] = perplexities(changed, rows)
        print(f"{method} done", file=sys.stderr)
    print_table(tuned, results)
    return results


def print_table(title: str, results: dict[str, dict[str, dict[int, float]]]) -> None:
    print(f"\n{title:32}" + "".join(f"{length:>10,}" for length in LENGTHS))
    for method, row in results[title].items():
        print(f"  {method:30}" + "".join(f"{row[length]:>10.2f}" for length in LENGTHS), flush=True)


def plot(results: dict[str, dict[str, dict[int, float]]]) -> None:
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, len(results), figsize=(5 * len(results), 4.5), squeeze=False, sharey=True)
    for axis, (title, rows) in zip(axes[0], results.items(), strict=True):
        for method, row in rows.items():
            axis.loglog(list(row), list(row.values()), "k--" if method == "none" else "o-", label=method)
        axis.set(title=title, xlabel="context (tokens)", ylabel="perplexity of the same targets")
        axis.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
        axis.set_xticks([], minor=True)
        for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            which(ticker.ScalarFormatter())
        axis.legend(fontsize=8)
        axis.grid(True, which="both", alpha=0.2)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", type=Path, help="text files (default: the documentation of Python)")
    parser.add_argument("--steps", type=int, default=800, help=f"training steps of 16 x {SHORT} tokens")
    parser.add_argument("--tuning-steps", type=int, default=160, help=f"fine-tuning steps of {LONG} tokens")
    parser.add_argument("--model", type=Path, help="folder of the trained model; written if it has none")
    parser.add_argument("--plot", action="store_true", help=f"write {PLOT.name} (needs matplotlib)")
    arguments = parser.parse_args()
    started = time.perf_counter()
    model, data = load_or_train(arguments.model, read_texts(arguments.text), arguments.steps)
    rows = evaluate(model, data, arguments.tuning_steps)
    if arguments.plot:
        plot(rows)
    print_json(seconds=time.perf_counter() - started, targets=len(data.held_out) * (SHORT - 1), rows=rows)


if __name__ == "__main__":
    main()
