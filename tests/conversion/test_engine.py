import subprocess
import sys

import pytest
import torch
from native import (
    assert_close,
    assert_convert_raises,
    assert_same_bits,
    native_model,
    read_config,
    read_files,
    read_tensors,
    replace_tensors,
    update_config,
)
from native_families import NATIVE
from tiny import random_ids
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.conversion import convert, export, verify
from hf_gpt.folders import partial_of


@pytest.mark.parametrize("family", NATIVE)
def test_shards(family, tmp_path):
    native = native_model(family)
    native.save_pretrained(tmp_path / "native", max_shard_size="4KB")
    convert(tmp_path / "native", tmp_path / "ours", max_shard_size="3KB")
    export(tmp_path / "ours", tmp_path / "back", family, max_shard_size="5KB")
    for folder in ("native", "ours", "back"):
        assert len(list((tmp_path / folder).glob("*.safetensors"))) > 1
    assert_same_bits(read_tensors(tmp_path / "back"), read_tensors(tmp_path / "native"))
    ids = random_ids(1, 9, high=native.config.vocab_size)
    assert_close(GPTForCausalLM.from_pretrained(tmp_path / "ours")(ids).logits, native(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype, tmp_path):
    native_model("llama").to(dtype).save_pretrained(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "ours")
    assert GPTConfig.from_pretrained(tmp_path / "ours").dtype == dtype
    export(tmp_path / "ours", tmp_path / "back", "llama")
    assert_same_bits(read_tensors(tmp_path / "back"), read_tensors(tmp_path / "native"))
    assert read_config(tmp_path / "back") == read_config(tmp_path / "native")


@pytest.mark.parametrize(
    ("family", "model"),
    [
        ("gpt2", lambda: GPT2LMHeadModel(GPT2Config())),
        (
            "gpt_neox",  # Pythia 160M
            lambda: GPTNeoXForCausalLM(
                GPTNeoXConfig(
                    vocab_size=50304,
                    hidden_size=768,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                    intermediate_size=3072,
                    eos_token_id=0,
                )
            ),
        ),
    ],
)
def test_real_sizes(family, model, tmp_path):
    model().to(torch.float16).save_pretrained(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "ours", max_shard_size="100MB")
    differences = verify(tmp_path / "ours", tmp_path / "native", family)
    assert differences["random tokens"].relative <= 1e-5
    export(tmp_path / "ours", tmp_path / "back", family)
    assert_same_bits(read_tensors(tmp_path / "back"), read_tensors(tmp_path / "native"))
    assert read_config(tmp_path / "back") == read_config(tmp_path / "native")


def test_the_folder_is_complete(native, tmp_path):
    """It contains the modeling code, the names of the Auto classes and the generation configuration."""
    (native / "generation_config.json").write_text('{"temperature": 0.3}')
    convert(native, tmp_path / "ours")
    assert {"modeling_gpt.py", "configuration_gpt.py", "moe.py"} <= {
        file.name for file in (tmp_path / "ours").iterdir()
    }
    assert read_config(tmp_path / "ours")["auto_map"]["AutoModelForCausalLM"] == "modeling_gpt.GPTForCausalLM"
    assert GPTForCausalLM.from_pretrained(tmp_path / "ours").generation_config.temperature == 0.3
    assert not list(tmp_path.glob("*.partial"))


def test_a_progress_bar_prints_a_name_as_it_is(native, tmp_path, capsys):
    convert(native, tmp_path / "y[red]", show_progress=True)
    assert "y[red]" in capsys.readouterr().out


MISSING = "transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (MISSING, None, rf"{MISSING} in .*native is missing"),
        ("transformer.h.7.ln_1.weight", torch.ones(24), r"transformer\.h\.7\.ln_1\.weight .* has no place"),
        ("score.weight", torch.ones(2, 24), r"score\.weight .* has no place in a model of this configuration"),
        (MISSING, torch.ones(24, 5), rf"{MISSING} .* has the shape \(24, 5\): expected \(24, \d+\) from its config"),
        (MISSING, torch.ones(24), rf"{MISSING} .* has the shape \(24,\): expected"),
        ("transformer.ln_f.bias", torch.full((24,), float("nan")), r"transformer\.ln_f\.bias .* contains NaN or inf"),
        ("transformer.ln_f.bias", torch.full((24,), float("-inf")), "contains NaN or infinity"),
        ("transformer.ln_f.bias", torch.ones(24, dtype=torch.uint16), "is of type U16: expected one of F64, F32"),
        ("transformer.ln_f.bias", torch.ones(24, dtype=torch.int64), "is of type torch.int64: expected floating point"),
    ],
)
def test_wrong_tensors(native, name, tensor, message):
    replace_tensors(native, {name: tensor})
    assert_convert_raises(native, message)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("score.weight", torch.ones(2, 24), r"score\.weight .* has no place"),
        ("model.norm.weight", None, r"model\.norm\.weight .* is missing"),
        ("model.norm.weight", torch.full((24,), float("nan")), "contains NaN"),
    ],
)
def test_wrong_tensors_in_an_export(native, tmp_path, name, tensor, message):
    convert(native, tmp_path / "ours")
    replace_tensors(tmp_path / "ours", {name: tensor})
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "ours", tmp_path / "back", "gpt2")
    assert not list(tmp_path.glob("back*"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_layer", 3, r"transformer\.h\.2\..* is missing"),
        ("n_embd", 27, r"transformer\.wte\.weight .* expected \(\d+, 27\)"),
        ("tie_word_embeddings", True, r"tie_word_embeddings=True contradicts .*lm_head\.weight"),
        ("n_layer", "two", "is not a configuration of gpt2"),
        ("quantization_config", "x", "quantization_config: weights quantized by x cannot be converted"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors(native, field, value, message):
    update_config(native, {field: value})
    assert_convert_raises(native, message)


def test_an_output_that_is_not_empty_is_not_changed(native, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/mine").write_text("unchanged")
    with pytest.raises(FileExistsError, match="choose another output folder"):
        convert(native, tmp_path / "ours")
    assert read_files(tmp_path / "ours") == {"mine": b"unchanged"}


def test_export_of_a_native_model(native, tmp_path):
    with pytest.raises(ValueError, match="model_type='gpt2', expected 'hf_gpt'"):
        export(native, tmp_path / "back", "gpt2")


KILLED = """
import os, sys
from hf_gpt.conversion import checkpoints, convert
save, written = checkpoints.save_file, []

def save_some(tensors, file, **options):
    save(tensors, file, **options)
    written.append(file)
    if len(written) == 3:
        os._exit(9)  # before the file is renamed

checkpoints.save_file = save_some
convert(sys.argv[1], sys.argv[2], max_shard_size="10KB")
"""


@pytest.fixture
def killed(native):
    """The output of a conversion whose process was killed while it wrote the third shard."""
    out = native.with_name("ours")
    assert subprocess.run([sys.executable, "-c", KILLED, native, out]).returncode == 9
    assert not out.exists()
    assert len(list((partial_of(out) / "content").glob("*.safetensors"))) == 2
    return out


def test_the_same_conversion_resumes(native, killed):
    times = {file.name: file.stat().st_mtime_ns for file in (partial_of(killed) / "content").glob("*.safetensors")}
    convert(native, killed, max_shard_size="10KB")
    for name, time in times.items():
        assert (killed / name).stat().st_mtime_ns == time
    convert(native, killed.with_name("uninterrupted"), max_shard_size="10KB")
    assert read_files(killed) == read_files(killed.with_name("uninterrupted"))


def test_another_conversion_does_not_resume(native, killed):
    with pytest.raises(FileExistsError, match=r"ours\.partial holds an unfinished run"):
        convert(native, killed, max_shard_size="20KB")
    settings = native / "config.json"
    settings.write_text(settings.read_text() + " ")  # the source changed
    with pytest.raises(FileExistsError, match=r"ours\.partial holds an unfinished run"):
        convert(native, killed, max_shard_size="10KB")
