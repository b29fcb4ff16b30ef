"""The tokens of a corpus on disk, written once and then memory-mapped.

A folder of tokens contains

    tokens-00000.bin ...  the ids of all documents, concatenated, an end-of-text token after each; little-endian
                          integers of the smallest unsigned type that holds every id, which `numpy.memmap` opens
    documents.bin         the end of each document in this sequence, int64
    skipped.jsonl         the documents that could not be read, and why
    index.json            the integer type, the length of each shard, and counts (`TokenIndex`)
    tokenizer.json ...    the tokenizer
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..folders import PartialFolder, move

INDEX, DOCUMENTS, SKIPPED = "index.json", "documents.bin", "skipped.jsonl"
POSITION_TYPE = np.dtype("<i8")  # of documents.bin


class Place(NamedTuple):
    """A place in the corpus, between two chunks."""

    file: int
    """Number of the file."""
    position: int
    """Position in the file, as `read_documents` takes it."""


@dataclass
class TokenIndex:
    """The contents of a folder of tokens, stored in index.json."""

    dtype: str
    """NumPy's name of the integer type."""
    eos_token_id: int
    shards: list[int] = field(default_factory=list)
    """Number of tokens of each shard."""
    documents: int = 0
    """Number of documents."""
    skipped: int = 0
    """Number of documents in skipped.jsonl."""
    skipped_bytes: int = 0
    """Size of skipped.jsonl."""
    text_bytes: int = 0
    """Size of all documents in bytes of UTF-8."""
    place: Place = field(default=Place(0, 0))
    """Place in the corpus after the last shard, from which an interrupted run resumes."""

    @property
    def tokens(self) -> int:
        return sum(self.shards)


@dataclass(frozen=True)
class Tokens:
    """The ids of documents, concatenated, an end-of-text token after each."""

    shards: list[np.ndarray]
    """Integers of any type, each (tokens of the shard,)."""
    document_ends: np.ndarray
    """Index after the last token of each document, counted over all shards, int64 (documents,)."""
    folder: Path | None = None
    """Folder whose files the shards map; None in memory."""

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def __reduce__(self) -> tuple:
        if self.folder is not None:  # a worker process maps the files instead of receiving their contents
            return open_tokens, (self.folder,)
        return Tokens, (self.shards, self.document_ends)


def open_tokens(folder: Path | str) -> Tokens:
    """Memory-maps a folder of tokens that `tokenize_files` or `hf-gpt tokenize` wrote.

    Raises:
        FileNotFoundError: the folder contains no tokens, or a shard is missing.
        ValueError: a file does not have the size that the index states.
    """
    folder = Path(folder).resolve()
    index = read_index(folder)
    shards = [_map(folder / shard_name(number), index.dtype, length) for number, length in enumerate(index.shards)]
    return Tokens(shards, _map(folder / DOCUMENTS, POSITION_TYPE, index.documents), folder)


def read_index(folder: Path | str) -> TokenIndex:
    """Reads the index of a folder of tokens.

    Raises:
        FileNotFoundError: the folder has no index.json.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {INDEX}: expected a folder that `hf-gpt tokenize` wrote")
    stored = json.loads(path.read_text("utf-8"))
    return TokenIndex(**stored | {"place": Place(*stored["place"])})


def skipped_documents(folder: Path | str) -> list[str]:
    """Returns where each document is that could not be read, and why."""
    return [json.loads(line) for line in (Path(folder) / SKIPPED).read_text("utf-8").splitlines()]


def shard_name(number: int) -> str:
    return f"tokens-{number:05}.bin"


class EncodedBatch(NamedTuple):
    """Consecutive documents or parts of documents, encoded."""

    tokens: np.ndarray
    """Ids (tokens,)."""
    document_ends: np.ndarray
    """Index in `tokens` after each document that ends in the batch, int64."""
    text_bytes: int
    """Size of the text in bytes of UTF-8."""
    skipped: list[str]
    """Documents that could not be read, and why."""
    place: Place
    """Place in the corpus after the batch."""


class TokenWriter:
    """Appends batches to the shards of a folder; use it as a context manager.

    The index on disk describes complete shards only. A writer for a folder that has an index removes what an
    interrupted run wrote after the last complete shard; `index.place` is where to resume.

    Args:
        folder: the folder to write.
        index: the index of a new folder; ignored if the folder has one.
        shard_tokens: number of tokens after which a shard is complete.

    Raises:
        ValueError: a file of an interrupted run is shorter than its index states.
    """

    def __init__(self, folder: PartialFolder, index: TokenIndex, shard_tokens: int) -> None:
        self.folder, self.shard_tokens = folder, shard_tokens
        content = folder.content
        self.index = read_index(content) if (content / INDEX).exists() else index
        for number, length in enumerate(self.index.shards):
            _map(content / shard_name(number), index.dtype, length)  # raises if the shard is damaged
        _truncate(content / DOCUMENTS, POSITION_TYPE.itemsize * self.index.documents)
        _truncate(content / SKIPPED, self.index.skipped_bytes)
        self._documents, self._skipped = (content / DOCUMENTS).open("ab"), (content / SKIPPED).open("ab")
        self._begin_shard()

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *_) -> None:
        for file in (self._shard, self._documents, self._skipped):
            file.close()

    def write(self, batch: EncodedBatch) -> None:
        """Appends a batch, and begins a new shard if the current one is complete."""
        index = self.index
        self._shard.write(batch.tokens.astype(index.dtype, copy=False))
        self._documents.write((batch.document_ends + index.tokens + self._length).astype(POSITION_TYPE, copy=False))
        for error in batch.skipped:
            index.skipped_bytes += self._skipped.write(json.dumps(error).encode() + b"\n")
        self._length += len(batch.tokens)
        index.documents += len(batch.document_ends)
        index.skipped += len(batch.skipped)
        index.text_bytes += batch.text_bytes
        index.place = batch.place
        if self._length >= self.shard_tokens:
            self._end_shard()
            self._begin_shard()

    def finish(self) -> None:
        """Completes the last shard, or removes it if it is empty."""
        if self._length:
            self._end_shard()
        else:
            self._save_index()

    def _begin_shard(self) -> None:
        self._shard, self._length = (self.folder.unfinished / self._shard_name).open("wb"), 0

    def _end_shard(self) -> None:
        self._shard.close()
        move(self.folder.unfinished / self._shard_name, self.folder.content / self._shard_name)
        self.index.shards.append(self._length)
        self._save_index()

    @property
    def _shard_name(self) -> str:
        return shard_name(len(self.index.shards))

    def _save_index(self) -> None:
        for file in (self._documents, self._skipped):
            file.flush()
            os.fsync(file.fileno())
        with self.folder.writing() as unfinished:
            (unfinished / INDEX).write_text(json.dumps(asdict(self.index), indent=2) + "\n")


def _map(path: Path, dtype: np.dtype | str, length: int) -> np.ndarray:
    """Memory-maps a file of `length` integers; raises ValueError if it has another size."""
    expected = length * np.dtype(dtype).itemsize
    size = path.stat().st_size
    if size != expected:
        raise ValueError(f"{path} is damaged: expected {expected} bytes, got {size}")
    return np.memmap(path, dtype, mode="r", shape=(length,)) if length else np.empty(0, dtype)


def _truncate(path: Path, size: int) -> None:
    """Removes what was written after the last complete shard; raises ValueError if the file is shorter than `size`."""
    path.touch()
    if path.stat().st_size < size:
        raise ValueError(f"{path} is damaged: expected {size} bytes, got {path.stat().st_size}")
    os.truncate(path, size)
