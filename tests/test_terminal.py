"""Tables on the terminal print names as they are."""

from replication.drawing import terminal


def test_brackets_and_colons_in_names_are_no_markup(capsys):
    names = ["[bold]a[/bold].png", "[red]", ":smile: 12.jpg", "[/x]"]
    table = terminal.table(("image", "n"), [(name, "1") for name in names], title="[b]t[/b]")
    terminal.console().print(table)
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*names, "[b]t[/b]"])


def test_outside_a_terminal_a_line_is_as_long_as_asked(capsys):
    long = "x" * 200
    terminal.console(width=100).print(terminal.table(("a", "b"), [(long, long)], fold=("a",)))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 100
    # A folded text is whole, another one ends in an ellipsis.
    assert sum(line[:50].count("x") for line in lines) == 200
    assert sum(line.count("…") for line in lines) == 1
