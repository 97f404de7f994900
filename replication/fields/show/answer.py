"""What the pages of a scan and of a sweep open with."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from replication.drawing.shown import plural, shown
from replication.fields.judge.sweep import DEFAULT, Row
from replication.fields.scanned import ScannedField
from tfds_pap.answer import Answer, Figure

_LIMIT = (
    "No slide-level score was validated, and a cell that is not marked was not cleared: nothing "
    "here is a diagnosis."
)

#: Figures of the box, of those that truth allows; the last two of what is looked for.
_AGAINST_TRUTH = ("recall", "precision", "sensitivity {}", "specificity {}")


def of_scan(fields: Sequence[ScannedField], evaluation: Mapping[str, Any] | None) -> Answer:
    """Sums a scan up.

    Args:
        fields: Finished.
        evaluation: `evaluation.json`; None where no nucleus is known.
    """
    infos = [one.info for one in fields]
    cells = sum(info["cells"] for info in infos)
    classes = fields[0].classes if fields else None
    named = {name for info in infos for name, count in info["counts"].items() if count}
    severe = [
        classes.names[number]
        for number in (classes.severity if classes else None) or ()
        if classes and classes.names[number] in named
    ]
    sentence = f"{plural(cells, 'cell')} in {plural(len(infos), 'field')}"
    if severe:
        worst = severe[-1]
        where = max(infos, key=lambda info: info["counts"][worst])
        count = sum(info["counts"][worst] for info in infos)
        sentence += f"; the most severe class that the model names is {worst} ({count:,}), most "
        sentence += f"often in {where['name']}"
    if evaluation is None:
        figures = [Figure(f"{cells:,}", "no interval", "cells named, rightly or not")]
        limit = (
            "No nucleus of these fields is known, so nothing here says how many cells were missed "
        )
        return Answer(
            "Which cells of these fields look suspicious?",
            f"{sentence}.",
            figures,
            f"{limit}missed or named wrongly. {_LIMIT}",
        )
    known = {figure["name"]: figure for figure in evaluation["figures"]}
    # An evaluation of before tells of the papers' classes alone.
    looked_for = evaluation.get("classes", {}).get("positive_name", "HSIL+")
    names = [name.format(looked_for) for name in _AGAINST_TRUTH]
    figures = [_figure(known[name]) for name in names if name in known]
    found = known["recall"]
    if found["value"] is not None:
        right = round(found["value"] * found["count"])
        sentence += f"; {right:,} of {found['count']:,} known nuclei were found"
    return Answer(
        "Which cells of these fields look suspicious, and how many nuclei were missed?",
        f"{sentence}.",
        figures,
        f"The figures hold for {plural(evaluation['fields'], 'annotated field')} alone. {_LIMIT}",
    )


def _figure(figure: Mapping[str, Any]) -> Figure:
    value, low, high = (
        math.nan if figure[name] is None else figure[name] for name in ("value", "low", "high")
    )
    cell = shown(value, low, high, missing="not defined")
    words = figure["words"] if figure["reliable"] else f"{figure['words']}; not reliable"
    return Figure(cell.value, cell.interval, words)


def of_sweep(rows: Sequence[Row], fields: int, *, complete: bool) -> Answer:
    """Sums a sweep up.

    Args:
        rows: A setting each.
        fields: How many annotated fields were read.
        complete: Whether every cell of them is annotated.
    """
    most = max(rows, key=lambda row: row.recall if math.isfinite(row.recall) else -1.0)
    default = next((row for row in rows if row.setting == DEFAULT), None)
    cost = f"{most.kept_per_field:.1f} ROIs a field that stage 2 names"
    sentence = f"S{_setting(most)[1:]} finds most, for {cost}"
    if default and default is not most:
        sentence += f"; the default ({_setting(default)}) names {default.kept_per_field:.1f}"
    figures = [_recall(most, "the setting that finds most")]
    if default and default is not most:
        figures.append(_recall(default, "the default"))
    limit = "The setting that finds most was chosen on these fields, which flatters it. The "
    limit += f"figures hold for these {plural(fields, 'field')} alone."
    if not complete:
        limit += " Precision is not reliable, as an unannotated cell counts as a false positive."
    return Answer(
        "Which stride, suppression radius and threshold find most nuclei, and at what cost?",
        f"{sentence}.",
        figures,
        limit,
    )


def _setting(row: Row) -> str:
    return f"stride {row.stride} px, radius {row.radius:g} px, threshold {row.threshold:g}"


def _recall(row: Row, words: str) -> Figure:
    cell = shown(row.recall, row.recall_low, row.recall_high, missing="not defined")
    return Figure(cell.value, cell.interval, f"nuclei found (recall) by {words}")
