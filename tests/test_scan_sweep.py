"""The sweep's script: what it writes, and what it refuses."""

import csv

import pytest
from absl.testing import flagsaver

from replication import scan_sweep
from tfds_pap import phantom, phantom_set
from tfds_pap.errors import PapError


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Two small fields, of which one is annotated."""
    folder = tmp_path_factory.mktemp("fields")
    rows = ["field,x,y,label"]
    for number, name in enumerate(("a.jpg", "b.jpg")):
        image, truth = phantom.draw_field(number, slide=number, width=420, height=330, cells=12)
        (folder / name).write_bytes(phantom_set.encode(image))
        rows += [f"a.jpg,{c.x},{c.y},{c.label}" for c in truth if name == "a.jpg"]
    (folder / "nuclei.csv").write_text("\n".join(rows))
    return folder


def sweep(*arguments, **given):
    with flagsaver.flagsaver(**given):
        scan_sweep.main(["scan_sweep", *map(str, arguments)])


@pytest.fixture(scope="module", autouse=True)
def parsed(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    (run / "manifest.json").write_text("{}")
    with flagsaver.flagsaver():
        scan_sweep.flags.FLAGS(["scan_sweep", f"--stage1={run}"])
        yield


def test_what_a_sweep_leaves(two_stage_run, fields, tmp_path, capsys):
    sweep(
        fields,
        stage1=str(two_stage_run),
        output=str(tmp_path / "sweep"),
        strides=["50", "25"],
        thresholds=["0.5"],
        radii=["50"],
    )
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {
        "sweep.csv",
        "sweep.html",
        "sweep.png",
        "sweep.svg",
    }
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["stride"], row["precision_reliable"]) for row in rows] == [
        ("25", "False"),
        ("50", "False"),
    ]
    said = capsys.readouterr().out
    assert "1 field, 2 settings" in said
    assert "Precision is not reliable" in said


def test_fields_without_truth_are_refused(two_stage_run, fields, tmp_path):
    with pytest.raises(PapError, match=r"nuclei\.csv: none of the given fields is annotated"):
        sweep(fields / "b.jpg", stage1=str(two_stage_run), output=str(tmp_path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected annotated fields"),
        ({"strides": ["2.5"]}, r"--strides=2\.5: expected whole numbers from 1"),
        ({"strides": ["0"]}, "--strides=0: expected whole numbers from 1"),
        ({"thresholds": ["0.5", "2"]}, r"--thresholds=0\.5,2: expected numbers from 0 to 1"),
        ({"radii": []}, "--radii=: expected numbers from 0"),
        ({"radii": ["nan"]}, "--radii=nan: expected numbers from 0"),
        ({"radii": ["x"]}, "--radii=x: expected numbers from 0"),
        ({"match_radius": 0.0}, r"--match_radius=0\.0: expected a number above 0"),
    ],
)
def test_bad_flags(given, message, fields):
    with pytest.raises(scan_sweep.app.UsageError, match=message):
        sweep(*([fields] if given else []), **given)
