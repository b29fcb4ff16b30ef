import gzip
import json
import sys

import pytest

from hf_gpt.data import documents
from hf_gpt.data.documents import read_documents
from hf_gpt.tokenization.pieces import PIECE

LONG = "to be, or not to be: \r\n红楼梦。\t" * 4000


def write_text(folder, texts):
    path = folder / "one.txt"
    path.write_bytes(texts[0].encode())
    return path, texts[:1]


def write_compressed_text(folder, texts):
    path = folder / "one.txt.gz"
    path.write_bytes(gzip.compress(texts[0].encode()))
    return path, texts[:1]


def write_lines(folder, texts):
    path = folder / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps({"text": text}) for text in texts))
    return path, texts


def write_compressed_lines(folder, texts):
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(write_lines(folder, texts)[0].read_bytes()))
    return path, texts


def write_parquet(folder, texts):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `data` is not installed")
    parquet.write_table(pyarrow.table({"text": texts}), folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet", texts


WRITERS = [write_text, write_compressed_text, write_lines, write_compressed_lines, write_parquet]


def joined(pieces) -> list[str]:
    texts, parts = [], []
    for piece in pieces:
        assert not piece.flaw
        parts.append(piece.text)
        if piece.ends_document:
            texts.append("".join(parts))
            parts = []
    assert not parts
    return texts


@pytest.fixture(params=WRITERS, ids=lambda write: write.__name__)
def written(request, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK", 1000)  # which characters and line ends go across
    return request.param(tmp_path, [LONG, "short", "\x00\ufeffNUL and BOM\r", LONG[::-1]])


def test_documents_are_as_they_were_written(written):
    path, texts = written
    assert joined(read_documents(path)) == texts
    whole = list(read_documents(path, whole=True))
    assert [piece.text for piece in whole] == texts


def test_no_piece_is_long(written):
    path, texts = written
    pieces = list(read_documents(path))
    assert len(pieces) > len(texts)
    assert max(len(piece.text) for piece in pieces) <= PIECE


def test_reading_goes_on_where_a_piece_says(written):
    path, _ = written
    pieces = list(read_documents(path))
    resumed = [number for number, piece in enumerate(pieces) if piece.position is not None]
    assert resumed
    for number in resumed:
        rest = list(read_documents(path, position=pieces[number].position))
        assert "".join(piece.text for piece in rest) == "".join(piece.text for piece in pieces[number + 1 :])


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("content", "flaw"),
    [
        (b"", "is empty"),
        (b"good \xff bad", "is not UTF-8 text: byte 5 is 0xff"),
        (b"x" * 999 + "红".encode()[:2] + b" ", "is not UTF-8 text: byte 999 is 0xe7"),  # across blocks
        ("红".encode()[:2], "is not UTF-8 text: it ends within a character"),
        ("text".encode("utf-16"), "is not UTF-8 text: byte 0 is 0xff"),
    ],
)
def test_a_file_that_is_no_text(tmp_path, monkeypatch, content, flaw, whole):
    monkeypatch.setattr(documents, "BLOCK", 1000)
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    (piece,) = read_documents(path, whole=whole)
    assert not piece.text
    assert piece.flaw.startswith(f"{path} {flaw}")


def test_rows_that_hold_no_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        '{"text": "a"}',
        "{",
        "[]",
        '{"body": "b"}',
        '{"text": null}',
        '{"text": ""}',
        '{"text": "\\ud800"}',
        '{"text": "c"}',
        "[" * 200_000,
    ]
    path.write_text("\n".join(rows))
    pieces = list(read_documents(path))
    assert [piece.text for piece in pieces if not piece.flaw] == ["a", "c"]
    flaws = [piece.flaw.removeprefix(f"{path}, ") for piece in pieces if piece.flaw]
    assert flaws == [
        "byte 14 is not JSON",
        "byte 16 has no 'text'",
        "byte 19 has no 'text'",
        "byte 33 is no text but NoneType",
        "byte 48 is empty",
        "byte 61 is not Unicode: character 0 is half a surrogate pair",
        "byte 94 is not JSON",
    ]


def test_another_column(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"body": "b"}')
    assert joined(read_documents(tmp_path / "rows.jsonl", column="body")) == ["b"]


def test_bad_files(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="none"):
        list(read_documents(tmp_path / "none.txt"))
    (tmp_path / "damaged.txt.gz").write_bytes(gzip.compress(LONG.encode())[:-50])
    with pytest.raises(OSError, match=r"damaged\.txt\.gz is damaged"):
        list(read_documents(tmp_path / "damaged.txt.gz"))
    path, _ = write_parquet(tmp_path, ["a"])
    (piece,) = read_documents(path, column="body")
    assert piece.flaw == f"{path}, all rows has no column 'body', but text"
    (tmp_path / "damaged.parquet").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(OSError, match=r"damaged\.parquet is damaged"):
        list(read_documents(tmp_path / "damaged.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_gpt\[data\]'"):
        list(read_documents(path))
