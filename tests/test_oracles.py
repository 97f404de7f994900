"""Oracles against listed truths, KerasTuner's own draws, kills at every write, and dead workers."""

import itertools
import json
import math
import random
import threading
from pathlib import Path

import keras_tuner
import numpy as np
import pytest
import sklearn.gaussian_process
from keras_tuner.engine import trial as trial_module

from finetune import space
from finetune.search import finite_space, oracles
from finetune.tuning import Tuning
from tfds_pap import files
from tfds_pap.errors import PapError

TUNERS = ("hyperband", "bayesian", "random", "grid")
SCORE = keras_tuner.Objective("score", "max")


class Killed(BaseException):
    """Passes by every `except Exception`, as a kill does."""


class Tuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Runs trials whose score is a function of their values."""

    def __init__(self, oracle, directory, score=None):
        self.score = score or value_of
        self.ran = []
        oracle.verbose = 0
        super().__init__(oracle, directory=str(directory), project_name="trials")

    def _populate_initial_space(self):
        self.oracle.resume()

    def save(self):
        self.oracle.save()

    def run_trial(self, trial):
        metrics = {"score": self.score(trial.hyperparameters.values)}
        self.ran.append(trial.trial_id)
        return metrics


def value_of(values):
    """Different for every point and number of epochs; the better points stay the better ones."""
    text = json.dumps({k: v for k, v in sorted(values.items()) if not k.startswith("tuner/")})
    return random.Random(text).random() + values.get("tuner/epochs", 0)


def six_points():
    hp = keras_tuner.HyperParameters()
    hp.Choice("units", [16, 32, 64])
    hp.Choice("views", ["1", "8"])
    return hp


def conditional():
    """7 points: 3 x 2 with SGD, 1 with Adam."""
    hp = keras_tuner.HyperParameters()
    hp.Choice("optimizer", ["sgd", "adam"])
    with hp.conditional_scope("optimizer", ["sgd"]):
        hp.Choice("momentum", [0.0, 0.5, 0.9])
        hp.Boolean("nesterov")
    return hp


def paper():
    hp = keras_tuner.HyperParameters()
    space.paper(hp)
    return hp


def endless():
    """Hardly any draw gets past the first few points."""
    hp = keras_tuner.HyperParameters()
    hp.Int("depth", 1, 9)
    with hp.conditional_scope("depth", [9]):
        hp.Float("rate", 0.0, 1.0)
    return hp


def build(tuner, hp, *, seed=0, max_trials=None, max_epochs=9, factor=3, objective=SCORE):
    return oracles.build(
        tuner,
        hp,
        objective,
        seed=seed,
        max_trials=max_trials,
        max_epochs=max_epochs,
        factor=factor,
    )


def search(tuner, hp, directory, score=None, **options):
    made = Tuner(build(tuner, hp, **options), directory, score)
    made.search()
    return made


def ready(tuner, hp, directory, **options):
    """An oracle to be asked by hand."""
    return Tuner(build(tuner, hp, **options), directory).oracle


def finish(oracle, trial, score=None, status="COMPLETED"):
    """Reports as a worker does, which has a copy of the trial."""
    trial = trial_module.Trial.from_state(trial.get_state())
    value = value_of(trial.hyperparameters.values) if score is None else score
    oracle.update_trial(trial.trial_id, {"score": value})
    trial.status = status
    oracle.end_trial(trial)


def points(oracle):
    """What was tried, without promotions."""
    return [
        tuple((k, v) for k, v in sorted(t.hyperparameters.values.items()) if "tuner/" not in k)
        for t in oracle.trials.values()
        if "tuner/trial_id" not in t.hyperparameters.values
    ]


def ranking(oracle):
    ended = [oracle.trials[trial_id] for trial_id in oracle.end_order]
    return sorted((t.score, t.trial_id, sorted(t.hyperparameters.values.items())) for t in ended)


# Finite spaces


@pytest.mark.parametrize(("hp", "count"), [(six_points(), 6), (conditional(), 7), (paper(), 162)])
def test_every_point_is_listed_once_and_is_what_random_draws_give(hp, count):
    listed = list(finite_space.finite_points(hp))
    assert len(listed) == oracles.count_points(hp) == finite_space.count_grid_points(hp) == count
    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=SCORE, hyperparameters=hp, seed=1, max_trials=1
    )
    drawn = [oracle._random_values() for _ in range(20 * count)]
    assert {frozenset(point.items()) for point in listed} == {frozenset(d.items()) for d in drawn}


def test_a_grid_has_the_points_of_kerastuner_and_begins_with_all_defaults(tmp_path):
    hp = conditional()
    hp.Float("rate", 1e-3, 1.0, sampling="log")
    hp.Int("size", 2, 16, step=2, sampling="log")
    plain = keras_tuner.oracles.GridSearchOracle(objective=SCORE, hyperparameters=hp.copy())
    plain.verbose = 0
    plain._set_project_dir(str(tmp_path), "plain")
    theirs = []
    while (trial := plain.create_trial("tuner")).status == "RUNNING":
        theirs.append(trial.hyperparameters.values)
        finish(plain, trial, 1.0)
    ours = list(finite_space.grid_points(hp))
    assert len(ours) == len(theirs) == finite_space.count_grid_points(hp) == 7 * 11 * 4
    assert {frozenset(point.items()) for point in ours} == {frozenset(p.items()) for p in theirs}
    assert ours[0] == {name: hp.values[name] for name in ours[0]}
    assert all(isinstance(point["size"], int) for point in ours)


def test_what_is_finite():
    extended = space.find("extended", Tuning()).hyperparameters()
    assert oracles.count_points(extended) is None
    assert oracles.finite_points(extended) is None
    assert oracles.count_points(endless()) is None
    hp = keras_tuner.HyperParameters()
    hp.Int("layers", 1, 100, sampling="log")
    hp.Float("same", 0.5, 0.5)
    hp.Float("stepped", 0.0, 0.8, step=0.1)
    hp.Fixed("fixed", 3)
    with hp.conditional_scope("layers", [101]):
        hp.Float("never", 0.0, 1.0)
    assert oracles.count_points(hp) == 100 * 9
    for number in range(30):
        hp.Choice(f"c{number}", list(range(10)))
    assert oracles.count_points(hp) == 900 * 10**30


@pytest.mark.parametrize("hp", [six_points(), conditional()], ids=["plain", "conditional"])
@pytest.mark.parametrize("tuner", TUNERS)
def test_a_small_space_is_exhausted_and_the_search_ends(tuner, hp, tmp_path):
    made = search(tuner, hp, tmp_path, max_trials=50, factor=2)
    expected = {tuple(sorted(point.items())) for point in finite_space.finite_points(hp)}
    assert sorted(points(made.oracle)) == sorted(expected)
    assert made.ran == made.oracle.end_order == made.oracle.start_order


def test_an_endless_space_never_ends_a_search_early(tmp_path):
    made = search("random", endless(), tmp_path, max_trials=60)
    assert len({*points(made.oracle)}) == 60


@pytest.mark.parametrize("tuner", TUNERS[:3])
def test_every_seed_counts_zero_too(tuner, tmp_path):
    first, again, other = (
        ranking(search(tuner, paper(), tmp_path / name, seed=seed, max_trials=9).oracle)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again != other


def test_build_refuses_what_never_ends_and_unknown_names():
    with pytest.raises(PapError, match="max_trials: expected a number, for tuner=bayesian"):
        build("bayesian", endless())
    with pytest.raises(PapError, match="tuner=best: expected one of hyperband, bayesian"):
        build("best", six_points())


# Plan


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 9},
        {"max_epochs": 30},
        {"max_epochs": 8, "factor": 2},
        {"max_epochs": 1},
        {"max_epochs": 30, "max_trials": 50},
    ],
    ids=str,
)
@pytest.mark.parametrize("hp", [six_points(), conditional(), paper()], ids=["6", "7", "162"])
@pytest.mark.parametrize("tuner", ["hyperband", "random", "grid"])
def test_a_search_does_what_was_planned(tuner, hp, options, tmp_path):
    asked = {"max_epochs": 9, "factor": 3, "max_trials": None, **options}
    made = search(tuner, hp, tmp_path, **asked)
    planned = oracles.plan(tuner, hp, **asked)
    ran, epochs = {}, 0
    for trial in made.oracle.trials.values():
        values = {"tuner/epochs": asked["max_epochs"], **trial.hyperparameters.values}
        key = (-values.get("tuner/bracket", 0), values.get("tuner/round", 0))
        ran.setdefault(key, []).append(values["tuner/epochs"])
        epochs += values["tuner/epochs"] - values.get("tuner/initial_epoch", 0)
    brackets = [
        [(len(each), *set(each)) for _, each in sorted(group)]
        for _, group in itertools.groupby(sorted(ran.items()), key=lambda item: item[0][0])
    ]
    assert (planned.trials, planned.epochs) == (len(made.ran), epochs)
    assert planned.rounds == brackets


def test_the_plan_of_an_endless_space_is_that_of_hyperband():
    # Li et al. 2018, table 1, but for KerasTuner's rounding up of brackets.
    planned = oracles.plan("hyperband", endless(), max_trials=None, max_epochs=81, factor=3)
    assert planned.rounds[0] == [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)]
    assert planned.rounds[-1] == [(5, 81)]
    small = oracles.plan("hyperband", six_points(), max_trials=None, max_epochs=9, factor=3)
    assert small.rounds == [[(6, 1), (2, 3), (1, 9)]]
    assert small.epochs == 6 * 1 + 2 * 2 + 1 * 6


# Hyperband


def work(oracle, workers, rng, fails=lambda trial_id: False):
    """Several workers that end in any order."""
    running = {}
    while True:
        for name in range(workers):
            if name not in running:
                trial = oracle.create_trial(str(name))
                if trial.status == "RUNNING":
                    running[name] = trial
        if not running:
            return
        trial = running.pop(rng.choice(sorted(running)))
        failed = fails(trial.trial_id)
        finish(oracle, trial, status="INVALID" if failed else "COMPLETED")


@pytest.mark.parametrize("workers", [1, 3, 20])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_best_that_did_not_fail_are_promoted(workers, share, tmp_path):
    rng = random.Random(workers)
    oracle = ready("hyperband", paper(), tmp_path)
    oracle.max_consecutive_failed_trials = 1000
    failing = {f"{number:04d}" for number in range(200) if rng.random() < share}
    work(oracle, workers, rng, failing.__contains__)
    rounds = {}
    for trial in oracle.trials.values():
        values = trial.hyperparameters.values
        rounds.setdefault((values["tuner/bracket"], values["tuner/round"]), []).append(trial)
    assert len(rounds) >= 3
    for (bracket, index), trials in rounds.items():
        completed = [trial for trial in trials if trial.status == "COMPLETED"]
        best = sorted(completed, key=lambda trial: -trial.score)
        expected = best[: math.ceil(len(trials) / 3)] if index < bracket else []
        promoted = {
            trial.hyperparameters.values["tuner/trial_id"]
            for trial in rounds.get((bracket, index + 1), [])
        }
        assert promoted == {trial.trial_id for trial in expected}
        assert {trial.trial_id for trial in trials} & failing == {
            trial.trial_id for trial in trials if trial.status == "FAILED"
        }
    assert sum(len(trials) for (_, index), trials in rounds.items() if not index) == 9 + 5 + 3


# Bayesian


def test_bayesian_search_proposes_the_optimum_of_the_acquisition(tmp_path):
    hp = paper()
    oracle = ready("bayesian", hp, tmp_path)
    for _ in range(oracle.num_initial_points):
        finish(oracle, oracle.create_trial("tuner"))
    order = {p.name: list(p.values) for p in hp.space}

    def vector(values):
        return [(order[n].index(values[n]) + 0.5) / len(order[n]) for n in order]

    done = [t for t in oracle.trials.values()]
    process = sklearn.gaussian_process.GaussianProcessRegressor(
        sklearn.gaussian_process.kernels.Matern(nu=2.5),
        n_restarts_optimizer=20,
        normalize_y=True,
        alpha=1e-4,
        random_state=0,
    )
    process.fit(
        np.array([vector(t.hyperparameters.values) for t in done]), [-t.score for t in done]
    )
    tried = {str(sorted(t.hyperparameters.values.items())) for t in done}
    untried = [
        values
        for values in (
            dict(zip(order, each, strict=True)) for each in itertools.product(*order.values())
        )
        if str(sorted(values.items())) not in tried
    ]
    mean, deviation = process.predict(np.array([vector(v) for v in untried]), return_std=True)
    expected = untried[int(np.argmin(mean - 2.6 * deviation))]
    assert oracle.create_trial("tuner").hyperparameters.values == expected


def test_a_large_space_is_searched_as_kerastuner_does_but_nothing_is_tried_twice(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(oracles, "_LISTED_POINTS", 0)
    made = search("bayesian", six_points(), tmp_path, max_trials=50)
    assert len({*points(made.oracle)}) == len(made.ran) == 6


def test_a_trial_that_waits_for_a_worker_is_not_taken_for_a_scored_one(tmp_path):
    oracle = ready("bayesian", six_points(), tmp_path, max_trials=6)
    for _ in range(oracle.num_initial_points):
        finish(oracle, oracle.create_trial("tuner"))
    oracle.create_trial("lost")
    oracle.clock = lambda: math.inf
    assert oracle.expire_leases(60) == ["0003"]
    points_, scores = oracle._vectorize_trials()
    assert points_.shape == (4, 2)
    assert np.all(np.isfinite(scores))
    assert list(scores[:3]) == [-oracle.trials[f"{n:04d}"].score for n in range(3)]


def test_half_of_a_short_search_is_not_random():
    extended = space.find("extended", Tuning()).hyperparameters()
    assert build("bayesian", extended, max_trials=20).num_initial_points == 10
    assert build("bayesian", paper(), max_trials=40).num_initial_points == 12


# Failures


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


# Kills


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


def build_again(directory, tuner="grid"):
    oracle = build(tuner, six_points())
    oracle.verbose = 0
    oracle._set_project_dir(str(directory), "trials")
    return oracle


# Workers


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
