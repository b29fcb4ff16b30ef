import shutil

import pytest

from hf_gpt.conversion import convert, sources


def test_a_folder_that_does_not_exist(tmp_path):
    for source in (tmp_path / "nowhere", "./nowhere"):
        with pytest.raises(OSError, match="nowhere"):
            convert(source, tmp_path / "ours")


def test_a_file(native):
    with pytest.raises(FileNotFoundError, match="is a file: expected the folder"):
        convert(native / "config.json", native.with_name("ours"))


def test_a_hub_id(native, tmp_path, monkeypatch):
    """Downloads files of the top folder: safetensors if there are any, otherwise pickles."""
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "original/model.safetensors", "tf_model.h5"]

    def download(repository, allow_patterns):
        assert (repository, allow_patterns) == ("someone/gpt2", ["model.safetensors", "config.json"])
        return str(shutil.copytree(native, tmp_path / "cache"))

    monkeypatch.setattr(sources.HfApi, "list_repo_files", lambda *_: files)
    monkeypatch.setattr(sources, "snapshot_download", download)
    assert convert("someone/gpt2", tmp_path / "ours") == tmp_path / "ours"
