"""A training step of GPT-2 small beside transformers' GPT2LMHeadModel with the same weights: time, and peak of memory.

python benchmarks/train_step.py [--rounds 9] [--parts time memory loss]
"""

import argparse
import json
import subprocess
import sys

import torch
import transformers
from measure import added_gigabytes, gemm_rate, machine, medians
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

from hf_gpt import GPTForCausalLM, preset_config
from hf_gpt.accounting import account
from hf_gpt.losses import LinearCrossEntropy, Terms

SHAPES = [(2, 512), (4, 1024)]
PRECISIONS = {"float32": torch.float32, "bfloat16 autocast": torch.bfloat16}
NO_DROPOUT = dict.fromkeys(("embedding_dropout", "residual_dropout", "attention_dropout"), 0.0)


def build(side: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if side == "ours":
        return GPTForCausalLM(preset_config("gpt2", **NO_DROPOUT)).train()
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)).train()


def step(model: torch.nn.Module, rows: int, length: int, dtype: torch.dtype) -> None:
    ids = torch.randint(0, 50257, (rows, length), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()


def time_of_steps(rounds: int) -> list[dict]:
    models = {side: build(side) for side in ("ours", "peer")}
    rows, length = SHAPES[0]
    costs = account(models["ours"].config, length)
    flops = rows * length * costs.training_flops_per_token
    results = []
    for name, dtype in PRECISIONS.items():
        calls = {side: lambda model=model: step(model, rows, length, dtype) for side, model in models.items()}  # noqa: B023
        seconds, rate = medians(calls, rounds), gemm_rate(dtype)
        results.append(
            {"step": f"{name}, {rows} x {length}", **seconds, "times": seconds["peer"] / seconds["ours"]}
            | {f"{side} of GEMM": flops / seconds[side] / rate for side in models}
        )
    return results


def memory_of_step(side: str, rows: int, length: int, precision: str) -> float:
    """Gigabytes above weights and gradients, in this process."""
    model = build(side)
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e9
    return added_gigabytes(lambda: step(model, rows, length, PRECISIONS[precision])) - gradients


def memory_of_steps() -> list[dict]:
    """Each in a process of its own."""
    results = []
    for precision in PRECISIONS:
        for rows, length in SHAPES:
            peaks = {}
            for side in ("ours", "peer"):
                command = [sys.executable, __file__, "--memory-of", side, str(rows), str(length), precision]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                peaks[side] = float(done.stdout.split()[-1])
            results.append({"peak": f"{precision}, {rows} x {length}", **peaks, "part": peaks["ours"] / peaks["peer"]})
    return results


def losses(rounds: int, tokens: int = 1024, vocabulary: int = 50257, width: int = 768) -> list[dict]:
    """The loss alone, forward and backward, by all that there is to choose from."""
    states = torch.randn(tokens, width, requires_grad=True)
    weight = (0.02 * torch.randn(vocabulary, width)).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,))

    def full() -> torch.Tensor:
        return torch.nn.functional.cross_entropy((states @ weight.t()).float(), targets)

    def checkpointed(rows: int = 128) -> torch.Tensor:
        def loss(some: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(some @ weight.t(), expected, reduction="sum")

        chunks = zip(states.split(rows), targets.split(rows), strict=True)
        return sum(torch.utils.checkpoint.checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks) / tokens

    def torchs() -> torch.Tensor:
        options = LinearCrossEntropyOptions()
        return torch.nn.functional.linear_cross_entropy(states, weight, targets, options=options)

    def ours() -> torch.Tensor:
        return LinearCrossEntropy.apply(states, weight, None, targets, torch.tensor(tokens), Terms())

    def run(loss) -> None:
        states.grad = weight.grad = None
        loss().backward()

    ways = {"ours": ours, "full logits": full, "checkpointed chunks": checkpointed, "torch's": torchs}
    seconds = medians({name: lambda way=way: run(way) for name, way in ways.items()}, rounds)
    added = {name: added_gigabytes(lambda way=way: run(way)) for name, way in ways.items()}
    return [{"loss": name, "seconds": seconds[name], "gigabytes": added[name]} for name in ways]


def show(rows: list[dict]) -> None:
    for row in rows:
        cells = (f"{name} {value:.3f}" if isinstance(value, float) else str(value) for name, value in row.items())
        print("  ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--parts", nargs="+", default=["time", "memory", "loss"])
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        side, rows, length, precision = arguments.memory_of
        print(memory_of_step(side, int(rows), int(length), precision))
        return
    rounds = arguments.rounds
    parts = {"time": lambda: time_of_steps(rounds), "memory": memory_of_steps, "loss": lambda: losses(rounds)}
    results = {}
    for name in arguments.parts:
        results[name] = parts[name]()
        show(results[name])
    print(json.dumps({"machine": machine(), **results}))


if __name__ == "__main__":
    main()
