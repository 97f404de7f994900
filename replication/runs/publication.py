"""What a finished run is summed up in: table, model card, report, and the lines on the terminal."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow_datasets.public_api as tfds

from replication.drawing import shown, terminal
from replication.learning import gradcam
from replication.measures import published
from replication.report import model_card
from replication.report import page as report
from replication.runs import description, results
from replication.runs.directory import RunDirectory
from tfds_pap import files, leak_audit, pipeline

_THUMBNAIL_PIXELS = 128

#: What was seen of the stage-2 network on such drawn cells: ten seeds each, JAX on one NVIDIA H200,
#: 2026-11-27.
_LONGER = (
    "This run is made for minutes. On drawn cells a little less alike the stage-2 network of ten "
    "seeds named 54 % right in the median after 4,800 images and 68 % after 7,200 (paper), and "
    "66 % after 2,000 and 80 % after 4,000 (clean): --budget=MINUTES trains longer."
)


def publish(
    run: RunDirectory,
    builders: Mapping[int, tfds.core.DatasetBuilder],
    audits: Mapping[str, leak_audit.Audit],
    *,
    prevalence: float | None = None,
) -> Path:
    """Sums a run up: table, model card, report; prints the table.

    Args:
        run: Holds the fits.
        builders: Prepared builder of each stage.
        audits: By name of the data set.
        prevalence: Of HSIL+ where the models are to be used, for predictive values.

    Returns:
        The page.
    """
    page, rows, notes = write_page(run, builders, audits, prevalence=prevalence)
    print_summary(rows, run, notes)
    return page


def write_page(
    run: RunDirectory,
    builders: Mapping[int, tfds.core.DatasetBuilder],
    audits: Mapping[str, leak_audit.Audit],
    *,
    prevalence: float | None = None,
    explained: bool = True,
) -> tuple[Path, list[results.Row], list[str]]:
    """Writes table, model card and report of what is finished.

    Args:
        run: Holds the fits.
        builders: Prepared builder of each stage.
        audits: By name of the data set.
        prevalence: Of HSIL+ where the models are to be used, for predictive values.
        explained: Whether the page shows heat maps, which take the longest.

    Returns:
        The page, the rows of its table, and the sentences below them.
    """
    rows = summarise(run)
    by_stage = {stage: audits[builder.name] for stage, builder in builders.items()}
    notes = suspect_notes(run, rows, by_stage)
    if run.manifest()["source"] == "phantom":
        notes.append(_LONGER)
    model_card.write(run)
    page = report.write(
        run,
        thumbnails(builders),
        prevalence=prevalence,
        heat_maps=heat_maps(builders) if explained else None,
        notes=notes,
    )
    return page, rows, notes


def summarise(run: RunDirectory) -> list[results.Row]:
    """Sets the run beside the papers; writes `summary.csv`."""
    source = run.manifest()["source"]
    rows = results.summary_rows(results.read_fits(run), source)
    files.write_atomically(
        run.path / "summary.csv", summary_table(rows, source).to_csv(index=False)
    )
    return rows


def summary_table(rows: Sequence[results.Row], source: published.Source) -> pd.DataFrame:
    """Returns what `summary.csv` holds.

    Args:
        rows: From `results.summary_rows`.
        source: Where the images come from.
    """
    return pd.DataFrame(
        {
            "stage": row.stage,
            "model": row.name,
            "protocol": row.protocol,
            "published_accuracy": row.published.text,
            "metric": metric,
            "mean": summary.mean,
            "low": summary.low,
            "high": summary.high,
            "minimum": summary.minimum,
            "maximum": summary.maximum,
            "seeds": summary.seeds,
            "images": summary.count,
            "method": summary.method,
            "source": source,
            "verdict": row.verdict if metric == "accuracy" else "",
        }
        for row in rows
        for metric, summary in row.summary.items()
    )


def suspect_notes(
    run: RunDirectory,
    rows: Sequence[results.Row],
    audits: Mapping[int, leak_audit.Audit],
) -> list[str]:
    """Says, for each model with suspect test images, what its accuracy is without them.

    Args:
        run: Holds the fits.
        rows: From `summarise`.
        audits: By stage.
    """
    fits, notes = results.read_fits(run), []
    for row in rows:
        tests = [
            fit.predictions.select("test")
            for fit in fits
            if (fit.stage, fit.protocol) == (row.stage, row.protocol)
        ]
        if line := description.accuracy_without_suspects(tests, audits[row.stage]):
            notes.append(f"{row.name}, {row.protocol} protocol, {line}")
    return notes


def thumbnails(
    builders: Mapping[int, tfds.core.DatasetBuilder],
) -> Callable[[int, Sequence[str]], list[np.ndarray]]:
    """Returns a function from (stage, ids) to small uint8 RGB copies of those images."""
    return lambda stage, ids: pipeline.read_images(builders[stage], ids, _THUMBNAIL_PIXELS)


def heat_maps(
    builders: Mapping[int, tfds.core.DatasetBuilder],
) -> Callable[[results.Fit, Sequence[str], np.ndarray], list[np.ndarray]] | None:
    """Returns a function from (fit, ids, classes) to Grad-CAM overlays, uint8 RGB.

    None on a backend other than TensorFlow, which alone computes them.
    """
    if keras.backend.backend() != "tensorflow":
        return None

    def overlays(fit: results.Fit, ids: Sequence[str], classes: np.ndarray) -> list[np.ndarray]:
        if not ids:
            return []
        builder, model = builders[fit.stage], _model(fit.model_path)
        size, resize = fit.info["size"], fit.info["resize"]
        images = np.stack(pipeline.read_images(builder, ids, size, resize))
        heat = gradcam.GradCam(model).maps(images, classes)
        pictures = pipeline.read_images(builder, ids, _THUMBNAIL_PIXELS)
        return [gradcam.overlay(*pair) for pair in zip(pictures, heat, strict=True)]

    return overlays


@functools.lru_cache(maxsize=1)
def _model(path: Path) -> keras.Model:
    return results.load_keras(path)


def print_summary(
    rows: Sequence[results.Row], run: RunDirectory, notes: Sequence[str] = ()
) -> None:
    """Prints published, paper protocol, clean protocol, interval, verdict, and the audit."""
    manifest = run.manifest()
    console = terminal.console()
    if manifest["announcement"]:
        console.print(f"\n{manifest['announcement']}", style="bold")
    headings = ("", "protocol", "published", "measured", "95 % interval, of these seeds", "verdict")
    lines = []
    for row in rows:
        accuracy = row.summary["accuracy"]
        seeds = f" ({accuracy.seeds} seeds)" if accuracy.seeds > 1 else ""
        lines.append(
            (
                row.name,
                row.protocol,
                row.published.text,
                f"{accuracy.mean:.4f}{seeds}",
                shown.ends(accuracy.low, accuracy.high),
                row.verdict.partition(" (")[0],
            )
        )
    console.print(terminal.table(headings, lines, title="Test accuracy, mean over seeds"))
    remarks = [line for row in rows for line in (*_severe_lines(row), *row.remarks)]
    for line in [*remarks, *(entry["line"] for entry in manifest["audit"].values()), *notes]:
        console.print(line)


def _severe_lines(row: results.Row) -> list[str]:
    """Sensitivity to what is looked for beside its specificity, where classes say what it is."""
    figures = []
    for name in ("sensitivity", "specificity"):
        if summary := row.summary.get(f"hsil_plus_{name}"):
            cell = shown.shown(summary.mean, summary.low, summary.high)
            figures.append(f"{name} {cell.value} {cell.interval}".rstrip())
    if not figures:
        return []
    return [f"{row.name}, {row.protocol} protocol: {row.positive} {', '.join(figures)}"]
