"""What a search says on the terminal when it ends."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from finetune.report.effects import Effects
from finetune.report.figure_parts import label, named
from finetune.report.page import Findings, best_rows, findings, score, sentences
from finetune.search.trials import Search, described, worded
from replication.drawing import terminal


def print_summary(
    search: Search, console: rich.console.Console | None = None, announcement: str = ""
) -> None:
    """Prints the best trials, what matters how much, and what can be said about the choice.

    Args:
        search: Finished or not.
        console: Where to; standard output by default.
        announcement: Whose images they are, from the manifest; printed first.
    """
    if console is None:
        console = terminal.console(width=150)
    outcome = findings(search)
    if announcement:
        console.print(f"\n{announcement}", style="bold")
    if rows := best_rows(search, outcome):
        console.print(_best_table(search, outcome, rows))
    if outcome.effects.effects:
        console.print(_effects_table(search, outcome.effects))
    for sentence in sentences(search, outcome):
        console.print(sentence)


def _best_table(
    search: Search, outcome: Findings, rows: Sequence[Mapping[str, Any]]
) -> rich.table.Table:
    held_out = ["held-out accuracy, %"] if outcome.cost else []
    beside = []
    if outcome.metric == "hsil_plus_sensitivity":
        beside = [f"{named(search, 'hsil_plus_specificity').words}, %"]
    headings = (label(search), *beside, "best minus this", *held_out)
    table = terminal.table(
        ("", "configuration", *headings, "epochs", ""),
        title="The best configurations",
        right=("", "epochs"),
    )
    for row in rows:
        note = "the paper's choice" if row["paper"] else ""
        others = [row["metrics"]["held_out_accuracy"]] if held_out else []
        specificity = [row["metrics"].get("val_hsil_plus_specificity", "–")] if beside else []
        figures = (row["score"], *specificity, row["gap"], *others)
        values = described(row["trial"].values)
        table.add_row(str(row["place"]), values, *figures, row["epochs"], note)
    return table


def _effects_table(search: Search, effects: Effects) -> rich.table.Table:
    rows = []
    for effect in effects.effects:
        levels = ", ".join(
            f"{level.label}: {score(search, level.mean, unit=False)}" for level in effect.levels
        )
        rows.append((worded(effect.name), f"{100 * effect.importance:.0f} %", levels))
    headings = ("hyperparameter", "of the variance", f"mean {label(search)}, by level")
    return terminal.table(headings, rows, title="What matters", right=("of the variance",))
