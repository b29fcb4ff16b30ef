"""`hf-gpt demo` and `train`."""

import json
import sys

import pytest
from command_line import TEXT, TINY, assert_error
from huggingface_hub import ModelCard
from stock_trainer import killed_at
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_gpt import recipes
from hf_gpt.cli import training

FAST = ("--steps", "6", "--batch-size", "4", "--save-steps", "2")


def test_demo(run, text, tmp_path):
    out = tmp_path / "out"
    status, output, _ = run("demo", "--text", text, "--out", out, "--steps", 3, "--prompt", "The quick")
    assert status == 0
    assert {"model.safetensors", "tokenizer.json", "README.md", "loss.png", "report.json", "modeling_gpt.py"} <= {
        path.name for path in out.iterdir()
    }
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((out / "report.json").read_text())

    card = ModelCard.load(out / "README.md")
    assert {"library_name": "transformers", "pipeline_tag": "text-generation"}.items() <= card.data.to_dict().items()
    assert f"{report['parameters']:,}" in card.text
    assert f"{report['evaluation_loss']:.3f}" in card.text
    assert "text.txt" in card.text
    assert "{{" not in card.text

    assert "generated in a new interpreter" in output
    assert "The quick" in output
    lines = output.strip().splitlines()[-4:]
    assert "AutoModelForCausalLM" in lines[0]
    AutoModelForCausalLM.from_pretrained(out)


def test_demo_needs_no_text(run, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "standard_library_documentation", lambda: [TEXT])
    status, _, _ = run("demo", "--out", tmp_path / "out", "--steps", 1)
    assert status == 0
    assert "documentation of the Python standard library" in (tmp_path / "out" / "README.md").read_text()


def test_demo_without_matplotlib(run, text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, output, _ = run("demo", text, "--out", tmp_path / "out", "--steps", 1)
    assert status == 0
    assert "hf_gpt[plot]" in output
    assert "loss.png" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty: expected text"), (None, "No such file"), ("too short", "expected at least one row")],
)
def test_demo_with_bad_text(run, tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_text(content)
    assert_error(run("demo", "--text", path, "--out", tmp_path / "out"), message)
    assert {entry.name for entry in tmp_path.iterdir()} <= {"text.txt"}


def test_train_from_a_preset_and_from_its_result(run, text, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    status, output, _ = run("train", text, "--out", first, "--model", "gpt2", *TINY, *FAST, "--prompt", "The")
    assert status == 0
    assert "held-out loss" in output
    config = json.loads((first / "config.json").read_text())
    assert (config["position_embedding_type"], config["hidden_size"]) == ("learned", 32)
    assert len(AutoTokenizer.from_pretrained(first)) == config["vocab_size"]

    status, _, _ = run(
        "train", text, "--out", second, "--model", first, *FAST, "--gradient-accumulation-steps", 2, "--bf16",
        "--gradient-checkpointing", "--context", 16,
    )  # fmt: skip
    assert status == 0
    before, after = (json.loads((folder / "report.json").read_text()) for folder in (first, second))
    assert after["training_curve"][0][1] < before["training_curve"][0][1]
    assert "the weights in first" in (second / "README.md").read_text()


def test_train_from_a_configuration_and_a_tokenizer(run, text, saved, tmp_path):
    arguments = ("train", text, "--out", tmp_path / "out", "--model", saved / "config.json", "--tokenizer", saved)
    assert run(*arguments, *FAST)[0] == 0
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (saved / "tokenizer.json").read_text()


def test_train_resumes(run, text, tmp_path, monkeypatch):
    """A run ends with the same weights if it was killed in training, or failed after it and does not train again."""
    arguments = ("train", text, *TINY, *FAST, "--out")
    whole, cut, late = tmp_path / "whole", tmp_path / "cut", tmp_path / "late"
    assert run(*arguments, whole)[0] == 0

    with killed_at(5):
        run(*arguments, cut)
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "draw_loss_curve", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(*arguments, late)
    newest = tmp_path / "cut.partial" / "checkpoints" / "checkpoint-5"
    newest.mkdir()  # a damaged checkpoint
    (newest / "model.safetensors").write_bytes(b"half")
    for out in (cut, late):
        assert not out.exists()
        assert_error(run(*arguments, out), "holds an unfinished run")
        assert_error(run(*arguments, out, "--resume", "--seed", 7), "cannot resume: seed=7")
        assert run(*arguments, out, "--resume")[0] == 0
        assert not (out / "checkpoints").exists()
        for name in ("model.safetensors", "tokenizer.json"):
            assert (out / name).read_bytes() == (whole / name).read_bytes()
        reports = [json.loads((folder / "report.json").read_text()) for folder in (out, whole)]
        for report in reports:
            report.pop("seconds")
        assert reports[0] == reports[1]


def test_resume_requires_the_same_text(run, text, tmp_path, monkeypatch):
    arguments = ("train", text, *TINY, *FAST, "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "draw_loss_curve", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(*arguments)
    text.write_text(TEXT.replace("fox", "cat"))
    assert_error(run(*arguments, "--resume"), "cannot resume: sha256")
    assert (tmp_path / "out.partial").exists()
    other = ("train", text, *TINY, *FAST, "--out", tmp_path / "other", "--resume")
    assert_error(run(*other), "no unfinished run to resume")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected one of --text, --dataset and --tokens"),
        (("--text", "TEXT", "--model", "gpt9"), "'gpt9' is not a file, a folder or a preset"),
        (("--text", "TEXT", "-s", "hidden_size"), "--set hidden_size: expected FIELD=VALUE"),
        (("--text", "TEXT", "-s", "layers=2"), "--set layers=2: unknown field"),
        (("--text", "TEXT", *TINY, "--prompt", ""), "the prompt is empty"),
        (("--text", "TEXT", "-s", "mlp_type=moe"), "mlp_type='moe': expected one of mlp, glu"),
        (("--text", "TEXT", "--model", "SAVED", "-s", "hidden_size=8"), "--set hidden_size: "),
        (("--text", "TEXT", *TINY, "--context", "64"), "context=64: expected at most max_position_embeddings=32"),
    ],
)
def test_train_with_bad_arguments(run, text, saved, tmp_path, arguments, message):
    arguments = [{"TEXT": text, "SAVED": saved}.get(argument, argument) for argument in arguments]
    assert_error(run("train", "--out", tmp_path / "out", *arguments), message)
    assert {entry.name for entry in tmp_path.iterdir()} == {"text.txt"}


def test_train_on_tokens(run, text, saved, tmp_path):
    assert run("tokenize", text, "--tokenizer", saved, "--out", tmp_path / "tokens")[0] == 0
    options = (*TINY, "--steps", 3, "--context", 16, "--model", "gpt2")
    status, _, errors = run("train", "--tokens", tmp_path / "tokens", "--out", tmp_path / "a", *options)
    assert status == 0, errors
    assert run("train", "--text", text, "--tokenizer", saved, "--out", tmp_path / "b", *options)[0] == 0
    losses = [json.loads((tmp_path / run / "report.json").read_text())["evaluation_loss"] for run in "ab"]
    assert losses[0] == losses[1]
    assert AutoTokenizer.from_pretrained(tmp_path / "a").get_vocab() == AutoTokenizer.from_pretrained(saved).get_vocab()
    both = ("--tokens", tmp_path / "tokens", "--tokenizer", saved, "--out", tmp_path / "c")
    assert_error(run("train", *both, *options), "--tokens already have a tokenizer")
