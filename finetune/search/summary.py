"""What a search says on the terminal when it ends."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from finetune.report.effects import Effects
from finetune.report.figure_parts import label
from finetune.report.page import Findings, best_rows, findings, score, sentences
from finetune.search.trials import Search, described, worded


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
        # Names in a user's space may hold brackets, which are no markup.
        console = rich.console.Console(markup=False, highlight=False)
        if not console.is_terminal:
            console = rich.console.Console(markup=False, highlight=False, width=150)
    facts = findings(search)
    if announcement:
        console.print(f"\n{announcement}", style="bold", markup=False)
    if rows := best_rows(search, facts):
        console.print(_best_table(search, facts, rows))
    if facts.effects.effects:
        console.print(_effects_table(search, facts.effects))
    for sentence in sentences(search, facts):
        console.print(sentence, markup=False, highlight=False)


def _best_table(
    search: Search, facts: Findings, rows: Sequence[Mapping[str, Any]]
) -> rich.table.Table:
    table = rich.table.Table(title="The best configurations", box=rich.box.SIMPLE)
    held_out = ["held-out accuracy, %"] if facts.cost else []
    beside = ["HSIL+ specificity, %"] if facts.metric == "hsil_plus_sensitivity" else []
    headings = (label(search), *beside, "best minus this", *held_out)
    for heading in ("", "configuration", *headings, "epochs", ""):
        table.add_column(heading, justify="right" if heading in ("", "epochs") else "left")
    for row in rows:
        values = rich.text.Text(described(row["trial"].values))
        note = "the paper's choice" if row["paper"] else ""
        others = [row["metrics"]["held_out_accuracy"]] if held_out else []
        specificity = [row["metrics"].get("val_hsil_plus_specificity", "–")] if beside else []
        figures = (row["score"], *specificity, row["gap"], *others)
        table.add_row(str(row["place"]), values, *figures, row["epochs"], note)
    return table


def _effects_table(search: Search, effects: Effects) -> rich.table.Table:
    table = rich.table.Table(title="What matters", box=rich.box.SIMPLE)
    for heading in ("hyperparameter", "of the variance", f"mean {label(search)}, by level"):
        table.add_column(heading, justify="right" if heading == "of the variance" else "left")
    for effect in effects.effects:
        levels = ", ".join(
            f"{level.label}: {score(search, level.mean, unit=False)}" for level in effect.levels
        )
        table.add_row(
            rich.text.Text(worded(effect.name)),
            f"{100 * effect.importance:.0f} %",
            rich.text.Text(levels),
        )
    return table
