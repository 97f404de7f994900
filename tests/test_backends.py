"""The commands on JAX, one after another, as a user types them; what they leave is looked at."""

import os

import numpy as np
import pytest
from commands import command

from replication.measures import evaluation
from replication.runs import results
from replication.runs.directory import RunDirectory
from tfds_pap import pipeline

pytest.importorskip("jax")
pytestmark = pytest.mark.slow

BACKBONE = ["--weights=none", "--features_dir=features", "--audit=off"]


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory, manual_dir, data_dir):
    """Returns what runs a command on JAX in one folder, and its output."""
    folder = tmp_path_factory.mktemp("jax")

    def run(module, *arguments, images=True):
        where = [f"--manual_dir={manual_dir}", f"--data_dir={data_dir}"] if images else []
        done = command(
            module, *where, *arguments, cwd=folder, backend="jax", draws=False, tiny=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def run_dir(on_jax):
    """A finished run of stage 1."""
    given = ["--stages=1", "--protocol=clean", "--epochs=2", "--scan_fields=0", "--audit=off"]
    said = on_jax("replication.run", *given, "--run_dir=run")
    assert "CPU (" in said and "float32, XLA on" in said
    return on_jax.folder / "run"


def test_run_says_what_computed(run_dir):
    manifest = RunDirectory(run_dir).manifest()
    assert manifest["identity"]["backend"] == "jax" and manifest["identity"]["xla"]
    (fit,) = results.read_fits(RunDirectory(run_dir))
    assert fit.info["epochs_run"] == 2 and fit.info["device"].startswith("CPU (")


def test_tensorflow_reads_what_jax_trained(run_dir, manual_dir):
    """The model, loaded by the other backend, says what the run's predictions say."""
    (fit,) = results.read_fits(RunDirectory(run_dir))
    files = [(manual_dir / "DB_3" / id_).read_bytes() for id_ in fit.predictions.ids]
    how = fit.info["size"], fit.info["resize"]
    pixels = np.stack([pipeline.decode_and_resize(data, *how).numpy() for data in files])
    model = results.load_model(fit)
    assert np.abs(model.predict(pixels, verbose=0) - fit.predictions.probabilities).max() < 1e-5


def test_predict_names_what_the_run_named(on_jax, run_dir, manual_dir):
    images = manual_dir / "DB_3" / "validation"
    on_jax("replication.predict", "--run_dir=run", images, "--csv=named.csv", images=False)
    assert len((on_jax.folder / "named.csv").read_text().splitlines()) == 9


def test_export_is_tensorflows_and_serves_what_jax_said(on_jax, run_dir, data_dir):
    given = ["--run_dir=run", "--serving_dir=served", "--stage=1", f"--data_dir={data_dir}"]
    # A process of its own: a backend cannot be changed once Keras is imported.
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = command("serving.export", *given, cwd=on_jax.folder, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Note: exporting with TensorFlow in place of jax" in done.stdout
    assert "from the run's predictions.csv" in done.stdout
    assert (on_jax.folder / "served" / "1" / "saved_model.pb").exists()


def test_compare(on_jax):
    small = ["--backbones=tiny", "--size=32", "--epochs=1", "--seeds=0"]
    said = on_jax("replication.compare", *BACKBONE, *small, "--run_dir=compared")
    assert "1 backbones" in said
    assert (on_jax.folder / "compared" / "report.html").exists()


def test_search_and_train(on_jax):
    small = ["--backbone=tiny", "--size=32", "--tuner=random", "--max_epochs=1"]
    on_jax("finetune.search", *BACKBONE, *small, "--max_trials=1", "--search_dir=search")
    said = on_jax("finetune.train", *BACKBONE, "--from_search=search", "--run_dir=tuned")
    assert "on all 12 test images as on stored features" in said
    (fit,) = results.read_fits(RunDirectory(on_jax.folder / "tuned"))
    assert isinstance(fit.predictions, evaluation.Predictions) and len(fit.predictions)
