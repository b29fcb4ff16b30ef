"""Where commands print."""

from rich.console import Console

console = Console()
error_console = Console(stderr=True)


def print_line(line: str, *, style: str | None = None, console: Console = console) -> None:
    """Prints text as it is: on one line, without markup and highlighting."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
