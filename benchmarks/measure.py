"""Shared harness of the benchmarks: alternating timings, peak memory, the rates of the machine, and the JSON line."""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from hf_gpt.model.backends import matmul

GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
"""Options of `generate()`: greedy decoding that runs to the last token."""

Call = Callable[[], object]


def default_device() -> torch.device:
    """Returns the accelerator, or the CPU if there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def median_seconds(calls: dict[str, Call], rounds: int, warm_up_rounds: int = 1) -> dict[str, float]:
    """Returns the median seconds of each call over `rounds` alternating rounds, after the warm-up rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in [*calls.values()] * warm_up_rounds:
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            synchronize()
            started = time.perf_counter()
            call()
            synchronize()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare(ours: Call, peer: Call, rounds: int) -> dict[str, float]:
    """Returns the median seconds of `ours` and `peer`, and their `ratio`: below 1 means that ours is faster."""
    seconds = median_seconds({"ours": ours, "peer": peer}, rounds)
    return seconds | {"ratio": seconds["ours"] / seconds["peer"]}


def synchronize() -> None:
    """Waits for the kernels of the accelerator."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def run_in_subprocess(*arguments: object) -> str:
    """Runs this benchmark with other arguments in a new process and returns the last line that it prints."""
    command = [sys.executable, sys.argv[0], *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def peak_gigabytes() -> float:
    """Returns the peak resident memory of this process (VmHWM).

    `ru_maxrss` is not used: in a child process it starts at the peak of the parent.
    """
    return read_status("VmHWM")


def peak_increase_gigabytes(call: Call) -> float:
    """Returns by how much the peak resident memory during a call exceeds the resident memory before it."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = read_status("VmRSS")
    call()
    return peak_gigabytes() - before


def read_status(field: str) -> float:
    """Returns a field of /proc/self/status in gigabytes."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1e6


def gemm_flops_per_second(dtype: torch.dtype, size: tuple[int, int, int] = (1024, 768, 3072)) -> float:
    """Returns the best measured rate of a matrix product, (rows, inner) x (inner, columns), on the CPU."""
    rows, inner, columns = size
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    with torch.no_grad():
        seconds = [median_seconds({"product": lambda: matmul(left, right.t())}, 9)["product"] for _ in range(3)]
    return 2 * rows * inner * columns / min(seconds)


def read_bytes_per_second(gigabytes: float = 0.5) -> float:
    """Returns the memory bandwidth of the CPU, measured by summing a float32 tensor of this size."""
    numbers = torch.ones(int(gigabytes * 1e9 / 4))
    return numbers.nbytes / median_seconds({"sum": numbers.sum}, 9)["sum"]


def machine() -> dict[str, str | int]:
    """Returns the device, the processor and the versions that the figures belong to."""
    return {
        "device": str(default_device()),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def processor_name() -> str:
    """Returns the model name of the CPU, or its architecture if the kernel does not list one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def plot_bars(charts: dict[str, dict[str, dict[str, float]]], file: Path) -> None:
    """Draws one bar chart per title and writes the figure.

    Args:
        charts: title -> group on the x axis -> name of the bar -> height. Bars of one name have one color.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(charts), figsize=(5 * len(charts), 4.5), squeeze=False)
    for axis, (title, groups) in zip(axes[0], charts.items(), strict=True):
        names = list(dict.fromkeys(name for group in groups.values() for name in group))
        width = 0.8 / len(names)
        for number, name in enumerate(names):
            positions = [position + number * width for position, group in enumerate(groups.values()) if name in group]
            bars = axis.bar(positions, [group[name] for group in groups.values() if name in group], width, label=name)
            axis.bar_label(bars, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}", fontsize=7)
        centers = [position + (0.8 - width) / 2 for position in range(len(groups))]
        axis.set_xticks(centers, [group.replace(", ", "\n") for group in groups], fontsize=7)
        axis.set(title=title)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=75)


def print_comparison(rows: dict[str, dict[str, float]]) -> None:
    """Prints the results of `compare` as a table."""
    print(f"{'':32}{'ours':>10}{'peer':>10}{'ratio':>8}")
    for name, row in rows.items():
        print(f"{name:32}{row['ours']:>9.4f}s{row['peer']:>9.4f}s{row['ratio']:>8.3f}")


def print_json(**results: object) -> None:
    """Prints the machine and the results as JSON: the last line of every benchmark."""
    print(json.dumps({"machine": machine(), **results}))
