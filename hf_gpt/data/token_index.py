"""The index of a folder of tokens: what its files contain."""

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..json_files import read_json
from .checksums import DIGITS

INDEX, DOCUMENTS, SKIPPED = "index.json", "documents.bin", "skipped.jsonl"
CHECKSUM = "crc32"  # the key of index.json under which the checksum of the other keys is stored
DTYPES = ("|u1", "<u2", "<u4")
ADDED = {"vocab_size", "checksums"}  # keys that folders of earlier versions do not have
OTHER_FILE = re.compile(r"(?!tokens-)\w[\w.-]*", re.ASCII)  # a file of the tokenizer, in the folder itself


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
    vocab_size: int | None = None
    """All ids are less; None if the folder was written without it."""
    checksums: dict[str, str] = field(default_factory=dict)
    """CRC-32 checksums of each file by its name, as in `checksums`; empty if the folder was written without them."""

    @property
    def tokens(self) -> int:
        return sum(self.shards)

    @property
    def token_files(self) -> dict[str, int]:
        """Name of each shard, and its number of tokens."""
        return {shard_name(number): length for number, length in enumerate(self.shards)}

    def to_json(self) -> str:
        content = asdict(self) | {"checksums": dict(sorted(self.checksums.items()))}
        return json.dumps(with_checksum(content), indent=2) + "\n"


def with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """Adds the checksum of the other keys to the content of index.json."""
    return content | {CHECKSUM: _checksum(content)}


def shard_name(number: int) -> str:
    return f"tokens-{number:05}.bin"


def read_index(folder: Path | str) -> TokenIndex:
    """Reads and checks the index of a folder of tokens.

    Raises:
        FileNotFoundError: the folder has no index.json.
        ValueError: it is damaged. The message names the key.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {INDEX}: expected a folder that `hf-gpt tokenize` wrote")
    try:
        return _parse(read_json(path))
    except _WrongKey as error:
        raise ValueError(f"{path} is damaged: {error}") from None


class _WrongKey(ValueError):
    """A key of index.json is missing, unknown, or has another value than expected."""


def _parse(content: dict[str, Any]) -> TokenIndex:
    is_earlier = not content.keys() & {*ADDED, CHECKSUM}
    names = {each.name for each in fields(TokenIndex)} - (ADDED if is_earlier else set())
    checksum = content.pop(CHECKSUM, None)
    for name in sorted(names ^ content.keys()):
        raise _WrongKey(f"the key {name[:80]!r} is {'missing' if name in names else 'unknown'}")
    for name, value in content.items():
        _require(RULES[name].holds(value), name, value, RULES[name].expected)
    index = TokenIndex(**content | {"place": Place(*content["place"])})
    largest = np.iinfo(index.dtype).max if index.vocab_size is None else index.vocab_size - 1
    _require(index.eos_token_id <= largest, "eos_token_id", index.eos_token_id, f"at most {largest}")
    _require(index.documents <= index.tokens, "documents", index.documents, f"at most the {index.tokens} tokens")
    if not is_earlier:
        _require(checksum == _checksum(content), CHECKSUM, checksum, f"that of the other keys, {_checksum(content)!r}")
        _check_names(index)
    return index


def _check_names(index: TokenIndex) -> None:
    """Checks that all files have checksums, and that other names are those of files in the folder itself."""
    files = {*index.token_files, DOCUMENTS, SKIPPED}
    for name in sorted(files - index.checksums.keys()):
        raise _WrongKey(f"checksums has no {name!r}")
    for name in sorted(index.checksums.keys() - files):
        _require(
            OTHER_FILE.fullmatch(name) is not None, "a key of checksums", name, "the name of a file of the tokenizer"
        )


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise _WrongKey(f"{name} is {repr(value)[:80]}, expected {expected}")


def _checksum(content: dict[str, Any]) -> str:
    """Returns the CRC-32 checksum of the keys and values."""
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_checksums(value: Any) -> bool:
    return type(value) is str and re.fullmatch(f"([0-9a-f]{{{DIGITS}}})*", value) is not None


class _Rule(NamedTuple):
    """What a value of index.json must be."""

    holds: Callable[[Any], bool]
    expected: str


def _all(container: type, holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: type(values) is container and all(map(holds, values))


COUNT = _Rule(_is_count, "an integer of at least 0")
RULES = {
    "dtype": _Rule(lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "eos_token_id": COUNT,
    "shards": _Rule(_all(list, lambda value: _is_count(value) and value > 0), "a list of integers of at least 1"),
    "documents": COUNT,
    "skipped": COUNT,
    "skipped_bytes": COUNT,
    "text_bytes": COUNT,
    "place": _Rule(lambda value: _all(list, _is_count)(value) and len(value) == 2, "two integers of at least 0"),
    "vocab_size": _Rule(lambda value: value is None or _is_count(value), "an integer of at least 0, or null"),
    "checksums": _Rule(
        lambda value: type(value) is dict and _all(list, _are_checksums)([*value.values()]),
        "8 hexadecimal digits for each block of each file",
    ),
}
