"""The tokens of a corpus on disk, written once and then memory-mapped.

A folder of tokens contains

    tokens-00000.bin ...  the ids of all documents, concatenated, an end-of-text token after each; little-endian
                          integers of the smallest unsigned type that holds every id, which `numpy.memmap` opens
    documents.bin         the end of each document in this sequence, int64
    skipped.jsonl         the documents that could not be read, and why
    index.json            the integer type, the length of each shard, counts and checksums (`TokenIndex`)
    tokenizer.json ...    the tokenizer
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..folders import PartialFolder, move
from .checksums import BLOCK_BYTES, ChecksummedFile, check_size, checksums_of, read_block
from .token_index import DOCUMENTS, INDEX, SKIPPED, Place, TokenIndex, read_index, shard_name

POSITION_TYPE = np.dtype("<i8")  # of documents.bin


@dataclass(frozen=True)
class Tokens:
    """The ids of documents, concatenated, an end-of-text token after each."""

    shards: list[np.ndarray]
    """Integers of any type, each (tokens of the shard,)."""
    document_ends: np.ndarray
    """Index after the last token of each document, counted over all shards, int64 (documents,)."""
    folder: Path | None = None
    """Folder whose files the shards map; None in memory."""
    index: TokenIndex | None = None
    """Of the folder."""

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def __reduce__(self) -> tuple:
        if self.folder is not None:  # a worker process maps the files instead of receiving their contents
            return map_tokens, (self.folder,)
        return Tokens, (self.shards, self.document_ends)

    def check(self, shard: int, position: int) -> None:
        """Reads and checks the block of the file that contains a token.

        Args:
            shard: number of the shard.
            position: of the token in the shard.

        Raises:
            ValueError: the block has changed since it was written, or contains an id outside the vocabulary.
        """
        if self.index is not None:
            number = int(position) * self.shards[shard].itemsize // BLOCK_BYTES
            read_ids(self.folder, self.index, shard_name(shard), number)


def map_tokens(folder: Path | str) -> Tokens:
    """Memory-maps a folder of tokens after checking its index and the sizes of its files.

    Raises:
        FileNotFoundError: the folder contains no tokens, or a file is missing.
        ValueError: the index is damaged, or a file does not have the size that it states.
    """
    folder = Path(folder).resolve()
    index = read_index(folder)
    if extra := {path.name for path in folder.glob("tokens-*")} - {*index.token_files}:
        raise ValueError(f"{folder / min(extra)} is not in {INDEX}, which lists {len(index.shards)} shards")
    shards = [_map(folder / name, index.dtype, length) for name, length in index.token_files.items()]
    return Tokens(shards, _map(folder / DOCUMENTS, POSITION_TYPE, index.documents), folder, index)


def read_ids(folder: Path, index: TokenIndex, name: str, number: int) -> np.ndarray:
    """Returns the ids in a block of a shard, after checking them.

    Raises:
        ValueError: the block has changed since it was written, or contains an id outside the vocabulary.
    """
    ids = np.frombuffer(read_block(folder / name, number, index.checksums.get(name, "")), index.dtype)
    if index.vocab_size is not None and ids.max() >= index.vocab_size:
        raise ValueError(f"{folder / name} contains the id {ids.max()}, expected ids below {index.vocab_size}")
    return ids


def skipped_documents(folder: Path | str) -> list[str]:
    """Returns where each document is that could not be read, and why."""
    return [json.loads(line) for line in (Path(folder) / SKIPPED).read_text("utf-8").splitlines()]


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
        ValueError: the index of an interrupted run is damaged, or a file is shorter than it states.
    """

    def __init__(self, folder: PartialFolder, index: TokenIndex, shard_tokens: int) -> None:
        self.folder, self.shard_tokens = folder, shard_tokens
        content = folder.content
        self.index = read_index(content) if (content / INDEX).exists() else index
        for name, length in self.index.token_files.items():
            _map(content / name, index.dtype, length)  # raises if the shard is damaged
        self._documents = self._open(DOCUMENTS, POSITION_TYPE.itemsize * self.index.documents)
        self._skipped = self._open(SKIPPED, self.index.skipped_bytes)
        self._begin_shard()

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *_) -> None:
        for file in (self._shard, self._documents, self._skipped):
            file.close()

    def _open(self, name: str, size: int = 0) -> ChecksummedFile:
        return ChecksummedFile(self.folder.content / name, self.index.checksums.get(name, ""), size)

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

    def finish(self, others: Iterable[str] = ()) -> None:
        """Completes the last shard, unless it is empty.

        Args:
            others: names of other files in the folder, of which the index contains checksums too.
        """
        self.index.checksums |= {name: checksums_of(self.folder.content / name) for name in others}
        if self._length:
            self._end_shard()
        else:
            self._save_index()

    @property
    def _shard_name(self) -> str:
        return shard_name(len(self.index.shards))

    def _begin_shard(self) -> None:
        self._shard, self._length = ChecksummedFile(self.folder.unfinished / self._shard_name), 0

    def _end_shard(self) -> None:
        self._shard.close()
        move(self.folder.unfinished / self._shard_name, self.folder.content / self._shard_name)
        self.index.checksums[self._shard_name] = self._shard.checksums
        self.index.shards.append(self._length)
        self._save_index()

    def _save_index(self) -> None:
        for name, file in ((DOCUMENTS, self._documents), (SKIPPED, self._skipped)):
            file.synchronize()
            self.index.checksums[name] = file.checksums
        with self.folder.writing() as unfinished:
            (unfinished / INDEX).write_text(self.index.to_json())


def _map(path: Path, dtype: np.dtype | str, length: int) -> np.ndarray:
    """Memory-maps a file of `length` integers; raises ValueError if it has another size."""
    check_size(path, length * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, mode="r", shape=(length,)) if length else np.empty(0, dtype)
