"""Ours and a peer in one run: alternating, warmed up, medians, and their ratio."""

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

from hf_gpt.model.linear import matmul


def alternate(ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> dict[str, float]:
    """Seconds of each, medians of `rounds` alternating calls after one to warm up, and ours divided by the peer's."""
    seconds = medians({"ours": ours, "peer": peer}, rounds)
    return seconds | {"ratio": seconds["ours"] / seconds["peer"]}


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each, medians of `rounds` alternating calls after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def in_own_process(*arguments: object) -> str:
    """The last line that this benchmark prints in a new process, with these arguments."""
    command = [sys.executable, sys.argv[0], *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


def peak_gigabytes() -> float:
    """The most memory that this process has held. (`ru_maxrss` would begin at the peak of its parent.)"""
    return _status("VmHWM")


def added_gigabytes(call: Callable[[], object]) -> float:
    """What a call adds, at its peak, to the memory that this process holds."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    call()
    return peak_gigabytes() - before


def _status(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1e6


def gemm_rate(dtype: torch.dtype, size: tuple[int, int, int] = (1024, 768, 3072)) -> float:
    """What this machine multiplies at most, in floating-point operations a second."""
    rows, inner, columns = size
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    with torch.no_grad():
        seconds = [medians({"product": lambda: matmul(left, right.t())}, 9)["product"] for _ in range(3)]
    return 2 * rows * inner * columns / min(seconds)


def read_rate(gigabytes: float = 0.5) -> float:
    """Bytes a second that this machine reads at most from memory."""
    numbers = torch.ones(int(gigabytes * 1e9 / 4))
    return numbers.nbytes / medians({"sum": numbers.sum}, 9)["sum"]


def machine() -> dict[str, str | int]:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return {
        "device": str(accelerator),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def plot_bars(charts: dict[str, dict[str, dict[str, float]]], file: Path) -> None:
    """A chart for each title, of groups of bars; those of one name have one colour."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(charts), figsize=(5 * len(charts), 4.5), squeeze=False)
    for axis, (title, groups) in zip(axes[0], charts.items(), strict=True):
        names = list(dict.fromkeys(name for group in groups.values() for name in group))
        width = 0.8 / len(names)
        for number, name in enumerate(names):
            places = [place + number * width for place, group in enumerate(groups.values()) if name in group]
            drawn = axis.bar(places, [group[name] for group in groups.values() if name in group], width, label=name)
            axis.bar_label(drawn, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}", fontsize=7)
        middles = [place + (0.8 - width) / 2 for place in range(len(groups))]
        axis.set_xticks(middles, [group.replace(", ", "\n") for group in groups], fontsize=7)
        axis.set(title=title)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=75)


def report(rows: dict[str, dict[str, float]]) -> None:
    """A table, and the same as JSON on the last line."""
    print(f"{'':32}{'ours':>10}{'peer':>10}{'ratio':>8}")
    for name, row in rows.items():
        print(f"{name:32}{row['ours']:>9.4f}s{row['peer']:>9.4f}s{row['ratio']:>8.3f}")
    print(json.dumps({"machine": machine(), "rows": rows}))
