"""Every code block of README.md and docs/ is run and prints the output that the page shows.

The blocks of a page run in order, in one folder that holds the examples of `make_examples`:

    ```python    in one namespace for the page
    ```bash      each `hf-gpt ...` in this process, the rest of its options from SHORTER; other commands by COMMANDS
    ```text      right after one of these: its standard output, or the last line of its error; ... stands for any text

A block after a comment `<!-- not run: REASON -->` is not run.
"""

import contextlib
import doctest
import gzip
import io
import json
import re
import shlex
import shutil
import sys
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from tiny import TINY
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, set_seed
from typer.main import get_command

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.cli import main
from hf_gpt.cli.app import app
from hf_gpt.tokenization import tokenizer_to_tiktoken, train_tokenizer

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("README*.md")), ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Options that are appended to a command, so that it trains a tiny model for two steps.
TINY_MODEL = [f"hidden_size={TINY['hidden_size']}", "num_attention_heads=4", "num_hidden_layers=2"]
SHORT_RUN = ["--steps", "2", "--batch-size", "2", "--context", "32"]
SHORTER = {
    "demo": ["--text", "book.txt", "--steps", "2"],
    "train": SHORT_RUN,
    "train --model gpt2": [*SHORT_RUN, *(part for field in TINY_MODEL for part in ("-s", field))],
}

# Commands beside hf-gpt, and what has to exist for them; .ci/run and the benchmarks run them.
COMMANDS = {
    "pip": lambda words: words[1] == "install" and {"-c", "-e", "-U"} >= {word for word in words if word[0] == "-"},
    "pytest": lambda words: all((ROOT / word).exists() for word in words[1:] if "/" in word),
    "ruff": lambda words: words[1] in ("check", "format"),
    "python": lambda words: (ROOT / words[1]).is_file(),
}

FENCE = re.compile(
    r"(?:^<!-- (?P<comment>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"(?:\]\(|(?:src|href)=\")([^)\"#\s]+)?(#[^)\"\s]+)?[)\"]")
TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. It was the age of wisdom.\n" * 150


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int
    language: str
    code: str
    comment: str
    expected: str | None


def read_blocks(page: Path) -> list[Block]:
    """The blocks to run, each with the output that follows it."""
    source = page.read_text("utf-8")
    matches = list(FENCE.finditer(source))
    blocks = []
    for match, after in zip_longest(matches, matches[1:]):
        if match["language"] == "text":
            continue
        follows = after is not None and after["language"] == "text" and not source[match.end() : after.start()].strip()
        line = source.count("\n", 0, match.start("code"))
        expected = after["code"] if follows else None
        blocks.append(Block(line, match["language"], match["code"], match["comment"] or "", expected))
    return blocks


@pytest.fixture(scope="session")
def examples(tmp_path_factory) -> Path:
    """The files that the pages use: a text, tokenizers, a tiny hf_gpt model, and a tiny GPT-NeoX by Pythia's name."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "book.txt").write_text(TEXT)
    with gzip.open(folder / "news.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": sentence}) + "\n" for sentence in TEXT.splitlines())
    tokenizer = train_tokenizer([TEXT], 400)
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    tokenizer_to_tiktoken(train_tokenizer([TEXT], 400, "o200k"), folder / "o200k_base.tiktoken")
    set_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ours = GPTConfig(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=4, num_attention_heads=4, **ids)
    # Pythia-160m but for its widths: what a page prints of its configuration is true of both.
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    pythia = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=2048,
        rope_parameters=rope,
        bos_token_id=0,
        eos_token_id=0,
    )
    for name, model in {
        "my-gpt": GPTForCausalLM(ours),
        "EleutherAI/pythia-160m": GPTNeoXForCausalLM(pythia).half(),  # as it is published
    }.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.2)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def folder(examples, tmp_path, monkeypatch) -> Path:
    """A copy of the examples as the working folder."""
    shutil.copytree(examples, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    transformers.utils.logging.set_verbosity_error()
    yield tmp_path
    transformers.utils.logging.set_verbosity_warning()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_prints_the_output_that_it_shows(page, folder, monkeypatch):
    namespace = {"__name__": "__main__"}
    for block in read_blocks(page):
        if block.comment.startswith("not run: "):
            continue
        printed = run(block, page, namespace, monkeypatch)
        if block.expected is not None:
            options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            same = doctest.OutputChecker().check_output(block.expected, printed, options)
            assert same, f"{page.name}, line {block.line}, printed\n{printed}\ninstead of\n{block.expected}"


def run(block: Block, page: Path, namespace: dict, monkeypatch) -> str:
    """What a block prints. An error is printed where the page shows it, and raised elsewhere."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            if block.language == "python":
                lines = "\n" * block.line  # so that a traceback names the line of the page
                exec(compile(lines + block.code, str(page), "exec"), namespace)
            elif block.language == "bash":
                for command in commands_of(block.code):
                    run_command(command, monkeypatch)
            else:
                raise AssertionError(f"{page.name}, line {block.line}: a block of {block.language!r}")
        except (ValueError, RuntimeError, OSError) as error:
            error_line = f"{type(error).__name__}: {error}"
            if not (block.expected or "").startswith(f"{type(error).__name__}: "):
                raise
            print(error_line)
    return output.getvalue()


def commands_of(code: str) -> list[list[str]]:
    """The words of each command."""
    lines = code.replace("\\\n", " ").replace(" && ", "\n").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_command(words: list[str], monkeypatch) -> None:
    if words[0] != "hf-gpt":
        assert COMMANDS[words[0]](words), words
        return
    shorter = [options for name, options in SHORTER.items() if set(name.split()) <= set(words[1:])]
    monkeypatch.setattr(sys, "argv", [*words, *(shorter[-1] if shorter else [])])
    try:
        main()
    except SystemExit as stopped:
        assert not stopped.code, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text("utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor[1:] in anchors, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_text_exist(page):
    """A script that a page names has the options that the page names, and `hf-gpt` has the command."""
    prose = FENCE.sub("", page.read_text("utf-8"))
    for script, options in re.findall(r"`python (\S+\.py)([^`]*)`", prose):
        source = (ROOT / script).read_text("utf-8")
        for option in re.findall(r"--[\w-]+", options):
            assert option in source, f"{script} {option}"
    commands = get_command(app).commands
    for command in re.findall(r"`hf-gpt ([\w-]+)", prose):
        assert command in commands
