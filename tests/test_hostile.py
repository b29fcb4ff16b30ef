import os
import shutil
from pathlib import Path

import pytest
from forked import run_forked
from hostile import FORMATS, MARKER, make_folders

from hf_gpt.data import verify_tokens
from hf_gpt.tokenization.chunking import MAX_WORD_CHARACTERS


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A folder with valid inputs of every format."""
    folder = tmp_path_factory.mktemp("valid")
    make_folders(folder)
    return folder


LONGEST = {"four bytes each": "𝔘" * MAX_WORD_CHARACTERS, "combining marks": "e\u0301" * (MAX_WORD_CHARACTERS // 2)}


@pytest.mark.parametrize("engine", ["tiktoken", "tokenizers"])
@pytest.mark.parametrize("word", LONGEST)
def test_memory_of_the_longest_word(word, engine, valid, tmp_path):
    """That of one thread, 310 MB, and that of reading, 100 MB, as docs/tokenize.md states them."""
    shutil.copytree(valid / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "long.txt").write_text(f"to be {LONGEST[word][:-9]} or", "utf-8")
    arguments = f"tokenize long.txt --out out --tokenizer tokenizer --threads 1 --engine {engine}".split()
    result = run_forked(arguments, tmp_path, memory=500_000_000)
    assert result.status == 0, result.errors
    assert verify_tokens(tmp_path / "out").documents == 1


def names_below(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(("name", "content"), [(name, case) for name in FORMATS for case in FORMATS[name].contents])
def test_one_clear_line(name, content, valid, tmp_path):
    """A command that reads a hostile file prints one line that names it, in bounded memory and time. No code runs."""
    format = FORMATS[name]
    folder = tmp_path / "work"
    names = {Path(name).parts[0] for name in (format.file, *format.command.split())}  # that the command reads
    shutil.copytree(valid, folder, ignore=lambda parent, found: {*found} - names if parent == str(valid) else [])
    file = folder / format.file
    write = format.contents[content]
    file.write_bytes(write) if isinstance(write, bytes) else write(file)
    before = names_below(tmp_path)

    result = run_forked(format.command.split(), folder, memory=format.memory)

    assert result.status == 1, result.errors or result.output
    lines = result.errors.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 1000
    field, has_value, _ = content.partition("=")
    assert (field if has_value else format.named or file.name) in lines[0]
    written = {path.split(os.sep)[1] for path in names_below(tmp_path) - before}
    assert written <= {"out.partial", "out.lock"}
    assert not (folder / MARKER).exists()
