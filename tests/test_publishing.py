"""The loss curve and the model card of a trained model."""

import sys

import pytest
from huggingface_hub import ModelCard
from tiny import make_model
from transformers import AutoTokenizer

from hf_gpt.publishing import build_model_card, draw_loss_curve, usage_code
from hf_gpt.tokenization import train_tokenizer
from hf_gpt.training import RunReport, RunSettings

SETTINGS = RunSettings(context=16, steps=4, batch_size=2, learning_rate=3e-4)
REPORT = RunReport(
    parameters=1_234_567,
    training_tokens=98_765,
    tokens_seen=128,
    steps=4,
    context=16,
    training_loss=5.5,
    evaluation_loss=5.25,
    unigram_entropy=6.0,
    seconds=12.4,
    training_curve=[(1, 6.0), (2, 5.5)],
    evaluation_curve=[(2, 5.25)],
)
DESCRIPTION = {"name": "my-gpt", "data": "a book", "origin": "random weights", "usage": "print('loaded')"}


def test_card_lists_the_results_of_the_run():
    card = build_model_card(make_model(), REPORT, SETTINGS, **DESCRIPTION)
    assert {"library_name": "transformers", "pipeline_tag": "text-generation"}.items() <= card.data.to_dict().items()
    for text in (
        "# my-gpt",
        "A 1,234,567-parameter GPT, trained by hf_gpt from random weights on a book.",
        "print('loaded')",
        "| hidden_size | 32 |",
        "| data | a book: 98,765 training tokens |",
        "| steps | 4 of 32 tokens, 128 tokens in total |",
        "| context | 16 tokens |",
        "| peak learning rate | 0.0003 |",
        "| loss | 5.250 nats per token |",
        "| perplexity | 190.6 |",
        "| unigram entropy of the data | 6.000 nats per token |",
        "| training loss, mean over the run | 5.500 nats per token |",
    ):
        assert text in card.text
    assert "{{" not in card.text
    assert "{%" not in card.text


@pytest.mark.parametrize("sample", ["", "Once upon a time"])
@pytest.mark.parametrize("loss_curve", ["", "loss.png"])
def test_sample_and_loss_curve_are_optional(sample, loss_curve):
    card = build_model_card(make_model(), REPORT, SETTINGS, **DESCRIPTION, sample=sample, loss_curve=loss_curve)
    assert ("A sample" in card.text) == ("```text" in card.text) == bool(sample)
    assert sample in card.text
    assert ("](loss.png)" in card.text) == bool(loss_curve)
    assert "\n\n\n" not in card.text


def test_card_saves_and_loads(tmp_path):
    card = build_model_card(make_model(), REPORT, SETTINGS, **DESCRIPTION)
    card.save(tmp_path / "README.md")
    assert ModelCard.load(tmp_path / "README.md").text == card.text


def test_loss_curve_is_a_png(tmp_path):
    assert draw_loss_curve(REPORT, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_loss_curve(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_loss_curve(REPORT, tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())


def test_usage_code_runs(tmp_path, capsys):
    tokenizer = train_tokenizer(["the quick brown fox " * 50], 300)
    tokenizer.save_pretrained(tmp_path)
    make_model(vocab_size=300).save_pretrained(tmp_path)
    code = usage_code(tmp_path, "the 'quick'\n")
    assert len(code.splitlines()) == 4
    exec(code, {})
    assert capsys.readouterr().out.startswith("the 'quick'\n")
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()
