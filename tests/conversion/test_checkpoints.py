import json
import os
from collections import namedtuple

import pytest
import torch
from native import assert_convert_raises, assert_same_bits, native_model, read_tensors
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_gpt.conversion import checkpoints, convert, export

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path):
    """The folder of a native GPT-2 in at least three shards."""
    native_model("gpt2", n_layer=2, n_embd=24, n_head=3).save_pretrained(tmp_path / "native", max_shard_size="20KB")
    return tmp_path / "native"


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(native, tmp_path, sharded, zipped):
    tensors = read_tensors(native)
    (native / "model.safetensors").unlink()
    if sharded:
        names = sorted(tensors)
        files = {"a.bin": names[:5], "b.bin": names[5:]}
        index = {"weight_map": {name: file for file, names in files.items() for name in names}}
        (native / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        files = {"pytorch_model.bin": list(tensors)}
    for file, names in files.items():
        part = {name: tensors[name] for name in names}
        torch.save(part, native / file, _use_new_zipfile_serialization=zipped)
    export(convert(native, tmp_path / "ours"), tmp_path / "back", "gpt2")
    assert_same_bits(read_tensors(tmp_path / "back"), tensors)


def test_safetensors_come_before_pickles(native, tmp_path):
    (native / "pytorch_model.bin").write_bytes(b"never opened")
    convert(native, tmp_path / "ours")


def test_a_folder_without_weights(native):
    (native / "model.safetensors").unlink()
    assert_convert_raises(native, "contains no weights", FileNotFoundError)


def test_several_checkpoints_in_a_folder(native):
    (native / "model.safetensors").unlink()
    for name in ("a.pt", "b.pt"):
        torch.save({}, native / name)
    assert_convert_raises(native, r"native contains a\.pt, b\.pt: expected one checkpoint")


@pytest.mark.parametrize("path", ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", "a/b"])
def test_an_index_with_a_path_outside_its_folder(sharded, path):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["transformer.wte.weight"] = path
    (sharded / INDEX).write_text(json.dumps(index))
    assert_convert_raises(sharded, "lists a path outside its folder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON: it is nested too deeply"),
        ("[]", "expected a JSON object"),
        ("{}", "is not an index of weight files"),
        ('{"weight_map": 3}', "is not an index of weight files"),
        ('{"weight_map": ["model.safetensors"]}', "is not an index of weight files"),
    ],
)
def test_an_invalid_index(sharded, content, message):
    (sharded / INDEX).write_text(content)
    assert_convert_raises(sharded, f"{INDEX}.*{message}")


def test_a_missing_shard(sharded):
    missing = sorted(sharded.glob("*.safetensors"))[1]
    missing.unlink()
    assert_convert_raises(sharded, f"lists {missing.name}, which does not exist", FileNotFoundError)


def test_a_tensor_that_is_in_no_shard(sharded):
    first = min(sharded.glob("*.safetensors"))
    tensors = load_file(first)
    missing = min(tensors)
    save_file({name: tensor for name, tensor in tensors.items() if name != missing}, first)
    assert_convert_raises(sharded, rf"{missing} .* is missing")


def test_a_truncated_file(native):
    file = native / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert_convert_raises(native, "model.safetensors is truncated or damaged", OSError)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/should-never-run",)


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "payload", [{"model": Evil()}, Evil(), [torch.ones(2)], {"transformer.wte.weight": 3}, {"a": Pair(1, 2)}]
)
def test_a_pickle_of_something_else_than_tensors(native, payload):
    (native / "model.safetensors").unlink()
    torch.save(payload, native / "pytorch_model.bin")
    assert_convert_raises(
        native, "is not loaded: it contains more than tensors|is not a dict of tensors|is not a dense tensor"
    )
    assert not os.path.exists("/tmp/should-never-run")


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut off", b"", b"\x80\x02garbage"])
def test_a_damaged_pickle(native, content):
    (native / "model.safetensors").unlink()
    (native / "pytorch_model.bin").write_bytes(content)
    assert_convert_raises(native, "truncated or damaged|is not loaded", (OSError, ValueError))


def test_a_full_disk_is_detected_before_writing(native, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 9, 1000)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"not enough disk space for .*: [\d,]+ bytes needed, 1,000 free"):
        convert(native, native.with_name("ours"))
    assert not native.with_name("ours").exists()


def test_a_disk_that_becomes_full(native, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match=r"could not be written: .*No space left"):
        convert(native, native.with_name("ours"))
    assert not native.with_name("ours").exists()
