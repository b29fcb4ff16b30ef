"""One run of the stock Trainer, as `hf-gpt train` makes it."""

import json
from dataclasses import replace

import pytest
from stock_trainer import assert_same_weights, killed_at
from tiny import make_model
from transformers import PreTrainedTokenizerBase, set_seed

from hf_gpt import GPTForCausalLM
from hf_gpt.data import encode_texts
from hf_gpt.tokenization import train_tokenizer
from hf_gpt.training import RunSettings, train_model
from hf_gpt.training.runs import last_complete_checkpoint, read_report, record_settings

TEXTS = [f"Document number {index} says that the cat sat on the mat, {index} times. " * 8 for index in range(20)]
SETTINGS = RunSettings(context=16, steps=8, batch_size=4, save_steps=4)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 300)


def run(folder, tokenizer, settings=SETTINGS):
    model = make_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).train()
    return train_model(model, tokenizer, encode_texts(tokenizer, TEXTS), folder, settings)


def test_report_of_a_run(tmp_path, tokenizer):
    report = run(tmp_path, tokenizer)
    assert report.steps == 8
    assert report.tokens_seen == 8 * 4 * 16
    assert report.evaluation_curve[-1][1] == report.evaluation_loss < report.training_curve[0][1]
    assert json.loads((tmp_path / "report.json").read_text())["evaluation_loss"] == report.evaluation_loss
    assert read_report(tmp_path).perplexity == report.perplexity
    assert not list(tmp_path.glob("*.bin"))
    GPTForCausalLM.from_pretrained(tmp_path)


def test_a_killed_run_resumes(tmp_path, tokenizer):
    run(tmp_path / "whole", tokenizer)
    with killed_at(6), pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", tokenizer)
    set_seed(99)
    report = run(tmp_path / "cut", tokenizer)
    assert [step for step, _ in report.training_curve] == list(range(1, 9))
    whole, resumed = (GPTForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "cut"))
    assert_same_weights(resumed, whole)


def test_activation_checkpointing_has_the_same_result(tmp_path, tokenizer):
    checkpointed = run(tmp_path / "a", tokenizer, replace(SETTINGS, gradient_checkpointing=True))
    plain = run(tmp_path / "b", tokenizer)
    assert checkpointed.evaluation_loss == pytest.approx(plain.evaluation_loss, rel=1e-4)


def test_a_run_resumes_only_with_its_settings(tmp_path):
    record_settings(tmp_path, {"steps": 8, "context": 16})
    record_settings(tmp_path, {"steps": 8, "context": 16})
    with pytest.raises(ValueError, match="cannot resume: context=32, but the run began with 16"):
        record_settings(tmp_path, {"steps": 8, "context": 32})


def test_report_of_the_load_of_the_experts(tmp_path):
    text = "the quick brown fox jumps over the lazy dog " * 200
    tokenizer = train_tokenizer([text], 300)
    model = make_model("mixtral", vocab_size=300).train()
    report = train_model(
        model, tokenizer, encode_texts(tokenizer, [text]), tmp_path, RunSettings(context=16, steps=4, batch_size=4)
    )
    assert len(report.max_violations) == 1


def test_a_run_without_a_report_has_not_ended(tmp_path):
    assert read_report(tmp_path) is None


def test_incomplete_checkpoints_are_removed(tmp_path):
    assert last_complete_checkpoint(tmp_path / "missing") is None
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").touch()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
