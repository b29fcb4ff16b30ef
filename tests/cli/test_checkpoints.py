"""`hf-gpt convert`, `export`, `upcycle` and `quantize`."""

import shutil

import pytest
import torch
from command_line import TEXT, assert_error
from native import save_native
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_gpt.cli import checkpoints
from hf_gpt.conversion import convert
from hf_gpt.conversion.verification import Difference
from hf_gpt.tokenization import train_tokenizer


def test_convert_and_export(run, tmp_path):
    """Converts and exports with a tokenizer; --verify compares both with the native model."""
    native, ours, back = tmp_path / "native", tmp_path / "ours", tmp_path / "back"
    model = save_native(native, "gpt2", vocab_size=300, tie_word_embeddings=True)
    train_tokenizer([TEXT], 300).save_pretrained(native)
    for command, family in (
        (("convert", native, ours), "gpt2"),
        (("export", ours, back, "--to", "gpt2", "--max-shard-size", "10KB"), "gpt2"),
    ):
        status, output, _ = run(*command, "--verify")
        assert status == 0
        assert family in output
        for tokens in ("random tokens", "real tokens"):
            line = next(line for line in output.splitlines() if line.startswith(tokens))
            assert float(line.split()[-5]) < 1e-5
    assert len(list(back.glob("*.safetensors"))) > 1
    prompt = AutoTokenizer.from_pretrained(back)("The quick", return_tensors="pt")
    greedy = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for folder in (ours, back):
        written = AutoModelForCausalLM.from_pretrained(folder).generate(**prompt, **greedy)
        assert written.tolist() == model.generate(**prompt, **greedy).tolist()


def test_verify_fails_if_the_logits_differ(run, tmp_path, monkeypatch):
    save_native(tmp_path / "native", "gpt2")
    save_native(tmp_path / "other", "gpt2", initializer_range=0.5, activation_function="relu")
    monkeypatch.setattr(checkpoints, "convert", lambda *_, **__: convert(tmp_path / "other", tmp_path / "ours"))
    assert_error(run("convert", tmp_path / "native", tmp_path / "ours", "--verify"), "differ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "/nowhere", "ours"], "/nowhere is not a folder"),
        (["convert", "{saved}", "ours"], "is a model of hf_gpt already"),
        (["export", "{saved}", "back", "--to", "gpt5"], "no family 'gpt5'"),
        (["export", "{saved}", "back", "--to", "gpt2"], "position_embedding_type='rope' cannot be expressed by gpt2"),
        (["export", "{saved}", "{saved}", "--to", "gpt_neox"], "choose another output folder"),
    ],
)
def test_convert_and_export_with_bad_arguments(run, saved, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert_error(run(*(argument.format(saved=saved) for argument in arguments)), message)
    assert not list(tmp_path.iterdir())


def test_upcycle(run, saved, tmp_path):
    """Computes the same function; `info` shows the experts."""
    status, output, _ = run("upcycle", saved, tmp_path / "out", "--num-experts", 4, "-s", "router_aux_loss_coef=0.05")
    assert status == 0
    model, dense = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "out", saved))
    assert f"{model.num_parameters():,} parameters" in output
    assert model.config.router_aux_loss_coef == 0.05
    ids = torch.arange(10)[None]
    assert torch.allclose(model(ids).logits, dense(ids).logits, atol=1e-4)
    AutoTokenizer.from_pretrained(tmp_path / "out")
    status, output, _ = run("info", tmp_path / "out")
    assert status == 0
    assert "2/4 mlp" in output
    some = run("upcycle", saved, tmp_path / "some", "--layer", 0, "--layer=-1", "--granularity", 2, "--noise", 0.1)
    assert some[0] == 0


def test_reinitialise_is_a_deprecated_alias(run, saved, tmp_path):
    status, _, errors = run("upcycle", saved, tmp_path / "old", "--reinitialise", 0.25)
    assert status == 0
    assert "--reinitialise is deprecated: use --reinitialize" in errors
    status, _, errors = run("upcycle", saved, tmp_path / "new", "--reinitialize", 0.25)
    assert status == 0
    assert "deprecated" not in errors
    assert (tmp_path / "old/model.safetensors").read_bytes() == (tmp_path / "new/model.safetensors").read_bytes()
    assert "--reinitialise" not in run("upcycle", "--help").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere", "out"], "/nowhere is not a folder"),
        (["{saved}", "{saved}"], "choose another output folder"),
        (
            ["{saved}", "out", "--num-experts", "2", "--num-experts-per-tok", "4"],
            "expected at most num_local_experts=2",
        ),
        (["{saved}", "out", "--granularity", "3"], "granularity=3 does not divide num_experts=8"),
        (["{saved}", "out", "-s", "hidden_size=7"], "upcycle does not accept hidden_size"),
    ],
)
def test_upcycle_with_bad_arguments(run, saved, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert_error(run("upcycle", *(argument.format(saved=saved) for argument in arguments)), message)
    assert not list(tmp_path.iterdir())


def test_quantize(run, saved, tmp_path):
    """The result generates and is not quantized again."""
    sizes = []
    for scheme in ("int8", "int4"):
        out = tmp_path / scheme
        status, output, _ = run("quantize", saved, out, "--to", scheme)
        assert status == 0
        assert f"{scheme}, " in output
        sizes.append((out / "model.safetensors").stat().st_size)
        assert run("generate", out, "--prompt", "The quick", "--max_new_tokens", 3)[0] == 0
        assert_error(run("quantize", out, tmp_path / "again"), "the model is quantized already")
    assert sizes == sorted(sizes, reverse=True)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere", "out"], "/nowhere is not a folder"),
        (["{saved}", "{saved}"], "choose another output folder"),
        (["{saved}", "out", "--to", "int3"], "expected one of int8, int4"),
        (["{saved}", "out", "--to", "int4", "--group-size", "128"], "group_size=128 does not divide"),
    ],
)
def test_quantize_with_bad_arguments(run, saved, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert_error(run("quantize", *(argument.format(saved=saved) for argument in arguments)), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [None, float("nan")])
def test_no_command_uses_a_damaged_checkpoint(run, saved, text, tmp_path, value):
    """A tensor is missing, or NaN."""
    damaged, out = tmp_path / "damaged", tmp_path / "out"
    shutil.copytree(saved, damaged)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(damaged / "model.safetensors")
    tensors[name].fill_(value or 0)
    save_file({each: tensors[each] for each in tensors if value or each != name}, damaged / "model.safetensors")
    for arguments in (
        ("quantize", damaged, out),
        ("upcycle", damaged, out),
        ("export", damaged, out, "--to", "gpt_neox"),
        ("generate", damaged, "--prompt", "The"),
        ("train", text, "--out", out, "--model", damaged, "--steps", 1),
    ):
        assert_error(run(*arguments), f"{name} in {damaged} {'contains NaN or infinity' if value else 'is missing'}")
        assert {path.name for path in tmp_path.iterdir()} == {"damaged", "text.txt"}


def test_verify_fails_if_the_logits_are_not_numbers(tmp_path, monkeypatch):
    nan = float("nan")
    monkeypatch.setattr(checkpoints, "verify", lambda *_: {"one": Difference(0.0, 1.0), "two": Difference(nan, 1.0)})
    with pytest.raises(RuntimeError, match="differ"):
        checkpoints.compare_logits(tmp_path, tmp_path, "gpt2")
