"""Long texts in pieces: cut where no word goes across, and thinned out where they are too many."""

import math
import re
from collections.abc import Iterable, Iterator

PIECE = 16_384  # characters; the engines slow down on texts that are much longer

# After a letter or digit, before a blank or punctuation, every split pattern ends a word; but o200k's keep an
# apostrophe, marks belong to their letter, and GPT-1's leave out form feeds and the like.
_BOUNDARY = re.compile(r"(?<=[^\W_])(?=[ \t\r\n!-&(-/:-@\[-`{-~、。!(),:;?])")


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
    """At most `most_bytes` of UTF-8, but one piece at least: all of them, or a half, a quarter ..., in order.

    Multiples of the golden ratio, modulo 1, are spread evenly, and take no period of the pieces for their own.
    """
    golden = (math.sqrt(5) - 1) / 2
    kept: list[tuple[float, str]] = []
    size, share = 0, 1.0
    for number, piece in enumerate(pieces):
        place = number * golden % 1
        if place >= share:
            continue
        kept.append((place, piece))
        size += len(piece.encode())
        while size > most_bytes and len(kept) > 1:
            share /= 2
            kept = [(place, piece) for place, piece in kept if place < share]
            size = sum(len(piece.encode()) for _, piece in kept)
    return [piece for _, piece in kept]
