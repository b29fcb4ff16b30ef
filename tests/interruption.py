"""Interrupts every command that writes a folder at each of its file operations.

    python tests/interruption.py [COMMAND ...]          some of the operations, as tests/test_interruption.py does
    python tests/interruption.py --all [COMMAND ...]    all of them

One process imports everything and forks for each run of a command. The forked process stops (SIGSTOP) before every
operation on a file below the folder of the run, and in the middle of every write. What is on the disk then is what a
kill leaves: each such state is copied, and the same command continues in the copy. It has to end with the same files as
a run that was not interrupted, and leave nothing else. While the process is stopped, a second command must be refused.
In other runs the operations that need space fail from one of them on, as on a full disk.

Native libraries are covered if there is a C compiler: then interruption.c interposes on the C library. Without one an
audit hook interposes on the operations of Python.
"""

import argparse
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "NO_COLOR": "1",
    "COLUMNS": "1000",
}
LIMIT, LIMITS = 4, {"train": 2, "train with its own tokenizer": 2, "demo": 1}  # of interruptions of each kind
RAW_TRACEBACK = 99  # exit status of a run that ends with an exception
TEXT = "".join(f"Line {number} says that the cat sat on the mat, {number * 7} times.\n" for number in range(400))


class Command(NamedTuple):
    """A command line that writes a folder."""

    arguments: list
    """The word OUT stands for the folder."""
    resume: tuple[str, ...] = ()
    """Options that resume an interrupted run."""


def commands(sources: Path) -> dict[str, Command]:
    native, ours, nanogpt = (sources / name for name in ("native", "ours", "nanogpt"))
    small = ("--max-shard-size", "30KB")
    train = [
        *("train", sources / "book.txt", "--out", "OUT", "--model", sources / "tiny" / "config.json"),
        *("--steps", 4, "--save-steps", 2, "--batch-size", 2),
    ]
    return {
        "convert": Command(["convert", native, "OUT", *small]),
        "export": Command(["export", ours, "OUT", "--to", "gpt2", *small]),
        "export of one pickle": Command(["export", nanogpt, "OUT", "--to", "nanogpt"]),
        "upcycle": Command(["upcycle", ours, "OUT", "--num-experts", 2, "--noise", 0.1, *small]),
        "quantize": Command(["quantize", ours, "OUT"]),
        "tokenize": Command(
            [
                *("tokenize", sources / "book.txt", sources / "rows.jsonl", "--out", "OUT", "--tokenizer", ours),
                *("--shard-tokens", 3000, "--threads", 1),
            ]
        ),
        "train-tokenizer": Command(["train-tokenizer", sources / "book.txt", "--out", "OUT", "--vocab-size", 300]),
        "train": Command([*train, "--tokenizer", ours], ("--resume",)),
        "train with its own tokenizer": Command(train, ("--resume",)),
        "demo": Command(["demo", sources / "book.txt", "--out", "OUT", "--steps", 2], ("--resume",)),
    }


def make_sources(sources: Path) -> None:
    """Writes the text, the tokenizer and the tiny models that the commands read."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hf_gpt import GPTConfig
    from hf_gpt.conversion import convert
    from hf_gpt.tokenization import train_tokenizer

    sources.mkdir()
    (sources / "book.txt").write_text(TEXT)
    rows = [json.dumps({"text": text} if number % 5 else {}) for number, text in enumerate(TEXT.splitlines())]
    (sources / "rows.jsonl").write_text("\n".join(rows))
    sizes = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    native = GPT2LMHeadModel(GPT2Config(vocab_size=300, activation_function="gelu", **sizes, bos_token_id=0))
    native.save_pretrained(sources / "native", max_shard_size="30KB")
    train_tokenizer([TEXT], 300).save_pretrained(sources / "native")
    convert(sources / "native", sources / "ours", max_shard_size="30KB")
    shutil.copytree(sources / "ours", sources / "nanogpt")
    config = GPTConfig.from_pretrained(sources / "ours")
    config.update({"bos_token_id": None, "eos_token_id": None, "native_fields": None})
    config.save_pretrained(sources / "nanogpt")
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 16}
    GPTConfig(vocab_size=300, **tiny).save_pretrained(sources / "tiny")


def make_small() -> None:
    """Shortens the commands: the model of the demo, the new interpreter, and the blocks in which a corpus is read."""
    from dataclasses import replace

    from hf_gpt import recipes
    from hf_gpt.cli import training
    from hf_gpt.data import documents, tokenizing

    fields = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    training.DEMO = training.DEMO._replace(config=training.DEMO.config.replace(**fields, max_position_embeddings=16))
    training.DEMO_SETTINGS = replace(training.DEMO_SETTINGS, context=16, batch_size=2, save_steps=1)
    recipes.generate_in_new_interpreter = lambda *_: "generated"
    documents.BLOCK_BYTES, tokenizing.BATCH_CHARACTERS = 5000, 3000


class Library:
    """Interposes by interruption.c, which is preloaded."""

    def __init__(self) -> None:
        self.symbols = ctypes.CDLL(None)

    def interpose(self, folder: Path, log: Path, mode: str, first: int) -> None:
        self.symbols.interpose(
            os.fsencode(folder), os.fsencode(log), ctypes.c_char(mode.encode()), ctypes.c_long(first)
        )


class AuditHook:
    """Interposes on what Python itself does, without its writes. It cannot be removed from the process."""

    EVENTS = {"open": "open", "os.rename": "rename", "os.remove": "unlink", "os.rmdir": "rmdir", "os.mkdir": "mkdir"}

    def interpose(self, folder: Path, log: Path, mode: str, first: int) -> None:
        count = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            if event not in self.EVENTS or not isinstance(arguments[0], (str, Path)):
                return
            if event == "open" and not arguments[2] & (os.O_CREAT | os.O_TRUNC):
                return
            path = Path(arguments[0])
            if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:
                path = Path(os.readlink(f"/proc/self/fd/{arguments[1]}"), path)
            if not path.is_relative_to(folder):
                return
            count += 1
            with log.open("a") as file:
                file.write(f"{self.EVENTS[event]} {path}\n")
            if mode == "s":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif mode == "f" and count >= first and event in ("open", "os.mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        sys.addaudithook(hook)


class Trial:
    """The runs of one command, in one folder.

    Args:
        name, command: the command.
        work: a folder for the runs and their states.
        interposer: how file operations are interposed on.
    """

    def __init__(self, name: str, command: Command, work: Path, interposer: Library | AuditHook) -> None:
        self.name, self.command, self.interposer = name, command, interposer
        self.folder, self.states = work / "run", work / "states"
        self.errors, self.operations = work / "errors.txt", work / "operations.txt"
        self.out = self.folder / "out"
        self.failures: list[str] = []
        self.counts = Counter()

    def start(self, *options: str, mode: str = "", first: int = 0) -> int:
        """Starts the command in a forked process and returns its id."""
        self.errors.unlink(missing_ok=True)
        if mode:
            self.operations.unlink(missing_ok=True)
        if pid := os.fork():
            return pid
        status = RAW_TRACEBACK
        try:
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.dup2(os.open(self.errors, os.O_CREAT | os.O_WRONLY), 2)
            status = self._run([*self.command.arguments, *options], mode, first)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _run(self, arguments: list, mode: str, first: int) -> int:
        from hf_gpt.cli import main

        sys.argv = ["hf-gpt", *(str(self.out if argument == "OUT" else argument) for argument in arguments)]
        if mode:
            self.interposer.interpose(self.folder, self.operations, mode, first)
        try:
            main()
        except SystemExit as exit:
            return exit.code or 0
        return 0

    def run(self, *options: str, **how) -> int:
        """Runs the command and returns its exit status."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(*options, **how), 0)[1])

    def stops(self) -> Iterator[str]:
        """Runs the command; yields each file operation before it happens."""
        pid = self.start(mode="s")
        try:
            while os.WIFSTOPPED(status := os.waitpid(pid, os.WUNTRACED)[1]):
                yield self.operations.read_text().splitlines()[-1].replace(f"{self.folder}/", "")
                os.kill(pid, signal.SIGCONT)
            pid = 0
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self.check(os.waitstatus_to_exitcode(status) == 0, "the command that was stopped failed")

    def last_line(self) -> str:
        lines = [line for line in self.errors.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def check(self, condition: bool, what: str) -> None:
        if not condition:
            self.failures.append(f"{self.name}: {what}: {self.last_line()}")

    def empty(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def finish(self, what: str, reference: dict[str, str]) -> None:
        """Runs the command again after an interruption, and checks that nothing but the same files is left."""
        if self.out.exists():
            self.check(contents(self.out) == reference, f"{what}: incomplete")
            self.check(self.run() == 1 and "is not an empty folder" in self.last_line(), f"{what}: not complete")
        else:
            options = self.command.resume if self.out.with_name("out.partial").exists() else ()
            self.check(self.run(*options) == 0, f"{what}: does not finish")
        now = contents(self.out)
        different = [name for name in {**now, **reference} if now.get(name) != reference.get(name)]
        self.check(not different, f"{what}: other files {different}")
        self.check(os.listdir(self.folder) == ["out"], f"{what}: leaves {os.listdir(self.folder)}")

    def examine(self, limit: int | None) -> None:
        """Tries the interruptions, of each kind about `limit`."""
        self.empty()
        if self.run(mode="c") != 0:
            return self.check(False, "fails")
        reference, operations = contents(self.out), self.operations.read_text().splitlines()
        self.counts["operations"] = len(operations)

        states: dict[str, str] = {}
        self.empty()
        writes = sum(operation.startswith("write ") for operation in operations)  # the process stops twice in each
        stride = 1 if limit is None else -(-(len(operations) + writes) // limit)
        for number, operation in enumerate(self.stops()):
            state = digest(contents(self.folder)) if number % stride == 0 else None
            if state is not None and state not in states:
                states[state] = operation
                shutil.copytree(self.folder, self.states / state)
                self.run_second(operation)
        self.check(contents(self.out) == reference, "is not the same in each run")

        for state, operation in states.items():
            shutil.rmtree(self.folder)
            (self.states / state).rename(self.folder)
            self.finish(f"killed before {operation}", reference)
        self.counts["states"] = len(states)

        needing_space = [n for n, line in enumerate(operations, 1) if line.split()[0] in NEEDS_SPACE]
        for first in needing_space[:: 1 if limit is None else -(-len(needing_space) // limit)]:
            self.empty()
            status = self.run(mode="f", first=first)
            operation = operations[first - 1].replace(f"{self.folder}/", "")
            is_error = status == 1 and self.last_line().startswith("error: ")
            self.check(is_error or (status == 0 and self.out.exists()), f"disk full at {operation}: status {status}")
            self.finish(f"disk full at {operation}", reference)
            self.counts["full disks"] += 1

    def run_second(self, operation: str) -> None:
        """Runs the command while another one is stopped before an operation."""
        before = contents(self.folder)
        if not (self.folder / "out.partial" / "lock").exists():
            return  # the first command is not yet, or no longer, there
        status = self.run(*self.command.resume)
        # "another process" until the first command has written its id
        expected = self.out.exists() or re.search(r"is in use by (another )?process", self.last_line())
        self.check(status == 1 and bool(expected), f"second command before {operation}: status {status}")
        self.check(contents(self.folder) == before, f"second command before {operation}: changes files")
        self.counts["second commands"] += 1


NEEDS_SPACE = ("open", "write", "pwrite", "writev", "sendfile", "copy_file_range", "ftruncate", "fsync", "mkdir")


def contents(folder: Path) -> dict[str, str]:
    """Returns a hash of each file without what differs between equal runs, and the names of the folders."""
    if not folder.exists():
        return {}
    found = {}
    for path in sorted(folder.rglob("*")):
        data = b"" if path.is_dir() or path.name == "lock" else path.read_bytes()
        if path.name in ("report.json", "README.md"):
            data = re.sub(rb'"seconds": [\d.e-]+|\d+ s\b', b"", data)
        name = re.sub(r"\btmp\w+", "tmp", str(path.relative_to(folder)))
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def digest(found: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def build(folder: Path) -> Path | None:
    """Returns interruption.c as a shared library, or None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "interruption.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def import_everything() -> None:
    """Imports what the commands import while they run, so that a forked process does not."""
    import matplotlib.figure
    import tiktoken
    import torch
    import torchao.quantization
    from transformers import Trainer

    from hf_gpt import cli

    torch.set_num_threads(1)
    assert all((matplotlib.figure, tiktoken, torchao.quantization, Trainer, cli))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="*", help="default: every command")
    parser.add_argument("--all", action="store_true", help="try every operation")
    parser.add_argument("--python", action="store_true", help="do without a C compiler")
    parser.add_argument("--work", type=Path, help="folder for the runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        work = Path(work)
        is_preloaded = "LD_PRELOAD" in os.environ
        if not (arguments.python or is_preloaded) and (library := build(work)) is not None:
            environment = os.environ | ENVIRONMENT | {"LD_PRELOAD": str(library)}
            sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment).returncode)
        os.environ.update(ENVIRONMENT)
        interposer = Library() if is_preloaded else AuditHook()
        import_everything()
        make_sources(work / "sources")
        make_small()
        failures = 0
        for name, command in commands(work / "sources").items():
            if name in (arguments.command or [name]):
                started = time.monotonic()
                trial = Trial(name, command, work, interposer)
                trial.examine(None if arguments.all else LIMITS.get(name, LIMIT))
                failures += len(trial.failures)
                summary = f"{name}: {dict(trial.counts)}, {time.monotonic() - started:.0f} s"
                print(summary, *trial.failures, sep="\n", flush=True)
        print(f"{failures} failures ({type(interposer).__name__})")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
