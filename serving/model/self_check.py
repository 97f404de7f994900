"""Checks a written version before it is published: what it answers must be what was evaluated."""

import dataclasses
from concurrent import futures
from pathlib import Path

import keras
import numpy as np
import tensorflow_datasets.public_api as tfds

from replication.fields.find import scanner
from replication.fields.find.stages import Stage2, Stages
from replication.fields.read.field import ArrayField
from replication.learning import whole_model
from replication.runs import results
from replication.runs.directory import RunDirectory
from serving.model import warmup
from serving.model.detection import Detection
from serving.model.graph import Graph
from serving.model.warmup_requests import example
from serving.server.servable import Servable
from tfds_pap import decoding, phantom, phantom_set, pipeline, preparing, taxonomy
from tfds_pap.errors import PapError

#: How far a served probability may be from the `.keras` model's on the same machine.
TOLERANCE = 1e-5

_SETS = {1: "pap_db3", 2: "pap_db4"}


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images to check a version on.

    Attributes:
        images: The bytes of each.
        reported: The run's own probabilities of each, float64 `[n, k]`; None for phantoms.
        source: What they are, in words.
    """

    images: list[bytes]
    reported: np.ndarray | None
    source: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        lines: What was compared, a sentence each.
        probabilities: Of `serving_default` for each image, float32 `[n, k]`.
    """

    lines: list[str]
    probabilities: np.ndarray


def samples(
    run: RunDirectory, fit: results.Fit, count: int, data_dir: str | None = None
) -> Samples:
    """Returns test images of the run where its data are at hand, else phantoms.

    Args:
        run: The run.
        fit: Its predictions say which images were tested.
        count: How many images at most.
        data_dir: Where TFDS keeps prepared data; None takes TFDS's own default.
    """
    test = fit.predictions.select("test")
    builder = _prepared(run, fit, data_dir)
    if builder is not None:
        chosen = np.unique(np.linspace(0, len(test) - 1, count).astype(int))
        images = pipeline.read_files(builder, [test.ids[number] for number in chosen])
        return Samples(images, test.probabilities[chosen], "test images of the run")
    classes = len(taxonomy.STAGE1_CLASSES if fit.stage == 1 else taxonomy.STAGE2_CLASSES)
    drawn = phantom_set.examples(fit.stage, "validation", per_class=-(-count // classes))
    images = [phantom_set.encode(picture) for *_, picture in drawn]
    return Samples(images[:count], None, "phantoms, as the run's data are not at hand")


def check(path: Path, model: keras.Model, graph: Graph, checked: Samples) -> Outcome:
    """Loads a version as a server does, warm-up included, and runs every signature.

    Args:
        path: The version's directory.
        model: What was exported.
        graph: How it was exported.
        checked: Images to run it on.

    Raises:
        PapError: An answer is not what it must be.
        serving.server.errors.ServingError: The version cannot be loaded or run.
    """
    servable = warmup.load(path.name, 0, path)
    try:
        return _compare(servable, model, graph, checked)
    finally:
        servable.close()


def _compare(servable: Servable, model: keras.Model, graph: Graph, checked: Samples) -> Outcome:
    encoded = np.array(checked.images, object)
    pixels = np.stack(
        [
            pipeline.decode_and_resize(data, graph.size, graph.resize).numpy()
            for data in checked.images
        ]
    )
    expected = np.asarray(model.predict_on_batch(pixels))
    examples = np.array([example(data).SerializeToString() for data in checked.images], object)
    inputs = {
        "serving_default": {"image_bytes": encoded},
        "pixels": {"image": pixels.astype(np.float32)},
        "classify": {"inputs": examples},
        "features": {"image_bytes": encoded},
        "explain": {"image_bytes": encoded},
    }
    asked = [name for name in graph.endpoints() if name in inputs]
    worst, answered = 0.0, expected
    for name in asked:
        answer = servable.run(name, inputs[name])
        for output, values in answer.items():
            if len(values) != len(encoded):
                raise PapError(f"{name}: {output} has {len(values)} rows, expected {len(encoded)}")
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise PapError(f"{name}: {output} holds values that are not finite")
        probabilities = answer.get("scores" if name == "classify" else "probabilities")
        if probabilities is not None:
            worst = max(worst, float(np.abs(probabilities - expected).max()))
        if name == "serving_default":
            answered = answer["probabilities"]
    if not worst <= TOLERANCE:
        raise PapError(
            f"the served probabilities differ by {worst:.2g} from the model's, expected at most "
            f"{TOLERANCE:g}"
        )
    lines = [
        f"{len(asked)} signatures on {len(encoded)} {checked.source}: probabilities "
        f"differ by at most {worst:.2g} from the .keras model's"
    ]
    if checked.reported is not None:
        far, allowed = whole_model.disagreement(model, expected, checked.reported)
        if far > allowed:
            raise PapError(
                f"the model's probabilities differ by {far:.2g} from the run's predictions.csv, "
                f"expected at most {allowed:g}"
            )
        how = "at most" if allowed == whole_model.TOLERANCE else "in the mean"
        lines.append(f"they differ by {how} {far:.2g} from the run's predictions.csv")
    if graph.detection is not None:
        lines.append(_check_detection(servable, model, graph, graph.detection))
    return Outcome(lines, answered)


def _check_detection(
    servable: Servable, model: keras.Model, graph: Graph, detection: Detection
) -> str:
    """Compares `detect` with the scan of a drawn field."""
    picture, _ = phantom.draw_field(0, width=640, height=480, cells=20)
    encoded = phantom_set.encode(picture)
    field = ArrayField("phantom", decoding.decode(encoded).numpy())
    stage2 = Stage2(model, graph.resize, graph.decision, roi=detection.stage1.roi)
    with futures.ThreadPoolExecutor(1) as pool:
        cells = scanner.scan(
            field,
            Stages(detection.stage1, stage2, {}),
            threshold=detection.threshold,
            radius=detection.radius,
            pool=pool,
        ).cells
    answer = servable.run("detect", {"image_bytes": np.array([encoded], object)})
    count = int(answer["count"][0])
    if count != min(len(cells), detection.maximum) or int(answer["found"][0]) != len(cells):
        raise PapError(f"detect: {count} cells of a drawn field, expected {len(cells)}")
    # Those with the highest scores are answered.
    chosen = cells.select(np.argsort(-cells.scores, kind="stable")[:count]).sorted()
    output, expected = "scores", chosen.scores
    if graph.decision.classes.severe:
        output, expected = "hsil_plus", chosen.hsil_plus
    if count:
        answered = np.sort(answer[output][0][:count])
        far, allowed = whole_model.disagreement(
            model, answered[:, None], np.sort(expected)[:, None], TOLERANCE
        )
        if not far <= allowed:
            raise PapError(f"detect: {output} differs by {far:.2g} from the scan's")
    return f"detect finds the {count} cells that a scan of a drawn field finds"


def _prepared(
    run: RunDirectory, fit: results.Fit, data_dir: str | None
) -> tfds.core.DatasetBuilder | None:
    """The run's own data set, unless it is not prepared here or has changed since."""
    data, name = run.manifest().get("data", {}), _SETS[fit.stage]
    own = preparing.FOLDER_SETS[fit.stage]
    if own in data:
        return preparing.find_prepared(own, data[own]["fingerprint"], data_dir)
    described = data.get(name, {})
    for source in ("original", "phantom"):
        builder = tfds.builder(f"{name}/{source}", data_dir=data_dir)
        if builder.is_prepared() and builder.info.metadata.get("fingerprint") == described.get(
            "fingerprint"
        ):
            return builder
    return None
