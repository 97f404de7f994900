"""What oracles propose, against listed truths and KerasTuner's own draws."""

import itertools
import math
import random

import keras_tuner
import numpy as np
import pytest
import sklearn.gaussian_process
from small_searches import (
    SCORE,
    TUNERS,
    build,
    conditional,
    endless,
    finish,
    paper,
    points,
    ranking,
    ready,
    search,
    six_points,
)

from finetune import space
from finetune.search import finite_space, oracles
from finetune.tuning import Tuning
from tfds_pap.errors import PapError


@pytest.mark.parametrize(("hp", "count"), [(six_points(), 6), (conditional(), 7), (paper(), 162)])
def test_every_point_is_listed_once_and_is_what_random_draws_give(hp, count):
    listed = list(finite_space.finite_points(hp))
    assert (
        len(listed) == finite_space.count_points(hp) == finite_space.count_grid_points(hp) == count
    )
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
    assert finite_space.count_points(extended) is None
    assert finite_space.finite_points(extended) is None
    assert finite_space.count_points(endless()) is None
    hp = keras_tuner.HyperParameters()
    hp.Int("layers", 1, 100, sampling="log")
    hp.Float("same", 0.5, 0.5)
    hp.Float("stepped", 0.0, 0.8, step=0.1)
    hp.Fixed("fixed", 3)
    with hp.conditional_scope("layers", [101]):
        hp.Float("never", 0.0, 1.0)
    assert finite_space.count_points(hp) == 100 * 9
    for number in range(30):
        hp.Choice(f"c{number}", list(range(10)))
    assert finite_space.count_points(hp) == 900 * 10**30


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
