"""The commands as a whole."""

import importlib
import pkgutil

import pytest
from command_line import assert_error

from hf_gpt import cli
from hf_gpt.cli.app import GROUPS

COMMANDS = (
    "demo",
    "train",
    "train-tokenizer",
    "tokenize",
    "generate",
    "convert",
    "export",
    "upcycle",
    "quantize",
    "info",
)


def test_help_lists_every_command(run):
    status, output, _ = run("--help")
    assert status == 0
    for command in COMMANDS:
        assert command in output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    status, output, _ = run(command, "--help")
    assert status == 0
    assert f"hf-gpt {command}" in output


def test_every_module_with_commands_is_a_group():
    modules = [
        importlib.import_module(f"{cli.__name__}.{module.name}") for module in pkgutil.iter_modules(cli.__path__)
    ]
    assert {module for module in modules if hasattr(module, "commands")} == set(GROUPS)


@pytest.mark.parametrize("command", ["demo", "train", "train-tokenizer"])
def test_an_output_folder_that_is_not_empty_does_not_change(run, text, tmp_path, command):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.doc").write_text("years of work")
    assert_error(run(command, text, "--out", out), "exists and is not an empty folder")
    assert [path.name for path in out.iterdir()] == ["thesis.doc"]
