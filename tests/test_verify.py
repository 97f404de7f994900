"""`pap verify` of a run as a user types it: same, tampered, with other packages."""

import json
import shutil

import pytest
from commands import command

from replication.runs.directory import RunDirectory
from replication.verification import recomputed

FLAGS = ("--stages=1", "--epochs=1", "--deterministic", "--batch_size=8", "--protocol=clean")


@pytest.fixture(scope="module")
def finished(manual_dir, data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("verify") / "whole"
    done = command(
        "replication.run",
        f"--manual_dir={manual_dir}",
        f"--data_dir={data_dir}",
        f"--run_dir={run_dir}",
        "--images=stand-in",
        "--scan_fields=0",
        *FLAGS,
        draws=False,
    )
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture
def copy(finished, tmp_path):
    """The run, to be tampered with, and a function that verifies it: place -> what differs."""
    shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("logs", ".lock"))
    run = RunDirectory(tmp_path / "copy")

    def verify(figures=51):
        checks = [*recomputed.checks(run), *recomputed.images(run)]
        assert sum(checked.figures for checked in checks) >= figures
        return {checked.place: checked.different for checked in checks if checked.different}

    return run, verify


def test_the_manifest_holds_the_versions_and_the_command(finished):
    environment = json.loads((finished / "manifest.json").read_text())["environment"]
    assert {"tensorflow", "keras", "numpy", "absl-py"} <= environment["packages"].keys()
    arguments = environment["repeat"]["arguments"]
    assert environment["repeat"]["program"] == "replication.run"
    assert {*FLAGS, "--stage1=20", "--audit=fast"} <= {*arguments}
    # What was typed comes last, and wins.
    assert recomputed.flag(arguments, "scan_fields") == "0"


@pytest.mark.slow
def test_the_repeated_run_is_the_same_to_the_bit(finished, tmp_path):
    done = command(
        "replication.verify",
        f"--run_dir={finished}",
        "--again",
        f"--scratch={tmp_path / 'scratch'}",
        draws=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "Packages that differ: none" in lines and lines[-1] == "Nothing is different."
    again = lines[next(n for n, line in enumerate(lines) if line.startswith("Repeated; ")) :]
    assert "--deterministic and these packages" in again[0]
    assert len(again) == 6 and all(line.endswith("same to the bit") for line in again[1:-1])
    assert not (tmp_path / "scratch").exists()


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
    head, first, *rest = table.read_text().splitlines()
    table.write_text("\n".join([head, first.replace("clean,0.99", "clean,0.98"), *rest]) + "\n")
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
    # Its five digests: what readers refuse is not computed from.
    different = verify(figures=5)
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


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ([], "--run_dir, --csv: give one of them"),
        (["--csv=NONE.csv"], "--csv=NONE.csv: no such file"),
        (["--run_dir=NONE"], "--run_dir=NONE: not a run directory (no manifest.json)"),
        (["--csv=results/stated.csv", "--place=x"], "--place=x: expected NAME=PATH"),
        (["--csv=results/stated.csv", "--again"], "--again is about --run_dir"),
        (["--csv=results/stated.csv"], "stated.csv: not made again: written by hand"),
    ],
)
def test_what_cannot_be_verified_is_refused_in_a_line(flags, why):
    done = command("replication.verify", *flags)
    assert done.returncode == 1
    assert why in done.stderr and len(done.stderr.splitlines()) == 1
