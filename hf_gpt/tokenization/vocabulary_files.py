"""Reads and writes the file formats of published BPE vocabularies: OpenAI's JSON and merges, and tiktoken's ranks."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

from .byte_alphabet import BYTE_CHARACTERS, bytes_to_characters, characters_to_bytes


def read_vocab(file: Path | str) -> dict[str, int]:
    """Reads a JSON vocabulary (`encoder.json`, `vocab.json`).

    Returns:
        The id of each token.

    Raises:
        ValueError: the file is not a JSON object of integers.
    """
    try:
        vocab = json.loads(Path(file).read_text("utf-8"))
    except ValueError:
        vocab = None
    if not isinstance(vocab, dict) or not all(type(index) is int for index in vocab.values()):
        raise ValueError(f"{file}: expected a JSON object from token to id")
    return vocab


def read_merges(file: Path | str, vocab: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Reads a list of merges (`vocab.bpe`, `merges.txt`): two tokens per line, optionally below a `#version` line.

    Args:
        vocab: the vocabulary that must contain both tokens of each merge and their concatenation.

    Yields:
        The two tokens of each merge, in order.

    Raises:
        ValueError: a line is not two tokens of the vocabulary, or they merge to none.
    """
    for number, line in enumerate(Path(file).read_text("utf-8", "replace").rstrip("\n").split("\n"), start=1):
        if number == 1 and line.startswith("#version"):
            continue
        merge = tuple(line.split(" "))
        if len(merge) != 2 or "" in merge:
            raise ValueError(f"{file}, line {number}: expected two tokens separated by a space, got {line[:80]!r}")
        if unknown := [token for token in (*merge, "".join(merge)) if token not in vocab]:
            raise ValueError(f"{file}, line {number}: expected tokens of the vocabulary, got {unknown}")
        yield merge


def read_ranks(file: Path | str) -> dict[str, int]:
    """Reads a `.tiktoken` file: a base64 token and its rank per line.

    Returns:
        The rank of each token, in the byte alphabet.

    Raises:
        ValueError: a line has another format, a token or a rank repeats, or one of the 256 bytes is missing.
    """
    pairs = []
    for number, line in enumerate(Path(file).read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            pairs.append((bytes_to_characters(base64.b64decode(token, validate=True)), int(rank)))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: expected base64 and a rank, got {line[:80]!r}") from error
    ranks = dict(pairs)
    if not len(pairs) == len(ranks) == len({*ranks.values()}):
        raise ValueError(f"{file}: expected every token and every rank once, but some repeat")
    if missing := BYTE_CHARACTERS - ranks.keys():
        raise ValueError(f"{file}: expected each of the 256 bytes, but {len(missing)} are missing")
    return ranks


def write_ranks(file: Path | str, ranks: dict[str, int]) -> None:
    """Writes a `.tiktoken` file, in the order of the ranks.

    Args:
        ranks: the rank of each token, in the byte alphabet.
    """
    tokens = sorted(ranks, key=ranks.get)
    lines = (b"%s %d\n" % (base64.b64encode(characters_to_bytes(token)), ranks[token]) for token in tokens)
    Path(file).write_bytes(b"".join(lines))
