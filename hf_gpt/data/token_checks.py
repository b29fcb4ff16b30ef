"""Checks of a folder of tokens: of a sample when it is opened, or of everything."""

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from rich.progress import track
from tokenizers import Tokenizer

from .checksums import check_count, check_size, count_blocks, file_size, read_block
from .token_files import Tokens, map_tokens, read_ids
from .token_index import DOCUMENTS, SKIPPED, TokenIndex

SAMPLES = 64  # blocks of 1 MiB, and documents, that are checked when a folder is opened
TOKENIZER = "tokenizer.json"


def open_tokens(folder: Path | str) -> Tokens:
    """Memory-maps a folder of tokens that `tokenize_files` or `hf-gpt tokenize` wrote.

    Checks the index, the sizes of all files, the tokenizer, and evenly spread blocks and documents. `verify_tokens`
    checks everything.

    Raises:
        FileNotFoundError: the folder contains no tokens, or a file is missing.
        ValueError: the index or a file is damaged.
    """
    tokens = map_tokens(folder)
    _check_sizes(tokens)
    index = tokens.index
    data = [name for name in (*index.token_files, DOCUMENTS, SKIPPED) if name in index.checksums]
    for name, number in _sample_blocks(tokens, data):
        _check_block(tokens, name, number)
    for name in index.checksums.keys() - {*data}:
        _check_file(tokens, name)
    _check_documents(tokens)
    return tokens


def verify_tokens(folder: Path | str, *, show_progress: bool = False) -> TokenIndex:
    """Reads and checks all of a folder of tokens: checksums, ids, documents, counts and the tokenizer.

    A folder of an earlier version has no checksums; everything else in it is checked.

    Args:
        folder: the folder that `tokenize_files` wrote.
        show_progress: print a progress bar.

    Returns:
        The index of the folder.

    Raises:
        FileNotFoundError: the folder contains no tokens, or a file is missing.
        ValueError: the index or a file is damaged. The message names the file, and the block or the document.
    """
    tokens = map_tokens(folder)
    _check_sizes(tokens)
    for name in tokens.index.checksums.keys() - {*tokens.index.token_files}:
        _check_file(tokens, name)
    _check_skipped(tokens)
    _check_ids(tokens, _check_tokenizer(tokens), show_progress)
    _check_documents(tokens)
    return tokens.index


def _check_sizes(tokens: Tokens) -> None:
    """Raises an error if a file is missing, or has another number of blocks than of checksums."""
    for name, checksums in tokens.index.checksums.items():
        check_count(tokens.folder / name, file_size(tokens.folder / name), checksums)


def _sample_blocks(tokens: Tokens, names: list[str]) -> Iterator[tuple[str, int]]:
    """Yields evenly spread blocks of some files: the names of the files and the numbers of the blocks."""
    starts = [0, *accumulate(count_blocks(file_size(tokens.folder / name)) for name in names)]
    for block in _spread(starts[-1]):
        file = bisect_right(starts, block) - 1
        yield names[file], block - starts[file]


def _spread(count: int) -> list[int]:
    """Returns at most `SAMPLES` evenly spread indices below `count`, the first and the last among them."""
    return sorted({*np.linspace(0, count - 1, min(SAMPLES, count), dtype=np.int64).tolist()})


def _check_block(tokens: Tokens, name: str, number: int) -> None:
    if name in tokens.index.token_files:
        read_ids(tokens.folder, tokens.index, name, number)
    else:
        read_block(tokens.folder / name, number, tokens.index.checksums[name])


def _check_file(tokens: Tokens, name: str) -> None:
    """Checks all blocks of a file that is no shard."""
    for number in range(count_blocks(file_size(tokens.folder / name))):
        read_block(tokens.folder / name, number, tokens.index.checksums[name])


def _check_documents(tokens: Tokens) -> None:
    """Checks evenly spread documents: that their ends increase up to the last token, and are end-of-text tokens."""
    sample, total = _spread(len(tokens.document_ends)), len(tokens)
    ends = [int(tokens.document_ends[number]) for number in sample]
    for (before, start), (number, end) in pairwise([(-1, 0), *zip(sample, ends, strict=True)]):
        least = start + number - before  # a document has at least one token
        if not least <= end <= total:
            raise _damaged_documents(tokens, f"document {number} ends at token {end}, expected {least} to {total}")
    if total != (ends[-1] if ends else 0):
        raise _damaged_documents(tokens, f"the last document ends at token {(ends or [0])[-1]}, expected {total}")
    starts = [0, *accumulate(map(len, tokens.shards))]
    for number, end in zip(sample, ends, strict=True):
        shard = bisect_right(starts, end - 1) - 1
        if (last := tokens.shards[shard][end - 1 - starts[shard]]) != tokens.index.eos_token_id:
            raise _damaged_documents(
                tokens, f"document {number} ends with the id {last}, expected {tokens.index.eos_token_id}"
            )


def _check_ids(tokens: Tokens, vocab_size: int, show_progress: bool) -> None:
    """Checks all ids, and that the documents end at the end-of-text tokens and nowhere else."""
    index = replace(tokens.index, vocab_size=vocab_size)
    position = documents = 0
    for name in track(index.token_files, "verify", disable=not show_progress):
        for number in range(count_blocks(file_size(tokens.folder / name))):
            ids = read_ids(tokens.folder, index, name, number)
            found = np.flatnonzero(ids == index.eos_token_id) + position + 1
            stated = tokens.document_ends[documents : documents + len(found)]
            position, documents = position + len(ids), documents + len(found)
            if not np.array_equal(found, stated):
                raise _damaged_documents(tokens, _first_difference(found, stated, documents - len(found)))
    if documents != index.documents:
        raise _damaged_documents(tokens, f"{index.documents} documents, but {documents} end-of-text tokens")


def _first_difference(found: np.ndarray, stated: np.ndarray, first: int) -> str:
    """Describes the first document whose stated end is not the end-of-text token that was found."""
    if len(stated) < len(found):
        return f"it ends at document {first + len(stated)}, but there are more end-of-text tokens"
    number = int(np.flatnonzero(found != stated)[0])
    return f"document {first + number} ends at token {stated[number]}, expected {found[number]}"


def _damaged_documents(tokens: Tokens, fault: str) -> ValueError:
    return ValueError(f"{tokens.folder / DOCUMENTS} is damaged: {fault}")


def _check_skipped(tokens: Tokens) -> None:
    """Checks the lines of skipped.jsonl."""
    path, index = tokens.folder / SKIPPED, tokens.index
    check_size(path, index.skipped_bytes)
    lines = 0
    with path.open("rb") as file:
        for lines, line in enumerate(file, start=1):
            try:
                is_text = isinstance(json.loads(line), str)
            except (ValueError, RecursionError):
                is_text = False
            if not is_text:
                raise ValueError(f"{path} is damaged: line {lines} is not a string of JSON")
    if lines != index.skipped:
        raise ValueError(f"{path} is damaged: expected {index.skipped} lines, got {lines}")


def _check_tokenizer(tokens: Tokens) -> int:
    """Returns the size of the vocabulary, after comparing it with the index."""
    path, index = tokens.folder / TOKENIZER, tokens.index
    file_size(path)  # raises if it does not exist
    try:
        ids = Tokenizer.from_file(str(path)).get_vocab().values()
    except Exception as error:  # the class of all errors of tokenizers
        raise ValueError(f"{path} is not a tokenizer: {error}") from None
    size = max(ids, default=-1) + 1
    if index.vocab_size not in (None, size):
        raise ValueError(f"{path} has ids below {size}, expected {index.vocab_size}")
    if index.eos_token_id not in ids:
        raise ValueError(f"{path} has no token of the id {index.eos_token_id}, which ends the documents")
    return size
