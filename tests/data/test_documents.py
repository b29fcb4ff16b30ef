import gzip
import json
import sys

import pytest

from hf_gpt.data import documents
from hf_gpt.data.documents import read_documents
from hf_gpt.tokenization.chunking import CHUNK_CHARACTERS

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


def join_documents(chunks) -> list[str]:
    texts, parts = [], []
    for chunk in chunks:
        assert not chunk.error
        parts.append(chunk.text)
        if chunk.ends_document:
            texts.append("".join(parts))
            parts = []
    assert not parts
    return texts


@pytest.fixture(params=WRITERS, ids=lambda write: write.__name__)
def written(request, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 1000)  # splits characters and line ends
    return request.param(tmp_path, [LONG, "short", "\x00\ufeffNUL and BOM\r", LONG[::-1]])


def test_documents_are_unchanged(written):
    path, texts = written
    assert join_documents(read_documents(path)) == texts
    whole = list(read_documents(path, whole=True))
    assert [chunk.text for chunk in whole] == texts


def test_length_of_chunks(written):
    path, texts = written
    chunks = list(read_documents(path))
    assert len(chunks) > len(texts)
    assert max(len(chunk.text) for chunk in chunks) <= CHUNK_CHARACTERS


def test_reading_resumes_after_a_chunk(written):
    path, _ = written
    chunks = list(read_documents(path))
    resumable = [number for number, chunk in enumerate(chunks) if chunk.position is not None]
    assert resumable
    for number in resumable:
        rest = list(read_documents(path, position=chunks[number].position))
        assert "".join(chunk.text for chunk in rest) == "".join(chunk.text for chunk in chunks[number + 1 :])


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "is empty"),
        (b"good \xff bad", "is not UTF-8 text: byte 5 is 0xff"),
        (b"x" * 999 + "红".encode()[:2] + b" ", "is not UTF-8 text: byte 999 is 0xe7"),  # split by two blocks
        ("红".encode()[:2], "is not UTF-8 text: it ends within a character"),
        ("text".encode("utf-16"), "is not UTF-8 text: byte 0 is 0xff"),
    ],
)
def test_file_that_is_not_text(tmp_path, monkeypatch, content, error, whole):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 1000)
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    (chunk,) = read_documents(path, whole=whole)
    assert not chunk.text
    assert chunk.error.startswith(f"{path} {error}")


def test_rows_that_are_not_text(tmp_path):
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
    chunks = list(read_documents(path))
    assert [chunk.text for chunk in chunks if not chunk.error] == ["a", "c"]
    errors = [chunk.error.removeprefix(f"{path}, ") for chunk in chunks if chunk.error]
    assert errors == [
        "byte 14 is not JSON",
        "byte 16 has no 'text'",
        "byte 19 has no 'text'",
        "byte 33 is not text but NoneType",
        "byte 48 is empty",
        "byte 61 is not Unicode: character 0 is half a surrogate pair",
        "byte 94 is not JSON",
    ]


def test_another_column(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"body": "b"}')
    assert join_documents(read_documents(tmp_path / "rows.jsonl", column="body")) == ["b"]


def test_bad_files(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="none"):
        list(read_documents(tmp_path / "none.txt"))
    (tmp_path / "damaged.txt.gz").write_bytes(gzip.compress(LONG.encode())[:-50])
    with pytest.raises(OSError, match=r"damaged\.txt\.gz is damaged"):
        list(read_documents(tmp_path / "damaged.txt.gz"))
    path, _ = write_parquet(tmp_path, ["a"])
    (chunk,) = read_documents(path, column="body")
    assert chunk.error == f"{path}, every row has no column 'body': expected one of text"
    (tmp_path / "damaged.parquet").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(OSError, match=r"damaged\.parquet is damaged"):
        list(read_documents(tmp_path / "damaged.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_gpt\[data\]'"):
        list(read_documents(path))
