"""Figures compared, and committed tables made again by small scripts."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import command

from replication.fields.find.cells import Cells
from replication.measures.predictions import Predictions
from replication.runs import environment
from replication.runs.directory import RunDirectory
from replication.verification import committed, figures, kinds, recomputed, repeated, scans, sent
from tfds_pap import files
from tfds_pap.errors import PapError

RESULTS = Path(__file__).resolve().parent.parent / "results"

BY_INTERVAL = figures.Rule(by_interval=True)


def compared(then, now, rule=None):
    checked = figures.Checked("place")
    checked.compare("", then, now, rule or figures.Rule())
    return checked


def test_equal_figures_are_the_same_to_the_bit():
    figure = {"value": 0.1 + 0.2, "low": float("nan"), "words": ["a", None]}
    checked = compared({"accuracy": figure}, {"accuracy": dict(figure)})
    assert [*checked.lines()] == ["place: 4 figures, same to the bit"]


def test_a_rounding_is_within_the_tolerance_and_said():
    checked = compared({"a": 0.3, "b": 1}, {"a": 0.1 + 0.2, "b": 1})
    assert [*checked.lines()] == ["place: 2 figures, 1 same to the bit, 1 same within 6e-17"]


@pytest.mark.parametrize(
    ("then", "now", "named"),
    [
        ({"a": {"value": 0.3}}, {"a": {"value": 0.30001}}, "a.value: 0.3 is stated, it is 0.30001"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "a[1]: 2 is stated, it is 3"),
        ({"a": [1, 2]}, {"a": [1]}, "a: [1, 2] is stated, it is [1]"),
        ({"a": 1}, {}, "a is stated and did not come out"),
        ({}, {"a": 1}, "a is not stated"),
        ({"a": "x"}, {"a": "y"}, "a: 'x' is stated, it is 'y'"),
        ({"a": True}, {"a": False}, "a: True is stated, it is False"),
        ({"a": 0.5}, {"a": None}, "a: 0.5 is stated, it is None"),
    ],
)
def test_what_differs_is_named(then, now, named):
    assert compared(then, now).different == [named]


def test_of_two_trainings_the_interval_decides_and_counts_are_equal():
    then = {"value": 0.8, "low": 0.7, "high": 0.9, "count": 50}
    assert not compared(then, {**then, "value": 0.7001, "low": 0.6}, BY_INTERVAL).different
    (line,) = compared(then, {**then, "value": 0.69}, BY_INTERVAL).different
    assert line == ".value: 0.8 [0.7, 0.9] is stated, it is 0.69"
    assert compared(then, {**then, "count": 49}, BY_INTERVAL).different == [
        "count: 50 is stated, it is 49"
    ]
    loss = compared({"log_loss": 0.5}, {"log_loss": 0.6}, BY_INTERVAL)
    assert [*loss.lines()] == ["place: 1 figure, 1 differ and have no interval"]


def test_times_are_judged_by_a_factor_and_rows_by_their_key():
    then = pd.DataFrame({"kind": ["a", "b"], "found": [0.5, 1.0], "seconds": [1.0, 2.0]})
    rule = figures.Rule(times=frozenset({"seconds"}), factor=2)
    now = then.iloc[::-1].assign(seconds=[1.0, 2.0])
    assert not figures.tables("t", then, now, rule, ["kind"]).different
    slow = now.assign(seconds=[4.1, 1.0])
    assert figures.tables("t", then, slow, rule, ["kind"]).different == [
        "row b.seconds: 2.0 is stated, it is 4.1"
    ]
    assert figures.tables("t", then, now[:1], rule, ["kind"]).different == [
        "row a is stated and did not come out"
    ]


def test_a_figure_with_an_interval_of_a_table_is_judged_by_it():
    then = pd.DataFrame({"f1": [0.5], "f1_low": [0.4], "f1_high": [0.6]})
    assert not figures.tables("t", then, then.assign(f1=0.59, f1_low=0.5), BY_INTERVAL).different
    assert figures.tables("t", then, then.assign(f1=0.61), BY_INTERVAL).different


def test_a_changed_version_is_listed():
    now = environment.packages()
    assert recomputed.version_changes(now, now) == []
    assert now["numpy"] == environment.versions()["numpy"]
    then = {**now, "numpy": "1.0", "no-such-package": "3"}
    assert recomputed.version_changes(then, now) == [
        "no-such-package: then 3, now not installed",
        f"numpy: then 1.0, now {now['numpy']}",
    ]


def test_no_folder_of_this_machine_is_in_the_lock():
    assert not [line for line in environment.packages().items() if "/" in "".join(line)]


SCRIPT = """
import csv, sys
path = next(a.partition("=")[2] for a in sys.argv if a.startswith("--csv="))
with open(path, "w") as file:
    rows = csv.writer(file)
    rows.writerow(["kind", "found", "seconds", "command"])
    rows.writerow(["a", 0.5, 0.01, "other words"])
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose table is made by a script of benchmarks/."""
    for folder in ("results", "benchmarks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "benchmarks" / "small.py").write_text(SCRIPT)

    def write(found=0.5, command="python benchmarks/small.py --csv=DIR", **recipe):
        made = {"row": ["kind"], "times": ["seconds"], "minutes": 1, **recipe}
        (tmp_path / "results" / "tables.json").write_text(json.dumps({"small.csv": made}))
        table = pd.DataFrame([{"kind": "a", "found": found, "seconds": 0.02, "command": command}])
        table.to_csv(tmp_path / "results" / "small.csv", index=False)
        return tmp_path / "results" / "small.csv"

    return write


def again(path, tmp_path, minutes=3.0, places=None):
    (checked,) = committed.checks(path, minutes, places or {}, tmp_path, 4.0)
    return checked


def test_a_committed_table_is_made_again_and_a_changed_figure_named(checkout, tmp_path):
    assert again(checkout(), tmp_path).different == []
    assert again(checkout(found=0.6), tmp_path).different == [
        "row a.found: 0.6 is stated, it is 0.5"
    ]


def test_only_the_commands_asked_for_are_repeated(checkout, tmp_path):
    path = checkout()
    with pytest.raises(PapError, match=r"--only=fast: no command of .*small\.csv holds that"):
        next(committed.checks(path, 3.0, {}, tmp_path, 4.0, only="fast"))
    assert next(committed.checks(path, 3.0, {}, tmp_path, 4.0, only="small.py --csv")).figures


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"minutes": 9}, "takes about 9 minutes; --minutes allows it"),
        (
            {"command": "python benchmarks/small.py --csv=DIR --fields=DIR"},
            "--fields=DIR stands for what is not here: give --place=fields=PATH",
        ),
        (
            {"command": "python -m replication.compare --weights=none,a=WEIGHTS", "file": "x.csv"},
            "--weights=none,a=WEIGHTS stands for what is not here: give --place=WEIGHTS=PATH",
        ),
        *(
            ({"command": words}, "is no script of benchmarks/ and no command of this package")
            for words in (
                "python -c 'print()' --csv=DIR",
                "python ../benchmarks/small.py --csv=DIR",
                "python -m http.server --csv=DIR",
                "python",
            )
        ),
        ({"command": "python benchmarks/small.py"}, "its command writes no table (no --csv)"),
    ],
)
def test_what_is_not_repeated_says_why(checkout, tmp_path, recipe, why):
    checked = again(checkout(**recipe), tmp_path)
    assert checked.figures == 0 and checked.notes == [f"not repeated: {why}"]


def test_places_stand_where_their_words_stood(tmp_path):
    typed = ["-m", "x", "--weights=none,a=WEIGHTS", "--folders=DIR", "--name=of DIRK"]
    places = {"WEIGHTS": "/w", "folders": "/f"}
    assert committed._with_places(typed, places, tmp_path)[2:] == [
        "--weights=none,a=/w",
        "--folders=/f",
        "--name=of DIRK",
    ]


def test_a_table_that_cannot_be_made_again_is_refused_in_one_line(checkout):
    with pytest.raises(PapError, match=r"small\.csv: not made again: by hand$"):
        committed.recipe(checkout(refused="by hand"))
    with pytest.raises(PapError, match=r"other\.csv: .*tables\.json does not say how"):
        committed.recipe(checkout().with_name("other.csv"))


def test_every_committed_table_says_how_it_is_made_again():
    recipes = json.loads((RESULTS / committed.RECIPES).read_text())
    assert {*recipes} == {path.name for path in RESULTS.glob("*.csv")}
    for name, recipe in recipes.items():
        if "refused" in recipe:
            continue
        table = pd.read_csv(RESULTS / name)
        named = [*recipe["row"], *recipe.get("times", []), *recipe.get("ignored", [])]
        assert {*named} <= {*table.columns}, name
        for _, rows in table.groupby("command"):
            assert not rows.duplicated(recipe["row"]).any(), name


@pytest.mark.parametrize(
    "words",
    [
        ["--"],
        ["--flagfile=there"],
        ["-profile_file", "there"],
        ["--cluster=tcp://there:8786"],
        ["--run_with_pdb"],
    ],
)
def test_flags_that_do_something_else_are_not_taken_from_a_manifest(tmp_path, words):
    run = RunDirectory(tmp_path)
    repeat = {"program": "replication.scan", "arguments": ["a.png", "--cluster=local"]}
    run.update_manifest(environment={"repeat": repeat})
    assert repeated.arguments(run, tmp_path / "s")[1][:2] == repeat["arguments"]
    repeat["arguments"] += words
    run.update_manifest(environment={"repeat": repeat})
    with pytest.raises(PapError, match=f"manifest.json: {re.escape(words[0])} is not repeated"):
        repeated.arguments(run, tmp_path / "s")


def test_a_directory_with_a_pipe_or_a_huge_table_is_not_read(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    sent.check(tmp_path)
    with (tmp_path / "b.json").open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(PapError, match=r"b.json: 268,435,457 bytes, expected at most 268,435,456"):
        sent.check(tmp_path)
    (tmp_path / "b.json").unlink()
    os.mkfifo(tmp_path / "c.json")
    with pytest.raises(PapError, match=r"c.json: neither a file nor a folder; nothing was read"):
        sent.check(tmp_path)


@pytest.mark.parametrize("manifest", ["[" * 200_000, '{"identity": {}, "environment": []}', "5"])
def test_whatever_a_sent_manifest_holds_is_one_line(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    run = RunDirectory(tmp_path)
    with pytest.raises(PapError) as raised, sent.one_error(run):
        kinds.of(run)
        recomputed.packages(run)
    assert str(tmp_path) in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_scores_of_a_huge_shape_take_no_memory(tmp_path):
    with (tmp_path / "scores.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**7)}
        )
    Cells.empty().table().to_csv(tmp_path / "cells.csv", index=False)
    (tmp_path / "field.json").write_text("{}")
    (checked,) = scans._field(tmp_path, {})
    (line,) = checked.different
    assert line.startswith("not what a scan writes: mmap length is greater than file")


def test_a_digest_of_a_file_outside_is_not_computed(tmp_path):
    (tmp_path / "outside").write_bytes(b"")
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    (run.path / "SHA256SUMS").write_text(f"{files.sha256(tmp_path / 'outside')}  ../outside\n")
    assert "it is 'outside of" in recomputed.digests(run, run.path).different[0]


def test_a_predictions_file_of_too_many_columns_is_refused(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text(",".join(["id,group,split,label", *(f"probability_{n}" for n in range(10**5))]))
    with pytest.raises(ValueError, match=r"expected at most 1000 columns, got 100004$"):
        Predictions.read(path)


def test_a_table_of_another_checkout_is_not_made_again_by_its_code(checkout, tmp_path):
    path = checkout()
    (tmp_path / "benchmarks" / "small.py").write_text("raise SystemExit('it ran')")
    done = command("replication.verify", f"--csv={path}")
    assert done.returncode == 1 and "it ran" not in done.stdout + done.stderr
    assert done.stderr.endswith(f"run python -m replication.verify in {tmp_path}\n")


def test_only_known_commands_are_repeated(tmp_path):
    run = repeated.RunDirectory(tmp_path)
    run.update_manifest(environment={"repeat": {"program": "os", "arguments": []}})
    with pytest.raises(PapError, match=r"os is not repeated, only replication\.run, "):
        repeated.arguments(run, tmp_path)
    run.update_manifest(environment={})
    with pytest.raises(PapError, match=r"expected environment\.repeat"):
        repeated.arguments(run, tmp_path)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ([], "--run_dir, --csv: give one of them"),
        (["--csv=NONE.csv"], "--csv=NONE.csv: no such file"),
        (
            ["--run_dir=NONE"],
            "--run_dir=NONE: not a directory of results (no manifest.json",
        ),
        (["--csv=results/stated.csv", "--place=x"], "--place=x: expected NAME=PATH"),
        (["--csv=results/stated.csv", "--again"], "--again is about --run_dir"),
        (["--csv=results/stated.csv"], "stated.csv: not made again: written by hand"),
    ],
)
def test_what_cannot_be_verified_is_refused_in_a_line(flags, why):
    done = command("replication.verify", *flags)
    assert done.returncode == 1
    assert why in done.stderr and len(done.stderr.splitlines()) == 1
