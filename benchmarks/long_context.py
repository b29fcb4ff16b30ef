"""Compares long inputs in a single forward pass and in chunks: banded, dense and mixed layers, and GPT-Neo's class.

python benchmarks/long_context.py [--lengths 8192 32768 131072] [--models banded half dense gpt_neo] [--plot]

Each case runs in its own process; the peak is the VmHWM of that process, imports and weights included.
"""

import argparse
import json
import statistics
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import torch
import transformers
from measure import GREEDY, peak_gigabytes, plot_bars, print_json, run_in_subprocess
from transformers import LogitsProcessor

from hf_gpt import GPTConfig, GPTForCausalLM

SHAPE = {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
WINDOW, NEW_TOKENS, CHUNK = 256, 32, 4096
# The longest input of each model; beyond it, a case takes minutes and gigabytes.
LONGEST = {"banded": 131072, "half": 32768, "dense": 32768, "gpt_neo": 8192}


def build(name: str, length: int) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "gpt_neo":
        layers = [[["local"], SHAPE["num_hidden_layers"]]]
        config = transformers.GPTNeoConfig(
            vocab_size=8192, hidden_size=512, num_layers=8, num_heads=8, attention_types=layers, window_size=WINDOW,
            max_position_embeddings=length + NEW_TOKENS, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return transformers.GPTNeoForCausalLM(config).eval()
    patterns = {"banded": ["banded"] * 8, "half": ["banded", "dense"] * 4, "dense": ["dense"] * 8}[name]
    sizes = {} if name == "dense" else {"sliding_window": WINDOW}
    config = GPTConfig(**SHAPE, attention_patterns=patterns, max_position_embeddings=length + NEW_TOKENS, **sizes)
    return GPTForCausalLM(config).eval()


class TokenTimer(LogitsProcessor):
    """Records when each token is generated."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return scores

    def seconds(self) -> list[float]:
        """Returns the seconds of each token; those of the first are the prefill."""
        return [after - before for before, after in pairwise(self.times)]


@torch.inference_mode()
def measure(name: str, length: int, chunk: int) -> dict[str, float]:
    """Returns the time of the prefill of `length` tokens, the median time per generated token, and the peak memory."""
    model = build(name, length)
    ids = torch.randint(1, 8192, (1, length), generator=torch.Generator().manual_seed(0))

    def generate(prompt: torch.Tensor, new_tokens: int) -> list[float]:
        timer = TokenTimer()
        options = GREEDY | {"max_new_tokens": new_tokens, "prefill_chunk_size": chunk}
        model.generate(prompt, attention_mask=torch.ones_like(prompt), logits_processor=[timer], **options)
        return timer.seconds()

    generate(ids[:, :1024], 2)
    prefill, *decode = generate(ids, NEW_TOKENS)
    return {
        "parameters": model.num_parameters(),
        "prefill_seconds": prefill,
        "prefill_us_per_token": 1e6 * prefill / length,
        "decode_ms_per_token": 1e3 * statistics.median(decode),
        "peak_gigabytes": peak_gigabytes(),
    }


def measure_in_subprocess(name: str, length: int, chunk: int) -> dict[str, float] | None:
    """Returns the result of a case in its own process, or None if it fails, for example for lack of memory."""
    try:
        return json.loads(run_in_subprocess("--case", name, length, chunk))
    except subprocess.CalledProcessError:
        return None


def plot(results: dict[str, dict[str, float] | None]) -> None:
    titles = {
        "prefill_us_per_token": "prefill, microseconds per token",
        "decode_ms_per_token": "decode, milliseconds per token",
        "peak_gigabytes": "peak memory, GB",
    }
    charts: dict[str, dict[str, dict[str, float]]] = {title: {} for title in titles.values()}
    for case, row in results.items():
        name, length, _, chunk = case.split()
        series = name if length == chunk else f"{name}, chunks of {chunk}"
        for key, title in titles.items():
            if row is not None:
                charts[title].setdefault(f"{int(length):,} tokens", {})[series] = row[key]
    plot_bars(charts, Path(__file__).with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768, 131072], help="tokens of the prompt")
    parser.add_argument("--models", nargs="+", default=list(LONGEST), choices=LONGEST, help="default: all")
    parser.add_argument("--plot", action="store_true", help="write long_context.png (needs matplotlib)")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)  # one case, in its own process
    arguments = parser.parse_args()
    if arguments.case:
        name, length, chunk = arguments.case
        print(json.dumps(measure(name, int(length), int(chunk))))
        return
    results = {}
    for name in arguments.models:
        for length in arguments.lengths:
            for chunk in sorted({length, CHUNK}, reverse=True) if length <= LONGEST[name] else ():
                results[f"{name} {length} by {chunk}"] = row = measure_in_subprocess(name, length, chunk)
                print(f"{name:8}{length:>8}{chunk:>8}", json.dumps(row), flush=True)
    if arguments.plot:
        plot(results)
    print_json(window=WINDOW, results=results)


if __name__ == "__main__":
    main()
