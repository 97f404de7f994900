"""The whole paper: the table of claims, and the page that shows it."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from replication.measures import evaluation
from replication.measures.predictions import Predictions, jsonable
from replication.runs.directory import RunDirectory
from replication.whole_paper import claims, page, plan, work
from replication.whole_paper.plan import Settings
from tfds_pap.taxonomy import STAGE1_CLASSES, STAGE2_CLASSES

#: Of the test images of P6 as published, rows true, NILM to SCC.
P6_CONFUSION = [[199, 1, 0, 0], [0, 197, 2, 1], [0, 1, 191, 8], [0, 4, 5, 191]]


def predictions(matrix, names):
    labels = [row for row, counts in enumerate(matrix) for count in counts for _ in range(count)]
    named = [
        column for counts in matrix for column, count in enumerate(counts) for _ in range(count)
    ]
    probabilities = np.full((len(labels), len(names)), 0.05)
    probabilities[np.arange(len(labels)), named] = 1 - 0.05 * (len(names) - 1)
    ids = [f"{n:04d}" for n in range(len(labels))]
    return Predictions(
        ids, [""] * len(ids), ["test"] * len(ids), np.array(labels), probabilities, names
    )


def write_fit(directory, stage, protocol, matrix, names, **info):
    folder = directory / f"stage{stage}/{protocol}/seed_0"
    folder.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")
    of = predictions(matrix, names)
    of.write(folder / "predictions.csv")
    metrics = jsonable(evaluation.evaluate(of, resamples=50))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    fit = {"stage": stage, "protocol": protocol, "seed": 0, "seconds": 100, "epochs_run": 50}
    (folder / "fit.json").write_text(json.dumps({**fit, **info}))


def wilson(hits, count):
    """By its formula, not by the project's function."""
    z, p = 1.959963984540054, hits / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return middle - half, middle + half


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What small steps left: P6 as published, P1 worse than published, P4 and P5."""
    where = tmp_path_factory.mktemp("paper")
    stage2, stage1 = STAGE2_CLASSES, STAGE1_CLASSES
    of_p6 = {"parameters": 58_510_532, "trainable_parameters": 135_000}
    write_fit(where / "p6-paper", 2, "paper", P6_CONFUSION, stage2, **of_p6)
    write_fit(where / "p1-50", 1, "paper", [[200, 0], [1, 199]], stage1, parameters=1)
    write_fit(where / "p1-50", 1, "clean", [[170, 30], [20, 180]], stage1, parameters=1)
    (where / "p5-paper").mkdir()
    best = {"hidden_units": [64], "dropout": 0.5, "learning_rate": 0.01}
    (where / "p5-paper/best.json").write_text(json.dumps(best))
    (where / "p5-paper/search.csv").write_text("seconds,epochs\n10,20\n14,4\n")
    columns = ("rank", "backbone", "metric", "mean", "low", "high", "method")
    for name in ("p4-paper", "p4-clean"):
        (where / name).mkdir()
        rows = [
            (1, "densenet201", "accuracy", 0.95, 0.93, 0.97, "bootstrap"),
            (2, "resnet152", "accuracy", 0.94, 0.92, 0.96, "bootstrap"),
        ]
        pd.DataFrame(rows, columns=columns).to_csv(where / name / "ranking.csv", index=False)
        pairs = {"first": ["densenet201"], "second": ["resnet152"], "told_apart": [name[3] == "p"]}
        pd.DataFrame(pairs).to_csv(where / name / "pairs.csv", index=False)
    return where


def table(left, source="original", hindrances=None):
    steps = {path.name: {"seconds": 60.0} for path in left.iterdir()}
    found = claims.claims(claims.Made(left, steps, source, 0, hindrances or {}))
    return {
        (claim.figure.key, protocol): measured
        for claim in found
        for protocol, measured in claim.protocols.items()
    }


def test_verdicts_are_those_of_an_independent_comparison(left):
    found = table(left)
    p6 = found["P6.accuracy", "paper"]
    assert (p6.value, p6.step, p6.seconds) == (0.9725, "p6-paper", 60.0)
    assert (p6.low, p6.high) == pytest.approx(wilson(778, 800))
    assert p6.kind == "agrees"
    p1 = found["P1.accuracy", "clean"]
    low, high = wilson(350, 400)
    assert p1.value == 0.875 and (p1.low, p1.high) == pytest.approx((low, high))
    # 0.992 of about 400 images: the intervals do not meet.
    assert high < wilson(397, 400)[0] and p1.kind == "lower"
    assert found["P1.accuracy", "paper"].kind == "agrees"
    for name, right in zip(STAGE2_CLASSES, (199, 197, 191, 191), strict=True):
        of_class = found[f"P6.sensitivity_of_{name}", "paper"]
        assert of_class.value == right / 200 and of_class.kind == "agrees"
        assert (of_class.low, of_class.high) == pytest.approx(wilson(right, 200))
    assert found["P6.recall", "paper"].value == pytest.approx(0.9725)
    assert found["P6.loss", "paper"].verdict.startswith("no verdict")


def test_counts_and_choices_agree_or_differ(left):
    found = table(left)
    assert found["P6.parameters", "paper"].kind == "agrees"
    assert found["P6.trainable_parameters", "paper"].kind == "differs"
    choices = {name: found[f"P5.{name}", "paper"].kind for name in ("units", "dropout")}
    assert choices == {"units": "agrees", "dropout": "differs"}
    assert found["P5.hidden_layers", "paper"].value == 1
    assert found["P5.seconds_per_epoch", "paper"].value == 1.0
    assert found["P6.seconds_per_epoch", "paper"].value == 2.0
    assert found["P6.seconds_per_epoch", "paper"].kind == "no"
    assert ("P5.units", "clean") not in found and ("P2.accuracy", "paper") not in found


def test_the_best_network_is_a_verdict_only_where_it_is_told_apart(left):
    found = table(left)
    paper_protocol, clean = (found["P4.accuracy", each] for each in ("paper", "clean"))
    assert paper_protocol.verdict == "differs (densenet201 is better, and told apart)"
    assert clean.verdict == "agrees (not told apart from densenet201)"
    assert clean.value == "resnet152 94.0 %, rank 2 of 2; first: densenet201 95.0 %"
    assert (clean.low, clean.high) == (0.92, 0.96)


@pytest.mark.parametrize("source", ["phantom", "stand-in", "undeclared"])
def test_other_images_and_reduced_runs_replicate_nothing(left, source):
    kinds = {key: measured.kind for key, measured in table(left, source).items()}
    of_networks = ("parameters", "trainable_parameters")
    for (key, _), kind in kinds.items():
        if key.partition(".")[2] not in (*of_networks, "seconds_per_epoch"):
            assert kind == "not", key
    reduced = "a reduced run (2 of 100 epochs at most)"
    hindrances = dict.fromkeys(("p6-paper", "p1-50", "p5-paper", "p4-paper"), reduced)
    held = table(left, "original", hindrances)
    for key in ("P6.accuracy", "P6.recall", "P5.units", "P4.accuracy"):
        assert held[key, "paper"].verdict == f"no verdict: {reduced}"
    assert held["P4.accuracy", "clean"].kind == "agrees"
    assert held["P6.parameters", "paper"].kind == "agrees"
    other = table(left, "original", {"p6-paper": "another network than the paper's (x)"})
    assert other["P6.parameters", "paper"].kind == "no"


def test_the_page_shows_claims_steps_and_what_is_missing(left, tmp_path):
    (tmp_path / "run").symlink_to(left)
    run = RunDirectory.open(tmp_path / "paper", {})
    settings = Settings(run.path, "trees", "original", weights=("imagenet", "resnet50=none"))
    every = plan.steps(settings)
    for path in left.iterdir():
        (run.path / path.name).symlink_to(path)
    wanted = [step for step in every if step.name in ("p4-clean", "p5-paper")]
    steps = {}
    for step in wanted:
        steps[step.name] = {
            "state": work.DONE, "command": step.command, "seconds": 90.0, "needs": {},
            "results": work.results(run.path, step),
        }  # fmt: skip
    steps["p3"] = {"state": work.FAILED, "reason": "no file <resnet50>", "command": ""}
    run.update_manifest(steps=steps, reduced={"p5-paper": "9 of 162 trials"})
    (run.path / "logs").mkdir()
    (run.path / "logs/export.txt").write_text("x\nChecked: 16 images, as the model\n")
    told = page.write(settings, every, "python -m replication.paper --manual_dir=/home/x/trees")
    text = (run.path / "index.html").read_text()
    assert "/home/x" not in text and "--manual_dir=DIR" in text
    assert text.count('class="state-done"') == 2 and "no file &lt;resnet50&gt;" in text
    assert "A reduced run is no reproduction" in text and "9 of 162 trials" in text
    assert "16 images, as the model" in text and "11 steps are missing" in text
    assert any("agrees (not told apart from densenet201)" in line for line in told)
    # P3 alone takes that network, and failed.
    assert not any(line.startswith("Random weights") for line in told)
    rows = pd.read_csv(run.path / "claims.csv")
    assert {*rows["step"]} == {"p4-clean", "p5-paper"}
    times = pd.read_csv(run.path / "times.csv").set_index("step")
    assert [*times.index] == [step.name for step in every]
    assert times.loc["p5-paper", "seconds"] == 90.0
    assert times.loc["p2", "state"] == work.WAITING
    assert all((run.path / link).exists() for link in re.findall(r'href="([^"#:]+)"', text)), (
        "a dead link"
    )
