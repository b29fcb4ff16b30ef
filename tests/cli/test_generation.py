"""`hf-gpt generate`."""

import pytest
from command_line import assert_error


def test_prompts_files_and_standard_input(run, saved, text, tmp_path):
    options = ("--max_new_tokens", 5, "--do-sample", "false")
    status, one, _ = run("generate", saved, "--prompt", "The quick", *options)
    assert status == 0
    assert one.startswith("The quick")
    (tmp_path / "prompt.txt").write_text("The quick")
    assert run("generate", saved, "--file", tmp_path / "prompt.txt", *options)[1] == one
    assert run("generate", saved, *options, stdin="The quick")[1] == one
    status, several, _ = run("generate", saved, "--prompt", "The quick", "--prompt", "The lazy dog sleeps", *options)
    assert one.strip() in several
    assert "The lazy dog sleeps" in several


@pytest.mark.parametrize(
    "options",
    [
        ("--do_sample", "--temperature", "0.7", "--top_k", "5", "--top_p", "0.9", "--repetition_penalty=1.1"),
        ("--num_beams", "3", "--num_return_sequences", "2"),
        ("--do_sample", "--num_return_sequences", "3"),
        ("--cache_implementation", "static"),
    ],
)
def test_options_of_generate(run, saved, options):
    results = {
        run("generate", saved, "--prompt", "The", "--max_new_tokens", 4, "--seed", 1, *options)[:2] for _ in range(2)
    }
    assert len(results) == 1
    assert results.pop()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "The", "--temprature", "1"), "no option temprature: did you mean temperature?"),
        (("--prompt", "The", "--num_beams", "two"), "generate() does not accept its options"),
        (("--prompt", "The", "stray"), "unexpected argument 'stray'"),
        (("--prompt", ""), "a prompt is empty"),
        (("--file", "/nowhere"), "/nowhere"),
    ],
)
def test_bad_arguments(run, saved, arguments, message):
    assert_error(run("generate", saved, *arguments), message)


def test_a_model_that_does_not_exist(run):
    assert_error(run("generate", "/nowhere", "--prompt", "The"), "/nowhere is neither a folder with a tokenizer")
    assert_error(run("generate", "nothing", "--prompt", "The"), "nothing is neither a folder with a tokenizer")
