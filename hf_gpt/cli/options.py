"""Arguments and options that several commands share, and the parsing of `NAME=VALUE`."""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..json_files import parse_integer
from ..model.configuration_gpt import GPTConfig, own_fields
from ..model.field_names import OTHER_NAMES, to_fields

ModelSource = Annotated[str, typer.Argument(help="Folder or Hub id of a model of hf_gpt.")]
NewFolder = Annotated[Path, typer.Argument(help="Folder to write, new or empty.")]
Out = Annotated[Path, typer.Option(help="Folder to write, new or empty.")]
Files = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More text files.", show_default=False)]
Text = Annotated[list[Path] | None, typer.Option(metavar="FILE...", help="Text files, UTF-8.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the interrupted run of the same settings.")]
ShardSize = Annotated[str, typer.Option(help="Maximum size of a file of weights; it limits the memory too.")]
Seed = Annotated[int, typer.Option(help="Seed of initial weights, data order and sampling.")]
SetFields = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="FIELD=VALUE", help="Change a field of the configuration.", show_default=False),
]


def parse_fields(assignments: list[str] | None) -> dict[str, Any]:
    """Parses assignments `FIELD=VALUE` to fields of the configuration, under any name that it accepts.

    Raises:
        ValueError: an assignment has no value, or its field does not exist.
    """
    values, known = {}, own_fields(GPTConfig)
    for assignment in assignments or []:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: expected FIELD=VALUE")
        if name not in known | OTHER_NAMES:
            raise ValueError(f"--set {assignment}: unknown field{suggest(name, known)}")
        try:
            values[name] = parse_value(value)
        except ValueError as error:
            raise ValueError(f"--set {name}: {error}") from None
    to_fields(values)  # raises for a name that has no single field
    return values


def parse_value(text: str) -> Any:
    """Parses JSON, or a constant of Python; returns any other text unchanged.

    Raises:
        ValueError: an integer has too many digits, or a list is nested too deeply.
    """
    try:
        constants = {"True": "true", "False": "false", "None": "null"}
        return json.loads(constants.get(text, text), parse_int=parse_integer)
    except json.JSONDecodeError:
        return text
    except RecursionError:
        raise ValueError(f"{text[:20]}... is nested too deeply") from None


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns a question with the known name that is most similar to another, or nothing."""
    similar = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {similar[0]}?" if similar else ""
