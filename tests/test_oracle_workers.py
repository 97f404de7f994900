"""Several workers of one search: leases, calls sent twice, and a chief that starts again."""

import pytest
from small_searches import (
    TUNERS,
    build_again,
    finish,
    points,
    ready,
    six_points,
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def grid(tmp_path):
    oracle = ready("grid", six_points(), tmp_path)
    oracle.clock = Clock()
    return oracle


@pytest.fixture
def as_chief(monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "8000")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")


@pytest.mark.parametrize("tuner", TUNERS)
def test_six_workers_have_work_at_once(tuner, tmp_path):
    oracle = ready(tuner, six_points(), tmp_path, max_trials=50)
    trials = [oracle.create_trial(f"worker_{number}") for number in range(6)]
    assert [trial.status for trial in trials] == ["RUNNING"] * 6
    assert len({*points(oracle)}) == 6


def test_a_worker_that_started_again_gets_its_own_trial(grid):
    trial = grid.create_trial("worker")
    grid.update_trial(trial.trial_id, {"score": 1.0})
    again = grid.create_trial("worker")
    assert again.trial_id == trial.trial_id
    assert not again.metrics.exists("score")
    finish(grid, again, 2.0)
    assert grid.trials[trial.trial_id].score == 2.0


def test_a_silent_worker_loses_its_trial_and_a_heard_one_does_not(grid):
    lost, kept = grid.create_trial("lost"), grid.create_trial("kept")
    grid.clock.now = 50
    grid.get_trial(kept.trial_id)
    grid.clock.now = 61
    assert grid.expire_leases(60) == [lost.trial_id]
    assert grid.expire_leases(60) == []
    assert grid.tuner_ids == {"kept"}
    assert grid.create_trial("kept").trial_id == kept.trial_id
    assert grid.create_trial("other").trial_id == lost.trial_id
    assert grid.create_trial("third").trial_id == "0002"


@pytest.mark.parametrize("is_retaken", [False, True])
@pytest.mark.parametrize("reported_before", [False, True])
def test_the_first_result_of_a_trial_counts(grid, is_retaken, reported_before):
    late = grid.create_trial("late")
    if reported_before:
        grid.update_trial(late.trial_id, {"score": 5.0})
    grid.clock.now = 100
    assert grid.expire_leases(60) == [late.trial_id]
    second = grid.create_trial("second") if is_retaken else None
    finish(grid, late, 1.0)
    if second:
        assert second.trial_id == late.trial_id
        finish(grid, second, 2.0)
        finish(grid, second, 3.0, status="FAILED")
    ended = grid.trials[late.trial_id]
    # Without another worker, it is still the same run that goes on.
    assert ended.score == (5.0 if reported_before and not is_retaken else 1.0)
    assert ended.status == "COMPLETED"
    assert grid.end_order == [late.trial_id]
    assert grid.create_trial("third").trial_id == "0001"
    assert grid.create_trial("second").trial_id == "0002"


def test_a_call_that_was_sent_twice_counts_once(grid):
    trial = grid.create_trial("worker")
    grid.update_trial(trial.trial_id, {"score": 1.0})
    grid.update_trial(trial.trial_id, {"score": 3.0})
    grid.update_trial(trial.trial_id, {"score": 0.5}, step=1)
    trial.status = "COMPLETED"
    grid.end_trial(trial)
    grid.end_trial(trial)
    assert grid.trials[trial.trial_id].score == 1.0
    assert grid.end_order == [trial.trial_id]


def run_all(oracle, name):
    """Runs trials as long as there are any; returns why there are none."""
    while (trial := oracle.create_trial(name)).status == "RUNNING":
        finish(oracle, trial)
    return trial.status


@pytest.mark.parametrize("tuner", TUNERS)
def test_idle_workers_wait_to_take_over(tuner, tmp_path, as_chief):
    options = {"max_trials": 6 if tuner != "hyperband" else None}
    oracle = ready(tuner, six_points(), tmp_path, **options)
    oracle.clock = Clock()
    lost = oracle.create_trial("lost")
    assert run_all(oracle, "worker") == "IDLE"
    assert len({*points(oracle)}) == 6
    assert not oracle.is_over()
    oracle.clock.now = 61
    assert oracle.create_trial("worker").status == "IDLE"
    assert oracle.expire_leases(60) == [lost.trial_id]
    assert not oracle.is_over()
    assert run_all(oracle, "worker") == "STOPPED"
    assert oracle.is_over()
    assert sorted(oracle.end_order) == oracle.start_order
    assert lost.trial_id in oracle.end_order


def test_a_search_is_over_without_anyone_to_ask(grid, as_chief):
    assert not grid.is_over()
    for number in range(6):
        finish(grid, grid.create_trial("worker"))
        grid.clock.now += 100
        grid.expire_leases(60)
        # The next trial is drawn once, and waits.
        assert grid.is_over() == grid.is_over() == (number == 5)
        assert len(grid.trials) == min(number + 2, 6)
    assert grid.end_order == grid.start_order


def test_a_chief_that_started_again_leaves_workers_their_trials(grid, tmp_path, as_chief):
    trials = [grid.create_trial(name) for name in ("first", "second", "idle")]
    finish(grid, trials[2])
    grid.update_trial(trials[0].trial_id, {"score": 7.0})
    chief = build_again(tmp_path)
    chief.clock = Clock()
    assert chief.resume()
    assert {n: t.trial_id for n, t in chief.ongoing_trials.items()} == {
        "first": "0000",
        "second": "0001",
    }
    trials[0].status = "COMPLETED"
    chief.end_trial(trials[0])
    assert chief.trials["0000"].score == 7.0
    chief.clock.now = 61
    assert chief.expire_leases(60) == ["0001"]
    assert chief.create_trial("idle").trial_id == "0001"


def test_a_process_on_its_own_runs_unfinished_trials_again_at_once(grid, tmp_path):
    for name in ("first", "second", "third"):
        trial = grid.create_trial(name)
    finish(grid, trial)
    alone = build_again(tmp_path)
    assert alone.resume()
    assert [alone.create_trial(n).trial_id for n in ("a", "b", "c")] == ["0000", "0001", "0003"]


def test_workers_are_stopped_where_a_process_on_its_own_is_told(grid, as_chief):
    for _ in range(3):
        trial = grid.create_trial("worker")
        trial.status = "INVALID"
        grid.end_trial(trial)
    assert grid.create_trial("worker").status == "STOPPED"
    assert grid.is_over()
    assert grid.given_up == (
        "3 trials in a row failed, 0002 with: see the output of its worker; the same command runs "
        "them again"
    )
