"""`hf-gpt train-tokenizer` and `tokenize`: a tokenizer from a corpus, and the tokens of a corpus."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from ..data import verify_tokens
from ..data.documents import read_documents
from ..data.encoders import Encoder, build_encoder
from ..data.token_files import skipped_documents
from ..data.tokenizing import SHARD_TOKENS, tokenize_files
from ..folders import output_folder
from ..tokenization.construction import SPECIAL_TOKENS
from ..tokenization.loading import SHIPPED_TOKENIZER, open_tokenizer
from ..tokenization.split_patterns import SPLIT_PATTERNS
from ..tokenization.training import SAMPLE_BYTES, train_tokenizer
from .console import console, print_line
from .options import Out

Corpus = Annotated[list[Path], typer.Argument(help="Text (.gz), .jsonl (.gz) or .parquet; UTF-8.")]
Column = Annotated[str, typer.Option(help="Key or column of the text in .jsonl and .parquet files.")]

COMPARED_BYTES = 1_000_000  # of each file, to compare tokenizers
COMPARED_FILES = 20
LISTED_DOCUMENTS = 5  # of those that are skipped

commands = typer.Typer()


@commands.command("train-tokenizer")
def train_tokenizer_command(
    files: Corpus,
    out: Out,
    vocab_size: Annotated[
        int, typer.Option(help="Maximum size of the vocabulary, with bytes and special tokens.")
    ] = 50257,
    split_pattern: Annotated[str, typer.Option(help=f"One of {', '.join(SPLIT_PATTERNS)}.")] = "gpt2",
    special_token: Annotated[
        list[str] | None, typer.Option(help="A special token beside the default ones.", show_default=False)
    ] = None,
    column: Column = "text",
    sample_bytes: Annotated[
        int, typer.Option(min=1, help="Maximum text to train on, sampled evenly; memory is proportional to it.")
    ] = SAMPLE_BYTES,
    against: Annotated[str, typer.Option(help="A tokenizer to compare with, if it is available offline.")] = "gpt2",
) -> None:
    """Train a byte-level BPE tokenizer, which AutoTokenizer loads without hf_gpt."""
    skipped: list[str] = []
    with output_folder(out) as folder:
        tokenizer = train_tokenizer(
            read_texts(files, column, skipped),
            vocab_size,
            split_pattern,
            special_tokens=[*(special_token or []), *SPECIAL_TOKENS],
            sample_bytes=sample_bytes,
            show_progress=True,
        )
        with folder.writing() as unfinished:
            tokenizer.save_pretrained(unfinished)
    print_skipped(skipped)
    print_line(f"{out}: {len(tokenizer):,} tokens")
    encoders = {str(out): build_encoder(tokenizer)}
    with suppress(OSError, ValueError):
        encoders[against] = build_encoder(open_tokenizer(against, local_files_only=True))
    print_bytes_per_token(encoders, files, column)


def verify_folder(folder: Path | None) -> None:
    """Checks a folder of tokens and ends the command, if it has the option."""
    if folder is not None:
        index = verify_tokens(folder, show_progress=True)
        checksums = "" if index.checksums else "; it was written without checksums"
        print_line(f"{folder}: {index.tokens:,} tokens of {index.documents:,} documents are intact{checksums}")
        raise typer.Exit


@commands.command("tokenize")
def tokenize_command(
    files: Corpus,
    out: Out,
    tokenizer: Annotated[
        str,
        typer.Option(
            help="Folder or Hub id of a tokenizer, or a file like o200k_base.tiktoken.",
            show_default="the shipped tokenizer",
        ),
    ] = SHIPPED_TOKENIZER,
    column: Column = "text",
    engine: Annotated[
        str | None, typer.Option(help="tiktoken or tokenizers. Default: the fastest installed one. The ids are equal.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads. Default: one for each core.")] = None,
    shard_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens in a file.")] = SHARD_TOKENS,
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Check a folder that this command wrote, and exit.",
            is_eager=True,
            callback=verify_folder,
        ),
    ] = None,
) -> None:
    """Encode a corpus to files of tokens, which TokenBlocks memory-maps. The same command resumes after an
    interruption. `hf-gpt tokenize --verify FOLDER` checks the result."""
    index = tokenize_files(
        files,
        open_tokenizer(tokenizer),
        out,
        column=column,
        engine=engine,
        threads=threads,
        shard_tokens=shard_tokens,
        show_progress=True,
    )
    print_skipped(skipped_documents(out))
    print_line(
        f"{out}: {index.tokens:,} tokens of {index.documents:,} documents, {index.text_bytes / index.tokens:.2f} bytes "
        f"per token; {len(index.shards)} files of {np.dtype(index.dtype).name}"
    )


def read_texts(files: list[Path], column: str, skipped: list[str]) -> Iterator[str]:
    """Yields the text of a corpus in chunks, and appends an error to `skipped` for each document that is not text.

    Raises:
        ValueError: no document is text.
    """
    is_empty = True
    for file in files:
        for chunk in read_documents(file, column):
            if chunk.error:
                skipped.append(chunk.error)
            else:
                is_empty = False
                yield chunk.text
    if is_empty:
        raise ValueError(f"no document to read: {skipped[0]}")


def print_skipped(skipped: list[str]) -> None:
    """Prints the first errors and their number."""
    for error in skipped[:LISTED_DOCUMENTS]:
        print_line(f"skipped: {error}", style="yellow")
    if len(skipped) > LISTED_DOCUMENTS:
        print_line(f"skipped: {len(skipped):,} documents in total", style="yellow")


def print_bytes_per_token(encoders: dict[str, Encoder], files: list[Path], column: str) -> None:
    """Prints a table of the compression of each file by each encoder, measured on the first `COMPARED_BYTES`."""
    table = Table("bytes per token", *encoders)
    total = Counter()
    for file in files[:COMPARED_FILES]:
        counts = Counter()
        for chunk in read_documents(file, column):
            if counts["bytes"] > COMPARED_BYTES:
                break
            counts["bytes"] += len(chunk.text.encode())
            counts.update({name: len(encoder.encode([chunk.text])[0]) for name, encoder in encoders.items()})
        if counts["bytes"]:
            table.add_row(file.name, *_bytes_per_token(counts, encoders))
            total += counts
    if total["bytes"]:
        table.add_row("all", *_bytes_per_token(total, encoders), style="bold")
        console.print(table)


def _bytes_per_token(counts: Counter, encoders: dict[str, Encoder]) -> list[str]:
    return [f"{counts['bytes'] / max(1, counts[name]):.2f}" for name in encoders]
