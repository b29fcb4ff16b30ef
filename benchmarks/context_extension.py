"""A longer context: a small model with rotary positions, trained at 256 tokens and extended to 4,096 by every method.

python benchmarks/context_extension.py [--text FILE ...] [--steps 800] [--tuning-steps 160] [--model FOLDER] [--plot]

Perplexity on text that was held out: extended to 4,096; extended to the very length that is read; and extended to
4,096 after a short training there, the same for each method. The targets are the same for every length: the last 255
tokens of each held-out row of 4,096, predicted from the last 256, 512 ... 4,096 of it. So what a length gains or loses
is the context's doing alone. `none` is the model as it was.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import machine
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, Subset
from transformers import AutoTokenizer, PreTrainedTokenizerFast, PrinterCallback, Trainer, TrainingArguments, set_seed

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.data import TokenBlocks, encode_texts
from hf_gpt.data.text_sources import read_files, standard_library_documentation
from hf_gpt.surgery import extend_context
from hf_gpt.tokenization import train_tokenizer

SHORT, LONG = 256, 4096
LENGTHS = (256, 512, 1024, 2048, 4096)
METHODS = ("none", "linear", "ntk", "yarn", "dynamic", "longrope")
# In training at the new length dynamic is ntk, and longrope is yarn but for the scale of attention.
TRAINED = METHODS[:4]
SMALL = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": SHORT,
    # About as many of the pairs turn once in 256 tokens as do in the 2,048 of Llama with a base of 10,000.
    "rope_parameters": {"rope_theta": 366.0},
}
PLOT = Path(__file__).with_name("context_extension.png")


class Data:
    """Rows of both lengths to train on, and long ones to evaluate on."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
        tokens = encode_texts(tokenizer, texts)
        self.long, self.held_out = TokenBlocks(tokens, LONG).split(0.05)
        pieces = LONG // SHORT
        rows = [row * pieces + piece for row in self.long.indices for piece in range(pieces)]
        self.short = Subset(TokenBlocks(tokens, SHORT), rows)


def train(model: GPTForCausalLM, rows: Dataset, steps: int, batch_size: int, learning_rate: float) -> None:
    """By the stock Trainer, from the same seed."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, steps // 10),
            weight_decay=0.1,
            adam_beta2=0.95,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.accelerator.is_available(),
            disable_tqdm=True,
            seed=0,
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def trained_model(folder: Path | None, texts: list[str], steps: int) -> tuple[GPTForCausalLM, Data]:
    """A model trained at SHORT tokens, and its data; from a folder where there is one, otherwise kept there."""
    if folder is not None and (folder / "config.json").exists():
        return GPTForCausalLM.from_pretrained(folder), Data(AutoTokenizer.from_pretrained(folder), texts)
    tokenizer = train_tokenizer(texts, SMALL["vocab_size"])
    data = Data(tokenizer, texts)
    set_seed(0)
    model = GPTForCausalLM(GPTConfig(**SMALL))
    train(model, data.short, steps, batch_size=16, learning_rate=3e-3)
    if folder is not None:
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return model, data


@torch.inference_mode()
def perplexities(model: GPTForCausalLM, rows: Dataset, lengths: tuple[int, ...] = LENGTHS) -> dict[int, float]:
    """Of the last SHORT - 1 tokens of each row, by how many tokens the model is given."""
    model.eval()
    losses = dict.fromkeys(lengths, 0.0)
    for row in rows:
        ids = row["input_ids"].to(model.device)
        for length in lengths:
            logits = model(ids[None, -length:], logits_to_keep=SHORT).logits[0, :-1]  # (SHORT - 1, vocabulary)
            losses[length] += cross_entropy(logits, ids[1 - SHORT :]).item()
    return {length: math.exp(loss / len(rows)) for length, loss in losses.items()}


def extended(model: GPTForCausalLM, method: str, length: int = LONG) -> GPTForCausalLM:
    return model if method == "none" or length == SHORT else extend_context(model, length, method)


def compare(model: GPTForCausalLM, data: Data, steps: int) -> dict[str, dict[str, dict[int, float]]]:
    """Perplexities of each method at each length, by how it was extended."""
    rows, results = data.held_out, {}
    results["extended to 4,096"] = {method: perplexities(extended(model, method), rows) for method in METHODS}
    print_table("extended to 4,096", results)
    results["extended to that length"] = {
        method: {length: perplexities(extended(model, method, length), rows, (length,))[length] for length in LENGTHS}
        for method in TRAINED
    }
    print_table("extended to that length", results)
    tuned = f"after {steps} steps of 4,096"
    results[tuned] = {}
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for method in TRAINED:
        model.load_state_dict(weights)
        changed = extended(model, method)
        train(changed, data.long, steps, batch_size=1, learning_rate=1e-3)
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
        axis.set(title=title, xlabel="tokens of context", ylabel="perplexity of the same tokens")
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
    parser.add_argument("--text", nargs="+", type=Path, help="the documentation of Python by default")
    parser.add_argument("--steps", type=int, default=800, help=f"of 16 x {SHORT} tokens, from the beginning")
    parser.add_argument("--tuning-steps", type=int, default=160, help=f"of {LONG} tokens, once extended")
    parser.add_argument("--model", type=Path, help="take the trained model from this folder, or keep it there")
    parser.add_argument("--plot", action="store_true", help=f"write {PLOT.name} (needs matplotlib)")
    arguments = parser.parse_args()
    texts = read_files(arguments.text) if arguments.text else standard_library_documentation()
    started = time.perf_counter()
    model, data = trained_model(arguments.model, texts, arguments.steps)
    rows = compare(model, data, arguments.tuning_steps)
    if arguments.plot:
        plot(rows)
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {"machine": machine(), "seconds": seconds, "targets": len(data.held_out) * (SHORT - 1), "rows": rows}
        )
    )


if __name__ == "__main__":
    main()
