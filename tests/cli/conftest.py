import io
import sys

import pytest
from command_line import TEXT, Result
from tiny import make_model

from hf_gpt.cli import main
from hf_gpt.tokenization import train_tokenizer


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line in this process and returns its `Result`."""

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["hf-gpt", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as exit:
            status = exit.code or 0
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A folder with a tiny model and a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([TEXT], 300)
    model = make_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
