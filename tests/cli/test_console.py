from hf_gpt.cli.console import error_console, print_line


def test_a_line_is_printed_as_it_is(capsys):
    line = "[bold]not markup[/bold] " * 20
    print_line(line, style="red")
    print_line("to the user", console=error_console)
    assert tuple(capsys.readouterr()) == (f"{line}\n", "to the user\n")
