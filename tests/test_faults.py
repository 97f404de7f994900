"""Damaged files, full disks, read-only places, jumping clocks: one line, never a wrong figure.

Whole commands that are killed at random are benchmarks/faults.py's; files are damaged here through
the library, in one process.
"""

import csv
import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import keras
import numpy as np
import outcomes
import pytest
import small_searches
from commands import command
from conftest import make_tree

from finetune.search import base_oracle
from replication.learning import training
from replication.runs import device, fitting, results
from replication.runs.directory import RunDirectory
from tfds_pap import files, leak_audit, pipeline, preparing
from tfds_pap.errors import PapError


def flip(path, seed=0):
    data = bytearray(path.read_bytes())
    data[random.Random(f"{seed}/{path.name}").randrange(len(data))] ^= 1
    path.write_bytes(data)


def cut(path, seed=0):
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: random.Random(f"{seed}/{path.name}").randrange(size)])


def empty(path):
    path.write_bytes(b"")


DAMAGES = (flip, cut, empty)


# -- What counts as the same outcome -------------------------------------------------------------


def test_a_digest_is_of_weights_and_figures_and_not_of_times(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    for name in ("a", "b"):
        model.save(tmp_path / f"{name}.keras")
    assert outcomes.digest(tmp_path / "a.keras") == outcomes.digest(tmp_path / "b.keras")
    weights = model.get_weights()
    weights[0][0, 0] = np.nextafter(weights[0][0, 0], 9)
    model.set_weights(weights)
    model.save(tmp_path / "b.keras")
    assert outcomes.digest(tmp_path / "a.keras") != outcomes.digest(tmp_path / "b.keras")

    def table(probability, seconds):
        path = tmp_path / f"{probability}-{seconds}.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("probability", "seconds"), (probability, seconds)])
        (tmp_path / "figures.json").write_text(json.dumps({"x": [probability, {"time": seconds}]}))
        return outcomes.digest(path), outcomes.digest(tmp_path / "figures.json")

    assert table(0.5, 1) == table(0.5, 2)
    assert not set(table(0.5, 1)) & set(table(0.25, 1))


# -- Prepared images -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tree, and what TFDS keeps of it."""
    folder = tmp_path_factory.mktemp("prepared")
    make_tree(folder / "manual", "DB_4", train=6, validation=2)
    builder = preparing.prepare("pap_db4", "original", folder / "manual", folder / "data")
    return folder, pipeline.read_index(builder)


def _shard(data):
    return next(data.rglob("*train.tfrecord*"))


def _between_records(path):
    """Ends a file of records after its first, which TensorFlow takes for its end."""
    data = path.read_bytes()
    path.write_bytes(data[: 8 + 4 + int.from_bytes(data[:8], "little") + 4])


@pytest.mark.parametrize("damage", [*DAMAGES, _between_records])
def test_damaged_records_of_images_are_named(prepared, tmp_path, damage):
    folder, _ = prepared
    shutil.copytree(folder / "data", tmp_path / "data")
    builder = preparing.prepare("pap_db4", "original", folder / "manual", tmp_path / "data")
    damage(_shard(tmp_path / "data"))
    for read in (pipeline.read_index, lambda one: list(pipeline.stored_files(one))):
        with pytest.raises(PapError, match=r"the prepared images of train are damaged \(.*delete"):
            read(builder)
    shutil.rmtree(builder.data_dir)
    builder = preparing.prepare("pap_db4", "original", folder / "manual", tmp_path / "data")
    assert len(pipeline.read_index(builder).ids) == 32


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json", "features.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_metadata_of_images_are_named_or_change_nothing(prepared, tmp_path, name, damage):
    folder, index = prepared
    shutil.copytree(folder / "data", tmp_path / "data")
    damage(next((tmp_path / "data").rglob(name)))
    try:
        builder = preparing.prepare("pap_db4", "original", folder / "manual", tmp_path / "data")
        again = pipeline.read_index(builder)
    except PapError as error:
        assert "damaged" in str(error) and "delete that folder" in str(error)
        return
    assert again.class_names == index.class_names
    assert all((getattr(again, n) == getattr(index, n)).all() for n in ("ids", "labels", "splits"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_groups_are_named_and_made_again(prepared, tmp_path, damage):
    folder, index = prepared
    for name in ("manual", "data"):
        shutil.copytree(folder / name, tmp_path / name)
    rows = [f"{image},{Path(image).stem[-1]}" for image in index.ids]
    table = tmp_path / "manual" / "DB_4" / "groups.csv"
    table.write_text("\n".join(["file,group", *rows]) + "\n")

    def prepare():
        return preparing.prepare("pap_db4", "original", tmp_path / "manual", tmp_path / "data")

    builder = prepare()
    expected = pipeline.read_index(builder).groups
    assert len(set(expected)) > 1
    damage(next((tmp_path / "data").rglob("groups.json")))
    with pytest.raises(PapError, match=r"groups.json: is damaged; give the folder of the images"):
        pipeline.read_index(builder)
    assert (pipeline.read_index(prepare()).groups == expected).all()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_pixels_on_disk_are_decoded_again(prepared, tmp_path, capsys, damage):
    folder, _ = prepared
    builder = preparing.prepare("pap_db4", "original", folder / "manual", folder / "data")
    options = {"budget_bytes": 0, "cache_dir": tmp_path}
    before = np.array(pipeline.load_images(builder, 8, **options).pixels)
    damage(next(tmp_path.glob("decoded-*.npy")))
    assert (np.array(pipeline.load_images(builder, 8, **options).pixels) == before).all()
    assert "is damaged; decoding the images again" in capsys.readouterr().out
    pipeline.load_images(builder, 8, **options)
    assert not capsys.readouterr().out


def test_a_damaged_audit_is_made_again(prepared, tmp_path, capsys):
    folder, _ = prepared
    shutil.copytree(folder / "data", tmp_path / "data")
    builder = preparing.prepare("pap_db4", "original", folder / "manual", tmp_path / "data")
    before = leak_audit.audit_builder(builder, effort="fast")
    flip(next((tmp_path / "data").rglob("leak-audit-*.json")))
    assert leak_audit.audit_builder(builder, effort="fast") == before
    assert "is damaged" in capsys.readouterr().out


# -- Fits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["predictions.csv", "metrics.json", "fit.json", "model.keras"])
@pytest.mark.parametrize("damage", [*DAMAGES, lambda path: path.unlink()])
def test_a_damaged_file_of_a_fit_is_refused_with_the_way_out(tiny_run, tmp_path, name, damage):
    run = RunDirectory(shutil.copytree(tiny_run, tmp_path / "run"))
    damage(run.fit_directory(2, "clean", 0) / name)
    with pytest.raises(PapError, match=rf"{name}: is (damaged|gone).*; delete .*seed_0, and"):
        _read_all(run)


def test_a_digit_of_a_probability_is_no_other_figure(tiny_run, tmp_path):
    run = RunDirectory(shutil.copytree(tiny_run, tmp_path / "run"))
    _read_all(run)
    path = run.fit_directory(2, "clean", 0) / "predictions.csv"
    text = path.read_text()
    at = text.rindex("0.") + 4
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    with pytest.raises(PapError, match="its SHA-256 is not the one in SHA256SUMS"):
        _read_all(run)


def _read_all(run):
    fit_json = run.fit_directory(2, "clean", 0) / "fit.json"
    files.read_json(fit_json)
    (fit,) = results.read_fits(run)
    assert len(fit.predictions) and files.read_json(fit.directory / "metrics.json")
    results.load_model(fit)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_named(tiny_run, tmp_path, damage):
    run = RunDirectory(shutil.copytree(tiny_run, tmp_path / "run"))
    before = run.manifest()["identity"]
    damage(run.manifest_path)
    try:
        run = RunDirectory.open(run.path, before)
    except PapError as error:
        assert "manifest.json" in str(error) or "was made with" in str(error)
        assert "delete" in str(error)
    else:
        assert run.manifest()["identity"] == before


@pytest.fixture(scope="module")
def fits(prepared, tmp_path_factory):
    """Returns what fits a number of epochs in a folder, a whole fit, and a shorter one's folder."""
    folder, index = prepared
    builder = preparing.prepare("pap_db4", "original", folder / "manual", folder / "data")
    store, policy = fitting.images(builder, 8, "bilinear"), device.configure()
    assigned = _roles(index)

    def fit(epochs, place):
        model, outcome = training.fit(
            _recipe(epochs), store, assigned, seed=0, policy=policy, directory=place, label=None
        )
        return model.get_weights(), [one["loss"] for one in outcome["history"]]

    whole = fit(3, tmp_path_factory.mktemp("whole"))
    short = tmp_path_factory.mktemp("short")
    fit(2, short)
    return fit, whole, short


@pytest.mark.parametrize("name", ["state.npz", "best_*.npz"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_announced_and_trained_anew(fits, tmp_path, capsys, damage, name):
    fit, (whole, losses), short = fits
    place = shutil.copytree(short, tmp_path / "damaged")
    damage(next(place.glob(name)))
    weights, again = fit(3, place)
    assert "is damaged" in capsys.readouterr().out
    assert again == losses
    assert all((one == other).all() for one, other in zip(weights, whole, strict=True))


def _roles(index):
    from tfds_pap import roles

    return roles.assign_roles(index, "clean", stage=2)


def _recipe(epochs):
    def build(size):
        images = keras.Input((size, size, 3))
        x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
        return keras.Model(images, keras.layers.Dense(4, activation="softmax")(x))

    return training.Recipe(
        name="tiny",
        stage=2,
        build=build,
        size=8,
        resize="bilinear",
        epochs=epochs,
        batch_size=4,
        learning_rate=0.01,
        keep="best",
        patience=0,
        augment="none",
        optimizer="adam",
        published="P2.accuracy",
    )


# -- Searches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["oracle.json", "trial_0001/trial.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_search_is_refused(tmp_path, name, damage):
    small_searches.search("random", small_searches.six_points(), tmp_path, max_trials=3)
    path = tmp_path / "trials" / name
    damage(path)
    oracle = small_searches.build("random", small_searches.six_points(), max_trials=3)
    oracle._set_project_dir(str(tmp_path), "trials")
    with pytest.raises(PapError, match=path.name):
        oracle.resume()


def test_a_changed_score_of_a_trial_is_refused(tmp_path):
    small_searches.search("random", small_searches.six_points(), tmp_path, max_trials=2)
    path = tmp_path / "trials" / "trial_0000" / "trial.json"
    state = json.loads(path.read_text())
    assert base_oracle.read_trial(path).score == state["score"]
    path.write_text(json.dumps({**state, "score": state["score"] + 0.25}))
    with pytest.raises(PapError, match="is damaged or was changed"):
        base_oracle.read_trial(path)


# -- Clocks, places, disks -----------------------------------------------------------------------


def test_a_clock_that_jumps_takes_no_trial_away_and_writes_no_state(tmp_path, monkeypatch):
    oracle = small_searches.ready("random", small_searches.six_points(), tmp_path, max_trials=3)
    trial = oracle.create_trial("worker_1")
    real = time.time
    for jump in (86_400, -86_400):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert oracle.expire_leases(60) == []
    small_searches.finish(oracle, trial)
    # Leases go by the clock that nobody sets.
    assert oracle.clock is time.monotonic


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB; the tests that need one are skipped where this process may mount none."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this process may mount no disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


RUN = ("--stages=1", "--protocol=clean", "--epochs=1", "--scan_fields=0", "--batch_size=8")


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(manual_dir, data_dir, small_disk):
    places = (f"--manual_dir={manual_dir}", f"--data_dir={data_dir}", "--images=stand-in")
    arguments = (*places, *RUN, f"--run_dir={small_disk / 'run'}")
    junk = small_disk / "junk"
    junk.write_bytes(bytes(2**20 - 2**16))
    done = command("replication.run", *arguments, draws=False)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr and "No space left" in done.stderr, done.stderr
    assert not list(small_disk.rglob("*.partial*"))
    junk.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    done = command("replication.run", *arguments, draws=False)
    assert done.returncode == 0, done.stderr


def test_a_read_only_place_is_said_before_any_work(manual_dir, data_dir, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for flag in ("run_dir", "data_dir"):
        places = {"manual_dir": manual_dir, "data_dir": data_dir, "run_dir": small_disk / "run"}
        places[flag] = small_disk / "new"
        done = command(
            "replication.run", *(f"--{name}={path}" for name, path in places.items()), *RUN
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert str(small_disk) in done.stderr.splitlines()[-1], done.stderr
