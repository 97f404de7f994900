"""What a comparison leaves behind: tables on the terminal and as CSV, figures, one page."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import rich.console
from sklearn.metrics import confusion_matrix

from replication.comparison import figures as comparison_figures
from replication.comparison.answer import answer
from replication.comparison.differences import COMPARED
from replication.comparison.leaks import Leak
from replication.comparison.pairs import Pair
from replication.comparison.ranking import COSTS, Comparison
from replication.drawing import confusion, pages, shown, terminal
from replication.measures import class_figures, names, one_class
from replication.measures.evaluation import SeedSummary
from replication.measures.intervals import Estimate
from replication.runs.directory import RunDirectory
from tfds_pap import files

#: With more pairs, those of the winner are shown first, or alone.
_MANY_PAIRS = 15


def write(run: RunDirectory, result: Comparison) -> Path:
    """Writes `report.html`, the tables of `write_tables` and `figures/*.png` of a comparison.

    Args:
        run: Its manifest holds `source`, `announcement`, `environment` and perhaps `audit` (data
            set -> {"line": str}).
        result: The comparison.

    Returns:
        The page; it loads nothing from outside.

    Raises:
        PapError: This is no run directory.
    """
    manifest = run.manifest()
    write_tables(run.path, result, manifest)
    comparison_figures.write(run.path / "figures", result)
    pictures = {
        "ranking": comparison_figures.ranking(result),
        **{cost: comparison_figures.accuracy_against(result, cost) for cost in COSTS},
    }
    if result.leaks:
        for metric in COMPARED[:2]:
            pictures[f"leak_{metric}"] = comparison_figures.leak(result, metric)
    matrix, class_names = _confusion(result)
    pictures["confusion"] = confusion.confusion_matrix(matrix, class_names)
    shown_pairs, shown_title = _shown_pairs(result)
    page = pages.template("replication.comparison", "report.html.j2").render(
        result=result,
        announcement=pages.announcement(manifest),
        answer=answer(result),
        environment=manifest.get("environment", {}),
        audit_page=pages.beside(run.path, "audit.html"),
        audit=[entry["line"] for entry in manifest.get("audit", {}).values()],
        metrics=_shown_metrics(result),
        leak_metrics={name: names.SHARES[name] for name in COMPARED},
        methods=_methods(result),
        at_class_shares=class_figures.AT_CLASS_SHARES,
        tests=list(dict.fromkeys(pair.method for pair in result.pairs)),
        figures={name: shown.svg(picture) for name, picture in pictures.items()},
        fronts={cost: result.front(cost) for cost in COSTS},
        confusion_words=shown.confusion_words(matrix, class_names),
        extent=shown.extent(result.images, result.groups, result.unit),
        many=len(class_names) >= confusion.MANY,
        headline=_headline(result),
        remarks=_remarks(result),
        leak_facts=leak_facts(result.leaks[0], result.unit) if result.leaks else "",
        shown_pairs=shown_pairs,
        shown_title=shown_title,
        untrained=_untrained(result),
        value=_value,
        interval=_interval,
        points=shown.points,
        points_interval=shown.points_interval,
        p_value=_p_value,
        details=json.dumps(manifest, indent=2),
    )
    path = run.path / "report.html"
    files.write_atomically(path, page)
    return path


def _shown_metrics(result: Comparison) -> dict[str, str]:
    best = result.ranked[0]
    classes = best.candidate.runs[0].classes
    return {
        name: names.metric(name, classes).words for name in names.SHARES if name in best.summary
    }


def _untrained(result: Comparison) -> list[str]:
    return [candidate.name for candidate in result.candidates if not candidate.trained]


def _remarks(result: Comparison) -> list[str]:
    """Of each backbone and seed that gives one class to nearly every image, a sentence."""
    return [
        f"{candidate.name}, {_ordinal(number)} seed: {remark}"
        for candidate in result.candidates
        for number, run in enumerate(candidate.runs)
        if (remark := one_class.remark(run.predicted, run.class_names, run.labels))
    ]


def _ordinal(number: int) -> str:
    return ("first", "second", "third")[number] if number < 3 else f"{number + 1}th"


def _label(result: Comparison, name: str) -> str:
    return f"{name} (untrained)" if name in _untrained(result) else name


def _methods(result: Comparison) -> list[str]:
    """The distinct ways in which the ranked table's intervals were made, and for what."""
    heads: dict[str, dict[str, None]] = {}
    for name, head in _shown_metrics(result).items():
        for entry in result.ranked:
            heads.setdefault(entry.summary[name].method, {})[head] = None
    return [f"{', '.join(which)}: {method}" for method, which in heads.items()]


def _confusion(result: Comparison) -> tuple[list[list[int]], tuple[str, ...]]:
    """Of the winner's first seed, not of its best one: that would flatter."""
    first = next(one for one in result.candidates if one.name == result.winner).runs[0]
    every = range(len(first.class_names))
    matrix = confusion_matrix(first.labels, first.predicted, labels=list(every))
    return matrix.tolist(), first.class_names


def _value(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "not defined"


def _interval(low: float, high: float) -> str:
    return shown.interval(low, high, percent=True)


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _headline(result: Comparison) -> str:
    """The leak of the winner; '' where there is one cut only."""
    winners = [leak for leak in result.leaks if leak.name == result.winner]
    return leak_sentence(winners[0], result.unit) if winners else ""


def leak_sentence(leak: Leak, unit: str) -> str:
    """Says how much of a figure comes from the cut, and which part of that is leak.

    Args:
        leak: The leak of one backbone.
        unit: What a group is, for example 'slide'.
    """
    text = (
        f"The same {leak.images:,} images, the same features of {leak.name}: accuracy "
        f"{_percent(leak.by_image['accuracy'])} when folds are cut by image, "
        f"{_percent(leak.by_group['accuracy'])} when they are cut by {unit}, "
        f"{_told(leak.difference['accuracy'])}. "
    )
    if leak.control is None:
        return f"{text}How much of that is leak and how much is scarcity of {unit}s is not known."
    return (
        f"{text}With as few training {unit}s a class, but those of the tested images let in, it is "
        f"{_percent(leak.control.let_in['accuracy'])}. So the leak is "
        f"{_told(leak.control.leak['accuracy'])}, and the scarcity of {unit}s "
        f"{_told(leak.control.scarcity['accuracy'])}."
    )


def leak_facts(leak: Leak, unit: str) -> str:
    """Says on how many groups of each class it rests, and what the majority class scores.

    Args:
        leak: The leak of any backbone; all rest on the same images.
        unit: What a group is.
    """
    counts = ", ".join(f"{name} {count}" for name, count in leak.groups_by_class.items())
    scores = ", ".join(f"{names.SHARES[name]} {_value(leak.majority[name])} %" for name in COMPARED)
    return (
        f"{unit[0].upper()}{unit[1:]}s a class: {counts}. Always naming {leak.majority_class} "
        f"scores: {scores}."
    )


def _told(difference: Estimate) -> str:
    """A difference in points, and whether it can be told from 0."""
    unsure = "" if difference.told_from_zero else ", not told apart from 0"
    return f"{_difference(difference, ' points')}{unsure}"


def _percent(summary: SeedSummary, unit: str = " %") -> str:
    return f"{_value(summary.mean)}{unit} {_interval(summary.low, summary.high)}"


def _difference(estimate: Estimate, unit: str = "") -> str:
    text = shown.points(estimate.value) + unit
    return f"{text} {shown.points_interval(estimate.low, estimate.high)}"


def write_tables(directory: Path, result: Comparison, manifest: Mapping[str, Any]) -> None:
    """Writes `ranking.csv`, `pairs.csv` (of two or more) and `leak.csv` (of two cuts).

    Every row says whose images it was computed on; figures are shares of 1.

    Args:
        directory: Where to.
        result: The comparison.
        manifest: What `manifest.json` of its run directory holds.
    """
    ranking = [
        {
            "rank": entry.rank,
            "backbone": entry.candidate.name,
            "weights": entry.candidate.weights,
            "metric": name,
            **{
                column: getattr(summary, column)
                for column in ("mean", "low", "high", "minimum", "maximum", "deviation", "seeds")
            },
            "images": summary.count,
            "method": summary.method,
            **dataclasses.asdict(entry.candidate.cost),
            "device": manifest.get("environment", {}).get("device", ""),
        }
        for entry in result.ranked
        for name, summary in entry.summary.items()
    ]
    pairs = [
        {
            "first": pair.first,
            "second": pair.second,
            "only_first_right": pair.only_first,
            "only_second_right": pair.only_second,
            "mcnemar_p": pair.p,
            "holm_p": pair.p_holm,
            **_columns("accuracy_difference", pair.accuracy.value, pair.accuracy),
            **_columns("macro_f1_difference", pair.macro_f1.value, pair.macro_f1),
            "told_apart": pair.told_apart,
            "method": f"{pair.method}; differences: {pair.accuracy.method}",
        }
        for pair in result.pairs
    ]
    leaks = [
        {
            "backbone": leak.name,
            "metric": name,
            **_columns("by_image", leak.by_image[name].mean, leak.by_image[name]),
            **_columns("by_group", leak.by_group[name].mean, leak.by_group[name]),
            **{
                column: value
                for part, of in leak.parts.items()
                for column, value in {
                    **_columns(part, of[name].value, of[name]),
                    f"{part}_told_from_0": of[name].told_from_zero,
                }.items()
            },
            **(
                _columns("let_in", leak.control.let_in[name].mean, leak.control.let_in[name])
                if leak.control
                else {}
            ),
            "majority": leak.majority[name],
            "images": leak.images,
            "groups": leak.groups,
            **{f"groups of {label}": count for label, count in leak.groups_by_class.items()},
            "method": leak.difference[name].method,
        }
        for leak in result.leaks
        for name in COMPARED
    ]
    for name, rows in (("ranking", ranking), ("pairs", pairs), ("leak", leaks)):
        if rows:
            table = pd.DataFrame(rows).assign(source=manifest.get("source", "unknown"))
            files.write_atomically(directory / f"{name}.csv", table.to_csv(index=False))


def _columns(name: str, value: float, ends: Estimate | SeedSummary) -> dict[str, float]:
    return {name: value, f"{name}_low": ends.low, f"{name}_high": ends.high}


def print_comparison(result: Comparison, manifest: Mapping[str, Any]) -> None:
    """Prints the ranked table, what can be told apart, and the leak.

    Args:
        result: The comparison.
        manifest: What `manifest.json` of its run directory holds.
    """
    console = terminal.console(width=176)
    if announcement := pages.announcement(manifest):
        console.print(f"\n{announcement}", style="bold")
    for entry in manifest.get("audit", {}).values():
        console.print(entry["line"])
    metrics = _shown_metrics(result)
    costs = ("parameters", "GFLOPs", "images/s", "MiB")
    rows = [
        (
            str(entry.rank),
            entry.candidate.name,
            _short(entry.candidate.weights),
            *(_percent(entry.summary[name], "") for name in metrics),
            f"{entry.candidate.cost.parameters / 1e6:.1f} M",
            f"{entry.candidate.cost.gflops:.3g}",
            f"{entry.candidate.cost.images_per_second:.3g}",
            f"{entry.candidate.cost.mebibytes:.3g}",
        )
        for entry in result.ranked
    ]
    headings = ("", "backbone", "weights", *metrics.values(), *costs)
    title = f"{result.title}: {result.design}, % [95 % interval of these seeds]"
    console.print(terminal.table(headings, rows, title=title, right=costs))
    remarks = (*_remarks(result), *result.sentences, result.winner_note)
    for sentence in (*remarks, class_figures.AT_CLASS_SHARES):
        console.print(sentence)
    if result.pairs:
        _print_pairs(console, result)
    if result.leaks:
        _print_leaks(console, result)


def _short(weights: str) -> str:
    """A published file name cut to what tells it from others."""
    return weights if len(weights) <= 24 else "…" + weights[-23:]


def _print_pairs(console: rich.console.Console, result: Comparison) -> None:
    pairs, title = _shown_pairs(result)
    headings = ("pair", "accuracy, points", "macro F1, points", "McNemar p", "Holm p", "")
    rows = [
        (
            f"{_label(result, pair.first)} − {_label(result, pair.second)}",
            _difference(pair.accuracy),
            _difference(pair.macro_f1),
            _p_value(pair.p),
            _p_value(pair.p_holm),
            "told apart" if pair.told_apart else "not told apart",
        )
        for pair in pairs
    ]
    console.print(terminal.table(headings, rows, title=title))


def _shown_pairs(result: Comparison) -> tuple[list[Pair], str]:
    """Pairs by the size of their difference, and a title; of many, those of the winner alone."""
    pairs = sorted(result.pairs, key=lambda pair: -abs(pair.accuracy.value))
    if len(pairs) <= _MANY_PAIRS:
        return pairs, "Every pair, largest difference first"
    winners = [pair for pair in pairs if result.winner in (pair.first, pair.second)]
    rest = len(pairs) - len(winners)
    return winners, f"{result.winner} and every other ({rest} more pairs in pairs.csv)"


def _print_leaks(console: rich.console.Console, result: Comparison) -> None:
    unit = result.unit
    headings = (
        "backbone",
        "",
        "by image, %",
        f"own {unit} let in, %",
        f"by {unit}, %",
        "leak, points",
        "scarcity, points",
    )
    rows = []
    for leak in result.leaks:
        for number, name in enumerate(COMPARED):
            let_in = leak_points = scarcity = "–"
            if leak.control:
                let_in = _percent(leak.control.let_in[name], "")
                leak_points = _told_short(leak.control.leak[name])
                scarcity = _told_short(leak.control.scarcity[name])
            rows.append(
                (
                    _label(result, leak.name) if number == 0 else "",
                    names.SHARES[name],
                    _percent(leak.by_image[name], ""),
                    let_in,
                    _percent(leak.by_group[name], ""),
                    leak_points,
                    scarcity,
                )
            )
    title = f"Cut by image against cut by {unit}, and what the difference is made of"
    console.print(terminal.table(headings, rows, title=title))
    console.print(leak_facts(result.leaks[0], unit))
    parts = [part for leak in result.leaks for part in leak.parts.values()]
    if not all(difference.told_from_zero for part in parts for difference in part.values()):
        console.print("* not told apart from 0")
    if headline := _headline(result):
        console.print(headline)


def _told_short(difference: Estimate) -> str:
    return _difference(difference) + ("" if difference.told_from_zero else " *")
