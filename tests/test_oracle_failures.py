"""Searches whose trials fail, whose files are lost, or that are killed at every write."""

import math
import threading
from pathlib import Path

import pytest
import sklearn.gaussian_process
from keras_tuner.engine import trial as trial_module
from small_searches import (
    TUNERS,
    Killed,
    Tuner,
    build,
    build_again,
    points,
    ranking,
    ready,
    search,
    six_points,
    value_of,
)

from finetune.search import oracles
from tfds_pap import files
from tfds_pap.errors import PapError


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tuner", TUNERS)
def test_a_score_that_is_no_number_fails_its_trial_only(tuner, value, tmp_path):
    def score(values):
        return value if values == {**values, "units": 32, "views": "8"} else value_of(values)

    made = search(tuner, six_points(), tmp_path, score, max_trials=50)
    failed = [t for t in made.oracle.trials.values() if t.status == "FAILED"]
    assert [t.message for t in failed] == [f"score: expected a finite number, got {value:g}"]
    assert failed[0].score is None
    assert len(points(made.oracle)) == 6
    assert all(t.status == "COMPLETED" for t in made.oracle.get_best_trials(5))
    assert ranking_is_readable(tmp_path)


def ranking_is_readable(directory):
    for path in (directory / "trials").glob("trial_*/trial.json"):
        trial_module.Trial.load(str(path))
    return files.read_json(directory / "trials" / "oracle.json")["end_order"]


@pytest.mark.parametrize("tuner", TUNERS)
def test_three_failures_end_the_search_and_the_same_command_goes_on(tuner, tmp_path):
    options = {"max_trials": 6 if tuner != "hyperband" else None}
    undisturbed = search(tuner, six_points(), tmp_path / "whole", **options)

    def broken(values):
        if len(made.ran) >= 2:
            raise OSError("device:\nno space left")
        return value_of(values)

    for expected in (["0000", "0001"], []):
        made = Tuner(build(tuner, six_points(), **options), tmp_path / "broken", broken)
        made.ran += ["before"] * (not expected) * 2
        with pytest.raises(PapError) as error:
            made.search()
        assert str(error.value) == (
            "3 trials in a row failed, 0004 with: no space left; the same command runs them again"
        )
        assert [name for name in made.ran if name != "before"] == expected
    again = search(tuner, six_points(), tmp_path / "broken", **options)
    assert ranking(again.oracle) == ranking(undisturbed.oracle)
    assert again.ran == undisturbed.ran[2:]


def test_a_failure_among_others_is_final(tmp_path):
    def broken(values):
        if values["views"] == "8":
            raise OSError("no space left")
        return value_of(values)

    made = search("grid", six_points(), tmp_path, broken)
    assert [made.oracle.trials[name].status for name in made.oracle.end_order] == [
        "COMPLETED",
        "FAILED",
    ] * 3
    again = search("grid", six_points(), tmp_path)
    assert again.ran == []
    assert again.oracle.end_order == made.oracle.end_order


def test_a_lock_is_free_after_an_error(tmp_path, monkeypatch):
    oracle = ready("random", six_points(), tmp_path)
    trial = oracle.create_trial("first")

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as context:
        context.setattr(files, "write_atomically", full)
        for call in (
            lambda: oracle.create_trial("second"),
            lambda: oracle.update_trial(trial.trial_id, {"score": 1.0}),
            lambda: oracle.end_trial(trial),
        ):
            with pytest.raises(OSError, match="no space"):
                call()
    thread = threading.Thread(target=oracle.create_trial, args=["third"], daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert not thread.is_alive()


class Writes:
    """Counts writes, and is killed in the midst of one of them."""

    def __init__(self, monkeypatch, kill_at=None):
        self.count = 0
        write_bytes = Path.write_bytes

        def write(path, content):
            self.count += 1
            if self.count == kill_at:
                write_bytes(path, content[: len(content) // 2])
                raise Killed
            return write_bytes(path, content)

        monkeypatch.setattr(Path, "write_bytes", write)


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_kill_at_any_write_changes_nothing(tuner, tmp_path, monkeypatch):
    # A quick process does: what it proposes must only be the same again.
    quick = sklearn.gaussian_process.GaussianProcessRegressor
    monkeypatch.setattr(oracles.BayesianOracle, "_make_gpr", lambda _: quick(optimizer=None))
    options = {"max_trials": 6 if tuner != "hyperband" else None, "max_epochs": 3}
    with monkeypatch.context() as context:
        writes = Writes(context)
        undisturbed = search(tuner, six_points(), tmp_path / "whole", **options)
    assert writes.count >= 6 * 5
    for kill_at in range(1, writes.count + 1):
        directory = tmp_path / str(kill_at)
        first = Tuner(build(tuner, six_points(), **options), directory)
        with monkeypatch.context() as context:
            Writes(context, kill_at)
            with pytest.raises(Killed):
                first.search()
        second = search(tuner, six_points(), directory, **options)
        assert ranking(second.oracle) == ranking(undisturbed.oracle), kill_at
        assert second.oracle.end_order == undisturbed.oracle.end_order, kill_at
        # What ended is not run again; what did not is run once more.
        assert {*first.ran} & {*second.ran} <= {*first.ran[-1:]} - {*first.oracle.end_order}, (
            kill_at
        )
        assert {*first.ran} | {*second.ran} == {*undisturbed.ran}, kill_at
        assert len({*second.ran}) == len(second.ran), kill_at


def test_a_search_that_is_killed_over_and_over_comes_to_its_end(tmp_path, monkeypatch):
    undisturbed = search("hyperband", six_points(), tmp_path / "whole")
    kills = 0
    while True:
        made = Tuner(build("hyperband", six_points()), tmp_path / "killed")
        with monkeypatch.context() as context:
            Writes(context, kill_at=7)
            try:
                made.search()
                break
            except Killed:
                kills += 1
    assert kills >= 5
    assert ranking(made.oracle) == ranking(undisturbed.oracle)


def test_a_file_that_is_lost_is_named(tmp_path):
    search("grid", six_points(), tmp_path)
    (tmp_path / "trials" / "trial_0003" / "trial.json").unlink()
    with pytest.raises(PapError, match=r"trial_0003/trial\.json: no such file"):
        ready("grid", six_points(), tmp_path)
    (tmp_path / "trials" / "oracle.json").write_text("{")
    with pytest.raises(PapError, match=r"oracle\.json: expected JSON"):
        ready("grid", six_points(), tmp_path)


def test_a_new_directory_holds_no_search(tmp_path):
    oracle = ready("grid", six_points(), tmp_path)
    assert not oracle.resume()
    oracle.create_trial("tuner")
    assert build_again(tmp_path).resume()
