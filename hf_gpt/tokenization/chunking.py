"""Splits long texts into chunks that together have the tokens of the whole text."""

import re
from collections.abc import Iterator

CHUNK_CHARACTERS = 16_384  # encoding slows down on much longer texts

# Every split pattern ends a word between a letter or digit and a blank or punctuation mark. Excluded are the
# apostrophe, which o200k attaches to the word, combining marks, which belong to the letter before, and control
# characters, which GPT-1's normalizer removes.
_BOUNDARY = re.compile(r"(?<=[^\W_])(?=[ \t\r\n!-&(-/:-@\[-`{-~、。])")


def split_into_chunks(text: str, size: int = CHUNK_CHARACTERS) -> Iterator[str]:
    """Splits a text between words, so that the chunks encode to the same tokens as the whole text.

    Args:
        size: maximum length of a chunk in characters; exceeded where the text has no word boundary.

    Yields:
        Non-empty chunks, whose concatenation is `text`.
    """
    start = 0
    while len(text) - start > size:
        end = last_boundary(text, start, start + size) or next_boundary(text, start + size)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def last_boundary(text: str, start: int, end: int) -> int | None:
    """Returns the last index after `start` and up to `end` at which `text` can be split, or None."""
    return next((at for at in range(end, start, -1) if _BOUNDARY.match(text, at)), None)


def next_boundary(text: str, start: int) -> int:
    """Returns the first index from `start` on at which `text` can be split, or its length."""
    found = _BOUNDARY.search(text, start)
    return found.start() if found else len(text)
