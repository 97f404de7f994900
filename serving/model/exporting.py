"""Writes a trained model as a checked version for TensorFlow Serving, and publishes it."""

import dataclasses
import errno
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from replication.fields.find.dense import Stage1
from replication.measures import decisions
from replication.runs import device, results
from replication.runs.directory import RunDirectory
from serving.model import assemble, guard, self_check, version_manifest
from serving.model.detection import Detection
from serving.model.graph import Graph
from serving.server import errors
from serving.store import model_config, publish
from tfds_pap import files
from tfds_pap.errors import PapError


def export_model(
    run_dir: str | os.PathLike,
    serving_dir: str | os.PathLike,
    *,
    stage: int = 2,
    protocol: str = "clean",
    seed: int | None = None,
    label: str | None = None,
    server_models_dir: str = "/models",
    max_pixels: int = 2**24,
    max_batch: int = 256,
    accept_png: bool = True,
    check_images: int = 16,
    stage1_run_dir: str | os.PathLike | None = None,
    stride: int = 25,
    threshold: float = 0.5,
    suppression_radius: float = 50.0,
    max_detections: int = 256,
    data_dir: str | None = None,
) -> Path:
    """Exports a trained model; a failed check or a kill changes nothing.

    Args:
        run_dir: Run whose model it is.
        serving_dir: Holds the versions of one model; its name is served.
        stage: 1 or 2.
        protocol: "paper" or "clean".
        seed: None takes the run's first.
        label: Points to the new version in models.config; None leaves labels alone.
        server_models_dir: Where TensorFlow Serving finds the folder that holds `serving_dir`.
        max_pixels: Pixels that an image may have.
        max_batch: Images that a request may hold.
        accept_png: Whether PNG images are taken.
        check_images: Images that the version is checked on.
        stage1_run_dir: Run whose stage 1 finds the cells of whole fields for the signature
            `detect`; None takes `run_dir`, where it holds one.
        stride: Of `detect`: pixels from one ROI to the next.
        threshold: Of `detect`: stage-1 probability of a cell at least, 0 to 1.
        suppression_radius: Of `detect`: pixels within which only the most probable ROI stays.
        max_detections: Of `detect`: cells that are answered at most.
        data_dir: Where TFDS keeps prepared data; None takes its default.

    Returns:
        The directory of the new version.

    Raises:
        PapError: If Keras computes with another backend, the run holds no such model, or the
            version fails a check or cannot be written.

    Example:
        >>> version = replication.export_model("runs/phantom", "models/pap_stage1", stage=1)
        stage-1 CNN (P1), clean protocol, seed 0: writing and checking
        ...
        >>> version.name
        '1'
    """
    device.needs_tensorflow()
    options = Options(
        run_dir=str(run_dir),
        stage=stage,
        protocol=protocol,
        seed=seed,
        max_pixels=max_pixels,
        max_batch=max_batch,
        accept_png=accept_png,
        stage1_run_dir=str(stage1_run_dir) if stage1_run_dir else None,
        stride=stride,
        threshold=threshold,
        suppression_radius=suppression_radius,
        max_detections=max_detections,
    )
    place = Path(serving_dir)
    places = {
        "serving_dir": str(place),
        "label": label,
        "server_models_dir": server_models_dir,
        "check_images": check_images,
        "data_dir": data_dir,
    }
    with _one_line(place):
        built = build(options)
        samples = self_check.samples(built.run, built.fit, check_images, data_dir)
        version = _publish(built, place, samples, options, places)
        model_config.ModelConfig(place, server_models_dir).publish(version, label)
    print(f"Published: {place / str(version)}" + (f", label {label}" if label else ""))
    return place / str(version)


@dataclasses.dataclass(frozen=True)
class Options:
    """What an exported version depends on beside the run's files; see `export_model`."""

    run_dir: str
    stage: int
    protocol: str
    seed: int | None
    max_pixels: int
    max_batch: int
    accept_png: bool
    stage1_run_dir: str | None
    stride: int
    threshold: float
    suppression_radius: float
    max_detections: int


@dataclasses.dataclass(frozen=True)
class Built:
    """What is exported, before it is written.

    Attributes:
        run: Of the model.
        fit: The model's.
        model: From the `.keras` file.
        graph: How it is served.
        missing: What it cannot do, and why, in sentences.
    """

    run: RunDirectory
    fit: results.Fit
    model: keras.Model
    graph: Graph
    missing: list[str]


def build(options: Options) -> Built:
    """Builds the served graph of a trained model; errors as of `export_model`.

    Args:
        options: What it depends on.
    """
    fit = results.choose_fit(options.run_dir, options.stage, options.protocol, options.seed)
    run = RunDirectory(Path(options.run_dir))
    decision, missing = decisions.of_fit(fit)
    stage1 = _stage1(run, fit, options.stage1_run_dir) if options.stage == 2 else ""
    if isinstance(stage1, str):
        missing += [stage1] if stage1 else []
        detection = None
    else:
        detection = _detection(stage1, options)
    model = results.load_model(fit)
    graph = Graph(
        model,
        fit.info["resize"],
        decision,
        max_pixels=options.max_pixels,
        max_batch=options.max_batch,
        formats=[name for name in guard.MAGIC if name != "PNG" or options.accept_png],
        detection=detection,
    )
    return Built(run, fit, model, graph, missing)


@contextmanager
def _one_line(serving_dir: Path) -> Iterator[None]:
    """Says where there was no room for what, too."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PapError(
                f"--serving_dir={serving_dir}: {error.strerror}; nothing was published"
            ) from error
        raise
    except errors.ServingError as error:
        raise PapError(str(error)) from error


def _publish(
    built: Built,
    serving_dir: Path,
    samples: self_check.Samples,
    options: Options,
    places: Mapping[str, Any],
) -> int:
    """Writes, checks and renames the version; prints what was checked and what is missing."""
    fit, graph = built.fit, built.graph
    if "PNG" not in graph.formats and any(
        data.startswith(guard.MAGIC["PNG"]) for data in samples.images
    ):
        raise PapError("--noaccept_png: the images of this run are PNGs")
    checked: list[str] = []

    def write(folder: Path) -> None:
        with publish.disk_errors():
            assemble.write_version(folder, built.run, fit, graph, serving_dir.name)
        outcome = self_check.check(folder, built.model, graph, samples)
        checked.extend(outcome.lines)
        version_manifest.write(
            folder, fit, graph, dataclasses.asdict(options), places, samples, outcome.probabilities
        )

    print(f"{fit.info['name']}, {fit.protocol} protocol, seed {fit.seed}: writing and checking")
    for sentence in built.missing:
        print(f"Note: {sentence}", file=sys.stderr)
    version = publish.publish(serving_dir, write)
    for sentence in checked:
        print(f"Checked: {sentence}")
    return version


def _stage1(
    run: RunDirectory, fit: results.Fit, stage1_run_dir: str | os.PathLike | None
) -> results.Fit | str:
    """Returns the fit that finds cells of whole fields, or why there is none."""
    other = RunDirectory(Path(stage1_run_dir)) if stage1_run_dir else None
    fits = results.choose_fits(
        other or run, fit.protocol, None if other else fit.seed, flag="stage1_run_dir"
    )
    if 1 in fits:
        return fits[1]
    if other:
        raise PapError(f"--stage1_run_dir={stage1_run_dir} holds no finished model of stage 1")
    return f"No signature detect: --run_dir={run.path} holds no stage 1 of this seed"


def _detection(fit: results.Fit, options: Options) -> Detection:
    about = {key: fit.info[key] for key in ("name", "protocol", "seed", "size", "resize")}
    return Detection(
        Stage1(results.load_model(fit), fit.info["resize"], stride=options.stride),
        threshold=options.threshold,
        radius=options.suppression_radius,
        maximum=options.max_detections,
        about=about | {"sha256": files.sha256(fit.model_path)},
    )
