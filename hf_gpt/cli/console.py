"""Where commands print. No text has markup, because it contains names of files."""

from rich.console import Console

# Names of files and models are printed as they are, in tables too, although `[b]` and `:x:` are markup to rich.
console = Console(markup=False, emoji=False)
error_console = Console(markup=False, emoji=False, stderr=True)


def print_line(line: str, *, style: str | None = None, console: Console = console) -> None:
    """Prints text on one line, without highlighting."""
    console.print(line, style=style, highlight=False, soft_wrap=True)
