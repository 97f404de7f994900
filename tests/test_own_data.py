"""The guide "your own data", command by command, on seven drawn classes with long names."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import command, start
from served import served

from replication.runs import results
from replication.runs.directory import RunDirectory
from tfds_pap import phantom
from tfds_pap.classes import Classes
from tfds_pap.phantom_set import encode

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guide" / "own_data.md"

NAMES = (
    "Superficial squamous epithelial",
    "Intermediate squamous epithelial",
    "Columnar epithelial, endocervical",
    "Mild squamous dysplasia",
    "Moderate squamous dysplasia",
    "Severe squamous dysplasia",
    "Carcinoma in situ, ünd more",
)
#: What makes the guide's commands small.
SMALL = {
    "audit": "--audit=fast",
    "compare": "--backbones=tiny --weights=none --size=32 --folds=2 --epochs=1 "
    "--seeds=0 --audit=off",
    "search": "--tuner=random --max_trials=2 --backbone=tiny --weights=none --size=32 "
    "--max_epochs=2 --max_unfrozen_blocks=0 --audit=off",
    "train": "--weights=none --audit=off",
    "run": "--epochs=1 --protocol=clean --audit=off",
    "export": "--check_images=2",
    "scan": "--stride=50",
}


def guide_commands() -> list[list[str]]:
    lines = re.findall(r"^    pap (.+)$", GUIDE.read_text(), re.MULTILINE)
    return [line.split() for line in lines]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A tree of 70 drawn cells, backgrounds and a field, as a lab would have them."""
    root = tmp_path_factory.mktemp("lab")
    groups = ["file;group"]
    for number, name in enumerate(NAMES):
        for image in range(10):
            path = root / "cells" / name / f"case {number} ({image}).jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            label = ("NILM", "LSIL", "HSIL", "SCC")[number // 2]
            path.write_bytes(encode(phantom.draw_cell(label, 100 * number + image)[::2, ::2]))
            groups.append(f"{path.name};case {number}-{image % 5}")
    (root / "cells" / "groups.csv").write_text("\n".join(groups), encoding="utf-16")
    rows = [f"{name};;{n};{'yes' if n > 3 else 'no'}" for n, name in enumerate(NAMES)]
    table = "\n".join(["name;shown;order;positive", *rows])
    (root / "cells" / "classes.csv").write_text(table, encoding="cp1252")
    (root / "backgrounds").mkdir()
    for image in range(30):
        picture = phantom.draw_roi("background", image)
        (root / "backgrounds" / f"{image}.jpg").write_bytes(encode(picture))
    (root / "fields").mkdir()
    field, _ = phantom.draw_field(0, width=480, height=360, cells=12)
    (root / "fields" / "a.jpg").write_bytes(encode(field))
    return root


def run(words: list[str], lab: Path):
    places = [f"--data_dir={lab / 'data'}"]
    takes_data = words[0] in ("audit", "compare", "search", "train", "run", "export")
    done = command(
        "replication.pap", *words, *SMALL.get(words[0], "").split(), *places * takes_data,
        cwd=lab, draws=False, tiny=True,
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stderr[-2000:])
    return done.stdout


def test_the_guide_leads_from_a_folder_to_served_answers(lab):
    said = {}
    steps = guide_commands()
    assert [words[0] for words in steps] == [
        "audit", "compare", "search", "train", "run", "export", "serve", "predict", "scan",
    ]  # fmt: skip
    for words in steps:
        if words[0] not in ("serve", "predict"):
            said[words[0]] = run(words, lab)
    assert "7 classes, 70 images" in said["audit"] and "35 groups" in said["audit"]
    assert f"{NAMES[6]}: 10 images, 5 groups" in said["run"]

    # The run's figures are those of the declared classes, recomputed from its predictions.
    (fit,) = (
        fit for fit in results.read_fits(RunDirectory(lab / "runs" / "cells")) if fit.stage == 2
    )
    test = fit.predictions.select("test")
    assert test.class_names == NAMES and test.classes.positive == NAMES[4:]
    severe = np.isin(test.labels, [4, 5, 6])
    called = np.isin(test.predicted, [4, 5, 6])
    metrics = json.loads((fit.directory / "metrics.json").read_text())
    assert metrics["hsil_plus_sensitivity"]["value"] == pytest.approx(called[severe].mean())
    groups = {
        role: {g for g, r in zip(fit.predictions.groups, fit.predictions.splits, strict=True)
               if r == role}
        for role in ("tune", "test")
    }  # fmt: skip
    assert groups["test"] and not groups["test"] & groups["tune"]

    # The served model answers as the run's own does, in the lab's names.
    metadata = json.loads((lab / "models/cells/1/assets.extra/metadata.json").read_text())
    assert Classes.from_json(metadata["classes"]) == test.classes
    image = lab / "cells" / NAMES[6] / "case 6 (0).jpg"
    own = command("replication.pap", "predict", "--run_dir=runs/cells", "--csv=own.csv", image,
                  cwd=lab)  # fmt: skip
    assert own.returncode == 0, own.stderr
    with served(lab / "models" / "cells", start=start) as server:
        for transport in ([f"--server=localhost:{server.grpc_port}"],
                          [f"--server=localhost:{server.rest_port}", "--rest"]):  # fmt: skip
            asked = command("replication.pap", "predict", *transport, "--model=cells",
                            "--csv=served.csv", image, cwd=lab)  # fmt: skip
            assert asked.returncode == 0, asked.stderr
            (mine,), (theirs,) = (
                list(csv.DictReader((lab / name).open(encoding="utf-8")))
                for name in ("own.csv", "served.csv")
            )
            assert mine["class"] == theirs["class"]
            for name in NAMES:
                assert float(theirs[name]) == pytest.approx(float(mine[name]), abs=1e-5)

    # A scan names cells in these classes.
    geojson = next((lab / "runs/scan/fields").glob("*/cells.geojson")).read_text()
    named = {one["properties"]["classification"]["name"] for one in json.loads(geojson)["features"]}
    assert named <= set(NAMES)
    cells = (lab / "runs/scan/cells.csv").read_text(encoding="utf-8").splitlines()[0]
    assert all(name.split(",")[0] in cells for name in NAMES)


def test_a_folder_with_splits_is_trained_and_tested_as_it_says(lab, tmp_path):
    for split, images in (("train", range(6)), ("valid", (6, 7)), ("test", (8, 9))):
        for number, name in enumerate(NAMES[:3]):
            for image in images:
                path = tmp_path / "cut" / split / name / f"{image}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(
                    (lab / "cells" / name / f"case {number} ({image}).jpg").read_bytes()
                )
    out = compared(tmp_path / "cut", lab)
    assert "layout split: 3 classes, 30 images, 18 train, 6 validation, 6 test" in out
    predictions = list(
        csv.DictReader(
            (lab / "runs/cut/published/tiny/seed_0/predictions.csv").open(encoding="utf-8")
        )
    )
    by_split = {row["split"]: row["id"].split("/")[0] for row in predictions}
    assert by_split == {"tune": "valid", "test": "test"}


def compared(tree: Path, lab: Path) -> str:
    flags = [flag for flag in SMALL["compare"].split() if not flag.startswith("--folds")]
    done = command(
        "replication.pap", "compare", f"--folders={tree}", "--run_dir=runs/cut", *flags,
        f"--data_dir={lab / 'data'}", cwd=lab, draws=False, tiny=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
