"""Long inputs: reading and writing with banded layers, whole and in chunks, beside a dense cache and GPT-Neo's class.

python benchmarks/long_context.py [--lengths 8192 32768 131072] [--models banded half dense gpt_neo] [--plot]

Each case runs in a process of its own; the peak is its VmHWM, imports and weights included.
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
from measure import in_own_process, machine, peak_gigabytes, plot_bars
from transformers import LogitsProcessor

from hf_gpt import GPTConfig, GPTForCausalLM

SHAPE = {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
WINDOW, NEW_TOKENS, CHUNK = 256, 32, 4096
# The models, and the length to which it is worth waiting for each.
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


class Clock(LogitsProcessor):
    """The time of each token."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return scores


@torch.inference_mode()
def read_and_write(name: str, length: int, chunk: int) -> dict[str, float]:
    """Seconds to read `length` tokens and to write each of NEW_TOKENS more, and the peak of memory."""
    model = build(name, length)
    ids = torch.randint(1, 8192, (1, length), generator=torch.Generator().manual_seed(0))
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "prefill_chunk_size": chunk}

    def generate(prompt: torch.Tensor, new_tokens: int) -> list[float]:
        mask, clock = torch.ones_like(prompt), Clock()
        model.generate(prompt, attention_mask=mask, max_new_tokens=new_tokens, logits_processor=[clock], **options)
        return [after - before for before, after in pairwise(clock.times)]

    generate(ids[:, :1024], 2)
    read, *written = generate(ids, NEW_TOKENS)
    return {
        "parameters": model.num_parameters(),
        "read_seconds": read,
        "read_us_per_token": 1e6 * read / length,
        "write_ms_per_token": 1e3 * statistics.median(written),
        "peak_gigabytes": peak_gigabytes(),
    }


def run(name: str, length: int, chunk: int) -> dict[str, float] | None:
    """The same in a process of its own; None where it died, of memory."""
    try:
        return json.loads(in_own_process("--only", name, length, chunk))
    except subprocess.CalledProcessError:
        return None


def plot(results: dict[str, dict[str, float] | None]) -> None:
    titles = {
        "read_us_per_token": "microseconds to read a token",
        "write_ms_per_token": "milliseconds to write one",
        "peak_gigabytes": "peak of memory, GB",
    }
    charts: dict[str, dict[str, dict[str, float]]] = {title: {} for title in titles.values()}
    for case, row in results.items():
        name, length, _, chunk = case.split()
        series = name if length == chunk else f"{name}, by {chunk}"
        for key, title in titles.items():
            if row is not None:
                charts[title].setdefault(f"{int(length):,} tokens", {})[series] = row[key]
    plot_bars(charts, Path(__file__).with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--models", nargs="+", default=list(LONGEST), choices=LONGEST)
    parser.add_argument("--plot", action="store_true", help="draw what was measured (needs matplotlib)")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        name, length, chunk = arguments.only
        print(json.dumps(read_and_write(name, int(length), int(chunk))))
        return
    results = {}
    for name in arguments.models:
        for length in arguments.lengths:
            for chunk in (length, CHUNK) if length <= LONGEST[name] else ():
                results[f"{name} {length} by {chunk}"] = row = run(name, length, chunk)
                print(f"{name:8}{length:>8}{chunk:>8}", json.dumps(row), flush=True)
    if arguments.plot:
        plot(results)
    print(json.dumps({"machine": machine(), "window": WINDOW, "results": results}))


if __name__ == "__main__":
    main()
