"""Encodes documents to tokens: in memory, or from files of any size to disk on all cores."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from transformers import PreTrainedTokenizerFast

from ..folders import output_folder, state_of
from ..tokenization.loading import forget_code
from ..version import __version__
from .documents import Chunk, find_row_error, read_documents, split_document
from .encoders import Encoder, build_encoder
from .token_files import EncodedBatch, Tokens, TokenWriter, skipped_documents
from .token_index import Place, TokenIndex

T = TypeVar("T")

SHARD_TOKENS = 1 << 27
BATCH_CHARACTERS = 1 << 18  # that a thread encodes at a time


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Tokens:
    """Encodes documents in memory. Text that spells a special token is encoded as text.

    Args:
        tokenizer: a tokenizer with a tokenizer.json and an end-of-text token.
        texts: the documents.

    Raises:
        ValueError: a document is not text, or has no word boundary within `chunking.MAX_WORD_CHARACTERS`; or the
            tokenizer has no end-of-text token, or one that text can become.
    """
    if isinstance(texts, str):
        raise ValueError("expected a list of texts, got one text")
    encoder, eos = build_encoder(tokenizer), _end_of_text_id(tokenizer)
    whole, chunks = not encoder.is_chunkable, []
    for number, text in enumerate(texts):
        if error := find_row_error(text, whole):
            raise ValueError(f"text {number} {error}")
        chunks += split_document(text, None, whole)
    tokens, document_ends = _encode_chunks(chunks, encoder, eos)
    return Tokens([tokens], document_ends)


def tokenize_files(
    files: Iterable[Path | str],
    tokenizer: PreTrainedTokenizerFast,
    out: Path | str,
    *,
    column: str = "text",
    engine: str | None = None,
    threads: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    show_progress: bool = False,
) -> TokenIndex:
    """Encodes a corpus of any size into a folder of tokens, or resumes the same call where it was interrupted.

    Text that spells a special token is encoded as text. Documents with an error of `read_documents` are skipped,
    counted and listed in `skipped.jsonl`.

    Peak memory does not depend on the corpus: that of `read_documents`, and 310 MB for each thread. A tokenizer that
    does not split text as GPT-1, GPT-2, GPT-4 or GPT-4o does needs 150 bytes per byte of the longest document instead.

    Args:
        files: text (`.gz` or not), one document each; `.jsonl`, `.jsonl.gz` or `.parquet`, one document per row.
        tokenizer: a tokenizer with a tokenizer.json and an end-of-text token.
        out: folder to write, new or empty. It appears when it is complete.
        column: column or key that contains the text of a row.
        engine: `tiktoken` or `tokenizers`; the fastest installed one by default. The ids are the same.
        threads: number of threads; one for each core available to this process by default.
        shard_tokens: number of tokens after which a new file begins. An interrupted run loses at most as many.
        show_progress: print a progress bar.

    Returns:
        The counts of documents and tokens.

    Raises:
        ValueError: the tokenizer has no end-of-text token, or one that text can become; no document could be read; or
            the engine would give other ids.
        OSError: a file is missing or damaged, `out` is not empty, or the disk is full.
    """
    paths = [Path(file) for file in files]
    if folders := [path for path in paths if path.is_dir()]:
        raise IsADirectoryError(f"{folders[0]} is a folder: expected files")
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens={shard_tokens}: expected at least 1")
    encoder, eos = build_encoder(tokenizer, engine), _end_of_text_id(tokenizer)
    threads = threads or _count_available_cores()
    description = {
        "files": state_of(paths),
        "column": column,
        "tokenizer": sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "eos_token_id": eos,
        "shard_tokens": shard_tokens,
        "release": __version__,
    }
    with output_folder(out, description) as folder:
        index = TokenIndex(encoder.dtype.newbyteorder("<").str, eos, vocab_size=encoder.vocab_size)
        with (
            TokenWriter(folder, index, shard_tokens) as writer,
            ThreadPoolExecutor(threads) as pool,
            _progress_bar(paths, show_progress) as move_bar,
        ):
            batches = _read_batches(paths, writer.index.place, column, whole=not encoder.is_chunkable)
            tasks = (pool.submit(_encode_batch, batch, encoder, eos) for batch in batches)
            for task in _prefetch(tasks, 2 * threads):
                encoded = task.result()
                writer.write(encoded)
                move_bar(encoded.place)
            with folder.writing() as unfinished:
                tokenizer_files = forget_code(tokenizer).save_pretrained(unfinished)
            writer.finish(Path(file).name for file in tokenizer_files)
        if not writer.index.documents:
            reasons = [f"{path} has none" for path in paths] or ["expected files"]
            skipped = skipped_documents(folder.content) or reasons
            raise ValueError(f"no document to encode: {skipped[0]}")
    return writer.index


class _Batch(NamedTuple):
    """What a thread encodes at a time."""

    chunks: list[Chunk]
    skipped: list[str]
    """Documents that could not be read, and why."""
    place: Place
    """Place in the corpus after the batch, from which reading can resume."""


def _read_batches(paths: list[Path], start: Place, column: str, whole: bool) -> Iterator[_Batch]:
    chunks, skipped, size = [], [], 0
    for number, path in islice(enumerate(paths), start.file, None):
        position = start.position if number == start.file else 0
        for chunk in read_documents(path, column, position, whole=whole):
            if chunk.error:
                skipped.append(chunk.error)
            else:
                chunks.append(chunk)
            size += len(chunk.error) + len(chunk.text)
            if size >= BATCH_CHARACTERS and chunk.position is not None:
                yield _Batch(chunks, skipped, Place(number, chunk.position))
                chunks, skipped, size = [], [], 0
        if size >= BATCH_CHARACTERS or number == len(paths) - 1:
            yield _Batch(chunks, skipped, Place(number + 1, 0))
            chunks, skipped, size = [], [], 0


def _prefetch(items: Iterable[T], count: int) -> Iterator[T]:
    """Yields the items, each after the next `count` were produced."""
    produced: deque[T] = deque()
    for item in items:
        produced.append(item)
        if len(produced) > count:
            yield produced.popleft()
    yield from produced


def _encode_batch(batch: _Batch, encoder: Encoder, eos: int) -> EncodedBatch:
    tokens, document_ends = _encode_chunks(batch.chunks, encoder, eos)
    text_bytes = sum(len(chunk.text.encode()) for chunk in batch.chunks)
    return EncodedBatch(tokens, document_ends, text_bytes, batch.skipped, batch.place)


def _encode_chunks(chunks: list[Chunk], encoder: Encoder, eos: int) -> tuple[np.ndarray, np.ndarray]:
    """Encodes chunks, and adds the end-of-text token after each document.

    Returns:
        The ids (tokens,) of the encoder's dtype, and the index after each document among them (documents,), int64.
    """
    end = np.array([eos], np.uint32)
    parts, document_ends, length = [end[:0]], [], 0
    encoded = (ids for texts in _group_texts(chunks) for ids in encoder.encode(texts))
    for chunk, ids in zip(chunks, encoded, strict=True):
        parts.append(ids)
        length += len(ids)
        if chunk.ends_document:
            parts.append(end)
            length += 1
            document_ends.append(length)
    return np.concatenate(parts).astype(encoder.dtype), np.array(document_ends, np.int64)


def _group_texts(chunks: list[Chunk]) -> Iterator[list[str]]:
    """Yields the texts in groups of about `BATCH_CHARACTERS`, because an encoder needs 150 bytes per byte."""
    group, size = [], 0
    for chunk in chunks:
        group.append(chunk.text)
        size += len(chunk.text)
        if size >= BATCH_CHARACTERS:
            yield group
            group, size = [], 0
    yield group


def _end_of_text_id(tokenizer: PreTrainedTokenizerFast) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token to separate documents: expected one, as by eos_token=...")
    return tokenizer.eos_token_id


def _count_available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _progress_bar(paths: list[Path], is_shown: bool) -> Iterator[Callable[[Place], None]]:
    """Prints a progress bar in bytes of the files; the context is a function that moves it to a place."""
    sizes = [path.stat().st_size for path in paths]
    columns = (TextColumn("tokens"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not is_shown) as progress:
        bar = progress.add_task("", total=sum(sizes))

        def move(place: Place) -> None:
            # Approximate for .gz, whose positions are of decompressed bytes, and for Parquet, whose are rows.
            within = min(place.position, sizes[place.file]) if place.position else 0
            progress.update(bar, completed=sum(sizes[: place.file]) + within)

        yield move
