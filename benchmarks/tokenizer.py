"""Tokenizing a corpus, training a tokenizer, and bytes per token, beside the peers in one run.

python benchmarks/tokenizer.py FILES --vocabularies FOLDER [--held-out FILES] [--only speed training compression]

FOLDER holds OpenAI's files: encoder.json, vocab.bpe, cl100k_base.tiktoken. FILES are text; they are cut into documents
of about 4,000 characters, and repeated up to --megabytes. Speed is measured with GPT-2's vocabulary on one core and on
two, each in a process that has no others.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if "--cores" in sys.argv:  # before any pool of threads is made
    os.sched_setaffinity(0, json.loads(sys.argv[sys.argv.index("--cores") + 1]))

import tiktoken
from measure import machine, medians, report
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from hf_gpt.data import tokenize_files
from hf_gpt.data.encoders import build_encoder
from hf_gpt.tokenization import (
    load_tokenizer,
    tokenizer_from_tiktoken,
    tokenizer_from_vocab_and_merges,
    train_tokenizer,
)
from hf_gpt.tokenization.byte_alphabet import characters_to_bytes
from hf_gpt.tokenization.chunking import split_into_chunks
from hf_gpt.tokenization.ranks import extract_ranks
from hf_gpt.tokenization.split_patterns import SPLIT_PATTERNS
from hf_gpt.tokenization.vocabulary_files import read_merges, read_vocab


def documents(files: list[Path], megabytes: float) -> list[str]:
    once = [piece for file in files for piece in split_into_chunks(file.read_text("utf-8"), 4000)]
    return once * max(1, round(megabytes / megabytes_of(once)))


def megabytes_of(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def speed(files: list[Path], vocabularies: Path, megabytes: float, rounds: int) -> dict[str, float]:
    """Megabytes of text in a second, on the cores of this process; the slow peer reads every eighth document."""
    texts = documents(files, megabytes)
    size, eighth = megabytes_of(texts), texts[::8]
    cores = len(os.sched_getaffinity(0))
    vocab_file, merges_file = vocabularies / "encoder.json", vocabularies / "vocab.bpe"
    ours = tokenizer_from_vocab_and_merges(vocab_file, merges_file)
    vocab = read_vocab(vocab_file)
    peer = GPT2Tokenizer(vocab=vocab, merges=list(read_merges(merges_file, vocab)))
    engine = tiktoken_of(ours)

    with tempfile.TemporaryDirectory() as folder:
        corpus, out = Path(folder, "corpus.jsonl"), Path(folder, "tokens")
        corpus.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts))

        def tokenize() -> None:
            shutil.rmtree(out, ignore_errors=True)
            tokenize_files([corpus], ours, out)

        seconds = medians(
            {
                "hf-gpt tokenize": tokenize,
                "tiktoken by itself": lambda: engine.encode_ordinary_batch(texts, num_threads=cores),
                "GPT2TokenizerFast, a batch": lambda: peer(eighth, verbose=False),
            },
            rounds,
        )
    slow = megabytes_of(eighth) / seconds.pop("GPT2TokenizerFast, a batch")
    return {name: size / value for name, value in seconds.items()} | {"GPT2TokenizerFast, a batch": slow}


def tiktoken_of(tokenizer: PreTrainedTokenizerFast) -> tiktoken.Encoding:
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    ranks = {characters_to_bytes(token): rank for token, rank in extract_ranks(stored).items()}
    return tiktoken.Encoding("gpt2", pat_str=SPLIT_PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={})


def peer_speed(files: list[Path], vocabularies: Path, megabytes: float, rounds: int) -> float:
    texts = documents(files, megabytes)[::2]
    ours = tokenizer_from_vocab_and_merges(vocabularies / "encoder.json", vocabularies / "vocab.bpe")
    engine = tiktoken_of(ours)
    seconds = medians({"peer": lambda: [engine.encode_ordinary(text) for text in texts]}, rounds)
    return megabytes_of(texts) / seconds["peer"]


def training(files: list[Path], megabytes: float, rounds: int) -> dict[str, dict[str, float]]:
    texts = documents(files, megabytes)

    def peer() -> None:
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

    seconds = medians({"ours": lambda: train_tokenizer(texts), "peer": peer}, rounds)
    return {f"{megabytes:.0f} MB to 50,257": seconds | {"ratio": seconds["ours"] / seconds["peer"]}}


def compression(files: list[Path], vocabularies: Path) -> dict[str, dict[str, float]]:
    """Bytes in a token of text that the tokenizer was not trained on."""
    encoders = {
        "ours": build_encoder(load_tokenizer()),
        "GPT-2": build_encoder(
            tokenizer_from_vocab_and_merges(vocabularies / "encoder.json", vocabularies / "vocab.bpe")
        ),
        "cl100k": build_encoder(tokenizer_from_tiktoken(vocabularies / "cl100k_base.tiktoken", "cl100k_base")),
    }
    rows = {}
    for file in files:
        text = file.read_text("utf-8", "ignore")
        rows[file.name] = {name: len(text.encode()) / len(each.encode([text])[0]) for name, each in encoders.items()}
    return rows


def rates_of(command: list[str], cores: list[list[int]]) -> list:
    """What the command prints on its last line, of one process for each list of cores, all at a time."""
    allowed = sorted(os.sched_getaffinity(0))
    processes = [
        subprocess.Popen(
            [*command, "--cores", json.dumps([allowed[n] for n in each])], stdout=subprocess.PIPE, text=True
        )
        for each in cores
    ]
    printed = [process.communicate()[0] for process in processes]
    return [json.loads(text.splitlines()[-1]) for text in printed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--vocabularies", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, nargs="*", default=[])
    parser.add_argument("--only", nargs="*", default=["speed", "training", "compression"])
    parser.add_argument("--megabytes", type=float, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", help=argparse.SUPPRESS)
    parser.add_argument("--peer-alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cores:
        measure = peer_speed if arguments.peer_alone else speed
        print(json.dumps(measure(arguments.files, arguments.vocabularies, arguments.megabytes, arguments.rounds)))
        return

    if "speed" in arguments.only:
        again = [sys.executable, __file__, *map(str, arguments.files), "--vocabularies", str(arguments.vocabularies)]
        again += ["--megabytes", str(arguments.megabytes), "--rounds", str(arguments.rounds)]
        rates = {1: rates_of(again, [[0]])[0], 2: rates_of(again, [[0, 1]])[0]}
        # What the machine allows: the peer twice, side by side, with nothing in common but the machine.
        apart = rates_of([*again, "--peer-alone"], [[0], [1]])
        rates[1]["tiktoken, two processes"] = rates_of([*again, "--peer-alone"], [[0]])[0]
        rates[2]["tiktoken, two processes"] = sum(apart)
        print(f"{'MB/s':32}{'one core':>10}{'two':>10}{'ratio':>8}")
        for name in rates[1]:
            one, two = rates[1][name], rates[2][name]
            print(f"{name:32}{one:>10.2f}{two:>10.2f}{two / one:>8.2f}")
        print(json.dumps({"machine": machine(), "megabytes per second": rates}))
    if "training" in arguments.only:
        report(training(arguments.files, 20, arguments.rounds))
    if "compression" in arguments.only:
        rows = compression(arguments.held_out, arguments.vocabularies)
        print(f"{'bytes per token':32}{'ours':>10}{'GPT-2':>10}{'ratio':>8}{'cl100k':>10}{'ratio':>8}")
        for name, row in rows.items():
            ours, gpt2, cl100k = row.values()
            print(f"{name:32}{ours:>10.2f}{gpt2:>10.2f}{ours / gpt2:>8.2f}{cl100k:>10.2f}{ours / cl100k:>8.2f}")
        print(json.dumps({"bytes per token": rows}))


if __name__ == "__main__":
    main()
