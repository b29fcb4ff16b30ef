"""A training step of GPT-2 small beside transformers' GPT2LMHeadModel with the same weights: time, and peak of memory.

python benchmarks/train_step.py [--rounds 9] [--parts time memory loss] [--plot]

time    2 x 512 tokens, forward and backward
memory  what a step adds to weights and gradients at its peak, each in a process of its own
loss    the loss alone by all that there is to choose from, its peak in a process of its own
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers
from measure import added_gigabytes, gemm_rate, in_own_process, machine, medians, plot_bars
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions
from torch.utils.checkpoint import checkpoint

from hf_gpt import GPTForCausalLM, preset_config
from hf_gpt.accounting import account
from hf_gpt.model.losses import LinearCrossEntropy, Terms

SIDES = ("ours", "peer")
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
    models = {side: build(side) for side in SIDES}
    rows, length = SHAPES[0]
    costs = account(models["ours"].config, length)
    flops = rows * length * costs.training_flops_per_token
    results = []
    for name, dtype in PRECISIONS.items():
        calls = {side: partial(step, model, rows, length, dtype) for side, model in models.items()}
        seconds, rate = medians(calls, rounds), gemm_rate(dtype)
        results.append(
            {"step": f"{name}, {rows} x {length}", **seconds, "times": seconds["peer"] / seconds["ours"]}
            | {f"{side} of GEMM": flops / seconds[side] / rate for side in models}
        )
    return results


def memory_of_step(side: str, rows: str, length: str, precision: str) -> float:
    """Gigabytes above weights and gradients, in this process."""
    model = build(side)
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e9
    return added_gigabytes(lambda: step(model, int(rows), int(length), PRECISIONS[precision])) - gradients


def memory_of_steps() -> list[dict]:
    results = []
    for precision in PRECISIONS:
        for rows, length in SHAPES:
            peaks = {side: float(in_own_process("--peak", "step", side, rows, length, precision)) for side in SIDES}
            results.append({"peak": f"{precision}, {rows} x {length}", **peaks, "part": peaks["ours"] / peaks["peer"]})
    return results


Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def from_logits(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy((states @ weight.t()).float(), targets)


def checkpointed(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, rows: int = 128) -> torch.Tensor:
    def loss(some: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(some @ weight.t(), expected, reduction="sum")

    chunks = zip(states.split(rows), targets.split(rows), strict=True)
    return sum(checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks) / len(states)


def torchs(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear_cross_entropy(states, weight, targets, options=LinearCrossEntropyOptions())


def ours(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return LinearCrossEntropy.apply(states, weight, None, targets, torch.tensor(len(states)), Terms())


LOSSES = {"ours": ours, "full logits": from_logits, "checkpointed chunks": checkpointed, "torch's": torchs}


def run_loss(tokens: int = 1024, vocabulary: int = 50257, width: int = 768) -> Callable[[Loss], None]:
    """A call of a loss, forward and backward, on states and a weight made here."""
    states = torch.randn(tokens, width, requires_grad=True)
    weight = (0.02 * torch.randn(vocabulary, width)).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,))

    def run(loss: Loss) -> None:
        states.grad = weight.grad = None
        loss(states, weight, targets).backward()

    return run


def memory_of_loss(name: str) -> float:
    """Gigabytes, the gradients among them, in this process."""
    run = run_loss()
    return added_gigabytes(lambda: run(LOSSES[name]))


def losses(rounds: int) -> list[dict]:
    run = run_loss()
    seconds = medians({name: partial(run, loss) for name, loss in LOSSES.items()}, rounds)
    peaks = {name: float(in_own_process("--peak", "loss", name)) for name in LOSSES}
    return [{"loss": name, "seconds": seconds[name], "gigabytes": peaks[name]} for name in LOSSES]


def show(rows: list[dict]) -> None:
    for row in rows:
        cells = (f"{name} {value:.3f}" if isinstance(value, float) else str(value) for name, value in row.items())
        print("  ".join(cells), flush=True)


def plot(results: dict[str, list[dict]]) -> None:
    charts = {}
    if "time" in results:
        charts["seconds of a step"] = {row["step"]: {side: row[side] for side in SIDES} for row in results["time"]}
    if "memory" in results:
        title = "GB above weights and gradients"
        charts[title] = {row["peak"]: {side: row[side] for side in SIDES} for row in results["memory"]}
    if "loss" in results:
        charts["the loss alone"] = {row.pop("loss"): row for row in map(dict, results["loss"])}
    plot_bars(charts, Path(__file__).with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--parts", nargs="+", default=["time", "memory", "loss"])
    parser.add_argument("--plot", action="store_true", help="draw what was measured (needs matplotlib)")
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        what, *case = arguments.peak
        print({"step": memory_of_step, "loss": memory_of_loss}[what](*case))
        return
    rounds = arguments.rounds
    parts = {"time": lambda: time_of_steps(rounds), "memory": memory_of_steps, "loss": lambda: losses(rounds)}
    results = {}
    for name in arguments.parts:
        results[name] = parts[name]()
        show(results[name])
    if arguments.plot:
        plot(results)
    print(json.dumps({"machine": machine(), **results}))


if __name__ == "__main__":
    main()
