"""Long inputs: reading and writing with banded layers, whole and in chunks, beside a dense cache and GPT-Neo's class.

python benchmarks/long_context.py [--lengths 8192 32768 131072]

Each case runs in a process of its own; the peak is its VmHWM, imports and weights included.
"""

import argparse
import json
import subprocess
import sys
import time

import torch
import transformers
from measure import machine, peak_gigabytes

from hf_gpt import GPTConfig, GPTForCausalLM

SHAPE = {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
WINDOW, NEW_TOKENS = 256, 32


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


@torch.inference_mode()
def read_and_write(name: str, length: int, chunk: int | None) -> dict:
    """Seconds to read `length` tokens and to write NEW_TOKENS more, and the peak of memory."""
    model = build(name, length)
    ids = torch.randint(1, 8192, (1, length), generator=torch.Generator().manual_seed(0))
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    if chunk:
        options["prefill_chunk_size"] = chunk
    model.generate(ids[:, :1024], max_new_tokens=2, **options | {"attention_mask": torch.ones(1, 1024, dtype=torch.long)})
    seconds = []
    for new_tokens in (1, 1 + NEW_TOKENS):
        started = time.perf_counter()
        model.generate(ids, max_new_tokens=new_tokens, **options)
        seconds.append(time.perf_counter() - started)
    return {
        "parameters": model.num_parameters(), "read": seconds[0], "read_us_per_token": 1e6 * seconds[0] / length,
        "write_ms_per_token": 1e3 * (seconds[1] - seconds[0]) / NEW_TOKENS, "peak_gigabytes": peak_gigabytes(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--models", nargs="+", default=["banded", "half", "dense", "gpt_neo"])
    parser.add_argument("--longest", type=json.loads, default={"half": 32768, "dense": 32768, "gpt_neo": 8192})
    parser.add_argument("--chunk", type=int, default=4096)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        name, length, chunk = arguments.only
        print(json.dumps(read_and_write(name, int(length), int(chunk) or None)))
        return
    results = {}
    for name in arguments.models:
        for length in arguments.lengths:
            if length > arguments.longest.get(name, length):
                continue
            for chunk in (0, arguments.chunk) if name != "gpt_neo" else (0,):
                command = [sys.executable, __file__, "--only", name, str(length), str(chunk)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    print(name, length, chunk, done.stderr.strip().splitlines()[-1:] or "out of memory")
                    continue
                results[f"{name} {length} {chunk or 'whole'}"] = row = json.loads(done.stdout.splitlines()[-1])
                print(f"{name:8} {length:>7} {chunk or 'whole':>6}  read {row['read']:8.2f} s ({row['read_us_per_token']:6.0f} "
                      f"us a token)  write {row['write_ms_per_token']:6.1f} ms a token  peak {row['peak_gigabytes']:.2f} GB", flush=True)
    print(json.dumps({"machine": machine(), "window": WINDOW, "results": results}))


if __name__ == "__main__":
    main()
