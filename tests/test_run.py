"""The commands as a user types them: run, a kill in the middle, predict, verify, bad input."""

import csv
import hashlib
import json
import shutil
import time
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from commands import command, start
from conftest import save_image
from tampering import verified_again

from replication.runs.directory import RunDirectory
from replication.verification import recomputed
from tfds_pap.errors import PapError

# Enough for a report with every part; stage 2 at 250 px is left to the longer runs.
FLAGS = ("--stages=1", "--epochs=3", "--deterministic", "--batch_size=8")


def weights_digest(run_dir):
    total = hashlib.sha256()
    for path in sorted(Path(run_dir).glob("stage*/*/seed_*/model.keras")):
        for weight in keras.saving.load_model(path).get_weights():
            total.update(weight.tobytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def finished(manual_dir, data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    done = command(
        "replication.run",
        f"--manual_dir={manual_dir}",
        f"--data_dir={data_dir}",
        f"--run_dir={run_dir}",
        "--images=stand-in",
        *FLAGS,
        draws=False,
    )
    assert done.returncode == 0, done.stderr
    return run_dir, done.stdout


def test_run_prints_the_table_and_where_the_report_lies(finished):
    run_dir, output = finished
    said = " ".join(output.split())
    assert "These are not the papers' images (--images=stand-in)." in said
    assert output.count("not comparable: other images") == 2
    assert "0.992" in output
    assert f"Report: {run_dir / 'report.html'}" in output


def test_run_directory_holds_what_the_design_says(finished):
    run_dir, _ = finished
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["identity"]["epochs"] == 3
    assert manifest["source"] == "stand-in"
    assert set(manifest["environment"]["versions"]) >= {"tensorflow", "keras", "numpy"}
    assert manifest["data"]["pap_db3"]["roles"]["clean"]["tune"] == {"background": 2, "cell": 2}
    for protocol in ("paper", "clean"):
        fit = run_dir / "stage1" / protocol / "seed_0"
        assert {path.name for path in fit.iterdir()} == {
            "SHA256SUMS",
            "fit.json",
            "metrics.json",
            "model.keras",
            "predictions.csv",
        }
        assert json.loads((fit / "fit.json").read_text())["parameters"] == 7_060
    assert "Made by this package from the authors" not in (run_dir / "report.html").read_text()
    rows = list(csv.DictReader((run_dir / "summary.csv").open()))
    assert {row["protocol"] for row in rows} == {"paper", "clean"}


def test_predictions_are_what_the_saved_model_says(finished, manual_dir):
    from tfds_pap import pipeline

    run_dir, _ = finished
    fit = run_dir / "stage1/clean/seed_0"
    model = keras.saving.load_model(fit / "model.keras")
    for row in csv.DictReader((fit / "predictions.csv").open()):
        data = (manual_dir / "DB_3" / row["id"]).read_bytes()
        pixels = pipeline.decode_and_resize(data, 20, "nearest")[None]
        cell = model.predict(pixels, verbose=0)[0, 1]
        assert cell == pytest.approx(float(row["probability_cell"]), abs=1e-6)


def test_the_same_command_again_trains_nothing(finished, manual_dir, data_dir):
    run_dir, _ = finished
    before = weights_digest(run_dir)
    again = command(
        "replication.run",
        f"--manual_dir={manual_dir}",
        f"--data_dir={data_dir}",
        f"--run_dir={run_dir}",
        "--images=stand-in",
        *FLAGS,
        draws=False,
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before") == 2
    assert weights_digest(run_dir) == before


def test_a_run_is_widened_by_stage_and_seed(finished, manual_dir, data_dir, tmp_path):
    run_dir = tmp_path / "wider"
    shutil.copytree(finished[0], run_dir)
    places = (f"--manual_dir={manual_dir}", f"--data_dir={data_dir}", f"--run_dir={run_dir}")
    for wider in (("--stages=2", "--protocol=paper"), ("--seeds=0,1", "--protocol=paper")):
        # Of a flag that is given twice, the second counts.
        done = command("replication.run", *places, *FLAGS, *wider, draws=False)
        assert done.returncode == 0, done.stderr
    assert "stage-2 original CNN (P2)" in done.stdout
    assert "(2 seeds)" in done.stdout
    fit = json.loads((run_dir / "stage2/paper/seed_0/fit.json").read_text())
    assert (fit["parameters"], fit["size"], fit["epochs_run"]) == (131_108, 250, 3)
    page = (run_dir / "report.html").read_text()
    assert "Stage 1" in page and "Stage 2" in page


def test_killed_run_ends_with_the_same_weights_and_metrics(
    finished, manual_dir, data_dir, tmp_path
):
    whole, _ = finished
    arguments = [
        f"--manual_dir={manual_dir}",
        f"--data_dir={data_dir}",
        f"--run_dir={tmp_path / 'killed'}",
        *FLAGS,
    ]
    log = tmp_path / "log"
    process = start("replication.run", *arguments, stdout=log, stderr=log, draws=False)
    # Killed at the first sign of training: the state of an epoch has just been written.
    deadline = time.monotonic() + 200
    while not list((tmp_path / "killed").glob("stage1/paper/seed_0/state.npz")):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not list((tmp_path / "killed").glob("stage1/*/*/fit.json"))
    done = command("replication.run", *arguments, draws=False)
    assert done.returncode == 0, done.stderr
    assert weights_digest(tmp_path / "killed") == weights_digest(whole)
    for protocol in ("paper", "clean"):
        name = f"stage1/{protocol}/seed_0/metrics.json"
        assert (tmp_path / "killed" / name).read_text() == (whole / name).read_text()


def test_other_flags_are_refused_with_the_difference(tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"epochs": 3, "seed": 1})
    RunDirectory.open(run.path, {"epochs": 3, "data of stage 2": "abc"})
    with pytest.raises(PapError, match=r"made with epochs=3, not 4; give another --run_dir"):
        RunDirectory.open(run.path, {"epochs": 4})
    with pytest.raises(PapError, match="made with data of stage 2=abc, not def"):
        RunDirectory.open(run.path, {"epochs": 3, "data of stage 2": "def"})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(PapError, match=r"is not empty and holds no manifest\.json"):
        RunDirectory.open(tmp_path / "notes", {})


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--stages=3", "--stages=3: expected 1, 2 or 1,2"),
        ("--seeds=a", "--seeds=a: expected whole numbers from 0"),
        ("--seeds=-1", "--seeds=-1: expected whole numbers from 0"),
        ("--epochs=0", "replication.run: --epochs=0: 0 is not a positive integer"),
        ("--protocol=both_of_them", "--protocol=both_of_them"),
        ("stray", "unexpected argument 'stray'"),
    ],
)
def test_bad_flags_are_named_at_once(flag, message):
    done = command("replication.run", flag)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "tensorflow" not in done.stdout.lower()


def test_missing_tree_is_one_error_without_a_traceback(tmp_path):
    done = command("replication.run", f"--manual_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}")
    assert done.returncode == 1
    assert "DB_3: no such folder; expected DB_3/{train,validation}/{0,1}/*" in done.stderr
    assert "Traceback" not in done.stderr


def test_predict(finished, manual_dir, tmp_path):
    run_dir, _ = finished
    folder = manual_dir / "DB_3" / "validation" / "0"
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    save_image(tmp_path / "cut.tif", 7)
    whole = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) * 2 // 3])
    done = command(
        "replication.predict",
        f"--run_dir={run_dir}",
        tmp_path / "cut.tif",
        folder,
        tmp_path / "broken.jpg",
        f"--csv={tmp_path / 'cells.csv'}",
        f"--save_annotated={tmp_path / 'annotated'}",
        extra={"COLUMNS": "200"},
    )
    assert done.returncode == 1, "two images were broken"
    assert "2 of 6 images could not be read" in done.stderr
    assert "broken.jpg" in done.stderr and "cut.tif" in done.stderr
    assert "Traceback" not in done.stderr
    rows = list(csv.DictReader((tmp_path / "cells.csv").open()))
    for broken in (rows.pop(), rows.pop(0)):
        assert broken["error"].startswith("not a readable image (")
    assert all(row["class"] and row["hsil_plus"] == row["error"] == "" for row in rows)
    assert [Path(row["image"]).parent for row in rows] == [folder] * 4
    assert {row["truth"] for row in rows} == {"cell"}
    stored = csv.DictReader((run_dir / "stage1/clean/seed_0/predictions.csv").open())
    expected = {row["id"]: float(row["probability_cell"]) for row in stored}
    for row in rows:
        id_ = Path(row["image"]).relative_to(manual_dir / "DB_3").as_posix()
        assert float(row["cell"]) == pytest.approx(expected[id_], abs=1e-4)
    pictures = sorted((tmp_path / "annotated").iterdir())
    assert len(pictures) == 4
    assert cv2.imread(str(pictures[0])).shape == (360, 300, 3)


def test_predict_errors_are_one_line(finished, tmp_path):
    run_dir, _ = finished
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.zeros((9, 9, 3), np.uint8))
    for arguments, message in (
        ((f"--run_dir={tmp_path}", image), "not a run directory (no manifest.json)"),
        ((f"--run_dir={run_dir}", tmp_path / "ghost.jpg"), "ghost.jpg: no such file or folder"),
        ((f"--run_dir={run_dir}", "--seed=7", image), "no finished model of --protocol=clean"),
    ):
        done = command("replication.predict", *arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture
def copy(finished, tmp_path):
    """The run, to be tampered with, and a function that verifies it: place -> what differs."""
    shutil.copytree(finished[0], tmp_path / "copy", ignore=shutil.ignore_patterns("logs", ".lock"))
    run = RunDirectory(tmp_path / "copy")

    def verify(figures=98):
        checks = [*recomputed.checks(run), *recomputed.images(run)]
        assert sum(checked.figures for checked in checks) >= figures
        return {checked.place: checked.different for checked in checks if checked.different}

    return run, verify


def test_the_manifest_holds_the_versions_and_the_command(finished):
    environment = json.loads((finished[0] / "manifest.json").read_text())["environment"]
    assert {"tensorflow", "keras", "numpy", "absl-py"} <= environment["packages"].keys()
    arguments = environment["repeat"]["arguments"]
    assert environment["repeat"]["program"] == "replication.run"
    assert {*FLAGS, "--stage1=20", "--audit=fast"} <= {*arguments}
    # What was typed comes last, and wins.
    assert recomputed.flag(arguments, "images") == "stand-in"


def test_the_repeated_run_is_the_same_to_the_bit(finished, tmp_path):
    lines, again = verified_again(finished[0], tmp_path / "scratch")
    assert "Packages that differ: none" in lines
    assert "--deterministic and these packages" in again[0]
    assert len(again) == 8 and all(line.endswith("same to the bit") for line in again[1:-1])


def test_an_untouched_run_verifies(copy):
    _, verify = copy
    assert verify() == {}


def test_a_tampered_figure_is_found_and_named(copy):
    run, verify = copy
    path = run.path / "stage1/clean/seed_0/metrics.json"
    metrics = json.loads(path.read_text())
    true = metrics["accuracy"]["value"]
    metrics["accuracy"]["value"] = 0.999
    path.write_text(json.dumps(metrics))
    different = verify()
    assert different.pop("stage1/clean/seed_0/metrics.json") == [
        f"accuracy.value: 0.999 is stated, it is {true!r}"
    ]
    (line,) = different.pop("stage1/clean/seed_0: digests")
    assert line.startswith("metrics.json: ") and not different


def test_a_tampered_table_and_model_are_found(copy):
    run, verify = copy
    table = run.path / "summary.csv"
    table.write_text(table.read_text().replace("clean,0.99", "clean,0.98", 1))
    model = run.path / "stage1/clean/seed_0/model.keras"
    model.write_bytes(model.read_bytes()[:-1])
    different = verify()
    assert different.keys() == {"summary.csv", "stage1/clean/seed_0: digests"}
    (line,) = different["stage1/clean/seed_0: digests"]
    assert line.startswith("model.keras: ")


def test_tampered_predictions_are_found_and_nothing_is_made_of_them(copy):
    run, verify = copy
    path = run.path / "stage1/clean/seed_0/predictions.csv"
    rows = path.read_text().splitlines()
    test = next(n for n, row in enumerate(rows) if ",test," in row)
    *words, one, other = rows[test].split(",")
    rows[test] = ",".join([*words, other, one])
    path.write_text("\n".join(rows) + "\n")
    # Digests, and the metrics of the other fit: what readers refuse is not computed from.
    different = verify(figures=9)
    assert different.keys() == {"stage1/clean/seed_0: digests"}
    (line,) = different["stage1/clean/seed_0: digests"]
    assert line.startswith("predictions.csv: ")


def test_images_that_changed_are_found(copy, tmp_path, manual_dir):
    run, verify = copy
    shutil.copytree(manual_dir / "DB_3", tmp_path / "moved" / "DB_3")
    image = next((tmp_path / "moved" / "DB_3").rglob("*.[jpb]*g"))
    image.write_bytes(image.read_bytes() + b"\0")
    environment = run.manifest()["environment"]
    environment["repeat"]["arguments"].append(f"--manual_dir={tmp_path / 'moved'}")
    run.update_manifest(environment=environment)
    assert verify().keys() == {"images of pap_db3"}


def test_another_version_is_listed_and_is_no_difference_itself(copy):
    run, _ = copy
    environment = run.manifest()["environment"]
    now = environment["packages"]["numpy"]
    environment["packages"]["numpy"] = "1.0"
    run.update_manifest(environment=environment)
    done = command("replication.verify", f"--run_dir={run.path}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["Packages that differ: 1", f"  numpy: then 1.0, now {now}"]
