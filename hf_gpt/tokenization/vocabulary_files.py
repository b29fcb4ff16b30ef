"""Reads and writes the file formats of published BPE vocabularies: OpenAI's JSON and merges, and tiktoken's ranks."""

import base64
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..json_files import read_json
from .byte_alphabet import BYTE_CHARACTERS, bytes_to_characters, characters_to_bytes

MAX_TOKEN_BYTES = 1024  # the longest token of OpenAI's encodings has 128
MAX_UNUSED_IDS = 10_000  # besides as many as there are tokens
MAX_RANK_DIGITS = 9

# Files of a folder from which transformers loads a tokenizer.
TOKENIZER_FILE, VOCABULARY_FILES = "tokenizer.json", ("vocab.json", "added_tokens.json")
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def check_tokenizer_files(folder: Path) -> None:
    """Raises ValueError if a file of a tokenizer is not valid JSON or contains ids that `check_ids` does not accept, or
    if tokenizer.json contains an empty pattern, on which the tokenizers library panics."""
    present = {name for name in (TOKENIZER_FILE, *VOCABULARY_FILES, *SETTINGS_FILES) if (folder / name).is_file()}
    contents = {name: read_json(folder / name) for name in sorted(present)}
    for name in present & {*VOCABULARY_FILES}:
        check_ids(folder / name, contents[name])
    if TOKENIZER_FILE in present:
        try:
            ids = _ids_of(contents[TOKENIZER_FILE])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{folder / TOKENIZER_FILE} is not a tokenizer: expected model and added_tokens") from None
        check_ids(folder / TOKENIZER_FILE, ids)
        if _has_empty_pattern(contents[TOKENIZER_FILE].get("normalizer")):
            raise ValueError(f"{folder / TOKENIZER_FILE} replaces an empty pattern: expected text or an expression")


def _has_empty_pattern(normalizer: Any) -> bool:
    """True if a normalizer of a tokenizer.json, or one of a sequence, replaces an empty pattern."""
    if not isinstance(normalizer, dict):
        return False
    others = normalizer.get("normalizers")
    is_empty = normalizer.get("pattern") in ({"String": ""}, {"Regex": ""})
    return is_empty or (isinstance(others, list) and any(map(_has_empty_pattern, others)))


def _ids_of(tokenizer_json: dict[str, Any]) -> dict[str, Any]:
    """Returns the id of each token in a parsed tokenizer.json."""
    vocab = tokenizer_json["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: tokens with their scores
        vocab = {token: index for index, (token, _) in enumerate(vocab)}
    ids = {**vocab, **{token["content"]: token["id"] for token in tokenizer_json["added_tokens"]}}
    if not all(isinstance(token, str) for token in ids):
        raise TypeError("expected tokens of text")
    return ids


def check_ids(file: Path | str, ids: dict[str, Any]) -> None:
    """Raises ValueError unless the ids of tokens are distinct integers from 0 on, and at least about half are used.

    The embedding of a model has a row for each id up to the highest, used or not.
    """
    end = 2 * len(ids) + MAX_UNUSED_IDS
    for token, index in ids.items():
        if type(index) is not int or not 0 <= index < end:
            raise ValueError(f"{file}: {token[:80]!r} has the id {index!r}: expected an integer from 0 to {end - 1}")
    if len(set(ids.values())) < len(ids):
        (repeated, _), *_ = Counter(ids.values()).most_common(1)
        tokens = [token[:80] for token, index in ids.items() if index == repeated]
        raise ValueError(f"{file}: {tokens[0]!r} and {tokens[1]!r} have the same id {repeated}: expected distinct ids")


def read_vocab(file: Path | str) -> dict[str, int]:
    """Reads a JSON vocabulary (`encoder.json`, `vocab.json`).

    Returns:
        The id of each token.

    Raises:
        ValueError: the file is not a JSON object of ids that `check_ids` accepts.
    """
    vocab = read_json(file)
    check_ids(file, vocab)
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
        ValueError: a line has another format, a token or a rank repeats, or one of the 256 bytes is missing. The
            message names the line.
    """
    ranks, used = {}, set()
    for number, line in enumerate(Path(file).read_bytes().splitlines(), start=1):
        where = f"{file}, line {number}"
        try:
            token, rank = _parse_rank(line)
        except ValueError as error:
            raise ValueError(f"{where}: expected base64 and a rank, got {line[:80]!r}") from error
        if token in ranks or rank in used:
            raise ValueError(f"{where}: expected every token and every rank once, but {line[:80]!r} repeats one")
        ranks[token] = rank
        used.add(rank)
    if missing := BYTE_CHARACTERS - ranks.keys():
        raise ValueError(f"{file}: expected each of the 256 bytes, but {len(missing)} are missing")
    return ranks


def _parse_rank(line: bytes) -> tuple[str, int]:
    """Returns the token, in the byte alphabet, and the rank in a line of a `.tiktoken` file."""
    encoded, digits = line.split()
    token = base64.b64decode(encoded, validate=True)
    if not 0 < len(token) <= MAX_TOKEN_BYTES or not digits.isdigit() or len(digits) > MAX_RANK_DIGITS:
        raise ValueError
    return bytes_to_characters(token), int(digits)


def write_ranks(file: Path | str, ranks: dict[str, int]) -> None:
    """Writes a `.tiktoken` file, in the order of the ranks.

    Args:
        ranks: the rank of each token, in the byte alphabet.
    """
    tokens = sorted(ranks, key=ranks.get)
    lines = (b"%s %d\n" % (base64.b64encode(characters_to_bytes(token)), ranks[token]) for token in tokens)
    Path(file).write_bytes(b"".join(lines))
