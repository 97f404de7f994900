"""Fixtures that several tests share: small trees of class folders."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import commands as typed
import cv2
import forking
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


#: Whole commands, fits, kills, servers, browsers and searches, which `make check` leaves out:
#: processor seconds of each file, beside other work. The longest come first, so that workers end at
#: about the same time.
SLOW = {
    "test_search": 79,
    "test_run": 61,
    "test_own_data": 60,
    "test_backends": 58,
    "test_scan": 57,
    "test_tutorial": 40,
    "test_benchmark": 40,
    "test_export": 35,
    "test_search_tuner": 34,
    "test_detection": 33,
    "test_library": 30,
    "test_gradcam": 29,
    "test_near_duplicates": 29,
    "test_report": 28,
    "test_commands": 27,
    "test_server_life": 25,
    "test_hot_swap": 24,
    "test_compare": 23,
    "test_training": 23,
    "test_dask_scan": 22,
    "test_comparison_report": 22,
    "test_weights": 22,
    "test_wheel": 22,
    "test_faults": 22,
    "test_pooling": 21,
    "test_search_report": 21,
    "test_dask_audit": 20,
    "test_dask_predict": 20,
    "test_dask_features": 20,
    "test_automatic": 18,
    "test_soak": 18,
    "test_recipes": 17,
    "test_hostile": 16,
    "test_serving_predict": 12,
    "test_tuning": 12,
    "test_same_everywhere": 11,
    "test_audit": 9,
    "test_cluster": 8,
    "test_servables": 8,
    "test_dry_run": 6,
    "test_serving_page_browser": 5,
    "test_field_sweep": 4,
    "test_scan_report": 4,
    "test_client_and_server": 3,
    "test_publish": 3,
    "test_scan_sweep": 2,
    "test_docs": 1,
    "test_trials": 1,
}

#: Not slow, yet long as a whole.
LONG = {
    "test_field_dense": 61,
    "test_features": 52,
    "test_devices": 51,
    "test_defects": 47,
    "test_oracles": 26,
    "test_models": 20,
    "test_comparison": 16,
    "test_phantom": 11,
    "test_paper_work": 9,
    "test_oracle_failures": 9,
    "test_builders": 8,
    "test_keras_settings": 8,
    "test_paper": 6,
    "test_defences": 6,
    "test_deploy": 5,
}


def pytest_configure(config: pytest.Config) -> None:
    """Prepares the process that runs tests, and keeps the order of files."""
    # xdist would begin with the files of most tests.
    config.option.loadscopereorder = False
    if not hasattr(config, "workerinput"):
        compiled = tempfile.TemporaryDirectory(prefix="pap-tests-jax-")
        config.add_cleanup(compiled.cleanup)
        # Workers and commands inherit them.
        os.environ.update(_COMPILED, JAX_COMPILATION_CACHE_DIR=compiled.name)
        # What is compiled runs for moments: to optimise it takes longer.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()
        if config.getoption("numprocesses", None):
            return
    # Every test runs with TensorFlow as the commands prepare it; who hands them out does without.
    commands.prepare_tensorflow()
    if hasattr(config, "workerinput"):
        # Its tests import all of it in any case: the fork has it for nothing.
        forking.imported()
    typed.fork()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the files that `make check` leaves out, and puts long ones first."""
    seconds = {**SLOW, **LONG}
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: -seconds.get(item.path.stem, 0))


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
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns what makes a folder, whichever worker needs it first; nobody changes it then."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, finished = shared / name, shared / f"{name}.finished"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                # Left by a worker that failed there.
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                finished.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def manual_dir(once: Callable[..., Path]) -> Path:
    """DB_3 (no groups) and DB_4 (groups.csv) with a handful of images; do not change it."""

    def make(folder: Path) -> None:
        make_tree(folder, "DB_3", train=10, validation=4)
        make_tree(folder, "DB_4", train=10, validation=3, groups=5)

    return once("manual", make)


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Copies of URLs, and what is behind memory://, of this test alone; returns the latter."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage = fsspec.filesystem("memory")
    storage.store.clear()
    storage.pseudo_dirs[:] = [""]
    return storage


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
def tiny_run(manual_dir: Path, data_dir: Path, once: Callable[..., Path]) -> Path:
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
    # In each worker: tests find it prepared.
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)

    def make(folder: Path) -> None:
        run = RunDirectory.open(folder, {"source": "original", "data of stage 2": "tiny"})
        policy = device.configure()
        description.describe(run, {2: builder}, policy)
        fitting.run_fit(run, recipe, "clean", 0, builder=builder, policy=policy)
        model_card.write(run)

    return once("tiny_run", make)


@pytest.fixture(scope="session")
def two_stage_run(
    tiny_run: Path, manual_dir: Path, data_dir: Path, once: Callable[..., Path]
) -> Path:
    """The run of `tiny_run` with the stage-1 CNN beside it, trained for a moment."""
    from replication.learning import recipes
    from replication.runs import device, fitting
    from replication.runs.directory import RunDirectory
    from tfds_pap import preparing

    builder = preparing.prepare("pap_db3", "original", manual_dir, data_dir)

    def make(folder: Path) -> None:
        shutil.copytree(tiny_run, folder)
        run = RunDirectory.open(folder, {"data of stage 1": "tiny"})
        policy = device.configure()
        recipe = recipes.plan("clean", 1, phantoms=True, epochs=3)
        fitting.run_fit(run, recipe, "clean", 0, builder=builder, policy=policy)

    return once("two_stages", make)


@pytest.fixture(scope="session")
def exported_tiny(tiny_run: Path, once: Callable[..., Path]) -> Path:
    """A serving directory with the model of `tiny_run` as version 1; do not change it."""
    import keras

    from replication.measures import decisions
    from replication.runs import results
    from replication.runs.directory import RunDirectory
    from serving.model import assemble, graph
    from serving.store import publish

    def make(folder: Path) -> None:
        run = RunDirectory(tiny_run)
        fit = results.choose_fits(run, "clean")[2]
        decision, _ = decisions.of_fit(fit)
        built = graph.Graph(keras.saving.load_model(fit.model_path), "bilinear", decision)
        publish.publish(
            folder / "pap_stage2",
            lambda version: assemble.write_version(version, run, fit, built, "pap_stage2"),
        )

    return once("served", make) / "pap_stage2"
