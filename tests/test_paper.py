"""The whole paper: its plan, what a budget leaves of it, and what it costs."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command

from replication.whole_paper import budget, page, plan
from replication.whole_paper.budget import Cost
from replication.whole_paper.plan import Settings
from tfds_pap import tree_builder
from tfds_pap.errors import PapError

ROOT = Path(__file__).resolve().parent.parent
NAMES = [
    "audit", "p1-20", "p1-50", "p2", "p3", "p4-paper", "p4-clean",
    "p5-paper", "p5-clean", "p6-paper", "p6-clean", "defects", "scan", "export",
]  # fmt: skip
#: Without --ablate_defects.
USUAL = [name for name in NAMES if name != "defects"]


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
        Settings(Path("runs/x"), engine="onnx"),
    ],
    ids=["drawn", "original", "with defects", "onnx"],
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


def test_an_engine_computes_the_features_of_p4_and_p5_alone():
    plain, onnx = (plan.steps(Settings(Path("r"), engine=name)) for name in ("auto", "onnx"))
    added = {a.name: {*b.arguments} - {*a.arguments} for a, b in zip(plain, onnx, strict=True)}
    assert {name for name, flag in added.items() if flag == {"--engine=onnx"}} == {
        f"{part}-{protocol}" for part in ("p4", "p5") for protocol in plan.PROTOCOLS
    }
    assert sum(map(bool, added.values())) == 4


def test_defects_are_measured_on_the_network_of_p6_and_follow_the_budget():
    settings = Settings(Path("r"), weights=("none", "vgg16=DIR"), backbones=("vgg16",), seed=3)
    settings = dataclasses.replace(settings, ablate_defects=True)
    (step,) = plan.selected(plan.steps(settings, {"defects": 7}), {"defects"}, ())
    # D7 is a spread over seeds: one seed has none.
    assert {"--backbone=vgg16", "--weights=DIR", "--seeds=3,4", "--epochs=7"} <= {*step.arguments}
    costs = {"defects": Cost(10, 100, 50), "export": Cost(5)}
    limits = budget.shorten(costs, 65)
    assert limits == {"defects": 25}
    assert budget.reductions(limits, costs) == {"defects": "25 of 50 epochs at most"}
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


@pytest.mark.parametrize("allowed", [2500, 2000, 1500, 1160, 1100, 700])
def test_what_a_budget_leaves_takes_no_longer(allowed):
    limits = budget.shorten(COSTS, allowed)
    seconds = sum(c.seconds(budget.limit_of(limits, name)) for name, c in COSTS.items())
    assert seconds <= allowed
    full = sum(cost.fixed + cost.scaled for cost in COSTS.values())
    assert (limits == {}) == (allowed >= full)
    # Backbones go only where a twentieth of the epochs is too long still, the first never.
    fits = allowed >= 1095 + 0.05 * 1324
    assert ("p4" in limits) == (not fits)
    assert "p4" not in limits or limits["p4"][0] == "a"
    said = budget.reductions(limits, COSTS)
    if limits:
        assert said["p2"] == f"{limits['p2']} of 100 epochs at most"
        assert said.get("p5-paper", f"{limits.get('p5')} of 162 trials").endswith(" of 162 trials")


def test_short_steps_lose_nothing_to_long_ones():
    # 905 s are left to train: the search needs 324, which is less than half.
    assert budget.shorten(COSTS, 2000) == {"p2": 58}
    # 405 s: 202.5 each.
    assert budget.shorten(COSTS, 1500) == {"p2": 20, "p5": 101}


def test_the_costliest_backbones_go_first_and_two_stay():
    assert budget.shorten(COSTS, 700)["p4"] == ["a", "c", "d"]
    least = budget.shorten(COSTS, 1)
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


def test_what_an_audit_takes_is_measured_on_drawn_cells():
    from replication.whole_paper import estimate

    assert 0 == estimate._audited_seconds("off") < estimate._audited_seconds("fast") < 1


def test_every_step_reads_the_audit_of_the_first(tmp_path):
    steps = plan.steps(Settings(tmp_path, ablate_defects=True))
    asked = {step.name: [word for word in step.arguments if "--audit" in word] for step in steps}
    assert not asked.pop("scan") and not asked.pop("export")
    assert set(map(tuple, asked.values())) == {("--audit=full",)}


def test_what_hinders_a_verdict_is_found(tmp_path):
    settings = Settings(tmp_path, weights=("none", "mobilenetv2=DIR"), backbones=("mobilenetv2",))
    found = page.hindering(settings, plan.steps(settings), {"p2": "3 of 100 epochs at most"})
    assert found["p2"] == "a reduced run (3 of 100 epochs at most)"
    assert found["p3"] == "random weights (resnet50)"
    assert found["p6-clean"] == "another network than the paper's (mobilenetv2)"
    assert not {"audit", "p1-20", "p4-paper"} & {*found}


def test_costs_are_measured_and_nothing_is_written(tmp_path, monkeypatch):
    from replication.whole_paper import estimate

    monkeypatch.chdir(tmp_path)
    settings = Settings(tmp_path / "run", data_dir=str(tmp_path / "data"), weights=("none",))
    monkeypatch.setattr(estimate._Measured, "new_features", lambda *_: 100.0)
    monkeypatch.setattr(estimate._Measured, "head", lambda *_: 1.0)
    monkeypatch.setattr(estimate, "_audited_seconds", lambda effort: 0.5)
    names = ["audit", "p1-20", "defects", "export"]
    found = estimate.measure(settings, names, ("auto", "auto", False))
    assert [*found] == names
    # Two feeds; of two seeds 18 points of 30 epochs and 22 heads of 50.
    assert found["defects"].fixed == pytest.approx(30 + 2 * 100 + 2 * (18 * 0.6 + 22))
    assert found["defects"].amount == 9 and found["defects"].scaled > 0
    assert found["p1-20"].amount == 30 and 0 < found["p1-20"].scaled < 600
    assert found["audit"].measured and not found["export"].measured
    # Two classes and four, as many as are drawn; the more, the dearer is each.
    counts = [
        (2 if stage == 1 else 4) * sum(counts.values())
        for stage, counts in tree_builder._PHANTOM_COUNTS.items()
    ]
    looked = sum(0.5 * count * (1 + count / 2_700) for count in counts)
    assert found["audit"].fixed == pytest.approx(20 + looked)
    # Without that step the first that looks at a stage does it, and the served model never.
    names = ["p1-20", "p1-50", "p6-clean", "defects", "export"]
    alone = estimate.measure(settings, names, ("auto", "auto", False))
    of_stage = [0.5 * count * (1 + count / 2_700) for count in counts]
    assert alone["p1-20"].fixed - found["p1-20"].fixed == pytest.approx(of_stage[0])
    assert alone["p1-50"].fixed == found["p1-20"].fixed
    assert alone["p6-clean"].fixed > of_stage[1]
    assert alone["defects"].fixed == found["defects"].fixed
    assert alone["export"].fixed == found["export"].fixed
    assert list(tmp_path.iterdir()) == []
