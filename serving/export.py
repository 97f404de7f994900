"""Exports a trained model as a version that TensorFlow Serving loads, and publishes it.

    python -m serving.export --run_dir=runs/phantom --serving_dir=models/pap_stage2

The version is written beside the published ones, loaded and checked there against the `.keras`
model, and only then renamed to the next number; a failed check or a kill changes nothing.
"""

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from replication.flags import shared
from replication.runs.directory import RunDirectory
from tfds_pap import commands, files
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    from replication.runs import results
    from serving.model.detection import Detection

_RUN_DIR = shared.run_dir("Run whose model is exported.", required=True)
_SERVING_DIR = flags.DEFINE_string(
    "serving_dir", None, "Holds the versions of one model; its name is served.", required=True
)
_STAGE = flags.DEFINE_integer(
    "stage", 2, "Which stage's model (default: 2).", lower_bound=1, upper_bound=2
)
_PROTOCOL, _SEED = shared.trained("the run's", "model")
_LABEL = flags.DEFINE_string(
    "label",
    None,
    "Point this label, such as stable or canary, to the new version in models.config (default: "
    "none; the newest version is served).",
)
_SERVER_MODELS_DIR = flags.DEFINE_string(
    "server_models_dir",
    "/models",
    "Where TensorFlow Serving finds the folder that holds --serving_dir (default: /models).",
)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels",
    2**24,
    "Pixels that an image may have; more are refused before they are decoded (default: 2^24).",
    lower_bound=1,
)
_MAX_BATCH = flags.DEFINE_integer(
    "max_batch", 256, "Images that a request may hold (default: 256).", lower_bound=1
)
_ACCEPT_PNG = flags.DEFINE_bool(
    "accept_png",
    True,
    "Take PNG images; a real TensorFlow Serving that strangers reach should not, as it cannot "
    "bound what they unpack to (default: on).",
)
_CHECK_IMAGES = flags.DEFINE_integer(
    "check_images",
    16,
    "Images that the version is checked on: test images of the run where they are prepared here, "
    "else phantoms (default: 16).",
    lower_bound=1,
)
_STAGE1_RUN_DIR = flags.DEFINE_string(
    "stage1_run_dir",
    None,
    "Run whose stage 1 finds the cells of whole fields for the signature detect (default: "
    "--run_dir, where it holds one; without any there is no detect).",
)
_STRIDE = shared.stride("Of detect: pixels from one ROI to the next (default: 25).")
_THRESHOLD = shared.threshold(
    "Of detect: stage-1 probability of a cell at least, 0 to 1 (default: 0.5)."
)
_SUPPRESSION_RADIUS = shared.suppression_radius(
    "Of detect: of kept ROIs nearer than this only the most probable stays, pixels (default: 50)."
)
_MAX_DETECTIONS = flags.DEFINE_integer(
    "max_detections", 256, "Of detect: cells that are answered at most (default: 256).", 1
)
_DATA_DIR = shared.data_dir()


def main(argv: list[str]) -> None:
    """Chooses the fit, builds the graph, writes, checks, publishes, labels."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _MAX_BATCH.value < _CHECK_IMAGES.value:
        raise app.UsageError(
            f"--check_images={_CHECK_IMAGES.value}: expected at most --max_batch={_MAX_BATCH.value}"
        )
    # What can be wrong with the flags is said before TensorFlow is imported, which takes seconds.
    run, fit = _chosen()
    commands.prepare_tensorflow()
    from serving.server import errors

    try:
        _export(run, fit, Path(_SERVING_DIR.value))
    except (errors.ServingError, OSError) as error:
        raise PapError(_in_one_line(error)) from error


def _chosen() -> tuple[RunDirectory, "results.Fit"]:
    from replication.runs import results

    run = RunDirectory(Path(_RUN_DIR.value))
    fits = results.choose_fits(run, _PROTOCOL.value, _SEED.value)
    if _STAGE.value not in fits:
        raise PapError(f"--run_dir={run.path} holds no finished model of --stage={_STAGE.value}")
    return run, fits[_STAGE.value]


def _export(run: RunDirectory, fit: "results.Fit", serving_dir: Path) -> None:
    from replication.measures import decisions
    from replication.runs import results
    from serving.model import assemble, guard, self_check
    from serving.model.graph import Graph
    from serving.store import model_config, publish

    decision, missing = decisions.of_fit(fit)
    detection, why = _detection(run, fit)
    missing += [why] if why else []

    model = results.load_model(fit)
    graph = Graph(
        model,
        fit.info["resize"],
        decision,
        max_pixels=_MAX_PIXELS.value,
        max_batch=_MAX_BATCH.value,
        formats=[name for name in guard.MAGIC if name != "PNG" or _ACCEPT_PNG.value],
        detection=detection,
    )
    found = self_check.samples(run, fit, _CHECK_IMAGES.value, _DATA_DIR.value)
    if "PNG" not in graph.formats and any(
        data.startswith(guard.MAGIC["PNG"]) for data in found.images
    ):
        raise PapError("--noaccept_png: the images of this run are PNGs")
    said = []

    def write(folder: Path) -> None:
        with publish.disk_errors():
            assemble.write_version(folder, run, fit, graph, serving_dir.name)
        said.extend(self_check.check(folder, model, graph, found))

    print(f"{fit.info['name']}, {fit.protocol} protocol, seed {fit.seed}: writing and checking")
    for sentence in missing:
        print(f"Note: {sentence}", file=sys.stderr)
    version = publish.publish(serving_dir, write)
    for sentence in said:
        print(f"Checked: {sentence}")
    config = model_config.ModelConfig(serving_dir, _SERVER_MODELS_DIR.value)
    config.publish(version, _LABEL.value)
    print(
        f"Published: {serving_dir / str(version)}"
        + (f", label {_LABEL.value}" if _LABEL.value else "")
    )


def _in_one_line(error: Exception) -> str:
    """Says where there was no room for what, too."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"--serving_dir={_SERVING_DIR.value}: {error.strerror}; nothing was published"
    return str(error)


def _detection(run: RunDirectory, fit: "results.Fit") -> tuple["Detection | None", str]:
    """Returns how fields are searched, or why they are not."""
    from replication.fields.find.dense import Stage1
    from replication.runs import results
    from serving.model.detection import Detection

    if fit.stage != 2:
        return None, ""
    given = _STAGE1_RUN_DIR.value
    stage1_run = RunDirectory(Path(given)) if given else run
    fits = results.choose_fits(
        stage1_run, fit.protocol, None if given else fit.seed, flag="stage1_run_dir"
    )
    if 1 not in fits:
        if given:
            raise PapError(f"--stage1_run_dir={given} holds no finished model of stage 1")
        return None, f"No signature detect: --run_dir={run.path} holds no stage 1 of this seed"
    model = results.load_model(fits[1])
    about = {key: fits[1].info[key] for key in ("name", "protocol", "seed", "size", "resize")}
    return Detection(
        Stage1(model, fits[1].info["resize"], stride=_STRIDE.value),
        threshold=_THRESHOLD.value,
        radius=_SUPPRESSION_RADIUS.value,
        maximum=_MAX_DETECTIONS.value,
        about=about | {"sha256": files.sha256(fits[1].model_path)},
    ), ""


if __name__ == "__main__":
    commands.run(main, commands.STARTS_AGAIN)
