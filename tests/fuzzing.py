"""Random cases by their numbers: what they are drawn from, and a command that runs many of them."""

import argparse
import json
import random
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.model import attention_masks

SECONDS = 60  # after which a case hangs


class Fault(Exception):
    """A case that is neither refused by a clear error, nor works."""


class Draw(random.Random):
    """Random values; the same for the same seed."""

    def boolean(self) -> bool:
        return self.random() < 0.5


# Values that a file in JSON can contain.
NUMBERS = [
    *(0, 1, 2, 3, 7, -1, -2, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**12, 10**30, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1.0, 1.5, 4.0, -1.0, 1e-45, 1e-30, 1e-8, 1e8, 1e30, 1e38, 1e39, 1e300, 1.7e308),
    *(float("inf"), float("-inf"), float("nan")),
]
JSON_VALUES = [
    *NUMBERS,
    *(True, False, None),
    *("", " ", "1", "1.0", "none", "None", "dense", "gelu", "rope", "learned", "float32", "nn", "é\ud800", "x" * 5000),
    *([], [0], [1, 2], [-1], [True], [None], ["dense"], ["dense", "dense"], [[]], ["banded", "fixed"], [10**30]),
    *({}, {"a": 1}, {"rope_type": "linear"}, {"0": "a"}, {"a": {"b": {}}}),
]


def draw_value(draw: Draw, present: Any, values: list = JSON_VALUES) -> Any:
    """Returns one of some values, or one that is near the present one, of the same type or of another."""
    near = []
    if isinstance(present, bool):
        near = [not present, int(present), str(present)]
    elif isinstance(present, (int, float)) and abs(present) < 1e300:
        near = [
            float(present),
            round(present),
            str(present),
            -present,
            present + 1,
            present - 1,
            2 * present,
            [present],
        ]
        near += draw.choices(NUMBERS, k=8)
    elif isinstance(present, list):
        near = [present[1:], present * 2, [*present, None], present + present[:1], [present]]
    elif isinstance(present, str):
        near = [present.upper(), present + " ", [present], {present: present}]
    return draw.choice(near if near and draw.boolean() else values)


# Returns, for the number of a case, its description and a function that returns its outcome.
Prepare = Callable[[int], tuple[str, Callable[[], str]]]


def count_outcomes(prepare: Prepare, numbers: Iterable[int]) -> Counter:
    """Returns how often each outcome occurs in some cases.

    Raises:
        Fault: a case has a fault.
    """
    outcomes = Counter()
    for number in numbers:
        description, run = prepare(number)
        try:
            outcomes[run()] += 1
        except Exception as error:
            raise Fault(f"case {number}, {description}: {error}") from error
    return outcomes


def run_cases(prepare: Prepare) -> None:
    """Runs the cases that the command line names, and writes the outcome of each to a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("start", type=int, help="number of the first case")
    parser.add_argument("stop", type=int)
    parser.add_argument("--out", type=Path, default=Path("cases.jsonl"))
    args = parser.parse_args()
    set_up()
    signal.signal(signal.SIGALRM, hang)
    outcomes = Counter()
    with args.out.open("a") as out:
        for number in range(args.start, args.stop):
            description, run = prepare(number)
            record = {"case": number, **run_case(run)}
            outcomes[record["outcome"]] += 1
            if record["outcome"] == "fault":
                record["description"] = description
            out.write(json.dumps(record) + "\n")
            out.flush()
    print(dict(outcomes))


def run_case(run: Callable[[], str]) -> dict[str, Any]:
    """Returns the outcome of a case, its duration, and the origin of its error if it has a fault."""
    begin = time.monotonic()
    signal.alarm(SECONDS)
    try:
        record = {"outcome": run()}
    except Exception as error:
        frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
        origin = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-6:]]
        record = {"outcome": "fault", "error": f"{type(error).__name__}: {error}"[:500], "origin": origin}
    finally:
        signal.alarm(0)
    return record | {"seconds": round(time.monotonic() - begin, 3)}


def hang(*_) -> None:
    raise TimeoutError(f"not ended after {SECONDS} seconds")


def set_up() -> None:
    """The settings of the test suite, without its fixtures, and without a copy of the code in each saved folder."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    attention_masks.MIN_KEYS_FOR_PIECES = 2
    GPTConfig._auto_class = GPTForCausalLM._auto_class = None
