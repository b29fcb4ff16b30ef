"""A corpus as tokens on disk: written once at full speed on all cores, then mapped into memory.

A folder holds

    tokens-00000.bin ...  ids of documents end to end, each document ended by the end-of-text token; little-endian
                          integers of the smallest type that holds every id, which NumPy can map as they are
    documents.bin         where each document ends in all of this, 64-bit integers
    skipped.jsonl         the documents that could not be read, and why
    index.json            the type, the length of each shard, and the counts
    tokenizer.json ...    the tokenizer
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from transformers import PreTrainedTokenizerFast

from ..folders import resumable_folder, state_of
from .documents import Piece, flaw_of, read_documents
from .encoders import Encoder, build_encoder

T = TypeVar("T")

INDEX, DOCUMENTS, SKIPPED = "index.json", "documents.bin", "skipped.jsonl"
SHARD_TOKENS = 1 << 27
TASK = 1 << 18  # characters that a thread encodes at a time


class Place(NamedTuple):
    """Between two pieces of the corpus."""

    file: int
    position: int


@dataclass
class TokenIndex:
    """What is in a folder of tokens."""

    dtype: str
    eos_token_id: int
    shards: list[int] = field(default_factory=list)
    """Tokens in each."""
    documents: int = 0
    skipped: int = 0
    skipped_bytes: int = 0
    """Of `skipped.jsonl`."""
    text_bytes: int = 0
    place: Place = field(default=Place(0, 0))
    """Where reading goes on after the last shard."""

    @property
    def tokens(self) -> int:
        return sum(self.shards)


@dataclass(frozen=True)
class Tokens:
    """Documents end to end, each ended by the end-of-text token."""

    shards: list[np.ndarray]
    """One after the other; integers of any type."""
    document_ends: np.ndarray
    """After the last token of each document, counted over all shards."""
    folder: Path | None = None

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def __reduce__(self) -> tuple:
        if self.folder is not None:  # a new process maps the files again, instead of being sent what is in them
            return open_tokens, (self.folder,)
        return Tokens, (self.shards, self.document_ends)


def shard_name(number: int) -> str:
    return f"tokens-{number:05}.bin"


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Tokens:
    """Tokens of documents, in memory. What looks like a special token is encoded as the text that it is.

    Raises:
        ValueError: a text is none, or the tokenizer has no end-of-text token, or one that text can become.
    """
    if isinstance(texts, str):
        raise ValueError("expected a list of texts, got one text")
    texts = list(texts)
    if flaws := [f"text {number} {flaw}" for number, text in enumerate(texts) if (flaw := flaw_of(text))]:
        raise ValueError(flaws[0])
    encoder, eos = build_encoder(tokenizer), _end_of_text(tokenizer)
    tokens, ends = _encode([Piece(text, True, None) for text in texts], encoder, eos)
    return Tokens([tokens], ends)


def open_tokens(folder: Path | str) -> Tokens:
    """Map the tokens that `tokenize_files` wrote.

    Raises:
        FileNotFoundError: it is no such folder, or a shard is missing.
        ValueError: a shard is not as long as it should be.
    """
    folder = Path(folder).resolve()
    index = read_index(folder)
    shards = [_map(folder / shard_name(number), index.dtype, length) for number, length in enumerate(index.shards)]
    return Tokens(shards, _map(folder / DOCUMENTS, "<i8", index.documents), folder)


def read_index(folder: Path | str) -> TokenIndex:
    path = Path(folder) / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {INDEX}: expected a folder that `hf-gpt tokenize` wrote")
    stored = json.loads(path.read_text("utf-8"))
    return TokenIndex(**stored | {"place": Place(*stored["place"])})


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
    """Encode a corpus of any size into a folder of tokens, or go on where the same call was interrupted.

    What looks like a special token in a document is encoded as the text that it is. Documents that are empty or not
    UTF-8 text are skipped, counted, and named in `skipped.jsonl`. Memory does not grow with the corpus, nor with a
    document in a text file that has blanks, where the tokenizer cuts text as GPT-1, GPT-2, GPT-4 or GPT-4o do.

    Args:
        files: text or `.txt.gz`, one document each; `.jsonl`, `.jsonl.gz` or `.parquet`, a document in each row.
        out: folder to write, new or empty. It appears when it is complete.
        column: where a row has its document.
        engine: `tiktoken` or `tokenizers`; by default the faster that is installed. The ids are the same.
        threads: by default one for each core that this process may use.
        shard_tokens: tokens after which a new file begins. An interrupted run has lost no more.

    Raises:
        ValueError: the tokenizer has no end-of-text token, or one that text can become; no document could be read; the
            engine would give other ids.
        OSError: files are missing or damaged, `out` holds something, or the disk is full.
    """
    paths = [Path(file) for file in files]
    if folders := [path for path in paths if path.is_dir()]:
        raise IsADirectoryError(f"{folders[0]} is a folder: expected files")
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens={shard_tokens}: expected at least 1")
    encoder, eos = build_encoder(tokenizer, engine), _end_of_text(tokenizer)
    threads = threads or available_cores()
    description = {
        "files": state_of(paths),
        "column": column,
        "tokenizer": sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "eos_token_id": eos,
        "shard_tokens": shard_tokens,
    }
    with resumable_folder(out, description) as folder:
        tokenizer.save_pretrained(folder)
        dtype = encoder.dtype.newbyteorder("<").str
        with (
            _Writer(folder, TokenIndex(dtype, eos), shard_tokens) as writer,
            ThreadPoolExecutor(threads) as pool,
            _progress(paths, show_progress) as show,
        ):
            groups = _groups(paths, writer.index.place, column, whole=not encoder.divisible)
            tasks = ((group, pool.submit(_encode, group.pieces, encoder, eos)) for group in groups)
            for group, task in _ahead(tasks, 2 * threads):
                writer.write(group, *task.result())
                show(group.place)
            writer.finish()
        if not writer.index.documents:
            raise ValueError(f"no document to encode: {next(iter(skipped_documents(folder)), 'expected files')}")
    return writer.index


def skipped_documents(folder: Path | str) -> list[str]:
    """The documents that could not be read, and why."""
    return [json.loads(line) for line in (Path(folder) / SKIPPED).read_text("utf-8").splitlines()]


class _Group(NamedTuple):
    """What a thread encodes at a time."""

    pieces: list[Piece]
    flaws: list[str]
    place: Place


def _groups(paths: list[Path], start: Place, column: str, whole: bool) -> Iterator[_Group]:
    group = _Group([], [], start)
    size = 0
    for number, path in islice(enumerate(paths), start.file, None):
        position = start.position if number == start.file else 0
        for piece in read_documents(path, column, position, whole=whole):
            if piece.flaw:
                group.flaws.append(piece.flaw)
                size += len(piece.flaw)
            else:
                group.pieces.append(piece)
                size += len(piece.text)
            if size >= TASK and piece.position is not None:
                yield group._replace(place=Place(number, piece.position))
                group, size = _Group([], [], start), 0
        if size >= TASK or number == len(paths) - 1:
            yield group._replace(place=Place(number + 1, 0))
            group, size = _Group([], [], start), 0


def _ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The same items, with `count` of them begun."""
    begun: deque[T] = deque()
    for item in items:
        begun.append(item)
        if len(begun) > count:
            yield begun.popleft()
    yield from begun


def _encode(pieces: list[Piece], encoder: Encoder, eos: int) -> tuple[np.ndarray, np.ndarray]:
    """All tokens, and where documents end among them."""
    end = np.array([eos], np.uint32)
    parts, ends, length = [end[:0]], [], 0
    for piece, ids in zip(pieces, encoder.encode([piece.text for piece in pieces]), strict=True):
        parts.append(ids)
        length += len(ids)
        if piece.ends_document:
            parts.append(end)
            length += 1
            ends.append(length)
    return np.concatenate(parts).astype(encoder.dtype), np.array(ends, np.int64)


class _Writer:
    """Appends to shards; the index on disk knows of those that are whole, and of the documents that end before."""

    def __init__(self, folder: Path, index: TokenIndex, shard_tokens: int) -> None:
        self.folder, self.shard_tokens = folder, shard_tokens
        self.index = read_index(folder) if (folder / INDEX).exists() else index
        for number, length in enumerate(self.index.shards):
            _map(folder / shard_name(number), index.dtype, length)  # or say that it is damaged
        _keep(folder / DOCUMENTS, 8 * self.index.documents)
        _keep(folder / SKIPPED, self.index.skipped_bytes)
        self._ends, self._skipped = (folder / DOCUMENTS).open("ab"), (folder / SKIPPED).open("ab")
        self._begin_shard()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_) -> None:
        for file in (self._shard, self._ends, self._skipped):
            file.close()

    def write(self, group: _Group, tokens: np.ndarray, ends: np.ndarray) -> None:
        index = self.index
        self._shard.write(tokens.astype(index.dtype, copy=False))
        self._ends.write((ends + index.tokens + self._length).astype("<i8", copy=False))
        for flaw in group.flaws:
            index.skipped_bytes += self._skipped.write(json.dumps(flaw).encode() + b"\n")
        self._length += len(tokens)
        index.documents += len(ends)
        index.skipped += len(group.flaws)
        index.text_bytes += sum(len(piece.text.encode()) for piece in group.pieces)
        index.place = group.place
        if self._length >= self.shard_tokens:
            self._end_shard()
            self._begin_shard()

    def finish(self) -> None:
        if self._length:
            self._end_shard()
        else:
            self._shard.close()
            (self.folder / self._shard.name).unlink()
            self._save_index()

    def _begin_shard(self) -> None:
        self._shard, self._length = (self.folder / shard_name(len(self.index.shards))).open("wb"), 0

    def _end_shard(self) -> None:
        self._shard.close()
        self.index.shards.append(self._length)
        self._save_index()

    def _save_index(self) -> None:
        self._ends.flush()
        self._skipped.flush()
        unfinished = self.folder / f"{INDEX}.tmp"
        unfinished.write_text(json.dumps(asdict(self.index), indent=2) + "\n")
        unfinished.replace(self.folder / INDEX)


def _map(path: Path, dtype: str, length: int) -> np.ndarray:
    size = path.stat().st_size
    if size != length * np.dtype(dtype).itemsize:
        raise ValueError(f"{path} is damaged: expected {length * np.dtype(dtype).itemsize} bytes, got {size}")
    return np.memmap(path, dtype, mode="r", shape=(length,)) if length else np.empty(0, dtype)


def _keep(path: Path, size: int) -> None:
    """Take back what was written after the last shard that is whole."""
    path.touch()
    if path.stat().st_size < size:
        raise ValueError(f"{path} is damaged: expected {size} bytes, got {path.stat().st_size}")
    os.truncate(path, size)


def available_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_of_text(tokenizer: PreTrainedTokenizerFast) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token to set documents apart: expected one, as by eos_token=...")
    return tokenizer.eos_token_id


@contextmanager
def _progress(paths: list[Path], shown: bool) -> Iterator[Callable[[Place], None]]:
    sizes = [path.stat().st_size for path in paths]
    columns = (TextColumn("tokens"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not shown) as progress:
        bar = progress.add_task("", total=sum(sizes))

        def show(place: Place) -> None:
            within = min(place.position, sizes[place.file]) if place.position else 0  # of a .gz, about
            progress.update(bar, completed=sum(sizes[: place.file]) + within)

        yield show
