import sys

import pytest

from hf_gpt.data.text_sources import read_dataset, read_files, standard_library_documentation


def test_reads_files(tmp_path):
    (tmp_path / "a.txt").write_text("first", encoding="utf-8")
    (tmp_path / "b.txt").write_text("zwölf 红", encoding="utf-8")
    assert read_files([tmp_path / "a.txt", tmp_path / "b.txt"]) == ["first", "zwölf 红"]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "text.txt"),
        (b"", ValueError, "text.txt is empty"),
        (b" \n", ValueError, "text.txt is empty"),
        (b"good \xff bad", ValueError, "text.txt is not UTF-8 text: byte 5 is 0xff"),
    ],
)
def test_bad_files(tmp_path, content, error, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        read_files([path])


def test_folder_instead_of_a_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder: expected text files"):
        read_files([tmp_path])


def test_standard_library_documentation():
    texts = standard_library_documentation()
    assert sum(map(len, texts)) > 500_000
    assert any("Return the dumped string" in text or "Serialize ``obj``" in text for text in texts)


def test_reads_a_data_set(tmp_path):
    pytest.importorskip("datasets", reason="the extra `data` is not installed")
    (tmp_path / "train.jsonl").write_text('{"text": "first", "other": 1}\n{"text": "", "other": 2}\n')
    assert read_dataset(str(tmp_path)) == ["first"]
    with pytest.raises(ValueError, match="has no column 'body': expected one of text, other"):
        read_dataset(str(tmp_path), column="body")
    with pytest.raises(ValueError, match="column 'other' of split 'train' contains no text"):
        read_dataset(str(tmp_path), column="other")


def test_data_set_without_the_package_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_gpt\[data\]'"):
        read_dataset("any")
