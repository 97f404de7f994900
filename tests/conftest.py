"""Fixtures that several tests share: small trees of class folders."""

import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_net

from tfds_pap import commands, taxonomy

#: What JAX compiles, down to single operations, is kept for every process of the tests.
_COMPILED = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds what turns short proofs into long ones."""
    parser.addoption(
        "--thorough",
        action="store_true",
        help="Run the proofs of serving at full length (minutes).",
    )


#: Whole commands, fits, kills, servers, browsers and searches; `make check` leaves them out. They
#: come first, the longest before all, so that two workers end at about the same time.
SLOW = (
    "test_own_data",
    "test_dask_features",
    "test_dask_scan",
    "test_dask_audit",
    "test_backends",
    "test_search",
    "test_run",
    "test_compare",
    "test_benchmark",
    "test_verify",
    "test_library",
    "test_search_tuner",
    "test_hostile",
    "test_tutorial",
    "test_wheel",
    "test_dry_run",
    "test_detection",
    "test_training",
    "test_server_life",
    "test_commands",
    "test_pooling",
    "test_export",
    "test_scan",
    "test_report",
    "test_cluster",
    "test_near_duplicates",
    "test_search_report",
    "test_hot_swap",
    "test_gradcam",
    "test_soak",
    "test_faults",
    "test_comparison_report",
    "test_weights",
    "test_serving_predict",
    "test_recipes",
    "test_audit",
    "test_same_everywhere",
    "test_serving_page_browser",
    "test_tuning",
    "test_automatic",
    "test_publish",
    "test_scan_report",
    "test_servables",
    "test_client_and_server",
    "test_scan_sweep",
    "test_field_sweep",
    "test_docs",
    "test_trials",
)

#: Not slow, yet long as a whole: behind those above and before the rest, for the same end.
LONG = (
    "test_devices",
    "test_defects",
    "test_field_dense",
    "test_features",
    "test_models",
    "test_oracles",
    "test_oracle_failures",
    "test_keras_settings",
    "test_phantom",
    "test_paper",
)


def pytest_configure(config: pytest.Config) -> None:
    """Prepares the process that runs tests, and keeps the order of files."""
    # xdist would begin with the files of most tests.
    config.option.loadscopereorder = False
    if not hasattr(config, "workerinput"):
        compiled = tempfile.TemporaryDirectory(prefix="pap-tests-jax-")
        config.add_cleanup(compiled.cleanup)
        # Workers and commands inherit them.
        os.environ.update(_COMPILED, JAX_COMPILATION_CACHE_DIR=compiled.name)
        if config.getoption("numprocesses", None):
            return
    # Every test runs with TensorFlow as the commands prepare it; who hands them out does without.
    commands.prepare_tensorflow()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the files that `make check` leaves out, and puts them first."""
    rank = {name: number for number, name in enumerate((*SLOW, *LONG))}
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def save_image(path: Path, seed: int, size: int = 32) -> None:
    """Writes smooth noise; the ending decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    assert cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 2))


def make_tree(
    manual_dir: Path, tree: str, *, train: int = 6, validation: int = 3, groups: int = 0, size=32
) -> Path:
    """Writes a tree in the authors' layout; `groups` fields a split where it is not 0."""
    root = manual_dir / tree
    rows = ["file,group"]
    seed = 0
    for split, count in (("train", train), ("validation", validation)):
        for folder in taxonomy.TREE_FOLDERS[tree]:
            for number in range(count):
                seed += 1
                name = f"{split}/{folder}/{split}_{folder}_{number}.jpg"
                save_image(root / name, seed, size)
                rows.append(f"{name},{split}_field_{number % max(groups, 1)}")
    if groups:
        (root / "groups.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="session")
def manual_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DB_3 (no groups) and DB_4 (groups.csv) with a handful of images; do not change it."""
    folder = tmp_path_factory.mktemp("manual")
    make_tree(folder, "DB_3", train=10, validation=4)
    make_tree(folder, "DB_4", train=10, validation=3, groups=5)
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's prepared data lie."""
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images beside the checkout; tests that need them skip where they are absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real stand-in images (CRIC, Mendeley LBC) are not beside this checkout")
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of a page's words: its figures, which take most of its time, are empty."""
    from replication.drawing import figures

    monkeypatch.setattr(figures, "drawn", lambda *_, **__: b"<svg></svg>")


@pytest.fixture
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> str:
    """The backbone of `tiny_net` in the table."""
    import keras

    from replication.learning import models

    keras.utils.set_random_seed(0)

    monkeypatch.setattr(keras.applications, "TinyNet", tiny_net.constructor(), raising=False)
    monkeypatch.setitem(models.BACKBONES, tiny_net.NAME, tiny_net.entry())
    return tiny_net.NAME


@pytest.fixture(scope="session")
def tiny_run(manual_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of stage 2, clean protocol: a small network, trained for a moment."""
    import keras

    from replication.learning import training
    from replication.report import model_card
    from replication.runs import description, device, fitting
    from replication.runs.directory import RunDirectory
    from tfds_pap import preparing

    def build(size):
        images = keras.Input((size, size, 3), name="image")
        x = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
        x = keras.layers.Conv2D(6, 3, strides=2, activation="relu")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Conv2D(8, 3, activation="relu")(x)
        x = keras.layers.GlobalAveragePooling2D(name="features")(x)
        outputs = keras.layers.Dense(4, activation="softmax", name="probabilities")(x)
        return keras.Model(images, outputs, name="tiny_classifier")

    recipe = training.Recipe(
        name="tiny classifier",
        stage=2,
        build=build,
        size=24,
        resize="bilinear",
        epochs=3,
        batch_size=8,
        learning_rate=0.01,
        keep="best",
        patience=0,
        augment="none",
        optimizer="adam",
        published="P2.accuracy",
    )
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run = RunDirectory.open(folder, {"source": "original", "data of stage 2": "tiny"})
    policy = device.configure()
    description.describe(run, {2: builder}, policy)
    fitting.run_fit(run, recipe, "clean", 0, builder=builder, policy=policy)
    model_card.write(run)
    return folder


@pytest.fixture(scope="session")
def two_stage_run(
    tiny_run: Path, manual_dir: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run of `tiny_run` with the stage-1 CNN beside it, trained for a moment."""
    from replication.learning import recipes
    from replication.runs import device, fitting
    from replication.runs.directory import RunDirectory
    from tfds_pap import preparing

    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp("runs") / "two_stages")
    builder = preparing.prepare("pap_db3", "original", manual_dir, data_dir)
    run = RunDirectory.open(folder, {"data of stage 1": "tiny"})
    policy = device.configure()
    recipe = recipes.plan("clean", 1, phantoms=True, epochs=3)
    fitting.run_fit(run, recipe, "clean", 0, builder=builder, policy=policy)
    return folder


@pytest.fixture(scope="session")
def exported_tiny(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A serving directory with the model of `tiny_run` as version 1; do not change it."""
    import keras

    from replication.measures import decisions
    from replication.runs import results
    from replication.runs.directory import RunDirectory
    from serving.model import assemble, graph
    from serving.store import publish

    run = RunDirectory(tiny_run)
    fit = results.choose_fits(run, "clean")[2]
    decision, _ = decisions.of_fit(fit)
    built = graph.Graph(keras.saving.load_model(fit.model_path), "bilinear", decision)
    serving_dir = tmp_path_factory.mktemp("served") / "pap_stage2"
    publish.publish(
        serving_dir, lambda folder: assemble.write_version(folder, run, fit, built, "pap_stage2")
    )
    return serving_dir
