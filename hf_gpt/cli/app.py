"""Collects the commands of `hf-gpt` and prints their errors.

A group of commands is a module with a `typer.Typer` called `commands`. A new group is a new module and its name in
`GROUPS`.
"""

import sys

import typer

from . import checkpoints, generation, information, tokenizers, training
from .console import error_console, print_line

GROUPS = (training, tokenizers, generation, checkpoints, information)  # in the order of `hf-gpt --help`

app = typer.Typer(
    name="hf-gpt",
    help="The GPT lineage as one Hugging Face model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in GROUPS:
    app.add_typer(group.commands)


def main() -> None:
    """Runs a command. An error that a user can correct is printed as one line, with exit status 1."""
    try:
        app()
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print_line(f"error: {' '.join(str(error).split())}", style="red", console=error_console)
        sys.exit(1)
