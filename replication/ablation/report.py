"""What the sizes of the defects leave behind: a table, a figure, one page."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from replication.ablation import figure
from replication.ablation.sizes import Size
from replication.ablation.steps import OF_NETWORK, Plan
from replication.drawing import pages, shown, terminal
from replication.measures.names import METRICS
from replication.runs.directory import RunDirectory
from tfds_pap import files
from tfds_pap.answer import Answer, Figure


def write(run: RunDirectory, sizes: Sequence[Size], plan: Plan) -> Path:
    """Writes `defects.csv`, `figures/defects.png` and `report.html`, and prints the table.

    Args:
        run: Its manifest says whose images these are.
        sizes: In order.
        plan: What was measured.

    Returns:
        The page; it loads nothing from outside.
    """
    manifest = run.manifest()
    files.write_atomically(run.path / "defects.csv", table(sizes, manifest).to_csv(index=False))
    drawn = figure.drawable(sizes)
    if drawn:
        files.write_atomically(run.path / "figures" / "defects.png", figure.sizes(drawn, "png"))
    page = pages.template("replication.ablation", "report.html.j2").render(
        announcement=pages.announcement(manifest),
        answer=_answer(sizes),
        environment=manifest.get("environment", {}),
        audit_page=pages.beside(run.path, "audit.html"),
        sizes=sizes,
        figure_uri=shown.svg(figure.sizes(drawn)) if drawn else "",
        row=cells,
        methods=list(dict.fromkeys(f"{_name(s)}: {s.points.method}" for s in sizes if s.metric)),
        network=_network(plan) if plan.wants(*OF_NETWORK) else "",
        details=json.dumps(manifest, indent=2),
    )
    path = run.path / "report.html"
    files.write_atomically(path, page)
    print_table(sizes, manifest)
    return path


def table(sizes: Sequence[Size], manifest: Mapping[str, Any]) -> pd.DataFrame:
    """Returns a row a size; figures are shares of 1.

    Args:
        sizes: In order.
        manifest: What `manifest.json` of the run directory holds.
    """
    return pd.DataFrame(
        {
            "defect": size.defect,
            "part": size.part,
            "what": size.what,
            "metric": size.metric,
            "with_defect": _rounded(size.with_defect),
            "without": _rounded(size.without),
            "difference": _rounded(size.points.value),
            "low": _rounded(size.points.low),
            "high": _rounded(size.points.high),
            "verdict": size.verdict,
            "seeds": size.seeds,
            "images": size.points.count,
            "groups": size.groups,
            "note": size.note,
            "method": size.points.method,
            "source": pages.source(manifest),
        }
        for size in sizes
    )


def _rounded(value: float) -> float:
    return round(value, 6)


def cells(size: Size) -> tuple[str, ...]:
    """Returns the texts of a row: defect, comparison, metric, with, without, points, verdict."""
    spread = size.defect == "D7" and size.metric
    points = "–"
    if math.isfinite(size.points.value):
        points = shown.points(size.points.value)
        ends = shown.points_interval(size.points.low, size.points.high)
        # A spread has no sign.
        points = points.removeprefix("+") if spread else f"{points} {ends}"
    return (
        _name(size),
        size.what,
        METRICS[size.metric].words if size.metric in METRICS else size.metric or "–",
        _percent(size.with_defect),
        _percent(size.without),
        points,
        "spread" if spread and size.verdict != "not measured" else size.verdict,
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def _name(size: Size) -> str:
    return f"{size.defect} of {size.part}" if size.part else size.defect


#: Heads of the table, as `cells` gives its rows.
HEADINGS = ("defect", "with it, or without", "figure", "with, %", "without, %", "points", "verdict")


def print_table(sizes: Sequence[Size], manifest: Mapping[str, Any]) -> None:
    """Prints the table.

    Args:
        sizes: In order.
        manifest: What `manifest.json` of the run directory holds.
    """
    title = "Size of each defect: the figure with it minus the figure without, points of percent"
    console = terminal.console()
    console.print(
        terminal.table(
            HEADINGS,
            [cells(size) for size in sizes],
            title=title,
            right=HEADINGS[3:6],
            fold=(HEADINGS[1],),
        )
    )
    if announcement := pages.announcement(manifest):
        console.print(announcement)


def _answer(sizes: Sequence[Size]) -> Answer:
    """Sums the sizes up: the largest that are told apart come first."""
    measured = [s for s in sizes if s.metric == "accuracy" and s.defect != "D7"]
    apart = [size for size in measured if size.verdict == "told apart"]
    measured.sort(key=lambda size: (size not in apart, -abs(size.points.value)))
    figures = [
        Figure(
            f"{shown.points(size.points.value)} points",
            shown.points_interval(size.points.low, size.points.high),
            f"{_name(size)}: {size.what}; {size.verdict}",
        )
        for size in measured[:4]
    ] or [Figure("not measured", "", "no defect that changes an accuracy was asked for")]
    sentence = "No defect changes the accuracy by more than chance may"
    if apart:
        names = list(dict.fromkeys(_name(size) for size in apart))
        sentence = f"Told apart from no effect on the accuracy: {', '.join(names)}"
    return Answer(
        "What does each defect of the published code do to its figures?",
        f"{sentence}.",
        figures,
        "Each size is of these images and of this much training, one defect at a time: they do not "
        "add up. Not told apart is not no effect.",
    )


def _network(plan: Plan) -> str:
    network = next(iter(plan.networks.values()))
    seeds = shown.plural(len(plan.seeds), "seed")
    return (
        f"P2's network: {network.size} px, {shown.plural(network.epochs, 'epoch')} in batches of "
        f"{network.batch_size} (the paper: 100 in batches of 32), {seeds}"
    )
