"""Long texts in pieces: cut where no word goes across, and thinned out where they are too many."""

import re
from collections.abc import Iterable, Iterator

PIECE = 16_384  # characters; the engines slow down on texts that are much longer

# After a letter or digit, before a blank or punctuation, every split pattern ends a word; but o200k's keep an
# apostrophe, and marks belong to their letter.
_BOUNDARY = re.compile(r"(?<=[^\W_])(?=[\s!-&(-/:-@\[-`{-~、。!(),:;?])")


def cut(text: str, size: int = PIECE) -> Iterator[str]:
    """Pieces of about `size` characters, with the same tokens, one after the other, as the whole text."""
    start = 0
    while len(text) - start > size:
        end = last_boundary(text, start, start + size) or next_boundary(text, start + size)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def last_boundary(text: str, start: int, end: int) -> int | None:
    """The last place after `start`, and not after `end`, where `text` may be cut."""
    return next((at for at in range(end, start, -1) if _BOUNDARY.match(text, at)), None)


def next_boundary(text: str, start: int) -> int:
    found = _BOUNDARY.search(text, start)
    return found.start() if found else len(text)


def sample_evenly(pieces: Iterable[str], most_bytes: int) -> list[str]:
    """At most `most_bytes` of UTF-8: all pieces, or every second, fourth ... of them, in order."""
    kept: list[str] = []
    size, stride = 0, 1
    for number, piece in enumerate(pieces):
        if number % stride:
            continue
        kept.append(piece)
        size += len(piece.encode())
        while size > most_bytes and len(kept) > 1:
            kept = kept[::2]
            size = sum(len(piece.encode()) for piece in kept)
            stride *= 2
    return kept
