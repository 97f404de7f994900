"""How stride, threshold and suppression radius move recall against cost, on annotated fields.

    python -m replication.scan_sweep --stage1=RUN --stage2=RUN --phantom
    python -m replication.scan_sweep --stage1=RUN --stage2=RUN folder/ s3://BUCKET/folder

A field is annotated by the `nuclei.csv` beside it. Writes sweep.html, sweep.csv, sweep.svg and
sweep.png, and prints the table.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

from absl import app, flags

from replication.flags import fields as field_flags
from replication.flags import shared
from replication.runs import device
from tfds_pap import commands, copies, files, path_flags, urls
from tfds_pap.errors import PapError

_PHANTOM, _PHANTOM_FIELDS = shared.phantom(
    "Sweep over fields that are drawn on the spot (default: off).", 10
)
_OUTPUT = path_flags.define(
    "output", "runs/sweep", "Where it is written (default: runs/sweep).", path_flags.NEW_FOLDER
)
_STRIDES = flags.DEFINE_list(
    "strides", ["10", "25", "50", "75"], "Pixels from ROI to ROI (default: 10,25,50,75)."
)
_THRESHOLDS = flags.DEFINE_list(
    "thresholds",
    ["0.1", "0.3", "0.5", "0.7", "0.9"],
    "Stage-1 probabilities of a cell, 0 to 1 (default: 0.1,0.3,0.5,0.7,0.9).",
)
_RADII = flags.DEFINE_list(
    "radii", ["30", "50", "75"], "Suppression radii in pixels (default: 30,50,75)."
)

flags.adopt_module_key_flags(field_flags)


def main(argv: list[str]) -> None:
    """Reads annotated fields in every setting; writes and prints what that finds and costs."""
    if _PHANTOM.value == (len(argv) > 1):
        raise app.UsageError("expected annotated fields (field.jpg folder/ ...), or --phantom")
    for argument in filter(urls.is_url, argv[1:]):
        urls.check(argument)
    match_radius = field_flags.match_radius()
    strides = [int(number) for number in _numbers(_STRIDES, lowest=1, whole=True)]
    thresholds = _numbers(_THRESHOLDS, lowest=0, highest=1)
    radii = _numbers(_RADII, lowest=0)
    commands.prepare_tensorflow()
    import tqdm

    from replication.fields import whole_fields
    from replication.fields.judge import sweep
    from replication.fields.judge.results import plural
    from replication.fields.scan_directory import Settings
    from replication.fields.show import sweep_figure, sweep_page

    output = Path(_OUTPUT.value)
    device.configure(precision="float32")
    models = whole_fields.Models(**field_flags.models())
    complete = field_flags.complete_truth() or _PHANTOM.value
    classes = models.classes()
    annotated = _annotated(_fields(argv[1:], output), classes)
    stages = {stride: models.load(Settings(stride=stride)) for stride in strides}
    with (
        futures.ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm.tqdm(total=len(annotated), unit="field") as bar,
    ):
        rows = sweep.sweep(
            _opened(annotated),
            stages,
            radii=radii,
            thresholds=thresholds,
            pool=pool,
            complete=complete,
            match_radius=match_radius,
            advance=bar.update,
        )
    files.write_atomically(output / "sweep.csv", sweep.table(rows))
    for form in ("svg", "png"):
        files.write_atomically(output / f"sweep.{form}", sweep_figure.sweep_figure(rows, form))
    announcement = models.announcement(_PHANTOM.value)[1]
    page = sweep_page.write(output, rows, len(annotated), announcement, classes, complete=complete)
    print(announcement)
    _print(rows, classes)
    if not complete:
        print("Precision is not reliable: an unannotated cell counts as a false positive.")
    read = f"{plural(len(annotated), 'field')}, {plural(len(rows), 'setting')}"
    print(f"{read}: {page}, {output / 'sweep.csv'}, {output / 'sweep.svg'}")


def _numbers(
    flag: flags.FlagHolder, *, lowest: float, highest: float = float("inf"), whole: bool = False
) -> list[float]:
    """Returns what a list of numbers holds, each once, in ascending order."""
    try:
        numbers = sorted({float(text) for text in flag.value})
    except ValueError:
        numbers = []
    if not numbers or not all(lowest <= n <= highest and n % 1 <= 1 - whole for n in numbers):
        kind = "whole numbers" if whole else "numbers"
        limits = f"from {lowest:g}" + (f" to {highest:g}" if highest < float("inf") else "")
        values = ",".join(flag.value)
        raise app.UsageError(f"--{flag.name}={values}: expected {kind} {limits}")
    return numbers


def _fields(arguments: Sequence[str], output: Path) -> list[str]:
    """Returns the paths of the fields; drawn ones are written first."""
    from replication.fields.read import reader
    from tfds_pap import phantom_set

    if _PHANTOM.value:
        phantom_set.write_fields(output / "phantoms", _PHANTOM_FIELDS.value)
        arguments = [
            str(output / "phantoms" / f"phantom_{n:02d}.jpg") for n in range(_PHANTOM_FIELDS.value)
        ]
    return reader.expand_fields(arguments)


def _annotated(paths: Sequence[str], classes: Any) -> list[tuple[str, Any]]:
    """Returns the fields that have truth, with it."""
    from replication.fields import scan_directory
    from replication.fields.judge import truth
    from tfds_pap.tables import bare_name

    tables: dict[str, Any] = {}
    annotated = []
    for path in paths:
        # Of a table that is not there, reading it says so.
        expected = urls.inside(path.rpartition("/")[0], scan_directory.TRUTH)
        table = scan_directory.truth_file(path, field_flags.truth()) or expected
        if table not in tables:
            tables[table] = truth.read_nuclei(copies.file(table), classes)
        name = bare_name(urls.name(path))
        if name in tables[table]:
            annotated.append((path, tables[table][name]))
    if not annotated:
        raise PapError(f"{', '.join(map(str, tables))}: none of the given fields is annotated")
    return annotated


def _opened(annotated: Sequence[tuple[str, Any]]) -> Iterator[tuple[Any, Any]]:
    from replication.fields.read import reader

    return ((reader.open_field(path), nuclei) for path, nuclei in annotated)


def _print(rows: Sequence[Any], classes: Any) -> None:
    """Prints a line a setting."""
    import rich.box
    import rich.table

    from replication.drawing import shown, terminal
    from replication.fields.judge.sweep import DEFAULT

    table = rich.table.Table(box=rich.box.SIMPLE, padding=(0, 0, 0, 1))
    names = ("stride", "radius", "threshold", "recall", "by chance", "precision", "kept ROIs")
    looked_for = [f"{classes.positive_name} {what}." for what in ("sens", "spec") if classes.severe]
    for name in (*names, "stage 1", "stage 2", *looked_for):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        recall = shown.shown(row.recall, row.recall_low, row.recall_high)
        severe = shown.shown(
            row.hsil_plus_sensitivity, row.hsil_plus_low, row.hsil_plus_high, missing="none"
        )
        mild = shown.shown(
            row.hsil_plus_specificity, row.specificity_low, row.specificity_high, missing="none"
        )
        table.add_row(
            *(f"{value:g}" for value in (row.stride, row.radius, row.threshold)),
            f"{recall.value} {recall.interval}",
            shown.shown(row.recall_by_chance, 0, 0).value,
            shown.shown(row.precision, 0, 0, missing="none").value,
            f"{row.kept_per_field:.1f}",
            f"{1000 * row.stage1_seconds:.1f} ms",
            f"{1000 * row.stage2_seconds:.0f} ms",
            *(f"{one.value} {one.interval}" for one in (severe, mild) if looked_for),
            style="bold" if row.setting == DEFAULT else None,
        )
    terminal.console(width=150).print(table)


if __name__ == "__main__":
    commands.run(main, commands.STARTS_AGAIN)
