"""Compares a training step of GPT-2 small with transformers' GPT2LMHeadModel of the same shape: time and peak memory.

python benchmarks/train_step.py [--rounds 9] [--parts time memory loss] [--plot]

time    forward and backward of 2 x 512 tokens
memory  peak memory of a step above weights and gradients, each case in its own process
loss    time and peak memory of the output layer and the loss alone, for each implementation
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers
from measure import (
    gemm_flops_per_second,
    median_seconds,
    peak_increase_gigabytes,
    plot_bars,
    print_json,
    run_in_subprocess,
)
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions
from torch.utils.checkpoint import checkpoint

from hf_gpt import GPTForCausalLM, preset_config
from hf_gpt.accounting import account
from hf_gpt.model.losses import LinearCrossEntropy, LossTerms

SIDES = ("ours", "peer")
SHAPES = [(2, 512), (4, 1024)]
PRECISIONS = {"float32": torch.float32, "bfloat16 autocast": torch.bfloat16}
NO_DROPOUT = dict.fromkeys(("embedding_dropout", "residual_dropout", "attention_dropout"), 0.0)


def build(side: str) -> torch.nn.Module:
    """Returns our GPT-2 small or transformers', without dropout, in training mode."""
    torch.manual_seed(0)
    if side == "ours":
        return GPTForCausalLM(preset_config("gpt2", **NO_DROPOUT)).train()
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)).train()


def training_step(model: torch.nn.Module, rows: int, length: int, dtype: torch.dtype) -> None:
    """Runs forward and backward on (rows, length) random tokens, under autocast unless the dtype is float32."""
    ids = torch.randint(0, 50257, (rows, length), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()


def measure_time(rounds: int) -> list[dict]:
    """Returns seconds per step, the speedup over the peer, and each side's fraction of the GEMM rate."""
    models = {side: build(side) for side in SIDES}
    rows, length = SHAPES[0]
    flops = rows * length * account(models["ours"].config, length).training_flops_per_token
    results = []
    for name, dtype in PRECISIONS.items():
        calls = {side: partial(training_step, model, rows, length, dtype) for side, model in models.items()}
        seconds, gemm = median_seconds(calls, rounds), gemm_flops_per_second(dtype)
        results.append(
            {"step": f"{name}, {rows} x {length}", **seconds, "speedup": seconds["peer"] / seconds["ours"]}
            | {f"{side}, fraction of GEMM rate": flops / seconds[side] / gemm for side in models}
        )
    return results


def step_memory(side: str, rows: str, length: str, precision: str) -> float:
    """Returns the peak of a training step in this process, in gigabytes above weights and gradients."""
    model = build(side)
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e9
    step = partial(training_step, model, int(rows), int(length), PRECISIONS[precision])
    return peak_increase_gigabytes(step) - gradients


def measure_memory() -> list[dict]:
    """Returns the peak of a training step of each side, each in its own process, and their ratio."""
    results = []
    for precision in PRECISIONS:
        for rows, length in SHAPES:
            peaks = {side: float(run_in_subprocess("--peak", "step", side, rows, length, precision)) for side in SIDES}
            results.append({"peak": f"{precision}, {rows} x {length}", **peaks, "ratio": peaks["ours"] / peaks["peer"]})
    return results


Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def full_logits(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy((states @ weight.t()).float(), targets)


def checkpointed(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, rows: int = 128) -> torch.Tensor:
    def chunk_loss(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(states @ weight.t(), targets, reduction="sum")

    chunks = zip(states.split(rows), targets.split(rows), strict=True)
    return sum(checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks) / len(states)


def torch_chunked(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear_cross_entropy(states, weight, targets, options=LinearCrossEntropyOptions())


def ours(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return LinearCrossEntropy.apply(states, weight, None, targets, torch.tensor(len(states)), LossTerms())


LOSSES = {
    "ours": ours,
    "full logits": full_logits,
    "checkpointed chunks": checkpointed,
    "torch linear_cross_entropy": torch_chunked,
}


def build_loss_case(tokens: int = 1024, vocab_size: int = 50257, width: int = 768) -> Callable[[Loss], None]:
    """Returns a function that runs a loss forward and backward on fixed random states, weights and targets."""
    states = torch.randn(tokens, width, requires_grad=True)
    weight = (0.02 * torch.randn(vocab_size, width)).requires_grad_()
    targets = torch.randint(0, vocab_size, (tokens,))

    def run(loss: Loss) -> None:
        states.grad = weight.grad = None
        loss(states, weight, targets).backward()

    return run


def loss_memory(name: str) -> float:
    """Returns the peak of a loss in this process, in gigabytes, gradients included."""
    run = build_loss_case()
    return peak_increase_gigabytes(lambda: run(LOSSES[name]))


def measure_losses(rounds: int) -> list[dict]:
    """Returns the seconds and the peak memory of each loss."""
    run = build_loss_case()
    seconds = median_seconds({name: partial(run, loss) for name, loss in LOSSES.items()}, rounds)
    peaks = {name: float(run_in_subprocess("--peak", "loss", name)) for name in LOSSES}
    return [{"loss": name, "seconds": seconds[name], "gigabytes": peaks[name]} for name in LOSSES]


def print_rows(rows: list[dict]) -> None:
    for row in rows:
        cells = (f"{name} {value:.3f}" if isinstance(value, float) else str(value) for name, value in row.items())
        print("  ".join(cells), flush=True)


def plot(results: dict[str, list[dict]]) -> None:
    charts = {}
    if "time" in results:
        charts["seconds per step"] = {row["step"]: {side: row[side] for side in SIDES} for row in results["time"]}
    if "memory" in results:
        title = "peak GB above weights and gradients"
        charts[title] = {row["peak"]: {side: row[side] for side in SIDES} for row in results["memory"]}
    if "loss" in results:
        charts["output layer and loss"] = {row.pop("loss"): row for row in map(dict, results["loss"])}
    plot_bars(charts, Path(__file__).with_suffix(".png"))


def main() -> None:
    parts = {"time": measure_time, "memory": lambda _: measure_memory(), "loss": measure_losses}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="alternating rounds (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts, help="default: all")
    parser.add_argument("--plot", action="store_true", help="write train_step.png (needs matplotlib)")
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)  # one case, in its own process
    arguments = parser.parse_args()
    if arguments.peak:
        kind, *case = arguments.peak
        print({"step": step_memory, "loss": loss_memory}[kind](*case))
        return
    results = {}
    for name in arguments.parts:
        results[name] = parts[name](arguments.rounds)
        print_rows(results[name])
    if arguments.plot:
        plot(results)
    print_json(**results)


if __name__ == "__main__":
    main()
