"""Writes the reference of `GPTConfig` into configuration.md: `python docs/configuration_reference.py`.

Everything below `MARKER` is replaced by the fields in the order of `hf_gpt/model/configuration_gpt.py`, with their
sections, defaults, docstrings and accepted values.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from hf_gpt import GPTConfig

PAGE = Path(__file__).with_name("configuration.md")

MARKER = "<!-- written by docs/configuration_reference.py from the docstrings of the fields -->\n"


class Documented(NamedTuple):
    """A field of the configuration as the page shows it."""

    section: str
    name: str
    default: object
    accepted: str
    meaning: str


def documented_fields() -> Iterator[Documented]:
    """Yields the fields in the order of the source, each with the docstring under it."""
    source = inspect.getsource(GPTConfig)
    lines = source.splitlines()
    declared = {field.name: field for field in fields(GPTConfig)}
    body = ast.parse(source).body[0].body
    for statement, after in pairwise(body):
        if not (isinstance(statement, ast.AnnAssign) and statement.target.id in declared and is_string(after)):
            continue
        field = declared[statement.target.id]
        before = reversed(lines[: statement.lineno])
        section = next(match[1] for line in before if (match := re.match(r"\s*# -+ (.+?) -+$", line)))
        default = field.default if isinstance(field.default, (str, int, float)) else None
        meaning = " ".join(after.value.value.split())
        yield Documented(section, field.name, default, field.metadata["rule"].expects, meaning)


def is_string(statement: ast.stmt) -> bool:
    """True if a statement is a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(getattr(statement.value, "value", None), str)


def render() -> str:
    """Returns the whole page, its text above the marker unchanged."""
    text, marker, _ = PAGE.read_text("utf-8").partition(MARKER)
    parts, section = [text, marker], None
    for field in documented_fields():
        if field.section != section:
            section = field.section
            parts.append(f"\n## {section.capitalize()}\n\n| field | default | meaning |\n|---|---|---|\n")
        meaning = f"{field.meaning}<br>*{field.accepted[0].upper()}{field.accepted[1:]}.*".replace("|", "\\|")
        parts.append(f"| `{field.name}` | `{field.default}` | {meaning} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
