"""`python -m replication.scan`: what it writes, resumes, refuses and survives."""

import csv
import functools
import html
import json
import os
import shutil
import time

import numpy as np
import pytest
import scanning
from commands import command, start
from tampering import change, differences, verified_again

from replication.fields.find.cells import Cells
from replication.runs.directory import RunDirectory
from replication.verification import figures, kinds, repeated
from tfds_pap import phantom, phantom_set
from tfds_pap.errors import PapError


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Three small fields with truth, and one file that is none."""
    folder = tmp_path_factory.mktemp("fields")
    rows = [("field", "x", "y", "label")]
    for number, name in enumerate(("a.jpg", "b <i> ü.jpg", "c.jpg")):
        image, truth = phantom.draw_field(number, slide=number, width=420, height=330, cells=12)
        (folder / name).write_bytes(phantom_set.encode(image))
        rows += [(name, cell.x, cell.y, cell.label) for cell in truth]
    with (folder / "nuclei.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


#: Every nucleus of the fields above is in their truth.
scan = functools.partial(scanning.scan, complete_truth=True)


@pytest.fixture(scope="module")
def scanned(two_stage_run, fields, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan") / "scan"
    return scan(two_stage_run, [fields], folder), folder


def contents(folder):
    """Every table and score of a scan, without times."""
    found = {}
    for path in sorted(folder.rglob("*.csv")) + sorted(folder.rglob("*.npy")):
        found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def test_what_a_scan_leaves(scanned, fields):
    outcome, folder = scanned
    assert (outcome.fields, outcome.unreadable) == (3, [])
    names = {path.name for path in folder.iterdir()}
    expected = {"manifest.json", "cells.csv", "fields.csv", "evaluation.json", "report.html"}
    assert expected <= names
    assert "slides.csv" not in names
    with (folder / "fields.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["field"] for row in rows] == [
        str(fields / name) for name in sorted(path.name for path in fields.glob("*.jpg"))
    ]
    for row, one in zip(rows, sorted((folder / "fields").iterdir()), strict=True):
        info = json.loads((one / "field.json").read_text())
        cells = Cells.read(one / "cells.csv")
        assert info["cells"] == len(cells) == int(row["cells"]) > 0
        assert info["counts"] == {name: cells.labels.count(name) for name in info["counts"]}
        assert (info["width"], info["height"], info["rois"]) == (420, 330, 11 * 8)
        assert np.load(one / "scores.npy").shape == (8, 11)
        assert ((cells.x >= 75) & (cells.x <= 420 - 75)).all()
    manifest = json.loads((folder / "manifest.json").read_text())
    said = manifest["models"]["stage2"]["scored"][0]
    assert said.startswith("In its own run, on 12 test images: accuracy ")
    assert "HSIL+ sensitivity " in said and "HSIL+ specificity " in said
    assert f"Stage 2: {said}" in html.unescape((folder / "report.html").read_text())


def test_running_again_does_nothing_again(scanned, two_stage_run, fields):
    _, folder = scanned
    before = {path: path.stat().st_mtime_ns for path in folder.glob("fields/*/*")}
    scan(two_stage_run, [fields], folder)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("fields/*/*")} == before


def test_a_changed_file_is_scanned_again(two_stage_run, fields, tmp_path):
    copy = shutil.copytree(fields, tmp_path / "fields")
    scan(two_stage_run, [copy / "a.jpg"], tmp_path / "scan")
    before = contents(tmp_path / "scan")
    shutil.copy(fields / "c.jpg", copy / "a.jpg")
    os.utime(copy / "a.jpg", (1, 1))
    scan(two_stage_run, [copy / "a.jpg"], tmp_path / "scan")
    after = contents(tmp_path / "scan")
    assert before.keys() == after.keys()
    assert before["cells.csv"] != after["cells.csv"]


def test_other_settings_need_another_directory(scanned, two_stage_run, fields):
    with pytest.raises(PapError, match=r"--scan_dir=.* was made with stride=25, not 50"):
        scan(two_stage_run, [fields], scanned[1], stride=50)


def test_slides_are_summed_up_where_groups_are_known(two_stage_run, fields, tmp_path):
    copy = shutil.copytree(fields, tmp_path / "fields")
    (copy / "groups.csv").write_text("file,group\na.jpg,one\nb <i> ü.jpg,two\nc.jpg,one\n")
    scan(two_stage_run, [copy], tmp_path / "scan")
    with (tmp_path / "scan" / "slides.csv").open(newline="") as file:
        slides = {row["slide"]: row for row in csv.DictReader(file)}
    with (tmp_path / "scan" / "fields.csv").open(newline="") as file:
        by_field = [(row["slide"], int(row["cells"])) for row in csv.DictReader(file)]
    assert {name: int(row["fields"]) for name, row in slides.items()} == {"one": 2, "two": 1}
    for name, row in slides.items():
        assert int(row["cells"]) == sum(count for slide, count in by_field if slide == name)


def test_a_field_smaller_than_an_roi_is_noted(two_stage_run, fields, tmp_path):
    small = tmp_path / "small.png"
    small.write_bytes(phantom_set.encode(np.zeros((100, 500, 3), np.uint8)))
    small = small.rename(tmp_path / "small.jpg")
    outcome = scan(two_stage_run, [small], tmp_path / "scan")
    (info,) = (tmp_path / "scan" / "fields").glob("*/field.json")
    assert outcome.fields == 1
    assert "smaller than an ROI of 150 px" in json.loads(info.read_text())["notes"][0]


def test_an_unreadable_field_does_not_stop_the_rest(two_stage_run, fields, tmp_path):
    copy = shutil.copytree(fields, tmp_path / "fields")
    (copy / "broken.jpg").write_bytes(b"no picture")
    done = command(
        "replication.scan",
        f"--stage1={two_stage_run}",
        f"--scan_dir={tmp_path}/scan",
        "--threshold=0.4",
        copy,
        draws=False,
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[-2] == "replication.scan: 1 of 4 fields could not be read:"
    assert "broken.jpg" in lines[-1]
    assert len(list((tmp_path / "scan" / "fields").glob("*/field.json"))) == 3
    page = (tmp_path / "scan" / "report.html").read_text()
    assert "broken.jpg" in page
    assert "b <i>" not in page


def test_killed_and_resumed_it_ends_the_same(scanned, two_stage_run, fields, tmp_path):
    # Absolute paths name the folders of fields: the same fields are scanned.
    arguments = [f"--stage1={two_stage_run}", f"--scan_dir={tmp_path}/scan", "--threshold=0.4"]
    arguments += ["--workers=1", "--complete_truth", str(fields)]
    process = start("replication.scan", *arguments, draws=False)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("scan/fields/*/field.json")) and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "scan" / "report.html").exists()
    assert command("replication.scan", *arguments, draws=False).returncode == 0
    assert contents(tmp_path / "scan") == contents(scanned[1])
    whole, resumed = RunDirectory(scanned[1]), RunDirectory(tmp_path / "scan")
    again = [*kinds.of(resumed).again(whole, resumed, figures.Rule())]
    assert len(again) == 7 and not any(checked.different for checked in again)
    change(next(resumed.path.glob("fields/c-*/cells.csv")), "0.4", "0.9")
    (line,) = differences(kinds.of(resumed).again(whole, resumed, figures.Rule())).values()
    assert ".score: 0.4" in line[0] and "is stated, it is 0.9" in line[0]


@pytest.fixture
def copy(scanned, two_stage_run, tmp_path):
    """A scan to be tampered with, whose manifest says what a command would."""
    folder = shutil.copytree(
        scanned[1], tmp_path / "copy", ignore=shutil.ignore_patterns("*.jpg", ".lock")
    )
    run = RunDirectory(folder)
    environment = run.manifest()["environment"]
    assert {"tensorflow", "numpy"} <= environment["packages"].keys()
    repeat = {"program": "replication.scan", "arguments": [f"--stage1={two_stage_run}"]}
    run.update_manifest(environment={**environment, "repeat": repeat})
    return run


def test_an_untouched_scan_verifies(copy, fields):
    checks = [*kinds.of(copy).checks(copy)]
    assert not differences(checks)
    assert not any(checked.notes for checked in checks)
    by_place = {checked.place.partition("/")[0]: checked.figures for checked in checks}
    assert by_place.keys() == {
        *("fields", "manifest.json: models and settings"),
        *("fields.csv", "cells.csv", "evaluation.json"),
    }
    # Sums, tables, every figure of the evaluation, and what is said of both models.
    assert by_place["evaluation.json"] > 500 and by_place["cells.csv"] > 200
    assert by_place["manifest.json: models and settings"] >= 25


def test_changed_figures_of_a_scan_are_named(copy, two_stage_run):
    true = json.loads((copy.path / "evaluation.json").read_text())
    recall = next(one for one in true["figures"] if one["name"] == "recall")
    change(copy.path / "evaluation.json", f'"value": {recall["value"]}', '"value": 0.987')
    change(copy.path / "fields.csv", ",88,", ",89,")
    manifest = copy.manifest()
    manifest["models"]["stage1"]["parameters"] += 1
    copy.update_manifest(models=manifest["models"])
    rows = list(csv.DictReader((copy.path / "fields.csv").open(newline="")))
    cells = [row["cells"] for row in rows]
    with (copy.path / "archive.csv").open("w", newline="") as file:
        # As a cluster notes it; of the last field it knows nothing.
        noted = [[rows[0]["field"], cells[0]], [rows[1]["field"], "999"], [rows[2]["field"], ""]]
        csv.writer(file).writerows([["field", "cells"], *noted])
    different = differences(kinds.of(copy).checks(copy))
    assert different == {
        "evaluation.json": [f"figures[0].value: 0.987 is stated, it is {recall['value']!r}"],
        "fields.csv": ["row 1.rois: 89 is stated, it is 88"],
        "archive.csv": [f"cells of {rows[1]['field']}: '999' is stated, it is {cells[1]!r}"],
        "manifest.json: models and settings": [
            "models.stage1.parameters: 7061 is stated, it is 7060"
        ],
    }


def test_changed_cells_and_scores_of_a_scan_are_named(copy):
    first, second, third = (copy.path / "fields" / name for name in copy.manifest()["fields"])
    place = f"fields/{first.name}"
    line = (first / "cells.csv").read_text().splitlines()[1]
    row = line.split(",")
    label = next(name for name in ("NILM", "LSIL", "HSIL", "SCC") if name != row[3])
    change(first / "cells.csv", line, ",".join([*row[:2], "0.9876", label, *row[4:]]))
    info = json.loads((second / "field.json").read_text())
    change(second / "field.json", f'"detections": {info["detections"]}', '"detections": 1')
    scores = np.load(third / "scores.npy")
    scores[0, 0] = 0.9999
    np.save(third / "scores.npy", scores)
    different = differences(kinds.of(copy).checks(copy))
    at = f"row {row[0]}, {row[1]}"
    (line,) = different.pop(f"{place}/cells.csv by scores.npy")
    assert line.startswith(f"{at}.score: 0.9876 is stated, it is 0.")
    assert different.pop(f"{place}/cells.csv by its probabilities") == [
        f"{at}.class: {label!r} is stated, it is {row[3]!r}"
    ]
    assert different.pop(f"fields/{second.name}/field.json") == [
        f"detections: 1 is stated, it is {info['detections']}"
    ]
    lines = different.pop(f"fields/{third.name}/cells.csv by scores.npy")
    assert any(line.startswith("row 75, 75") for line in lines)
    for folder, name in ((first, "cells.csv"), (second, "field.json"), (third, "scores.npy")):
        (line,) = different.pop(f"fields/{folder.name}: digests")
        assert line.startswith(f"{name}: ")
    different.pop(f"fields/{third.name}/field.json", None)
    assert not different


def test_scans_that_lie_in_a_run_are_verified_with_it(copy, two_stage_run, tmp_path):
    run = RunDirectory(shutil.copytree(two_stage_run, tmp_path / "run"))
    inner = RunDirectory(copy.path.rename(run.path / "scan_clean"))
    environment = inner.manifest()["environment"]
    repeat = {"program": "replication.run", "arguments": []}
    inner.update_manifest(environment={**environment, "repeat": repeat})
    checks = [*kinds.of(run).checks(run)]
    assert not differences(checks)
    # Its models are those of the run that it lies in.
    (models,) = (one for one in checks if one.place.startswith("scan_clean/manifest.json"))
    assert models.figures >= 25 and not models.notes
    change(inner.path / "fields.csv", ",88,", ",89,")
    assert differences(kinds.of(run).checks(run)).keys() == {"scan_clean/fields.csv"}


def test_a_scan_is_repeated_by_its_own_command(copy, two_stage_run, fields, tmp_path):
    program, typed = repeated.arguments(copy, tmp_path)
    assert (program, typed[-1]) == ("replication.scan", f"--scan_dir={tmp_path / 'run'}")
    rule, why = repeated.rule(copy, ["numpy: then 1.0, now 2.0"])
    assert (rule.tolerance, rule.by_interval, why) == (1e-5, False, "nothing is trained")


def test_phantoms_are_announced_and_verified_from_the_drawing_on(two_stage_run, tmp_path):
    done = command(
        "replication.scan",
        f"--stage1={two_stage_run}",
        "--phantom",
        "--phantom_fields=1",
        "--stride=50",
        f"--scan_dir={tmp_path / 'scan'}",
        draws=False,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "scan" / "manifest.json").read_text())
    assert manifest["announcement"].startswith("The fields are drawings made by this package.")
    assert manifest["source"] == "phantom"
    assert "phantom_00.jpg" in done.stdout
    _, again = verified_again(tmp_path / "scan", tmp_path / "scratch")
    assert "nothing is trained" in again[0] and len(again) == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected fields (field.jpg slide.svs folder/ ...), --slides, or --phantom"),
        (
            ["--phantom", "a.jpg"],
            "expected fields (field.jpg slide.svs folder/ ...), --slides, or --phantom",
        ),
        (["--mpp=0", "a.jpg"], "--mpp=0.0: expected a number above 0"),
        (["--threshold=1.5", "a.jpg"], "--threshold"),
    ],
)
def test_usage_errors(arguments, said, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    done = command("replication.scan", f"--stage1={tmp_path}", *arguments)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


def test_models_that_are_not_there(two_stage_run, tiny_run, fields, tmp_path):
    with pytest.raises(PapError, match=r"--stage1=.* holds no finished model of stage 1"):
        scan(tiny_run, [fields], tmp_path / "scan")
    with pytest.raises(PapError, match="not a run directory"):
        scan(tmp_path / "none", [fields], tmp_path / "scan")
    assert not (tmp_path / "scan").exists()


def test_a_dry_run_says_what_is_left_and_writes_nothing(two_stage_run, fields, tmp_path):
    done = command(
        "replication.scan",
        f"--stage1={two_stage_run}",
        f"--stage2={two_stage_run}",
        f"--scan_dir={tmp_path / 'scan'}",
        "--dry_run",
        fields,
    )
    assert done.returncode == 0, done.stderr
    assert "fields finished before\nPlan: " in done.stdout and "megapixels" in done.stdout
    assert "--dry_run: nothing was written" in done.stdout
    assert not (tmp_path / "scan").exists()


def test_jax_finds_and_names_the_same_cells(two_stage_run, fields, scanned, tmp_path):
    """Fields are resized by TensorFlow on either backend; the networks are each backend's own."""
    arguments = [f"--stage1={two_stage_run}", "--threshold=0.4", "--workers=2", "--complete_truth"]
    jax = {**os.environ, "KERAS_BACKEND": "jax"}
    folder = tmp_path / "scan"
    finished = command("replication.scan", *arguments, f"--scan_dir={folder}", fields, env=jax)
    assert finished.returncode == 0, finished.stderr
    for path in sorted(scanned[1].glob("fields/*/scores.npy")):
        own = folder / path.relative_to(scanned[1])
        np.testing.assert_allclose(np.load(own), np.load(path), atol=1e-5)
        expected, cells = (Cells.read(place.with_name("cells.csv")) for place in (path, own))
        assert len(cells) == len(expected) > 0
        np.testing.assert_array_equal(cells.x, expected.x)
        np.testing.assert_allclose(cells.probabilities, expected.probabilities, atol=1e-5)
    identity = json.loads((folder / "manifest.json").read_text())["identity"]
    assert identity["engine"] == "jax"
    # Cells of one scan are named by one engine.
    with pytest.raises(PapError, match="was made with engine=jax, not tensorflow"):
        scan(two_stage_run, [fields], folder)
