"""The whole paper: its plan, which results are valid, and the table of claims."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import command

from replication.measures import evaluation
from replication.measures.predictions import Predictions, jsonable
from replication.runs.directory import RunDirectory
from replication.whole_paper import claims, page, plan, work
from replication.whole_paper.plan import Cost, Settings, Step
from tfds_pap import files
from tfds_pap.errors import PapError
from tfds_pap.taxonomy import STAGE1_CLASSES, STAGE2_CLASSES

ROOT = Path(__file__).resolve().parent.parent
NAMES = [
    "audit", "p1-20", "p1-50", "p2", "p3", "p4-paper", "p4-clean",
    "p5-paper", "p5-clean", "p6-paper", "p6-clean", "defects", "scan", "export",
]  # fmt: skip
#: Without --ablate_defects.
USUAL = [name for name in NAMES if name != "defects"]

#: Of the test images of P6 as published, rows true, NILM to SCC.
P6_CONFUSION = [[199, 1, 0, 0], [0, 197, 2, 1], [0, 1, 191, 8], [0, 4, 5, 191]]

#: A step that takes no time: it writes its argument, after it found what an earlier try left.
FAKE = """
import pathlib, sys, time
place, what = pathlib.Path(sys.argv[1]), sys.argv[2]
place.mkdir(parents=True, exist_ok=True)
if what == "hang" and not (place / "begun").exists():
    (place / "begun").write_text("")
    time.sleep(600)
if what == "fail":
    sys.exit("fake: no file weights.h5 for resnet152")
(place / "result.csv").write_text(what if what != "hang" else "went on")
"""


# ---- the plan


def reference() -> dict[str, set[str]]:
    """The flags of each module, by the generated reference."""
    text = (ROOT / "docs/reference/flags.md").read_text()
    sections = re.findall(r"^`python -m (\S+)`\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return {
        module: set(re.findall(r"^\| `--(\w+)`", body, re.MULTILINE)) for module, body in sections
    }


@pytest.mark.parametrize(
    "settings",
    [
        Settings(Path("runs/x"), weights=("none",), backbones=plan.DRAWN_BACKBONES),
        Settings(Path("runs/x"), "trees", "original", "data", device=("--xla=off",)),
        Settings(Path("runs/x"), "trees", "original", "data", ablate_defects=True),
    ],
    ids=["drawn", "original", "with defects"],
)
@pytest.mark.parametrize("limits", [{}, {"p2": 3, "p4": ["resnet152"], "p5": 9, "defects": 2}])
def test_every_step_is_a_command_with_flags_that_it_has(settings, limits):
    every = plan.steps(settings, limits)
    assert [step.name for step in every] == (NAMES if settings.ablate_defects else USUAL)
    flags = reference()
    for step in every:
        given = [each for each in step.arguments if each.startswith("--")]
        names = {each[2:].partition("=")[0] for each in given}
        assert names <= flags[step.module], step.name
        assert len(names) == len(given), f"{step.name}: a flag twice"
        assert set(step.needs) <= {other.name for other in every[: every.index(step)]}
        written = [each for each in given if f"runs/x/{step.name}" in each]
        assert len(written) == 1, step.name
        assert all(pattern.startswith(f"{step.name}/") for pattern in step.results)


def test_a_limit_is_a_flag_of_its_step_alone():
    full, less = (plan.steps(Settings(Path("r")), limits) for limits in ({}, {"p2": 3, "p5": 9}))
    changed = [a.name for a, b in zip(full, less, strict=True) if a != b]
    assert changed == ["p2", "p5-paper", "p5-clean"]
    assert "--epochs=3" in less[3].arguments and "--max_trials=9" in less[7].arguments
    # A part of a grid in its own order would see the first heads alone.
    assert "--tuner=random" in less[7].arguments and "--tuner=grid" in full[7].arguments


def test_defects_are_measured_on_the_network_of_p6_and_follow_the_budget():
    settings = Settings(Path("r"), weights=("none", "vgg16=DIR"), backbones=("vgg16",), seed=3)
    settings = dataclasses.replace(settings, ablate_defects=True)
    (step,) = plan.selected(plan.steps(settings, {"defects": 7}), {"defects"}, ())
    # D7 is a spread over seeds: one seed has none.
    assert {"--backbone=vgg16", "--weights=DIR", "--seeds=3,4", "--epochs=7"} <= {*step.arguments}
    costs = {"defects": Cost(10, 100, 50), "export": Cost(5)}
    limits = plan.shorten(costs, 65)
    assert limits == {"defects": 25}
    assert plan.reductions(limits, costs) == {"defects": "25 of 50 epochs at most"}
    assert page.hindering(settings, [step], {}) == {
        "defects": "another network than the paper's (vgg16)"
    }


COSTS = {
    "p2": Cost(10, 1000, 100),
    "p4-paper": Cost(530, by={"a": 200, "b": 250, "c": 10, "d": 40}),
    "p4-clean": Cost(530, by={"a": 200, "b": 250, "c": 10, "d": 40}),
    "p5-paper": Cost(20, 324, 162),
    "export": Cost(5),
}


@pytest.mark.parametrize("budget", [2500, 2000, 1500, 1160, 1100, 700])
def test_what_a_budget_leaves_takes_no_longer(budget):
    limits = plan.shorten(COSTS, budget)
    seconds = sum(c.seconds(plan.limit_of(limits, name)) for name, c in COSTS.items())
    assert seconds <= budget
    full = sum(cost.fixed + cost.scaled for cost in COSTS.values())
    assert (limits == {}) == (budget >= full)
    # Backbones go only where a twentieth of the epochs is too long still, the first never.
    fits = budget >= 1095 + 0.05 * 1324
    assert ("p4" in limits) == (not fits)
    assert "p4" not in limits or limits["p4"][0] == "a"
    said = plan.reductions(limits, COSTS)
    if limits:
        assert said["p2"] == f"{limits['p2']} of 100 epochs at most"
        assert said.get("p5-paper", f"{limits.get('p5')} of 162 trials").endswith(" of 162 trials")


def test_short_steps_lose_nothing_to_long_ones():
    # 905 s are left to train: the search needs 324, which is less than half.
    assert plan.shorten(COSTS, 2000) == {"p2": 58}
    # 405 s: 202.5 each.
    assert plan.shorten(COSTS, 1500) == {"p2": 20, "p5": 101}


def test_the_costliest_backbones_go_first_and_two_stay():
    assert plan.shorten(COSTS, 700)["p4"] == ["a", "c", "d"]
    least = plan.shorten(COSTS, 1)
    assert least == {"p4": ["a", "c"], "p2": 5, "p5": 8}


def test_names_of_parts_stand_for_their_steps_and_unknown_ones_are_refused():
    every = plan.steps(Settings(Path("r")))
    assert plan.choose(["p4", "P2"], every, "only") == {"p4-paper", "p4-clean", "p2"}
    assert [step.name for step in plan.selected(every, {"p2", "audit"}, {"audit"})] == ["p2"]
    with pytest.raises(PapError, match=r"--skip=p7: no such step; expected some of audit, p1-20"):
        plan.choose(["p7"], every, "skip")


def test_weights_are_those_of_the_name_or_of_all():
    settings = Settings(Path("r"), weights=("resnet50=DIR", "none"))
    assert (settings.weights_of("resnet50"), settings.weights_of("vgg16")) == ("DIR", "none")
    assert Settings(Path("r")).weights_of("vgg16") == "imagenet"


def test_other_images_have_another_fingerprint(manual_dir, tmp_path):
    before = plan.fingerprint(str(manual_dir))
    assert before == plan.fingerprint(str(manual_dir)) and len(before) == 2
    (tmp_path / "DB_3").mkdir()
    with pytest.raises(PapError, match="no folder DB_4 in it"):
        plan.fingerprint(str(tmp_path))
    (tmp_path / "DB_4").mkdir()
    (tmp_path / "DB_4/1.jpg").write_bytes(b"one")
    one = plan.fingerprint(str(tmp_path))
    (tmp_path / "DB_4/1.jpg").write_bytes(b"two")
    two = plan.fingerprint(str(tmp_path))
    assert one["images of DB_3"] == two["images of DB_3"]
    assert one["images of DB_4"] != two["images of DB_4"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--only=p7"], "--only=p7: no such step; expected some of audit"),
        (["--skip=scann"], "--skip=scann: no such step"),
        (["--only=p2", "--skip=p2"], "--only and --skip leave no step"),
        (["--weights=nowhere"], "--weights=nowhere: no such file or folder"),
        (["--images=original"], "which is not given"),
        (["--manual_dir=."], "no folder DB_3 in it"),
    ],
)
def test_a_wrong_flag_is_answered_in_a_line(flags, said, tmp_path):
    done = command("replication.paper", *flags, cwd=tmp_path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_slow_is_imported_before_the_flags_are_checked():
    script = (
        "import sys; from replication import paper\n"
        "slow = {'tensorflow', 'keras', 'sklearn', 'pandas', 'statsmodels'} & {*sys.modules}\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- the work


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """A run directory, and what makes a step of `FAKE`."""
    (tmp_path / "fake_step.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    run = RunDirectory.open(tmp_path / "run", {})

    def step(name, what="done", needs=()):
        place = str(run.path / name)
        return Step(name, name, "fake_step", (place, what), (f"{name}/result.csv",), "", needs)

    return run, step


def why(run, step):
    return work.why_invalid(run.path, step, work.records(run))


def test_a_step_is_valid_once_it_ended_well(fakes):
    run, step = fakes
    one = step("one")
    assert why(run, one) == ""
    record = work.perform(run, one, 3.0)
    assert why(run, one) is None
    assert record["state"] == work.DONE and record["exit_status"] == 0
    assert record["tries"] == 1 and record["planned_seconds"] == 3.0
    assert record["processor_seconds"] > 0 and 1 < record["peak_memory_mib"] < 4000
    assert work.records(run)["one"]["command"] == f"python -m fake_step {run.path}/one done"


def test_what_was_changed_is_found_set_aside_and_made_again(fakes):
    run, step = fakes
    one = step("one")
    work.perform(run, one, None)
    result = run.path / "one/result.csv"
    result.write_text("better")
    assert why(run, one) == f"{result} is not what the step wrote"
    assert work.set_aside(run.path, one) == run.path / "one.aside-1"
    assert (run.path / "one.aside-1/result.csv").read_text() == "better"
    assert why(run, one) == f"{result} is missing"
    assert work.set_aside(run.path, one) is None
    work.perform(run, one, None)
    assert why(run, one) is None and result.read_text() == "done"
    # Of files that a user adds, such as further seeds, a step knows nothing.
    (run.path / "one/more.csv").write_text("")
    assert why(run, one) is None
    assert why(run, step("one", "other")).startswith("made by another command: python -m fake")


def test_a_step_on_other_results_of_what_it_needs_is_made_again(fakes):
    run, step = fakes
    one, two = step("one"), step("two", needs=("one",))
    work.perform(run, one, None)
    work.perform(run, two, None)
    assert why(run, two) is None
    changed = step("one", "changed")
    work.set_aside(run.path, one)
    work.perform(run, changed, None)
    assert why(run, changed) is None
    assert why(run, two) == "made from other results of one"


def test_a_failure_is_recorded_with_its_last_line(fakes):
    run, step = fakes
    record = work.perform(run, step("bad", "fail"), None)
    assert (record["state"], record["exit_status"]) == (work.FAILED, 1)
    assert record["reason"] == "fake: no file weights.h5 for resnet152"
    assert why(run, step("bad", "fail")) == ""
    assert record["reason"] in (run.path / "logs/bad.txt").read_text()
    nothing = Step("none", "", "fake_step", (str(run.path / "x"), "a"), ("none/*",), "")
    assert "left none of none/*" in work.perform(run, nothing, None)["reason"]


PERFORM = """
import json, sys
from replication.runs.directory import RunDirectory
from replication.whole_paper import work
from replication.whole_paper.plan import Step
run = RunDirectory.open(sys.argv[1], {})
place = str(run.path / "one")
step = Step("one", "", "fake_step", (place, "hang"), ("one/result.csv",), "")
print(json.dumps(work.perform(run, step, None)))
"""


def children(parent):
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(each) for each in listed]


def wait_for(condition):
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("killed", ["step", "command"])
def test_a_step_goes_on_after_kill_9(fakes, killed):
    run, _ = fakes
    # Its lock is this process's own.
    place = run.path.parent / "other"
    typed = [sys.executable, "-c", PERFORM, str(place)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(place.parent)])}
    begun = subprocess.Popen(typed, stdout=subprocess.PIPE, env=environment)
    wait_for((place / "one/begun").exists)
    (child,) = children(begun.pid)
    if killed == "step":
        os.kill(child, signal.SIGKILL)
        record = json.loads(begun.communicate()[0])
        assert record["reason"] == "ended by signal 9 (SIGKILL)"
    else:
        begun.kill()
        begun.communicate()
        # Without the command that began it, a step ends at once.
        wait_for(lambda: not Path(f"/proc/{child}").exists())
    again = subprocess.run(typed, capture_output=True, env=environment, check=True)
    record = json.loads(again.stdout)
    assert (record["state"], record["tries"]) == (work.DONE, 2)
    assert (place / "one/result.csv").read_text() == "went on"


def test_what_runs_apart_answers_fails_in_a_line_or_is_known_to_be_dead():
    assert work.apart(work.digest, {"a": "b"}) == work.digest({"a": "b"})
    with pytest.raises(PapError, match=r"^/nowhere/x: no such file$"):
        work.apart(files.read_json, Path("/nowhere/x"))
    with pytest.raises(PapError, match="abort: its process ended with status -6"):
        work.apart(os.abort)


def test_steps_are_run_skipped_made_again_and_left_out(fakes, capsys):
    run, step = fakes
    run.update_manifest(limits={})
    one, bad, third = step("one"), step("bad", "fail"), step("third", needs=("bad",))
    every, costs = [one, bad, third], dict.fromkeys(("one", "bad", "third"), Cost(1))

    def go():
        for each in every:
            work.make_valid(run, each, every, "[]", costs)
        told = capsys.readouterr().out
        return told, {name: record["state"] for name, record in work.records(run).items()}

    told, states = go()
    assert states == {"one": work.DONE, "bad": work.FAILED, "third": work.FAILED}
    assert "third: not begun, needs bad" in told and "[] one: done" in told
    (run.path / "one/result.csv").write_text("")
    told, states = go()
    assert "one: made again:" in told and "kept in" in told and states["one"] == work.DONE
    told, _ = go()
    assert "one: there and valid" in told and "$ python -m fake_step" in told.split("bad:")[1]


# ---- the claims


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


def test_what_hinders_a_verdict_is_found(tmp_path):
    settings = Settings(tmp_path, weights=("none", "mobilenetv2=DIR"), backbones=("mobilenetv2",))
    found = page.hindering(settings, plan.steps(settings), {"p2": "3 of 100 epochs at most"})
    assert found["p2"] == "a reduced run (3 of 100 epochs at most)"
    assert found["p3"] == "random weights (resnet50)"
    assert found["p6-clean"] == "another network than the paper's (mobilenetv2)"
    assert not {"audit", "p1-20", "p4-paper"} & {*found}


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
    assert [*times.index] == USUAL and times.loc["p5-paper", "seconds"] == 90.0
    assert times.loc["p2", "state"] == work.WAITING
    assert all((run.path / link).exists() for link in re.findall(r'href="([^"#:]+)"', text)), (
        "a dead link"
    )


def test_costs_are_measured_and_nothing_is_written(tmp_path, monkeypatch):
    from replication.whole_paper import estimate

    monkeypatch.chdir(tmp_path)
    settings = Settings(tmp_path / "run", data_dir=str(tmp_path / "data"), weights=("none",))
    monkeypatch.setattr(estimate._Measured, "new_features", lambda *_: 100.0)
    monkeypatch.setattr(estimate._Measured, "head", lambda *_: 1.0)
    names = ["audit", "p1-20", "defects", "export"]
    found = estimate.measure(settings, names, ("auto", "auto", False))
    assert [*found] == names
    # Two feeds; of two seeds 18 points of 30 epochs and 22 heads of 50.
    assert found["defects"].fixed == pytest.approx(30 + 2 * 100 + 2 * (18 * 0.6 + 22))
    assert found["defects"].amount == 9 and found["defects"].scaled > 0
    assert found["p1-20"].amount == 30 and 0 < found["p1-20"].scaled < 600
    assert not found["audit"].measured and found["audit"].fixed > found["export"].fixed / 10
    assert list(tmp_path.iterdir()) == []
