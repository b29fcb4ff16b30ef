"""Documents from files of any size, a piece at a time: text, JSON lines and Parquet."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..tokenization.pieces import cut, last_boundary

BLOCK = 1 << 20  # bytes read at a time


class Piece(NamedTuple):
    """A part of a document, or all of it; or, with a `flaw`, a document that is skipped."""

    text: str
    ends_document: bool
    position: int | None
    """Where reading may go on after this piece, if it may."""
    flaw: str = ""
    """What the document is called, and what is wrong with it."""


def read_documents(path: Path, column: str = "text", position: int = 0, *, whole: bool = False) -> Iterator[Piece]:
    """The documents of a file, decoded as UTF-8, line ends as they are.

    A `.jsonl` or `.parquet` file has a document in `column` of each row; any other file is one document. Text and
    `.jsonl` may be compressed, `.gz`. Memory holds a document of a row, or a piece of a text file.

    Args:
        position: where to go on, as an earlier piece said.
        whole: do not cut documents into pieces.

    Raises:
        OSError: the file is missing or damaged.
        ImportError: it is a Parquet file, and pyarrow is not installed.
    """
    try:
        yield from _read(path, column, position, whole)
    except (EOFError, zlib.error) as error:
        raise OSError(f"{path} is damaged: {error}") from error


def _read(path: Path, column: str, position: int, whole: bool) -> Iterator[Piece]:
    if path.suffix == ".parquet":
        yield from _rows(path, _read_parquet(path, column, position), whole)
        return
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        if position == 0 and kind != ".jsonl" and (flaw := _flaw(file)):
            yield Piece("", True, None, f"{path} {flaw}")
            return
        file.seek(position)
        if kind == ".jsonl":
            yield from _rows(path, _read_lines(file, column, position), whole)
        else:
            yield from _read_text(file, position, whole)


def _read_text(file: BinaryIO, position: int, whole: bool) -> Iterator[Piece]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    text = ""
    while block := file.read(-1 if whole else BLOCK):
        searched = len(text)
        text += decoder.decode(block)
        if not whole and (end := last_boundary(text, searched, len(text) - 1)):
            for piece in cut(text[:end]):
                position += len(piece.encode())
                yield Piece(piece, False, position)
            text = text[end:]
    *pieces, last = [text] if whole else cut(text)
    yield from (Piece(piece, False, None) for piece in pieces)
    yield Piece(last, True, None)


class _Row(NamedTuple):
    name: str
    text: object
    position: int
    flaw: str = ""


def _rows(path: Path, rows: Iterator[_Row], whole: bool) -> Iterator[Piece]:
    for row in rows:
        flaw = row.flaw or flaw_of(row.text) or ("" if row.text else "is empty")
        if flaw:
            yield Piece("", True, row.position, f"{path}, {row.name} {flaw}")
            continue
        *pieces, last = [row.text] if whole else cut(row.text)
        yield from (Piece(piece, False, None) for piece in pieces)
        yield Piece(last, True, row.position)


def _read_lines(file: BinaryIO, column: str, position: int) -> Iterator[_Row]:
    for line in file:
        name, position = f"byte {position}", position + len(line)
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield _Row(name, None, position, "is not JSON")
            continue
        if isinstance(row, dict) and column in row:
            yield _Row(name, row[column], position)
        else:
            yield _Row(name, None, position, f"has no {column!r}")


def _read_parquet(path: Path, column: str, position: int) -> Iterator[_Row]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise ImportError("reading Parquet needs the package pyarrow: pip install 'hf_gpt[data]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                yield _Row("all rows", None, 0, f"has no column {column!r}, but {', '.join(file.schema_arrow.names)}")
                return
            batches = file.iter_batches(batch_size=256, columns=[column])
            values = (value for batch in batches for value in batch.column(0))
            for number, value in islice(enumerate(values, start=1), position, None):
                yield _Row(f"row {number}", value.as_py(), number)
    except ArrowInvalid as error:
        raise OSError(f"{path} is damaged: {error}") from error


def flaw_of(value: object) -> str:
    """What keeps a value from being text that can be encoded, if anything."""
    if not isinstance(value, str):
        return f"is no text but {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"is not Unicode: character {error.start} is half a surrogate pair"
    return ""


def _flaw(file: BinaryIO) -> str:
    """What keeps a whole file from being text. It is read to its end: what was encoded cannot be taken back."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = 0
    while block := file.read(BLOCK):
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(block)
        except UnicodeDecodeError as error:
            return f"is not UTF-8 text: byte {start - pending + error.start} is {error.object[error.start]:#04x}"
        start += len(block)
    if decoder.getstate()[0]:
        return f"is not UTF-8 text: it ends within a character, at byte {start}"
    return "" if start else "is empty"
