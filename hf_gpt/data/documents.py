"""Reads the documents of text, JSON lines and Parquet files of any size, chunk by chunk."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..tokenization.chunking import last_boundary, split_into_chunks

BLOCK_BYTES = 1 << 20  # read at a time


class Chunk(NamedTuple):
    """A document or a part of one; or, with an `error`, a document that is skipped."""

    text: str
    ends_document: bool
    position: int | None
    """Position from which `read_documents` resumes after this chunk; None if it cannot resume there."""
    error: str = ""
    """Where the document is, and why it is skipped."""


def read_documents(path: Path, column: str = "text", position: int = 0, *, whole: bool = False) -> Iterator[Chunk]:
    """Reads the documents of a file as UTF-8, without changing line ends.

    Each row of a `.jsonl` or `.parquet` file is a document; any other file is one document. Text and `.jsonl` may be
    gzip-compressed (`.gz`). Memory contains one chunk of a text file, or one row.

    Args:
        path: the file.
        column: column or key that contains the text of a row.
        position: the `position` of an earlier chunk, to resume after it.
        whole: return each document as one chunk, however long it is.

    Yields:
        The chunks of each document, in order; `chunking.split_into_chunks` defines their length. A document that is
        empty or not text is one chunk with an `error`.

    Raises:
        OSError: the file is missing or damaged.
        ImportError: the file is Parquet, and pyarrow is not installed.
    """
    try:
        yield from _read_file(path, column, position, whole)
    except (EOFError, zlib.error) as error:
        raise OSError(f"{path} is damaged: {error}") from error


def find_text_error(value: object) -> str:
    """Returns why a value is not text that can be encoded as UTF-8, or an empty string if it is."""
    if not isinstance(value, str):
        return f"is not text but {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"is not Unicode: character {error.start} is half a surrogate pair"
    return ""


def describe_decode_error(error: UnicodeDecodeError, offset: int = 0) -> str:
    """Returns the byte that is not UTF-8.

    Args:
        offset: position in the file of the first decoded byte.
    """
    return f"is not UTF-8 text: byte {offset + error.start} is {error.object[error.start]:#04x}"


def _read_file(path: Path, column: str, position: int, whole: bool) -> Iterator[Chunk]:
    if path.suffix == ".parquet":
        yield from _split_rows(path, _read_parquet(path, column, position), whole)
        return
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        if kind == ".jsonl":
            file.seek(position)
            yield from _split_rows(path, _read_json_lines(file, column, position), whole)
        elif position == 0 and (error := _find_file_error(file)):
            yield Chunk("", True, None, f"{path} {error}")
        else:
            file.seek(position)
            yield from _read_text(file, position, whole)


def _find_file_error(file: BinaryIO) -> str:
    """Returns why a whole file is not UTF-8 text, or an empty string if it is.

    The file is read to its end before any of it is encoded, because tokens that were written cannot be removed.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = 0
    while block := file.read(BLOCK_BYTES):
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(block)
        except UnicodeDecodeError as error:
            return describe_decode_error(error, start - pending)
        start += len(block)
    if decoder.getstate()[0]:
        return f"is not UTF-8 text: it ends within a character, at byte {start}"
    return "" if start else "is empty"


def _read_text(file: BinaryIO, position: int, whole: bool) -> Iterator[Chunk]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    text = ""
    while block := file.read(-1 if whole else BLOCK_BYTES):
        searched = len(text)
        text += decoder.decode(block)
        if not whole and (end := last_boundary(text, searched, len(text) - 1)):
            for part in split_into_chunks(text[:end]):
                position += len(part.encode())
                yield Chunk(part, False, position)
            text = text[end:]
    yield from _split_document(text, None, whole)


def _split_document(text: str, position: int | None, whole: bool) -> Iterator[Chunk]:
    """Yields the chunks up to the end of a document; `position` is that after the last of them."""
    *parts, last = [text] if whole else split_into_chunks(text)
    yield from (Chunk(part, False, None) for part in parts)
    yield Chunk(last, True, position)


class _Row(NamedTuple):
    name: str
    text: object
    position: int
    """Position from which to resume after the row: a byte of JSON lines, a row of Parquet."""
    error: str = ""


def _split_rows(path: Path, rows: Iterator[_Row], whole: bool) -> Iterator[Chunk]:
    for row in rows:
        error = row.error or find_text_error(row.text) or ("" if row.text else "is empty")
        if error:
            yield Chunk("", True, row.position, f"{path}, {row.name} {error}")
        else:
            yield from _split_document(row.text, row.position, whole)


def _read_json_lines(file: BinaryIO, column: str, position: int) -> Iterator[_Row]:
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
            names = file.schema_arrow.names
            if column not in names:
                yield _Row("every row", None, 0, f"has no column {column!r}: expected one of {', '.join(names)}")
                return
            batches = file.iter_batches(batch_size=256, columns=[column])
            values = (value for batch in batches for value in batch.column(0))
            for number, value in islice(enumerate(values, start=1), position, None):
                yield _Row(f"row {number}", value.as_py(), number)
    except ArrowInvalid as error:
        raise OSError(f"{path} is damaged: {error}") from error
