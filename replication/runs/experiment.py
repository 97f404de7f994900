"""The steps of a run, each resumable: describe the data, train and score one model, sum up."""

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import rich.box
import rich.console
import rich.table
import tensorflow_datasets.public_api as tfds

from replication.drawing import shown, tensorboard
from replication.learning import features, gradcam, models, training, whole_model
from replication.measures import evaluation, triage
from replication.report import model_card
from replication.report import page as report
from replication.runs import device as devices
from replication.runs import environment as run_environment
from replication.runs import provenance, results
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from tfds_pap import audit_page, files, leak_audit, pipeline, roles
from tfds_pap.errors import PapError

#: From examples and the positions of the tune role to what scores an epoch.
Validator = Callable[[training.Store, np.ndarray], Callable[[keras.Model], dict[str, float]]]

#: Said where a backbone has random weights.
UNTRAINED = "The backbone is not trained (random weights): no figure says anything about it."

_THUMBNAIL_PIXELS = 128

#: What was seen of the stage-2 network on such drawn cells: ten seeds each, JAX on one NVIDIA H200,
#: 2026-11-27.
_LONGER = (
    "This run is made for minutes. On drawn cells a little less alike the stage-2 network of ten "
    "seeds named 54 % right in the median after 4,800 images and 68 % after 7,200 (paper), and "
    "66 % after 2,000 and 80 % after 4,000 (clean): --budget=MINUTES trains longer."
)


def describe(
    run: RunDirectory,
    builders: Mapping[int, tfds.core.DatasetBuilder],
    policy: DevicePolicy,
    *,
    program: str = "replication.run",
    images: str | None = None,
    remarks: Sequence[str] = (),
    assigned: Mapping[str, roles.Roles] | None = None,
    blocks: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Writes what is run on what into the manifest.

    Args:
        run: The run.
        builders: Prepared builder of each stage.
        policy: The device policy in force.
        program: The module that was run.
        images: Whose they are by declaration: "original", "stand-in", or None.
        remarks: Sentences that belong above every figure, such as `UNTRAINED`.
        assigned: Roles by protocol; those of `roles.assign_roles` in both protocols if None.
        blocks: What roles keep together, by data set and id.

    Raises:
        PapError: If the declaration contradicts what is published.
    """
    source, announcement = provenance.source(builders, images)
    data = run.manifest().get("data", {})
    for stage, builder in builders.items():
        index = pipeline.read_index(builder)
        by_protocol = assigned or {
            protocol: roles.assign_roles(
                index, protocol, stage=stage, blocks=(blocks or {}).get(builder.name)
            )
            for protocol in roles.PROTOCOLS
        }
        data[builder.name] = describe_images(builder, index) | {
            "roles": {
                protocol: {role: class_counts(index, rows) for role, rows in cut.items()}
                for protocol, cut in by_protocol.items()
            },
        }
    run.update_manifest(
        source=source,
        announcement=" ".join(filter(None, [announcement, *remarks])),
        environment=run_environment.describe(policy, program),
        data=data,
    )


def describe_images(builder: tfds.core.DatasetBuilder, index: pipeline.Index) -> dict[str, Any]:
    """Returns what a manifest says of a data set: fingerprint, notes, counts, groups.

    Args:
        builder: A prepared builder.
        index: Of the same builder.
    """
    return {
        "fingerprint": builder.info.metadata["fingerprint"],
        "notes": list(builder.info.metadata["notes"]),
        "counts": {
            split: class_counts(index, np.flatnonzero(index.splits == split))
            for split in sorted(builder.info.splits)
        },
        "groups": len(set(index.groups) - {""}),
    }


def audit(
    run: RunDirectory,
    builders: Iterable[tfds.core.DatasetBuilder],
    effort: str = "fast",
    notes: Callable[[Mapping[str, leak_audit.Audit]], Sequence[str]] = lambda audits: (),
) -> dict[str, leak_audit.Audit]:
    """Looks for leaks in each data set and writes what it found to the run.

    Args:
        run: Its manifest gets `audit`: data set -> line and counts; `audit.html` shows the pairs.
        builders: Prepared builders.
        effort: One of `leak_audit.EFFORTS`.
        notes: What is done about what was found, in words; printed, and part of the lines.

    Returns:
        What was found, by name of the data set.
    """
    builders = list(builders)
    found = {one.name: leak_audit.audit_builder(one, effort=effort) for one in builders}
    summaries = {name: one.summary() for name, one in found.items()}
    for name, summary in summaries.items():
        for line in notes({name: found[name]}):
            print(f"Note: {line}")
            summary["line"] += f". {line[0].upper()}{line[1:]}"
    run.update_manifest(audit={**run.manifest().get("audit", {}), **summaries})
    audit_page.write(run.path / audit_page.NAME, [(found[one.name], one) for one in builders])
    return found


def accuracy_without_suspects(
    predictions: Sequence[evaluation.Predictions], found: leak_audit.Audit
) -> str:
    """Says what is left of an accuracy without test images that have a twin in training.

    Args:
        predictions: Of one role, one a seed, on the same images.
        found: The audit of their data set.

    Returns:
        A line; "" where no image is suspect.
    """
    suspects = found.suspects(predictions[0].ids)
    if not suspects:
        return ""
    kept = [row for row, image in enumerate(predictions[0].ids) if image not in suspects]
    if not kept:
        return f"all {len(predictions[0])} test images have a twin, or their group, in training"
    ids = {predictions[0].ids[row] for row in kept}
    rest = evaluation.summarise_seeds(
        [one.take([row for row, i in enumerate(one.ids) if i in ids]) for one in predictions]
    )["accuracy"]
    return (
        f"without suspect test images ({len(suspects)}, with a twin or their group in training): "
        f"{rest.mean:.4f} [{shown.ends(rest.low, rest.high)}] on {len(kept)} images"
    )


def class_counts(index: pipeline.Index, positions: np.ndarray) -> dict[str, int]:
    """Counts the images of every class.

    Args:
        index: What is known of the images.
        positions: Which of them.
    """
    counts = np.bincount(index.labels[positions], minlength=len(index.class_names))
    return dict(zip(index.class_names, counts.tolist(), strict=True))


def store(
    builder: tfds.core.DatasetBuilder,
    recipe: training.Recipe,
    policy: DevicePolicy,
    features_dir: Path = features.DIRECTORY,
) -> training.Store:
    """Returns what a recipe trains on: stored features, or decoded images.

    Args:
        builder: A prepared builder.
        recipe: How to train.
        policy: Where and how to compute features that are not stored yet.
        features_dir: Where features are stored.
    """
    if recipe.features is None:
        return images(builder, recipe.size, recipe.resize)
    return features.extract(builder, recipe.features, features_dir, policy=policy)


@functools.lru_cache(maxsize=2)
def images(builder: tfds.core.DatasetBuilder, size: int, resize: str) -> pipeline.ImageStore:
    """Decodes every image once: both protocols, every seed and every trial share them.

    Args:
        builder: A prepared builder.
        size: Height and width in pixels.
        resize: One of `decoding.RESIZE_METHODS`.
    """
    return pipeline.load_images(builder, size, resize)


def label(stage: int, protocol: str, seed: int) -> str:
    """Returns how a fit is called on the terminal and in the manifest's durations."""
    return f"stage {stage}, {protocol} protocol, seed {seed}"


def check_size(run: RunDirectory, recipe: training.Recipe, protocol: str, seed: int) -> None:
    """Refuses a finished fit of another input size than the recipe's.

    Raises:
        PapError: In one line.
    """
    directory = run.fit_directory(recipe.stage, protocol, seed)
    if (size := files.read_json(directory / "fit.json")["size"]) != recipe.size:
        raise PapError(
            f"{directory} was trained at {size} px, not {recipe.size}; give another --run_dir"
        )


def run_fit(
    run: RunDirectory,
    recipe: training.Recipe,
    protocol: str,
    seed: int,
    *,
    builder: tfds.core.DatasetBuilder,
    policy: DevicePolicy,
    profile: bool = False,
    prevalence: float | None = None,
    features_dir: Path = features.DIRECTORY,
    validator: Validator | None = None,
    about: Mapping[str, Any] | None = None,
    progress: keras.callbacks.Callback | None = None,
    blocks: Mapping[str, str] | None = None,
) -> None:
    """Trains, saves and scores one model; returns at once where that is done.

    Args:
        run: Where the fit belongs.
        recipe: How to train.
        protocol: "paper" or "clean".
        seed: Of this fit.
        builder: Prepared builder of the recipe's stage.
        policy: Where and how to compute.
        profile: Whether to write a TensorBoard profile.
        prevalence: Of HSIL+ where the model is to be used, for predictive values.
        features_dir: Where features are stored.
        validator: Scores epochs with other figures than loss and accuracy.
        about: Further entries of `fit.json`.
        blocks: What roles keep together, by id; None keeps groups together.
        progress: Shows how far training is, instead of a line of the fit's own.

    Raises:
        PapError: If it was trained at another size.
    """
    directory = run.fit_directory(recipe.stage, protocol, seed)
    words = label(recipe.stage, protocol, seed)
    if (directory / "fit.json").exists():
        check_size(run, recipe, protocol, seed)
        print(f"{words}: finished before")
        return
    start = time.perf_counter()
    examples = store(builder, recipe, policy, features_dir)
    index = examples.index
    assigned = roles.assign_roles(
        index,
        protocol,
        stage=recipe.stage,
        test_within_train=recipe.test_within_train,
        blocks=blocks,
    )
    if recipe.train_on_tune:
        assigned = assigned.with_tune_in_train()
    logs = run.path / "logs" / directory.relative_to(run.path)
    model, outcome = training.fit(
        recipe,
        examples,
        assigned,
        seed=seed,
        policy=policy,
        directory=directory,
        label=None if progress else words,
        callbacks=(
            *tensorboard.callbacks(logs, examples, assigned, profile=profile),
            *([progress] if progress else []),
        ),
        validate=validator(examples, assigned.tune) if validator and len(assigned.tune) else None,
    )
    scored = np.concatenate([assigned.tune, assigned.test])
    predictions = evaluation.Predictions.of(
        index,
        (("tune", assigned.tune), ("test", assigned.test)),
        training.predict(model, examples, scored),
    )
    predictions.write(directory / "predictions.csv")
    metrics = evaluation.evaluate(predictions.select("test"))
    metrics["triage"] = triage.assess(predictions, prevalence)
    files.write_json(directory / "metrics.json", evaluation.jsonable(metrics))
    if recipe.features is not None:
        model = whole_model.join(recipe.features, model)
        outcome["whole_model_differs_by"] = whole_model.largest_difference(
            model, recipe.features, builder, predictions.select("test")
        )
    models.save_model(model, directory / "model.keras")
    files.write_json(
        directory / "fit.json",
        {
            "stage": recipe.stage,
            "protocol": protocol,
            "seed": seed,
            "name": recipe.name,
            "parameters": model.count_params(),
            "size": recipe.size,
            "resize": recipe.resize,
            "published": recipe.published,
            "optimizer": recipe.optimizer,
            "learning_rate": recipe.learning_rate,
            "batch_size": recipe.batch_size,
            "epochs_at_most": recipe.epochs,
            "monitor": recipe.monitor,
            "class_names": list(index.class_names),
            "counts": {
                role: class_counts(index, positions) for role, positions in assigned.items()
            },
            "device": policy.device,
            "git_commit": run_environment.git_commit(),
            **outcome,
            **(about or {}),
        },
    )
    training.remove_state(directory)
    durations = run.manifest().get("durations", {})
    durations[words] = round(time.perf_counter() - start, 1)
    run.update_manifest(durations=durations, peak_memory_mib=round(devices.peak_memory_mib()))


def summarise(run: RunDirectory) -> list[results.Row]:
    """Sets the run beside the papers; writes `summary.csv`."""
    rows = results.summary_rows(results.read_fits(run), run.manifest()["source"])
    table = pd.DataFrame(
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
            "source": run.manifest()["source"],
            "verdict": row.verdict if metric == "accuracy" else "",
        }
        for row in rows
        for metric, summary in row.summary.items()
    )
    files.write_atomically(run.path / "summary.csv", table.to_csv(index=False))
    return rows


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
    return keras.saving.load_model(path, compile=False, safe_mode=True)


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
        if line := accuracy_without_suspects(tests, audits[row.stage]):
            notes.append(f"{row.name}, {row.protocol} protocol, {line}")
    return notes


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


def print_summary(
    rows: Sequence[results.Row], run: RunDirectory, notes: Sequence[str] = ()
) -> None:
    """Prints published, paper protocol, clean protocol, interval, verdict, and the audit."""
    manifest = run.manifest()
    console = rich.console.Console(width=None if _is_terminal() else 132)
    if manifest["announcement"]:
        console.print(f"\n{manifest['announcement']}", style="bold")
    table = rich.table.Table(title="Test accuracy, mean over seeds", box=rich.box.SIMPLE)
    for heading in (
        "",
        "protocol",
        "published",
        "measured",
        "95 % interval, of these seeds",
        "verdict",
    ):
        table.add_column(heading)
    for row in rows:
        accuracy = row.summary["accuracy"]
        table.add_row(
            row.name,
            row.protocol,
            row.published.text,
            f"{accuracy.mean:.4f}" + (f" ({accuracy.seeds} seeds)" if accuracy.seeds > 1 else ""),
            shown.ends(accuracy.low, accuracy.high),
            row.verdict.partition(" (")[0],
        )
    console.print(table)
    remarks = [line for row in rows for line in (*_severe_lines(row), *row.remarks)]
    for line in [*remarks, *(entry["line"] for entry in manifest["audit"].values()), *notes]:
        console.print(line, highlight=False)


def _severe_lines(row: results.Row) -> list[str]:
    """HSIL+ sensitivity beside its specificity, where the classes are those of stage 2."""
    said = []
    for name in ("sensitivity", "specificity"):
        if summary := row.summary.get(f"hsil_plus_{name}"):
            cell = shown.shown(summary.mean, summary.low, summary.high)
            said.append(f"{name} {cell.value} {cell.interval}".rstrip())
    return [f"{row.name}, {row.protocol} protocol: HSIL+ {', '.join(said)}"] if said else []


def _is_terminal() -> bool:
    return rich.console.Console().is_terminal
