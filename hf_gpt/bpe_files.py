"""The files in which BPE vocabularies are published: OpenAI's JSON and merges, and tiktoken's ranks."""

import base64
import json
from collections.abc import Iterator
from itertools import pairwise
from math import inf
from pathlib import Path

from tokenizers import pre_tokenizers

# GPT-2 writes a byte as the Latin-1 character of its number, or from U+0100 on where that is blank or invisible.
BYTES = set(pre_tokenizers.ByteLevel.alphabet())
_INVISIBLE = {byte: 256 + n for n, byte in enumerate(byte for byte in range(256) if chr(byte) not in BYTES)}
_VISIBLE = {character: byte for byte, character in _INVISIBLE.items()}


def to_characters(token: bytes) -> str:
    """As a vocabulary writes the token."""
    return token.decode("latin-1").translate(_INVISIBLE)


def to_bytes(token: str) -> bytes:
    """As text has the token.

    Raises:
        UnicodeEncodeError: it has characters that stand for no byte.
    """
    return token.translate(_VISIBLE).encode("latin-1")


def read_vocab(file: Path | str) -> dict[str, int]:
    try:
        vocab = json.loads(Path(file).read_text("utf-8"))
    except ValueError:
        vocab = None
    if not isinstance(vocab, dict) or not all(type(index) is int for index in vocab.values()):
        raise ValueError(f"{file}: expected a JSON object from token to id")
    return vocab


def read_merges(file: Path | str, vocab: dict[str, int]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(Path(file).read_text("utf-8", "replace").rstrip("\n").split("\n"), start=1):
        if number == 1 and line.startswith("#version"):
            continue
        merge = tuple(line.split(" "))
        if len(merge) != 2 or "" in merge:
            raise ValueError(f"{file}, line {number}: expected two tokens with a blank between, got {line[:80]!r}")
        if unknown := [token for token in (*merge, "".join(merge)) if token not in vocab]:
            raise ValueError(f"{file}, line {number}: expected tokens of the vocabulary, got {unknown}")
        yield merge


def read_ranks(file: Path | str) -> dict[str, int]:
    pairs = []
    for number, line in enumerate(Path(file).read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            pairs.append((to_characters(base64.b64decode(token, validate=True)), int(rank)))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: expected base64 and a rank, got {line[:80]!r}") from error
    ranks = dict(pairs)
    if not len(pairs) == len(ranks) == len({*ranks.values()}):
        raise ValueError(f"{file}: expected every token and every rank once, but some repeat")
    if missing := BYTES - ranks.keys():
        raise ValueError(f"{file}: expected each of the 256 bytes, but {len(missing)} are missing")
    return ranks


def write_ranks(file: Path | str, ranks: dict[str, int]) -> None:
    lines = (b"%s %d\n" % (base64.b64encode(to_bytes(token)), ranks[token]) for token in sorted(ranks, key=ranks.get))
    Path(file).write_bytes(b"".join(lines))


def recover_merges(ranks: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The two parts of each token that BPE has merged its bytes into, with the ranks before its own, in their order.

    Raises:
        ValueError: the bytes of a token do not come to two parts.
    """
    for token in sorted(ranks, key=ranks.get):
        parts = list(token)
        while len(parts) > 2:
            lowest, at = min((ranks.get(a + b, inf), at) for at, (a, b) in enumerate(pairwise(parts)))
            if lowest >= ranks[token]:
                raise ValueError(f"expected rank {ranks[token]} to join two tokens before it, got {parts}")
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            yield tuple(parts)
