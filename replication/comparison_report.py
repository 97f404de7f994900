"""What a comparison leaves behind: tables on the terminal and as CSV, figures, one page."""

import base64
import dataclasses
import importlib.resources
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import rich.box
import rich.console
import rich.table

from sklearn import metrics

from replication import comparison_figures, figures, runs
from replication.comparison import COSTS, Comparison, Leak, Pair
from replication.intervals import Estimate

#: Metrics of the ranked table, and their headings.
_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "hsil_plus_sensitivity": "HSIL+ sensitivity",
}
_LEAK_METRICS = ("accuracy", "balanced_accuracy", "macro_f1")

#: With more pairs than this the terminal shows those of the winner, and the page folds its table.
_MANY_PAIRS = 15

_UNKNOWN_SOURCE = (
    "It is not known whose images these are. No figure below may be called a replication of a "
    "published one."
)


def write(run: runs.RunDirectory, result: Comparison) -> Path:
    """Writes `report.html`, `ranking.csv`, `pairs.csv`, `leak.csv` and the figures of a comparison.

    Args:
        run: Its manifest holds `source`, `announcement`, `environment`, `identity`, `data` and
            perhaps `audit` (data set -> {"line": str}).
        result: The comparison.

    Returns:
        The page; it loads nothing from outside.
    """
    manifest = run.manifest()
    write_tables(run.path, result, manifest)
    comparison_figures.write(run.path / "figures", result)
    pictures = {
        "ranking": comparison_figures.ranking(result),
        **{cost: comparison_figures.accuracy_against(result, cost) for cost in COSTS},
    }
    if result.leaks:
        for metric in _LEAK_METRICS[:2]:
            pictures[f"leak_{metric}"] = comparison_figures.leak(result, metric)
    confusion = _confusion(result)
    if confusion:
        pictures["confusion"] = figures.confusion_matrix(confusion, result.class_names)
    leaks = {leak.name: leak for leak in result.leaks}
    winners_leak = leaks.get(result.winner)
    page = _template().render(
        result=result,
        announcement=_announcement(manifest),
        environment=manifest.get("environment", {}),
        audit=[entry["line"] for entry in manifest.get("audit", {}).values()],
        metrics=_shown_metrics(result),
        methods=_methods(result),
        figures={name: _inline(svg) for name, svg in pictures.items()},
        fronts={cost: result.front(cost) for cost in COSTS},
        confusion_words=_words(confusion, result.class_names),
        headline=leak_sentence(winners_leak, result.unit) if winners_leak else "",
        many_pairs=len(result.pairs) > _MANY_PAIRS,
        value=_value,
        interval=_interval,
        points=comparison_figures.points,
        points_interval=comparison_figures.points_interval,
        p_value=_p_value,
        details=json.dumps(manifest, indent=2),
    )
    path = run.path / "report.html"
    runs.write_atomically(path, page)
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    files = importlib.resources.files("replication")
    return environment.from_string(files.joinpath("comparison_report.html.j2").read_text("utf-8"))


def _inline(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _announcement(manifest: Mapping[str, Any]) -> str:
    """A manifest that does not say whose images they are must not pass for a replication."""
    unknown = "" if manifest.get("source") == "original" else _UNKNOWN_SOURCE
    return manifest.get("announcement") or unknown


def _methods(result: Comparison) -> list[str]:
    """The distinct ways in which the ranked table's intervals were made, and for which metrics."""
    names: dict[str, list[str]] = {}
    for name, head in _shown_metrics(result).items():
        for entry in result.ranked:
            heads = names.setdefault(entry.summary[name].method, [])
            if head not in heads:
                heads.append(head)
    return [f"{', '.join(heads)}: {method}" for method, heads in names.items()]


def _confusion(result: Comparison) -> list[list[int]]:
    """Of the winner's first seed; not of its best one, which would flatter."""
    winner = next(one for one in result.candidates if one.name == result.winner)
    first = winner.runs[0]
    labels = range(len(first.class_names))
    return metrics.confusion_matrix(first.labels, first.predicted, labels=labels).tolist()


def _words(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """The matrix for readers who do not see it."""
    return "; ".join(
        f"{name}: " + ", ".join(f"{n} as {other}" for other, n in zip(names, row, strict=True))
        for name, row in zip(names, confusion, strict=True)
    )


def _shown_metrics(result: Comparison) -> dict[str, str]:
    return {name: head for name, head in _METRICS.items() if name in result.ranked[0].summary}


def _value(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "not defined"


def _interval(low: float, high: float) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def leak_sentence(leak: Leak, unit: str) -> str:
    """Says how much of a figure comes from the cut.

    Args:
        leak: Of one backbone.
        unit: What a group is, for example "slide".
    """
    by_image, by_group = leak.by_image["accuracy"], leak.by_group["accuracy"]
    gap = leak.difference["accuracy"]
    return (
        f"The same {leak.images:,} images, the same features of {leak.name}: "
        f"{_value(by_image.mean)} % {_interval(by_image.low, by_image.high)} when folds are cut by "
        f"image, {_value(by_group.mean)} % {_interval(by_group.low, by_group.high)} when they "
        f"are cut by {unit}. The leak is {comparison_figures.points(gap.value)} points "
        f"{comparison_figures.points_interval(gap.low, gap.high)}."
    )


def write_tables(directory: Path, result: Comparison) -> None:
    """Writes the ranked table, every pair and, of two cuts, the leak as CSV.

    Args:
        directory: Where to.
        result: The comparison.
    """
    ranking = [
        {
            "rank": entry.rank,
            "backbone": entry.candidate.name,
            "weights": entry.candidate.weights,
            "metric": name,
            **{
                field: getattr(summary, field)
                for field in ("mean", "low", "high", "minimum", "maximum", "seeds", "count")
            },
            "method": summary.method,
            **dataclasses.asdict(entry.candidate.cost),
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
            **_columns("accuracy_difference", pair.accuracy),
            **_columns("macro_f1_difference", pair.macro_f1),
            "told_apart": pair.told_apart,
            "method": pair.method,
        }
        for pair in result.pairs
    ]
    leaks = [
        {
            "backbone": leak.name,
            "metric": name,
            "by_image": leak.by_image[name].mean,
            "by_group": leak.by_group[name].mean,
            **_columns("leak", leak.difference[name]),
            "images": leak.images,
            "groups": leak.groups,
            "method": leak.difference[name].method,
        }
        for leak in result.leaks
        for name in _LEAK_METRICS
    ]
    for name, rows in (("ranking", ranking), ("pairs", pairs), ("leak", leaks)):
        if rows:
            table = pd.DataFrame(rows).to_csv(index=False)
            runs.write_atomically(directory / f"{name}.csv", table)


def _columns(name: str, estimate: Any) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def print_comparison(result: Comparison, manifest: Mapping[str, Any]) -> None:
    """Prints the ranked table, what can be told apart, and the leak.

    Args:
        result: The comparison.
        manifest: Of its run directory.
    """
    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=176)
    if manifest.get("announcement"):
        console.print(f"\n{manifest['announcement']}", style="bold")
    for entry in manifest.get("audit", {}).values():
        console.print(entry["line"], highlight=False)
    metrics = _shown_metrics(result)
    table = _table(f"{result.title}: {result.design}, % [95 % interval]")
    for heading in ("", "backbone", "weights", *metrics.values()):
        table.add_column(heading)
    for heading in ("parameters", "GFLOPs", "images/s", "MiB"):
        table.add_column(heading, justify="right")
    for entry in result.ranked:
        cost = entry.candidate.cost
        table.add_row(
            str(entry.rank),
            entry.candidate.name,
            _short(entry.candidate.weights),
            *(
                f"{_value(entry.summary[name].mean)} "
                f"{_interval(entry.summary[name].low, entry.summary[name].high)}"
                for name in metrics
            ),
            f"{cost.parameters / 1e6:.1f} M",
            f"{cost.gflops:.2f}",
            f"{cost.images_per_second:.0f}",
            f"{cost.mebibytes:.0f}",
        )
    console.print(table)
    for sentence in result.sentences:
        console.print(sentence, highlight=False)
    console.print(result.winner_note, highlight=False)
    if result.pairs:
        _print_pairs(console, result)
    if result.leaks:
        _print_leaks(console, result)


def _table(title: str) -> rich.table.Table:
    return rich.table.Table(title=title, box=rich.box.SIMPLE)


def _short(weights: str) -> str:
    """A published file name cut to what tells it from others."""
    return weights if len(weights) <= 24 else "…" + weights[-23:]


def _print_pairs(console: rich.console.Console, result: Comparison) -> None:
    shown = sorted(result.pairs, key=lambda pair: -abs(pair.accuracy.value))[:_SHOWN_PAIRS]
    rest = len(result.pairs) - len(shown)
    title = "Pairs, largest difference first" + (f" ({rest} more in pairs.csv)" if rest else "")
    table = _table(title)
    for heading in ("pair", "accuracy, points", "macro F1, points", "McNemar p", "Holm p", ""):
        table.add_column(heading)
    for pair in shown:
        table.add_row(
            f"{pair.first} - {pair.second}",
            _difference(pair.accuracy),
            _difference(pair.macro_f1),
            _p_value(pair.p),
            _p_value(pair.p_holm),
            "told apart" if pair.told_apart else "not told apart",
        )
    console.print(table)


def _print_leaks(console: rich.console.Console, result: Comparison) -> None:
    table = _table(f"The size of the leak: cut by image against cut by {result.unit}")
    headings = ("backbone", "metric", "cut by image, %", f"cut by {result.unit}, %", "leak, points")
    for heading in headings:
        table.add_column(heading)
    for leak in result.leaks:
        for name in _LEAK_METRICS:
            cells = [
                f"{_value(found[name].mean)} {_interval(found[name].low, found[name].high)}"
                for found in (leak.by_image, leak.by_group)
            ]
            table.add_row(leak.name, _METRICS[name], *cells, _difference(leak.difference[name]))
    console.print(table)
    console.print(leak_sentence(result.leaks[0], result.unit), highlight=False)


def _difference(estimate: Any) -> str:
    return (
        f"{comparison_figures.points(estimate.value)} "
        f"{comparison_figures.points_interval(estimate.low, estimate.high)}"
    )
