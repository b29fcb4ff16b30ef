"""The files in which BPE vocabularies are published: OpenAI's JSON and merges, and tiktoken's ranks."""

import base64
import json
from collections.abc import Iterator
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
    """The two parts that BPE has merged the bytes of each token into, before it joins them, in the order of ranks.

    Raises:
        ValueError: the bytes of a token do not come to two parts.
    """
    parts: dict[str, tuple[str, str]] = {}
    for token in _merged(ranks):
        halves = ((token[:at], token[at:]) for at in range(1, len(token)))
        pair = next((pair for pair in halves if _joins(pair, ranks[token], ranks, parts)), None)
        if pair is None:
            raise ValueError(f"expected rank {ranks[token]} to join two tokens before it, got {token!r}")
        parts[token] = pair
        yield pair


def are_merges_of(ranks: dict[str, int], merges: list[tuple[str, str]]) -> bool:
    """Whether these would be recovered."""
    tokens = _merged(ranks)
    parts = dict(zip(tokens, merges, strict=False))
    return len(tokens) == len(merges) and all(
        a + b == token and _joins((a, b), ranks[token], ranks, parts) for token, (a, b) in parts.items()
    )


def _merged(ranks: dict[str, int]) -> list[str]:
    return sorted((token for token in ranks if len(token) > 1), key=ranks.get)


def _joins(pair: tuple[str, str], rank: int, ranks: dict[str, int], parts: dict[str, tuple[str, str]]) -> bool:
    """Whether BPE on the bytes of both, side by side, comes to the two: they are older, and nothing merges across.

    On the left of the border stand, one after the other, the last byte, what it is merged into, ..., `left`; on the
    right likewise. Each stands there until the rank of the next. Of equal ranks the first in the text is merged first.
    """
    left, right = pair
    if not all(len(half) == 1 or ranks.get(half, inf) < rank for half in pair):
        return False
    a, a_until = left, rank
    while True:
        b, b_until = right, rank
        while True:
            across = ranks.get(a + b, inf)
            if across < a_until and across <= b_until:
                return False
            if len(b) == 1:
                break
            b, b_until = parts[b][0], ranks[b]
        if len(a) == 1:
            return True
        a, a_until = parts[a][1], ranks[a]
