"""Reads the documents of text, JSON lines and Parquet files of any size, chunk by chunk."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..tokenization.chunking import MAX_WORD_CHARACTERS, find_long_word, last_boundary, split_into_chunks

BLOCK_BYTES = 1 << 20  # read at a time
MAX_ROW_BYTES = 1 << 24  # of a line of JSON, a cell of Parquet, and a compressed text that is read whole

# The column of a row group of Parquet is skipped if it has more bytes than this, and more per compressed byte.
MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO = 1 << 28, 100
MAX_PARQUET_ROWS = 256  # read at a time
TEXT_TYPES = ("string", "large_string", "string_view", "null")  # of Arrow


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
    gzip-compressed (`.gz`).

    Peak memory does not depend on the size of a file: 20 MB for text, 500 MB for `.jsonl`, 1 GB for Parquet whose
    columns have at most 10 times as many bytes as their compressed form. An uncompressed text file that is read `whole`
    needs 10 bytes per byte of its size, a column chunk of Parquet 400 per compressed byte.

    Args:
        path: the file.
        column: column or key that contains the text of a row.
        position: the `position` of an earlier chunk, to resume after it.
        whole: return each document as one chunk, however long it is.

    Yields:
        The chunks of each document, in order; `chunking.split_into_chunks` defines their length. A document is one
        chunk with an `error` if it is empty, not text, longer than `MAX_ROW_BYTES` in a row, or if it has no word
        boundary within `MAX_WORD_CHARACTERS` and is not read `whole`.

    Raises:
        OSError: the file is missing or damaged.
        ImportError: the file is Parquet, and pyarrow is not installed.
    """
    try:
        yield from _read_file(path, column, position, whole)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
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


def find_long_word_error(parts: Iterable[str]) -> str:
    """Returns where a text has no word boundary, or an empty string.

    Args:
        parts: the text in consecutive parts.
    """
    start = find_long_word(parts)
    limit = f"{MAX_WORD_CHARACTERS:,} characters"
    return "" if start is None else f"has no word boundary within {limit} from character {start}"


def _read_file(path: Path, column: str, position: int, whole: bool) -> Iterator[Chunk]:
    if path.suffix == ".parquet":
        yield from _split_rows(path, _read_parquet(path, column, position), whole)
        return
    is_compressed = path.suffix == ".gz"
    kind = path.with_suffix("").suffix if is_compressed else path.suffix
    with gzip.open(path) if is_compressed else path.open("rb") as file:
        if kind == ".jsonl":
            file.seek(position)
            yield from _split_rows(path, _read_json_lines(file, column, position), whole)
        elif position == 0 and (error := _find_file_error(file, whole, is_compressed)):
            yield Chunk("", True, None, f"{path} {error}")
        else:
            file.seek(position)
            yield from _read_text(file, position, whole)


def _find_file_error(file: BinaryIO, whole: bool, is_compressed: bool) -> str:
    """Returns why a whole file cannot be encoded, or an empty string if it can.

    The file is read to its end before any of it is encoded, because tokens that were written cannot be removed.
    """
    if not file.peek(1):
        return "is empty"
    try:
        if not whole:
            return find_long_word_error(_decode(file))
        for _ in _decode(file):
            if is_compressed and file.tell() > MAX_ROW_BYTES:
                return f"has more than {MAX_ROW_BYTES:,} bytes, which this tokenizer cannot encode in parts"
    except _DecodeError as error:
        return str(error)
    return ""


class _DecodeError(ValueError):
    """A file is not UTF-8 text."""


def _decode(file: BinaryIO, start: int = 0) -> Iterator[str]:
    """Yields the text of a file from a byte on, in blocks of at most `BLOCK_BYTES`.

    Blocks end at multiples of their size wherever reading begins, so that a resumed run has the same chunks.

    Raises:
        _DecodeError: it is not UTF-8. The message names the byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    while block := file.read(BLOCK_BYTES - start % BLOCK_BYTES):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block)
        except UnicodeDecodeError as error:
            raise _DecodeError(describe_decode_error(error, start - pending)) from None
        yield text
        start += len(block)
    if decoder.getstate()[0]:
        raise _DecodeError(f"is not UTF-8 text: it ends within a character, at byte {start}")


def _read_text(file: BinaryIO, position: int, whole: bool) -> Iterator[Chunk]:
    if whole:
        yield Chunk("".join(_decode(file)), True, None)
        return
    text = ""  # since the last boundary
    for block in _decode(file, position):
        searched = max(0, len(text) - 1)
        text += block
        if end := last_boundary(text, searched, len(text) - 1):
            for part in split_into_chunks(text[:end]):
                position += len(part.encode())
                yield Chunk(part, False, position)
            text = text[end:]
    yield from split_document(text, None, whole)


def split_document(text: str, position: int | None, whole: bool) -> Iterator[Chunk]:
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
        if error := row.error or find_row_error(row.text, whole):
            yield Chunk("", True, row.position, f"{path}, {row.name} {error}")
        else:
            yield from split_document(row.text, row.position, whole)


def find_row_error(text: object, whole: bool) -> str:
    """Returns why a value cannot be encoded, or an empty string if it can."""
    if error := find_text_error(text):
        return error
    if not text:
        return "is empty"
    return find_long_word_error([text]) if len(text) > MAX_WORD_CHARACTERS and not whole else ""


_TOO_LONG = f"has more than {MAX_ROW_BYTES:,} bytes"


def _read_json_lines(file: BinaryIO, column: str, position: int) -> Iterator[_Row]:
    while line := file.readline(MAX_ROW_BYTES + 1):
        name, position = f"byte {position}", position + len(line)
        if len(line) > MAX_ROW_BYTES:
            while not line.endswith(b"\n") and (line := file.readline(BLOCK_BYTES)):
                position += len(line)
            yield _Row(name, None, position, _TOO_LONG)
            continue
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
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError("reading Parquet needs the package pyarrow: pip install 'hf_gpt[data]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            if error := _find_column_error(file.schema_arrow, column):
                yield _Row("every row", None, 0, error)
            else:
                yield from _read_row_groups(file, column, position)
    except FileNotFoundError:
        raise
    except (ArrowException, OSError) as error:
        raise OSError(f"{path} is damaged: {error}") from error


def _find_column_error(schema: Any, column: str) -> str:
    """Returns why a column of an Arrow schema is not text, or an empty string if it is."""
    if schema.names.count(column) != 1:
        return f"has no column {column!r}: expected one of {', '.join(schema.names)}"
    kind = schema.field(column).type
    is_dictionary = hasattr(kind, "index_type")
    kind = str(kind.value_type if is_dictionary else kind)
    return "" if kind in TEXT_TYPES else f"is not text but {kind}"


def _read_row_groups(file: Any, column: str, position: int) -> Iterator[_Row]:
    """Yields the rows of a `pyarrow.parquet.ParquetFile` after the first `position`."""
    paths = [file.schema.column(number).path for number in range(len(file.schema))]
    end = 0
    for group in range(file.num_row_groups):
        metadata = file.metadata.row_group(group)
        start, end = end, end + metadata.num_rows
        if end <= position:
            continue
        chunk = metadata.column(paths.index(column))
        size = chunk.total_uncompressed_size
        if size > max(MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO * chunk.total_compressed_size):
            error = f"has {size:,} bytes, more than {MAX_UNPACKED_RATIO} times as many as compressed"
            yield _Row(f"every row from {start + 1} to {end}", None, end, error)
            continue
        # Each row may repeat the whole chunk, which a dictionary stores once.
        rows = min(max(1, MAX_UNPACKED_BYTES // max(1, size)), MAX_PARQUET_ROWS)
        batches = file.iter_batches(rows, row_groups=[group], columns=[column])
        cells = (cell for batch in batches for cell in batch.column(0))
        for number, cell in islice(enumerate(cells, start + 1), max(0, position - start), None):
            yield _read_cell(cell, number)


def _read_cell(cell: Any, number: int) -> _Row:
    """Returns a scalar of Arrow as the row with this number."""
    text = getattr(cell, "value", cell)  # of a dictionary
    name = f"row {number}"
    if text is not None and text.is_valid and text.as_buffer().size > MAX_ROW_BYTES:
        return _Row(name, None, number, _TOO_LONG)
    try:
        return _Row(name, cell.as_py(), number)
    except UnicodeDecodeError as error:
        return _Row(name, None, number, describe_decode_error(error))
