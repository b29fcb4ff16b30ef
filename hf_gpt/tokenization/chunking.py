"""Splits long texts into chunks that together have the tokens of the whole text."""

import re
from collections.abc import Iterable, Iterator

CHUNK_CHARACTERS = 16_384  # encoding slows down on much longer texts

# Between two boundaries. Encoding so long a word needs up to 310 MB with tokenizers, 80 MB with tiktoken: 150 and 40
# bytes per byte of UTF-8.
MAX_WORD_CHARACTERS = 1 << 19

# Every split pattern ends a word
# - between a letter or digit and a blank or punctuation mark. Excluded are the apostrophe, which o200k attaches to the
#   word, combining marks, which belong to the letter before, and control characters, which GPT-1's normalizer removes;
# - between a punctuation mark and a blank, but not before a line end, which cl100k attaches to the mark;
# - after a line end between two visible characters, but not before the slash, which o200k attaches to it.
_BOUNDARY = re.compile(
    r"(?<=[^\W_])"
    r"(?=[ \t\r\n!-&(-/:-@\[-`{-~\u2010-\u2027\u3001-\u3003\u3008-\u3011！（），：；？])"
    r"|(?<=[!-/:-@\[-`{-~])(?=[ \t])"
    r"|(?<=[!-~]\n)(?=[!-.0-~])"
)
_LOOKBEHIND = 2  # characters before a boundary that decide it; one character after it does


def split_into_chunks(text: str, size: int = CHUNK_CHARACTERS) -> Iterator[str]:
    """Splits a text between words, so that the chunks encode to the same tokens as the whole text.

    Args:
        size: maximum length of a chunk in characters; exceeded where the text has no word boundary.

    Yields:
        Non-empty chunks, whose concatenation is `text`.
    """
    start = 0
    while len(text) - start > size:
        end = last_boundary(text, start, start + size) or next_boundary(text, start + size) or len(text)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def last_boundary(text: str, start: int, end: int) -> int | None:
    """Returns the last index after `start` and up to `end` at which `text` can be split, or None."""
    width = 32
    while end > start:
        begin = max(start, end - width)
        if found := [match.start() for match in _BOUNDARY.finditer(text, begin + 1, end + 1)]:
            return found[-1]
        end, width = begin, 2 * width
    return None


def next_boundary(text: str, start: int) -> int | None:
    """Returns the first index from `start` on at which `text` can be split, or None."""
    found = _BOUNDARY.search(text, start)
    return found.start() if found else None


def find_long_word(parts: Iterable[str]) -> int | None:
    """Returns where a text has no boundary within `MAX_WORD_CHARACTERS`, or None if it has everywhere.

    Args:
        parts: the text in consecutive parts. Memory contains one of them.

    Returns:
        The index in the text of the first such word.
    """
    word_start, length, context = 0, 0, ""
    size = MAX_WORD_CHARACTERS  # words between two boundaries of one part are no longer
    for block in (part[start : start + size] for part in parts for start in range(0, len(part), size)):
        text = context + block
        offset = length - len(context)  # of `text` in the whole text
        length += len(block)
        first = next_boundary(text, len(context))
        word_end = length if first is None else offset + first
        if word_end - word_start > MAX_WORD_CHARACTERS:
            return word_start
        if first is not None:
            word_start = offset + (last_boundary(text, first, len(text) - 1) or first)
        context = text[-_LOOKBEHIND:]
    return None
