import pytest
from rich.table import Table

from hf_gpt.cli.console import console, error_console, print_line

NAMES = ("x[/b]", "y[red]", "[bold]z[/bold]", "[", "]", ":smile:", "[link=file:///etc]")


def test_a_line_is_printed_as_it_is(capsys):
    line = "[bold]not markup[/bold] " * 20
    print_line(line, style="red")
    print_line("to the user", console=error_console)
    assert tuple(capsys.readouterr()) == (f"{line}\n", "to the user\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_table_prints_names_as_they_are(name, capsys):
    table = Table("name", name, title=f"in {name}")
    table.add_row(name, "1")
    console.print(table)
    assert capsys.readouterr().out.count(name) == 3
