"""The whole paper: which results of its steps are valid, and what a failure or a kill leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replication.runs.directory import RunDirectory
from replication.whole_paper import work
from replication.whole_paper.budget import Cost
from replication.whole_paper.plan import Step
from tfds_pap import files
from tfds_pap.errors import PapError

ROOT = Path(__file__).resolve().parent.parent

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
