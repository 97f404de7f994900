"""Exports a trained model as a version that TensorFlow Serving loads, and publishes it.

    python -m serving.export --run_dir=runs/phantom --serving_dir=models/pap_stage2

The version is written beside the published ones, loaded and checked there against the `.keras`
model, and only then renamed to the next number; a failed check or a kill changes nothing.
"""

from absl import app, flags

from replication.flags import shared
from replication.runs import results
from tfds_pap import commands, keras_settings, path_flags

_RUN_DIR = shared.run_dir("Run whose model is exported.", finished=True)
_SERVING_DIR = path_flags.define(
    "serving_dir",
    None,
    "Holds the versions of one model; its name is served.",
    path_flags.NEW_FOLDER,
    required=True,
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
_STAGE1_RUN_DIR = path_flags.define(
    "stage1_run_dir",
    None,
    "Run whose stage 1 finds the cells of whole fields for the signature detect (default: "
    "--run_dir, where it holds one; without any there is no detect).",
    path_flags.RUN,
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
    commands.no_arguments(argv)
    if _MAX_BATCH.value < _CHECK_IMAGES.value:
        raise app.UsageError(
            f"--check_images={_CHECK_IMAGES.value}: expected at most --max_batch={_MAX_BATCH.value}"
        )
    # What can be wrong with the flags is said before TensorFlow is imported, which takes seconds.
    results.choose_fit(_RUN_DIR.value, _STAGE.value, _PROTOCOL.value, _SEED.value)
    chosen = keras_settings.take_tensorflow()
    if chosen != "tensorflow":
        print(f"Note: exporting with TensorFlow in place of {chosen}; the served graph is its own")
    commands.prepare_tensorflow()
    import replication

    replication.export_model(
        _RUN_DIR.value,
        _SERVING_DIR.value,
        stage=_STAGE.value,
        protocol=_PROTOCOL.value,
        seed=_SEED.value,
        label=_LABEL.value,
        server_models_dir=_SERVER_MODELS_DIR.value,
        max_pixels=_MAX_PIXELS.value,
        max_batch=_MAX_BATCH.value,
        accept_png=_ACCEPT_PNG.value,
        check_images=_CHECK_IMAGES.value,
        stage1_run_dir=_STAGE1_RUN_DIR.value,
        stride=_STRIDE.value,
        threshold=_THRESHOLD.value,
        suppression_radius=_SUPPRESSION_RADIUS.value,
        max_detections=_MAX_DETECTIONS.value,
        data_dir=_DATA_DIR.value,
    )


if __name__ == "__main__":
    commands.run(main, commands.STARTS_AGAIN)
