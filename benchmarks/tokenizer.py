"""Compares tokenizing a corpus, training a tokenizer, and bytes per token with tiktoken and tokenizers.

python benchmarks/tokenizer.py FILES --vocabularies FOLDER [--held-out FILES] [--parts speed training compression]

FILES are text. They are split into documents of 4,000 characters, and repeated up to --megabytes. FOLDER has OpenAI's
encoder.json, vocab.bpe and cl100k_base.tiktoken. Speed is measured with GPT-2's vocabulary on one core and on two, each
in a process that is restricted to these cores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if "--cores" in sys.argv:  # before any thread pool is created
    os.sched_setaffinity(0, json.loads(sys.argv[sys.argv.index("--cores") + 1]))

import tiktoken
from measure import compare, median_seconds, print_comparison, print_json
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from hf_gpt.data import tokenize_files
from hf_gpt.data.encoders import build_encoder
from hf_gpt.tokenization import (
    load_tokenizer,
    tokenizer_from_tiktoken,
    tokenizer_from_vocab_and_merges,
    tokenizer_to_tiktoken,
    train_tokenizer,
)
from hf_gpt.tokenization.chunking import split_into_chunks
from hf_gpt.tokenization.split_patterns import SPLIT_PATTERNS

GPT2_FILES = ("encoder.json", "vocab.bpe")
TRAINING_MEGABYTES = 20


def read_documents(files: list[Path], megabytes: float) -> list[str]:
    """Returns documents of 4,000 characters, repeated up to about this size."""
    once = [chunk for file in files for chunk in split_into_chunks(file.read_text("utf-8"), 4000)]
    return once * max(1, round(megabytes / count_megabytes(once)))


def count_megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def measure_speed(files: list[Path], vocabularies: Path, megabytes: float, rounds: int) -> dict[str, float]:
    """Returns megabytes of text per second on the cores of this process.

    GPT2TokenizerFast is slow and encodes every eighth document only.
    """
    texts = read_documents(files, megabytes)
    size, every_eighth = count_megabytes(texts), texts[::8]
    cores = len(os.sched_getaffinity(0))
    vocab, merges = (vocabularies / name for name in GPT2_FILES)
    ours = tokenizer_from_vocab_and_merges(vocab, merges)
    peer = GPT2Tokenizer(vocab=str(vocab), merges=str(merges))
    encoding = build_tiktoken(ours)

    with tempfile.TemporaryDirectory() as folder:
        corpus, out = Path(folder, "corpus.jsonl"), Path(folder, "tokens")
        corpus.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts))

        def tokenize() -> None:
            shutil.rmtree(out, ignore_errors=True)
            tokenize_files([corpus], ours, out)

        seconds = median_seconds(
            {
                "hf-gpt tokenize": tokenize,
                "tiktoken, batch": lambda: encoding.encode_ordinary_batch(texts, num_threads=cores),
                "GPT2TokenizerFast, batch": lambda: peer(every_eighth, verbose=False),
            },
            rounds,
        )
    slow = count_megabytes(every_eighth) / seconds.pop("GPT2TokenizerFast, batch")
    return {name: size / value for name, value in seconds.items()} | {"GPT2TokenizerFast, batch": slow}


def build_tiktoken(tokenizer: PreTrainedTokenizerFast) -> tiktoken.Encoding:
    """Returns tiktoken's GPT-2 encoding with the ranks of a tokenizer, without a download."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_to_tiktoken(tokenizer, Path(folder, "ranks"))
        ranks = load_tiktoken_bpe(str(Path(folder, "ranks")))
    return tiktoken.Encoding("gpt2", pat_str=SPLIT_PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={})


def measure_tiktoken(files: list[Path], vocabularies: Path, megabytes: float, rounds: int) -> float:
    """Returns megabytes per second of tiktoken without threads, on half of the documents."""
    texts = read_documents(files, megabytes)[::2]
    encoding = build_tiktoken(tokenizer_from_vocab_and_merges(*(vocabularies / name for name in GPT2_FILES)))
    seconds = median_seconds({"tiktoken": lambda: [encoding.encode_ordinary(text) for text in texts]}, rounds)
    return count_megabytes(texts) / seconds["tiktoken"]


def measure_training(files: list[Path], megabytes: float, rounds: int) -> dict[str, dict[str, float]]:
    """Returns the seconds of training a vocabulary of 50,257, ours and with tokenizers' trainer."""
    texts = read_documents(files, megabytes)

    def train_peer() -> None:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT_PATTERNS["gpt2"]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=50257, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))

    return {f"{megabytes:.0f} MB to 50,257 tokens": compare(lambda: train_tokenizer(texts), train_peer, rounds)}


def measure_compression(files: list[Path], vocabularies: Path) -> dict[str, dict[str, float]]:
    """Returns bytes per token of each file, for the shipped tokenizer, GPT-2's and cl100k."""
    encoders = {
        "ours": build_encoder(load_tokenizer()),
        "GPT-2": build_encoder(tokenizer_from_vocab_and_merges(*(vocabularies / name for name in GPT2_FILES))),
        "cl100k": build_encoder(tokenizer_from_tiktoken(vocabularies / "cl100k_base.tiktoken", "cl100k_base")),
    }
    rows = {}
    for file in files:
        text = file.read_text("utf-8", "ignore")
        rows[file.name] = {name: len(text.encode()) / len(each.encode([text])[0]) for name, each in encoders.items()}
    return rows


def run_on_cores(command: list[str], cores: list[list[int]]) -> list:
    """Runs one process per list of cores, all at the same time, and returns what each prints as JSON."""
    allowed = sorted(os.sched_getaffinity(0))
    processes = [
        subprocess.Popen(
            [*command, "--cores", json.dumps([allowed[n] for n in each])], stdout=subprocess.PIPE, text=True
        )
        for each in cores
    ]
    outputs = [process.communicate()[0] for process in processes]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def measure_scaling(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Returns megabytes per second on one core and on two.

    Two independent processes of tiktoken are what the machine allows.
    """
    command = [sys.executable, __file__, *map(str, arguments.files), "--vocabularies", str(arguments.vocabularies)]
    command += ["--megabytes", str(arguments.megabytes), "--rounds", str(arguments.rounds)]
    one, two = run_on_cores(command, [[0]])[0], run_on_cores(command, [[0, 1]])[0]
    command.append("--tiktoken")
    one["tiktoken, two processes"] = run_on_cores(command, [[0]])[0]
    two["tiktoken, two processes"] = sum(run_on_cores(command, [[0], [1]]))
    return {"one core": one, "two cores": two}


def print_scaling(rates: dict[str, dict[str, float]]) -> None:
    print(f"{'MB/s':32}{'one core':>10}{'two':>10}{'ratio':>8}")
    for name, one in rates["one core"].items():
        two = rates["two cores"][name]
        print(f"{name:32}{one:>10.2f}{two:>10.2f}{two / one:>8.2f}")


def print_compression(rows: dict[str, dict[str, float]]) -> None:
    print(f"{'bytes per token':32}{'ours':>10}{'GPT-2':>10}{'ratio':>8}{'cl100k':>10}{'ratio':>8}")
    for name, row in rows.items():
        ours, gpt2, cl100k = row.values()
        print(f"{name:32}{ours:>10.2f}{gpt2:>10.2f}{ours / gpt2:>8.2f}{cl100k:>10.2f}{ours / cl100k:>8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["speed", "training", "compression"]
    parser.add_argument("files", type=Path, nargs="+", help="text files to tokenize and to train on")
    parser.add_argument("--vocabularies", type=Path, required=True, help="folder of OpenAI's vocabulary files")
    parser.add_argument("--held-out", type=Path, nargs="*", default=[], help="text files of `compression`")
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts, help="default: all")
    parser.add_argument(
        "--megabytes", type=float, default=128, help=f"corpus size; training uses at most {TRAINING_MEGABYTES}"
    )
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default: %(default)s)")
    parser.add_argument("--cores", help=argparse.SUPPRESS)  # the speed on these cores, in its own process
    parser.add_argument("--tiktoken", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cores:
        measure = measure_tiktoken if arguments.tiktoken else measure_speed
        print(json.dumps(measure(arguments.files, arguments.vocabularies, arguments.megabytes, arguments.rounds)))
        return

    results = {}
    if "speed" in arguments.parts:
        results["megabytes per second"] = rates = measure_scaling(arguments)
        print_scaling(rates)
    if "training" in arguments.parts:
        megabytes = min(arguments.megabytes, TRAINING_MEGABYTES)
        results["training"] = seconds = measure_training(arguments.files, megabytes, arguments.rounds)
        print_comparison(seconds)
    if "compression" in arguments.parts:
        results["bytes per token"] = rows = measure_compression(arguments.held_out, arguments.vocabularies)
        print_compression(rows)
    print_json(results=results)


if __name__ == "__main__":
    main()
