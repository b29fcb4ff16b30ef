"""One run of the stock Trainer, as `hf-gpt train` makes it."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from stock_trainer import assert_same_weights, killed_at
from tiny import make_model
from transformers import PreTrainedTokenizerBase, Trainer, set_seed

from hf_gpt import GPTForCausalLM
from hf_gpt.data import encode_texts
from hf_gpt.folders import PartialFolder, output_folder
from hf_gpt.tokenization import train_tokenizer
from hf_gpt.training import RunSettings, train_model
from hf_gpt.training.runs import MANIFEST, CheckpointMover, _mean, last_complete_checkpoint, read_report

TEXTS = [f"Document number {index} says that the cat sat on the mat, {index} times. " * 8 for index in range(20)]
SETTINGS = RunSettings(context=16, steps=8, batch_size=4, save_steps=4)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 300)


def run(out, tokenizer, settings=SETTINGS, variant="default"):
    model = make_model(variant, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).train()
    with output_folder(out, {}) as folder:
        report = train_model(model, tokenizer, encode_texts(tokenizer, TEXTS), folder, settings)
        assert read_report(folder).perplexity == report.perplexity
    return report


def test_report_of_a_run(tmp_path, tokenizer):
    out = tmp_path / "out"
    report = run(out, tokenizer)
    assert report.steps == 8
    assert report.tokens_seen == 8 * 4 * 16
    assert report.evaluation_curve[-1][1] == report.evaluation_loss < report.training_curve[0][1]
    assert json.loads((out / "report.json").read_text())["evaluation_loss"] == report.evaluation_loss
    assert not list(out.glob("*.bin"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    GPTForCausalLM.from_pretrained(out)


@contextmanager
def killed_at_the_end():
    """Interrupts a run after its last checkpoint, before the model is saved."""

    def interrupt(self, output_dir, _internal_call=False):
        if not _internal_call:
            raise KeyboardInterrupt
        save(self, output_dir, _internal_call)

    save = Trainer.save_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_model", interrupt)
        yield


@pytest.mark.parametrize(
    ("variant", "changes", "killed"),
    [
        ("default", {}, killed_at(6)),
        ("mixtral", {}, killed_at_the_end()),
        ("default", {"steps": 100, "save_steps": 33}, killed_at(40)),  # logs every second step
    ],
)
def test_a_killed_run_resumes(tmp_path, tokenizer, variant, changes, killed):
    settings = replace(SETTINGS, **changes)
    expected = run(tmp_path / "whole", tokenizer, settings, variant)
    with killed, pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", tokenizer, settings, variant)
    set_seed(99)
    report = run(tmp_path / "cut", tokenizer, settings, variant)
    assert normalized(report) == normalized(expected)
    assert report.training_curve[-1][0] == report.steps == settings.steps
    whole, resumed = (GPTForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "cut"))
    assert_same_weights(resumed, whole)


def normalized(report):
    return json.loads(json.dumps(asdict(replace(report, seconds=0))))


def test_the_training_loss_is_the_mean_over_steps():
    assert _mean([(2, 5.0), (4, 3.0), (5, 1.0)]) == (5 + 5 + 3 + 3 + 1) / 5


def test_activation_checkpointing_has_the_same_result(tmp_path, tokenizer):
    checkpointed = run(tmp_path / "a", tokenizer, replace(SETTINGS, gradient_checkpointing=True))
    plain = run(tmp_path / "b", tokenizer)
    assert checkpointed.evaluation_loss == pytest.approx(plain.evaluation_loss, rel=1e-4)


def test_report_of_the_load_of_the_experts(tmp_path):
    text = "the quick brown fox jumps over the lazy dog " * 200
    tokenizer = train_tokenizer([text], 300)
    model = make_model("mixtral", vocab_size=300).train()
    settings = RunSettings(context=16, steps=4, batch_size=4)
    with output_folder(tmp_path / "out") as folder:
        report = train_model(model, tokenizer, encode_texts(tokenizer, [text]), folder, settings)
    assert len(report.max_violations) == 1


def test_a_run_without_a_report_has_not_ended(tmp_path):
    assert read_report(PartialFolder(tmp_path)) is None


def save_checkpoint(folder, step):
    """Writes a checkpoint as the Trainer does, and completes it."""
    for name in CHECKPOINT_FILES:
        (folder.unfinished / f"checkpoint-{step}" / name).parent.mkdir(exist_ok=True)
        (folder.unfinished / f"checkpoint-{step}" / name).write_text("content")
    CheckpointMover(folder).on_save(None, SimpleNamespace(global_step=step), None)


CHECKPOINT_FILES = ("model.safetensors", "optimizer.pt", "trainer_state.json", "tokenizer.json")
DAMAGES = {
    "empty": lambda path: path.write_text(""),
    "truncated": lambda path: path.write_text("con"),
    "changed": lambda path: path.write_bytes(b"!" + path.read_bytes()[1:]),
}


def test_only_the_last_checkpoint_is_kept(tmp_path):
    with output_folder(tmp_path / "out") as folder:
        assert last_complete_checkpoint(folder) is None
        for step in (8, 10):
            save_checkpoint(folder, step)
        assert last_complete_checkpoint(folder) == str(folder.checkpoints / "checkpoint-10")
        assert len(list(folder.checkpoints.iterdir())) == 1
        assert not list(folder.unfinished.iterdir())


@pytest.mark.parametrize("name", [*CHECKPOINT_FILES, MANIFEST])
@pytest.mark.parametrize("damage", [*DAMAGES.values(), Path.unlink], ids=[*DAMAGES, "missing"])
def test_a_damaged_checkpoint_is_removed(tmp_path, name, damage):
    with output_folder(tmp_path / "out") as folder:
        save_checkpoint(folder, 8)
        shutil.copytree(folder.checkpoints / "checkpoint-8", folder.checkpoints / "checkpoint-10")
        damage(folder.checkpoints / "checkpoint-10" / name)
        assert last_complete_checkpoint(folder) == str(folder.checkpoints / "checkpoint-8")
        assert len(list(folder.checkpoints.iterdir())) == 1
