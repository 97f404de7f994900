"""What a run says of its length: planned from a measurement, corrected as fits end."""

import dataclasses

import keras
import pytest

from replication.learning import recipes
from replication.runs import device as devices
from replication.runs import progress as run_progress
from replication.runs.progress import Fit, RunProgress

FITS = [Fit("stage 1", 10, 100.0), Fit("stage 2", 20, 3000.0)]


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests turn on."""
    now = [0.0]
    monkeypatch.setattr(run_progress.time, "perf_counter", lambda: now[0])
    return now


def test_a_slower_processor_takes_longer_and_says_so():
    fast, slow = (RunProgress(FITS, speed) for speed in (200.0, 20.0))
    assert slow.seconds == pytest.approx(10 * fast.seconds)
    assert len(fast.plan()) == 1 and "2 fits, at most 30 epochs, about" in fast.plan()[0]
    assert "more than the 4 min" in slow.plan()[1]


def test_what_is_left_follows_what_fits_took(clock):
    progress = RunProgress(FITS, 100.0, ending=False)
    first, second = progress._expected
    progress.callback(10, 100)
    assert progress.place() == "fit 1 of 2"
    clock[0] += 3 * first
    progress.finished()
    # The first fit took three times as long as planned, and so will the second.
    assert progress.left() == f"about {run_progress._duration(3 * second)} left"
    progress.callback(20, 100)
    assert progress.left() == f"about {run_progress._duration(3 * second)} left"
    assert progress.left(300.0) == "about 5 min left"
    assert progress.place() == "fit 2 of 2" and progress.is_under_way
    progress.finished()
    assert not progress.is_under_way


def test_without_a_speed_nothing_is_promised(clock):
    progress = RunProgress(FITS, None)
    assert progress.seconds is None and progress.plan() == ["Plan: 2 fits, at most 30 epochs"]
    progress.callback(10, 100)
    assert progress.left() == "" and progress.left(20.0) == ""
    clock[0] += 40
    progress.finished()
    assert progress.left() == "about 40 s left"


def test_the_work_of_a_fit_is_its_steps(monkeypatch):
    recipe = recipes.plan("paper", 2, phantoms=True)
    one = Fit.of("a", recipe, 100)
    other = Fit.of("a", dataclasses.replace(recipe, epochs=2 * recipe.epochs), 300)
    assert other.work == pytest.approx(6 * one.work)


def test_no_speed_is_measured_elsewhere_than_on_a_cpu(monkeypatch):
    policy = devices.configure()
    assert run_progress.measure_speed(policy) > 0
    assert run_progress.measure_speed(dataclasses.replace(policy, device="NVIDIA")) is None
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert run_progress.measure_speed(policy) is None


def test_a_budget_is_more_epochs():
    short, long = (recipes.plan("clean", 2, phantoms=True, minutes=m) for m in (None, 10))
    assert (short.epochs, long.epochs) == (4, 12)
    assert recipes.plan("clean", 2, phantoms=True, minutes=4) == short
