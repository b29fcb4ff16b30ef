"""What may be wrong with a checkpoint: a clear error, the source untouched, nothing under the final name."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from native import save_native
from safetensors.torch import load_file, save_file

from hf_gpt.conversion import checkpoints, convert, export, sources

INDEX = "model.safetensors.index.json"


@pytest.fixture
def native(tmp_path):
    """The folder of a native GPT-2 with two layers, untied."""
    save_native(tmp_path / "native", "gpt2", n_layer=2, n_embd=24, n_head=3, tie_word_embeddings=False)
    return tmp_path / "native"


@pytest.fixture
def sharded(tmp_path):
    """The same in three files or more."""
    model = save_native(tmp_path / "whole", "gpt2", n_layer=2, n_embd=24, n_head=3)
    model.save_pretrained(tmp_path / "native", max_shard_size="20KB")
    return tmp_path / "native"


def snapshot(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_refused(folder, message, error=ValueError):
    """Conversion says why it does not go on, and leaves everything as it was."""
    before, out = snapshot(folder), folder.with_name("ours")
    with pytest.raises(error, match=message):
        convert(folder, out)
    assert snapshot(folder) == before
    assert not out.exists()
    assert not list(out.parent.glob("*.partial"))


def change(folder, name, tensor):
    """Replace a tensor, add one, or (None) leave one out."""
    tensors = load_file(folder / "model.safetensors") | {name: tensor}
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / "model.safetensors")


MISSING = "transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (MISSING, None, rf"{MISSING} in .*native is missing"),
        ("transformer.h.7.ln_1.weight", torch.ones(24), r"transformer\.h\.7\.ln_1\.weight .* has no place"),
        ("score.weight", torch.ones(2, 24), r"score\.weight .* has no place in a model of this configuration"),
        (MISSING, torch.ones(24, 5), rf"{MISSING} .* is \(24, 5\): expected \(24, \d+\) by its configuration"),
        (MISSING, torch.ones(24), rf"{MISSING} .* is \(24,\): expected"),
        ("transformer.ln_f.bias", torch.full((24,), float("nan")), r"transformer\.ln_f\.bias .* holds NaN or infinity"),
        ("transformer.ln_f.bias", torch.full((24,), float("-inf")), "holds NaN or infinity"),
        ("transformer.ln_f.bias", torch.ones(24, dtype=torch.int8), "is of type I8: expected one of F64, F32"),
        ("transformer.ln_f.bias", torch.ones(24, dtype=torch.int64), "is of type torch.int64: expected floating point"),
    ],
)
def test_wrong_tensors(native, name, tensor, message):
    change(native, name, tensor)
    assert_refused(native, message)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_layer", 3, r"transformer\.h\.2\..* is missing"),
        ("n_embd", 27, r"transformer\.wte\.weight .* expected \(\d+, 27\)"),
        ("tie_word_embeddings", True, r"tie_word_embeddings=True contradicts .*lm_head\.weight"),
        ("model_type", "bert", "no family 'bert': expected one of openai-gpt, gpt2"),
        ("model_type", "hf_gpt", "is a model of hf_gpt already"),
        ("n_head", 7, "n_head=7 does not divide hidden_size=24|num_attention_heads=7"),
        ("n_layer", "two", "no configuration of gpt2"),
        ("n_head", 0, "n_head=0: expected an integer of at least 1"),
        ("model_type", ["gpt2"], r"no family \['gpt2'\]"),
        ("quantization_config", "x", "no configuration of gpt2"),
        ("quantization_config", {"load_in_8bit": True}, "quantised by None cannot be converted"),
        ("layer_norm_epsilon", 0.0, "layer_norm_epsilon=0.*: expected a positive number"),
    ],
)
def test_a_configuration_that_contradicts_its_tensors_or_itself(native, field, value, message):
    settings = json.loads((native / "config.json").read_text()) | {field: value}
    (native / "config.json").write_text(json.dumps(settings))
    assert_refused(native, message)


@pytest.mark.parametrize("outside", ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", "a/b"])
def test_an_index_that_points_outside_its_folder(sharded, outside):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["transformer.wte.weight"] = outside
    (sharded / INDEX).write_text(json.dumps(index))
    assert_refused(sharded, "points outside its folder")


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_broken_index(sharded, content):
    (sharded / INDEX).write_text(content)
    assert_refused(sharded, "is no index of weight files")


def test_a_missing_shard(sharded):
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    assert_refused(sharded, f"names {lost.name}, which is not there", FileNotFoundError)


def test_a_tensor_that_no_shard_holds(sharded):
    first = min(sharded.glob("*.safetensors"))
    tensors = load_file(first)
    lost = min(tensors)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, first)
    assert_refused(sharded, rf"{lost} .* is missing")


def test_a_truncated_file(native):
    file = native / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert_refused(native, "model.safetensors is truncated or damaged", OSError)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model(native, file):
    (native / file).unlink()
    assert_refused(native, "holds no (model|weights)", FileNotFoundError)


@pytest.mark.parametrize("content", ["no JSON", "[]", "\x00"])
def test_a_configuration_that_is_none(native, content):
    (native / "config.json").write_text(content)
    assert_refused(native, "config.json")


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/should-never-run",)


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "payload", [{"model": Evil()}, Evil(), [torch.ones(2)], {"transformer.wte.weight": 3}, {"a": Pair(1, 2)}]
)
def test_a_pickle_that_is_not_plain_tensors(native, payload):
    (native / "model.safetensors").unlink()
    torch.save(payload, native / "pytorch_model.bin")
    assert_refused(native, "is refused: it holds more than tensors|is no dict of tensors")
    assert not os.path.exists("/tmp/should-never-run")


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut off", b"", b"\x80\x02garbage"])
def test_a_damaged_pickle(native, content):
    (native / "model.safetensors").unlink()
    (native / "pytorch_model.bin").write_bytes(content)
    assert_refused(native, "truncated or damaged|is refused", (OSError, ValueError))


@pytest.mark.parametrize("model_args", [{}, {"model_args": None}, {"model_args": {"n_layer": 1}}])
def test_a_nanogpt_without_its_arguments(tmp_path, model_args):
    (tmp_path / "native").mkdir()
    torch.save({"model": {"a": torch.ones(2)}, **model_args}, tmp_path / "native/ckpt.pt")
    assert_refused(tmp_path / "native", "has no configuration of nanogpt")


def test_a_broken_tokenizer_is_known_before_weights_are_written(native, monkeypatch):
    (native / "tokenizer.json").write_text("{}")
    (native / "tokenizer_config.json").write_text("{")
    monkeypatch.setattr(checkpoints, "save_file", None)
    assert_refused(native, "tokenizer_config.json is no JSON")


def test_no_such_folder(tmp_path):
    for source in (tmp_path / "nowhere", "./nowhere"):
        with pytest.raises(OSError, match="nowhere"):
            convert(source, tmp_path / "ours")


def test_a_file_is_no_folder(native):
    with pytest.raises(FileNotFoundError, match="is a file: expected the folder"):
        convert(native / "config.json", native.with_name("ours"))


def test_an_output_that_holds_something_is_not_touched(native, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/mine").write_text("keep")
    with pytest.raises(FileExistsError, match="choose another output folder"):
        convert(native, tmp_path / "ours")
    assert snapshot(tmp_path / "ours") == {"mine": b"keep"}


def test_an_unknown_family_to_export_to(native, tmp_path):
    convert(native, tmp_path / "ours")
    with pytest.raises(ValueError, match="no family 'gpt5': expected one of openai-gpt"):
        export(tmp_path / "ours", tmp_path / "back", "gpt5")
    with pytest.raises(ValueError, match="model_type='gpt2', expected 'hf_gpt'"):
        export(native, tmp_path / "back", "gpt2")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("score.weight", torch.ones(2, 24), r"score\.weight .* has no place"),
        ("model.norm.weight", None, r"model\.norm\.weight .* is missing"),
        ("model.norm.weight", torch.full((24,), float("nan")), "holds NaN"),
    ],
)
def test_wrong_tensors_on_the_way_back(native, tmp_path, name, tensor, message):
    convert(native, tmp_path / "ours")
    change(tmp_path / "ours", name, tensor)
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "ours", tmp_path / "back", "gpt2")
    assert not list(tmp_path.glob("back*"))


def test_no_disk_left_is_known_beforehand(native, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 9, 1000)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"no disk left for .*: [\d,]+ bytes needed, 1,000 free"):
        convert(native, native.with_name("ours"))
    assert not native.with_name("ours").exists()


def test_no_disk_left_on_the_way(native, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match=r"could not be written: .*No space left"):
        convert(native, native.with_name("ours"))
    assert not native.with_name("ours").exists()


KILLED = """
import os, sys
from hf_gpt.conversion import checkpoints, convert
save, written = checkpoints.save_file, []

def save_some(tensors, file, **options):
    save(tensors, file, **options)
    written.append(file)
    if len(written) == 3:
        os._exit(9)  # before it has its name

checkpoints.save_file = save_some
convert(sys.argv[1], sys.argv[2], max_shard_size="10KB")
"""


@pytest.fixture
def killed(native):
    """A conversion that was killed while it wrote its third shard."""
    out = native.with_name("ours")
    assert subprocess.run([sys.executable, "-c", KILLED, native, out]).returncode == 9
    assert not out.exists()
    assert len(list(out.with_name("ours.partial").glob("*.safetensors"))) == 2
    return out


def test_after_a_kill_it_goes_on(native, killed, monkeypatch):
    kept = {file.name: file.stat().st_mtime_ns for file in killed.with_name("ours.partial").glob("*.safetensors")}
    convert(native, killed, max_shard_size="10KB")
    for name, written in kept.items():
        assert (killed / name).stat().st_mtime_ns == written
    convert(native, killed.with_name("at_once"), max_shard_size="10KB")
    assert snapshot(killed) == snapshot(killed.with_name("at_once"))


def test_another_conversion_does_not_go_on_with_it(native, killed):
    with pytest.raises(FileExistsError, match=r"ours\.partial holds an unfinished run"):
        convert(native, killed, max_shard_size="20KB")
    settings = native / "config.json"
    settings.write_text(settings.read_text() + " ")  # the source changed
    with pytest.raises(FileExistsError, match=r"ours\.partial holds an unfinished run"):
        convert(native, killed, max_shard_size="10KB")


def test_a_hub_id(native, tmp_path, monkeypatch):
    """Safetensors where there are any, files of the top folder alone."""
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "original/model.safetensors", "tf_model.h5"]

    def download(repository, allow_patterns):
        assert (repository, allow_patterns) == ("someone/gpt2", ["model.safetensors", "config.json"])
        return str(shutil.copytree(native, tmp_path / "cache"))

    monkeypatch.setattr(sources.HfApi, "list_repo_files", lambda *_: files)
    monkeypatch.setattr(sources, "snapshot_download", download)
    assert convert("someone/gpt2", tmp_path / "ours") == tmp_path / "ours"
