"""`pap benchmark` as a user types it: killed, resumed, and its table against the predictions."""

import collections
import csv
import json
import time

import pytest
import tiny_net
from commands import command, start
from conftest import save_image
from dask_machines import Cluster

from replication.comparison import benchmark
from replication.runs.directory import RunDirectory
from replication.verification import recomputed

MODEL = tiny_net.NAME
FLAGS = (
    *("--weights=none", "--size=32", "--epochs=2", "--seeds=0,1", f"--backbones={MODEL}"),
    *("--folds=2", "--group_unit=slide", "--name=drawn noise", "--deterministic"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of four slides with three images each; two images are one picture."""
    root = tmp_path_factory.mktemp("trees") / "noise"
    rows = ["file,group"]
    for label, name in enumerate(("NILM", "HSIL")):
        for number in range(12):
            file = f"{name}/{number}.png"
            save_image(root / file, 100 * label + (number if number != 1 else 0), 64)
            rows.append(f"{file},{name} slide {number // 3}")
    (root / "groups.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def arguments(images, data_dir, tmp_path_factory):
    features = tmp_path_factory.mktemp("benchmark") / "features"
    return [f"--folders={images}", f"--data_dir={data_dir}", f"--features_dir={features}", *FLAGS]


@pytest.fixture(scope="module")
def killed(arguments, tmp_path_factory):
    """Killed once a head is finished, and run again."""
    run_dir = tmp_path_factory.mktemp("benchmark") / "killed"
    process = start("replication.benchmark", *arguments, f"--run_dir={run_dir}", tiny=True)
    deadline = time.monotonic() + 200
    while not (first := [*run_dir.glob("group/*/*/fit.json")]):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (run_dir / benchmark.TABLE).exists()
    written = first[0].stat().st_mtime_ns
    done = command("replication.benchmark", *arguments, f"--run_dir={run_dir}", tiny=True)
    assert done.returncode == 0, done.stderr
    assert first[0].stat().st_mtime_ns == written
    return run_dir, done.stdout


def rows_of(run_dir):
    with (run_dir / benchmark.TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_is_that_of_the_predictions(killed):
    run_dir, _ = killed
    rows = rows_of(run_dir)
    assert [(row["model"], row["cut"]) for row in rows] == [(MODEL, "group"), (MODEL, "image")]
    for row in rows:
        right, by_class = [], collections.defaultdict(list)
        for seed in (0, 1):
            path = run_dir / row["cut"] / MODEL / f"seed_{seed}" / "predictions.csv"
            for one in csv.DictReader(path.open(newline="")):
                called = max(("NILM", "HSIL"), key=lambda name: float(one[f"probability_{name}"]))
                right.append(called == one["label"])
                by_class[one["label"]].append(called == one["label"])
        assert len(right) == 48
        assert float(row["accuracy"]) == pytest.approx(sum(right) / 48, abs=1e-12)
        balanced = sum(sum(hits) / len(hits) for hits in by_class.values()) / 2
        assert float(row["balanced_accuracy"]) == pytest.approx(balanced, abs=1e-12)
        assert float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"])
    gap = float(rows[1]["accuracy"]) - float(rows[0]["accuracy"])
    assert float(rows[1]["accuracy_minus_by_group"]) == pytest.approx(gap, abs=1e-12)
    assert rows[0]["accuracy_minus_by_group"] == ""


def test_each_row_says_on_what_and_with_what(killed, images):
    run_dir, output = killed
    for row in rows_of(run_dir):
        assert (row["set"], row["layout"], row["weights"]) == ("drawn noise", "plain", "untrained")
        assert json.loads(row["images_by_class"]) == {"NILM": 12, "HSIL": 12}
        assert json.loads(row["groups_by_class"]) == {"NILM": 4, "HSIL": 4}
        assert (row["images"], row["groups"], row["folds"], row["seeds"]) == ("24", "8", "2", "0 1")
        assert row["command"].startswith("python -m replication.benchmark --folders=DIR ")
        assert str(images) not in ",".join(row.values())
        assert "tensorflow 2" in row["packages"] and row["machine"] and row["commit"]
    assert "untrained" in output and "Not the papers' images" in output


def test_twins_across_folds_are_those_that_a_cut_tears_apart(killed):
    run_dir, _ = killed
    rows = {row["cut"]: row for row in rows_of(run_dir)}
    assert {row["audit_pairs"] for row in rows.values()} == {"2"}
    assert float(rows["group"]["audit_pairs_across_folds"]) == 0
    apart = []
    for seed in (0, 1):
        fit = run_dir / "image" / MODEL / f"seed_{seed}"
        tested = [one["id"] for one in csv.DictReader((fit / "predictions.csv").open(newline=""))]
        fold = {image: place // 12 for place, image in enumerate(tested)}
        apart += [fold[f"{name}/0.png"] != fold[f"{name}/1.png"] for name in ("NILM", "HSIL")]
    assert float(rows["image"]["audit_pairs_across_folds"]) == sum(apart) / 2


def identity_of(run_dir):
    return json.loads((run_dir / "manifest.json").read_text())["identity"]


def test_a_killed_benchmark_ends_as_one_of_a_cluster(killed, arguments, tmp_path):
    """Features of a worker of its own are those of one process, byte for byte."""
    run_dir, _ = killed
    whole, directory = tmp_path / "whole", tmp_path / "features"
    places = (f"--run_dir={whole}", f"--features_dir={directory}")
    with Cluster(tmp_path, 1, tiny=True) as machines:
        places += (f"--cluster={machines.file}",)
        done = command("replication.benchmark", *arguments, *places, draws=False, tiny=True)
    assert done.returncode == 0, done.stderr
    assert "Cluster tcp://127.0.0.1:" in done.stdout
    assert [*directory.glob("*/chunk_*.npz")]
    assert identity_of(whole) == identity_of(run_dir)
    # Where it was computed stands in no row.
    assert rows_of(whole) == rows_of(run_dir)
    for path in run_dir.glob("*/*/*/predictions.csv"):
        assert path.read_bytes() == (whole / path.relative_to(run_dir)).read_bytes()


def test_onnx_computes_features_for_a_directory_of_its_own(killed, arguments, tmp_path):
    assert identity_of(killed[0])["engine"] == "tensorflow"
    run_dir, directory, log = (tmp_path / name for name in ("onnx", "features", "log"))
    places = (f"--run_dir={run_dir}", f"--features_dir={directory}")
    process = start(
        "replication.benchmark", *arguments, *places, "--engine=onnx", stderr=log, tiny=True
    )
    deadline = time.monotonic() + 200
    while not [*directory.glob("*/chunk_*.npz")]:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert identity_of(run_dir)["engine"] == "onnx"
    assert len([*directory.glob("onnx/*.onnx")]) == 1


def test_verify_makes_the_table_again_and_names_what_was_changed(killed, tmp_path):
    run_dir, _ = killed
    different = {one.place: one.different for one in recomputed.checks(RunDirectory(run_dir))}
    assert len(different) == 5 and not any(different.values())
    table, true = run_dir / benchmark.TABLE, (run_dir / benchmark.TABLE).read_text()
    accuracy = rows_of(run_dir)[0]["accuracy"]
    try:
        table.write_text(true.replace(f",{accuracy},", ",0.987,", 1))
        (line,) = {one.place: one.different for one in recomputed.checks(RunDirectory(run_dir))}[
            benchmark.TABLE
        ]
    finally:
        table.write_text(true)
    assert line.startswith("row 1.accuracy.value: 0.987 is stated, it is ")


def test_the_page_says_what_the_table_says(killed):
    run_dir, _ = killed
    page = (run_dir / "report.html").read_text()
    for words in ("drawn noise", MODEL, "untrained", "slide", "benchmark.csv", "not a medical"):
        assert words in page
    shown = f"{100 * float(rows_of(run_dir)[0]['accuracy']):.1f}"
    assert f"{shown}\u00a0%" in page or f"{shown}&nbsp;%" in page


def test_dry_run_writes_nothing_and_counts_heads(arguments, tmp_path):
    done = command("replication.benchmark", *arguments, "--dry_run", cwd=tmp_path, tiny=True)
    assert done.returncode == 0, done.stderr
    assert "Plan: 1 backbone, 24 images, 8 fits of heads, at most 16 epochs" in done.stdout
    assert done.stdout.endswith("results go to runs/benchmark-noise\n")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("--weights=NONE", "--weights=NONE: no such file or folder, and not imagenet or none"),
        ("--folds=1", "folds=1"),
        ("--seeds=x", "--seeds=x: expected whole numbers from 0"),
        ("--folders=NONE", "--folders=NONE: no such folder"),
    ],
)
def test_wrong_flags_are_refused_in_a_line(flag, why):
    done = command("replication.benchmark", flag)
    assert done.returncode == 1 and why in done.stderr
    assert len(done.stderr.splitlines()) == 1
