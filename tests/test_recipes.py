"""A tokenizer and a model from text in one run. tests/cli/test_training.py tests whole runs."""

from dataclasses import replace

import pytest
import torch
from tiny import make_config, make_model

from hf_gpt import preset_config
from hf_gpt.recipes import DEMO, DEMO_SETTINGS, find_origin, generate_in_new_interpreter, train_from_text

TEXTS = ["The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 100]


def test_origin_of_a_preset():
    config, checkpoint, description = find_origin("gpt2", {"num_hidden_layers": 3})
    expected = preset_config("gpt2", num_hidden_layers=3, bos_token_id=None, eos_token_id=None)
    assert config.to_dict() == expected.to_dict()
    assert checkpoint is None
    assert description == "random weights of the preset gpt2"


def test_origin_of_a_configuration(tmp_path):
    make_config("llama").save_pretrained(tmp_path)
    config, checkpoint, description = find_origin(str(tmp_path / "config.json"), {"num_hidden_layers": 3})
    assert (config.norm_type, config.num_hidden_layers) == ("rms_norm", 3)
    assert checkpoint is None
    assert description == "random weights"


def test_a_folder_without_its_weights_does_not_begin_with_random_ones(tmp_path):
    make_config("llama").save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="contains no weights"):
        find_origin(str(tmp_path))


def test_origin_of_a_checkpoint(tmp_path):
    make_model("llama").save_pretrained(tmp_path / "mine")
    config, checkpoint, description = find_origin(str(tmp_path / "mine"))
    assert config.norm_type == "rms_norm"
    assert checkpoint == tmp_path / "mine"
    assert description == "the weights in mine"


def test_an_unknown_origin_raises():
    with pytest.raises(ValueError, match=r"'gpt9' is not a file, a folder or a preset\. The presets are .*gpt2-large"):
        find_origin("gpt9")


def test_a_run_with_the_same_seed_has_the_same_result(tmp_path):
    settings = replace(DEMO_SETTINGS, steps=2)
    runs = [train_from_text(tmp_path / name, TEXTS, "foxes", DEMO, settings) for name in "ab"]
    assert runs[0].report.training_curve == runs[1].report.training_curve
    assert str(tmp_path / "a") in runs[0].usage
    assert runs[0].sample == ""
    assert "from random weights on foxes" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"context": 129}, {}, "context=129: expected at most max_position_embeddings=128"),
        ({}, {"prompt": ""}, "the prompt is empty: expected text to continue"),
    ],
)
def test_bad_arguments_raise_and_leave_nothing(tmp_path, changes, options, message):
    with pytest.raises(ValueError, match=message):
        train_from_text(tmp_path / "out", TEXTS, "foxes", DEMO, replace(DEMO_SETTINGS, **changes), **options)
    assert not list(tmp_path.iterdir())


def test_the_demo_is_a_small_gpt():
    config = DEMO.config
    assert DEMO_SETTINGS.context == config.max_position_embeddings
    assert (config.norm_type, config.mlp_type, config.position_embedding_type) == ("layer_norm", "mlp", "rope")
    with torch.device("meta"):
        assert make_model(**config.to_diff_dict()).num_parameters() < 2_000_000


def test_a_model_that_does_not_load_raises_the_last_line_of_the_traceback(tmp_path):
    with pytest.raises(RuntimeError, match=rf"a new interpreter could not use {tmp_path}: ."):
        generate_in_new_interpreter(tmp_path, "Once")
