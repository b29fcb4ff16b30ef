import gzip
import json
import re
import sys

import pytest
from hostile import UNITS

from hf_gpt.data import documents
from hf_gpt.data.documents import read_documents
from hf_gpt.tokenization import chunking
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
        assert list(read_documents(path, position=chunks[number].position)) == chunks[number + 1 :]


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


MAX_WORD = chunking.MAX_WORD_CHARACTERS


@pytest.mark.parametrize(
    ("unit", "suffix"),
    [(unit, ".txt") for unit in UNITS] + [("letters", suffix) for suffix in (".txt.gz", ".jsonl", ".parquet")],
)
def test_long_words(tmp_path, unit, suffix):
    """The longest word is read; a document with a longer one is skipped."""
    for length in (MAX_WORD, MAX_WORD + 1):
        word = (UNITS[unit] * length)[:length]
        text = f"to be {word} or not"
        path = write(tmp_path / f"a{suffix}", text)
        boundaries = [*chunking.split_into_chunks(text, 1)]
        if max(map(len, boundaries)) > MAX_WORD:
            (chunk,) = read_documents(path)
            assert "has no word boundary within 524,288 characters from character" in chunk.error
            assert not chunk.text
        else:
            assert join_documents(read_documents(path)) == [text]
        assert join_documents(read_documents(path, whole=True)) == [text]
    assert max(map(len, boundaries)) > MAX_WORD


def write(path, text):
    content = json.dumps({"text": text}).encode() if ".jsonl" in path.name else text.encode()
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `data` is not installed")
        parquet.write_table(pytest.importorskip("pyarrow").table({"text": [text]}), path)
    else:
        path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def test_a_long_row(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(documents, "BLOCK_BYTES", 7)
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "a"}}\n{{"text": "{"to be " * 20}"}}\n{{"text": "b"}}\n')
    first, skipped, last = read_documents(tmp_path / "rows.jsonl")
    assert (first.text, last.text) == ("a", "b")
    assert skipped.error == f"{tmp_path / 'rows.jsonl'}, byte 14 has more than 16,777,216 bytes"
    assert [chunk.text for chunk in read_documents(tmp_path / "rows.jsonl", position=skipped.position)] == ["b"]
    path, _ = write_parquet(tmp_path, ["a", "to be " * 20, "b"])
    first, skipped, last = read_documents(path)
    assert (first.text, last.text) == ("a", "b")
    assert skipped.error == f"{path}, row 2 has more than 16,777,216 bytes"


def test_a_compressed_text_that_is_too_long_to_be_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_ROW_BYTES", 100)
    path = write(tmp_path / "a.txt.gz", "to be " * 20)
    (chunk,) = read_documents(path, whole=True)
    assert chunk.error == f"{path} has more than 100 bytes, which this tokenizer cannot encode in parts"
    assert join_documents(read_documents(path)) == ["to be " * 20]
    assert join_documents(read_documents(write(tmp_path / "a.txt", "to be " * 20), whole=True)) == ["to be " * 20]


def test_row_groups_of_parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `data` is not installed")
    path = tmp_path / "rows.parquet"
    texts = [f"to be {number}" for number in range(8)]
    texts[4:6] = ["a " * 100_000, "b " * 100_000]
    table = pyarrow.table({"nested": [{"a": 1, "b": 2}] * 8, "text": texts})
    parquet.write_table(table, path, row_group_size=2, compression="zstd")
    assert join_documents(read_documents(path)) == texts
    monkeypatch.setattr(documents, "MAX_UNPACKED_BYTES", 100_000)
    for position in range(5):
        chunks = list(read_documents(path, position=position))
        assert [chunk.text for chunk in chunks if not chunk.error] == texts[position:4] + texts[6:]
        (skipped,) = (chunk for chunk in chunks if chunk.error)
        assert re.fullmatch(
            rf"{path}, every row from 5 to 6 has 400,\d\d\d bytes, more than 100 times as many as compressed",
            skipped.error,
        )
        assert skipped.position == 6


def test_columns_of_parquet_that_are_not_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `data` is not installed")
    path = tmp_path / "rows.parquet"
    for values, kind in ([1], "int64"), ([b"a"], "binary"), ([["a"]], "list<element: string>"), ([{"a": 1}], "struct"):
        parquet.write_table(pyarrow.table({"text": values}), path)
        (chunk,) = read_documents(path)
        assert chunk.error.startswith(f"{path}, every row is not text but {kind}")
    for kind in (pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        parquet.write_table(pyarrow.table({"text": pyarrow.array(["a", None, "b", "a"], kind)}), path)
        chunks = list(read_documents(path))
        assert [chunk.text for chunk in chunks] == ["a", "", "b", "a"]
        assert chunks[1].error == f"{path}, row 2 is not text but NoneType"
    ends, characters = pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xffb")
    parquet.write_table(pyarrow.table({"text": pyarrow.StringArray.from_buffers(2, ends, characters)}), path)
    skipped, good = read_documents(path)
    assert skipped.error == f"{path}, row 1 is not UTF-8 text: byte 1 is 0xff"
    assert good.text == "b"


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", b"\x1f\x8b", gzip.compress(b"a ")[:-1], gzip.compress(b"a ") + b"more"],
    ids=["empty", "text", "begun", "cut off", "continued"],  # not the content, in which gzip writes the time
)
def test_damaged_gzip(tmp_path, content):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(content)
    if content:
        with pytest.raises(OSError, match=r"a\.txt\.gz is damaged"):
            list(read_documents(path))
    else:
        (chunk,) = read_documents(path)
        assert chunk.error == f"{path} is empty"
