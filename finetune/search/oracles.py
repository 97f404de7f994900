"""KerasTuner's oracles without their pitfalls: the one place where KerasTuner is worked round.

What version 1.4.8 does, and what is done instead, here and in `base_oracle.py`:

- A kill can leave half a file, a trial that no list knows, or a finished trial that runs again:
  files are replaced as a whole, and a trial's own status says whether it ended.
- The grid forgets where it was (keras-tuner #1055): the number of trials tells.
- Bayesian search loses its random state: it follows from the seed and the number of trials.
- A small finite space ends a search early (#35, #417, #676) or never (#237, #608): what is left of
  it is listed.
- Failed trials keep Hyperband from promoting others: they count as the worst candidates.
- After three failures in a row a search can never go on: the same command runs them again.
- A score that is NaN or infinite takes part in rankings: such a trial has failed.
- Seed 0 means "any seed", and a lock is kept for ever when a save fails.
- A chief waits for ever for a worker that was killed (#915): workers hold leases.
"""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras_tuner
import numpy as np
import sklearn.exceptions
from keras_tuner.engine import trial as trial_module

from finetune.search import finite_space
from finetune.search.base_oracle import SearchOracle
from tfds_pap.errors import PapError

_Status = trial_module.TrialStatus

#: Bayesian search compares all points of a space up to this size, which takes about a second.
_LISTED_POINTS = 20_000


class RandomOracle(SearchOracle, keras_tuner.oracles.RandomSearchOracle):
    """Points drawn at random, each once, until the space is exhausted."""


class GridOracle(SearchOracle):
    """Every point of the grid, in a fixed order; several workers are served at once."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns the next point of the grid.

        Args:
            trial_id: Of the trial to be.
        """
        points = finite_space.grid_points(self.hyperparameters)
        values = next(itertools.islice(points, len(self.start_order), None), None)
        return {"status": _Status.STOPPED if values is None else _Status.RUNNING, "values": values}


class BayesianOracle(SearchOracle, keras_tuner.oracles.BayesianOptimizationOracle):
    """A Gaussian process over all scores proposes the point with the best confidence bound.

    Args:
        **options: Of KerasTuner's class.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # KerasTuner made it before seed 0 was set.
        self.gpr = self._make_gpr()
        dimensions = len(self.hyperparameters.space)
        # KerasTuner has no limit, so that a short search of a large space is a random one.
        limit = math.inf if self.max_trials is None else self.max_trials // 2
        self.num_initial_points = max(3, min(3 * dimensions, limit))

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Proposes a point that was not tried.

        The first points are random: three for each hyperparameter, but at most half of all trials.
        After that, all points of a space of up to 20,000 are compared; in a larger one the optimum
        is searched for as KerasTuner does, and replaced by a random point where it was tried
        before.

        Args:
            trial_id: Of the trial to be.
        """
        with warnings.catch_warnings():
            # Scores that do not depend smoothly on a value are no reason to disturb a display.
            warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
            values = self._propose()
        return {"status": _Status.STOPPED if values is None else _Status.RUNNING, "values": values}

    def _propose(self) -> dict[str, Any] | None:
        count = finite_space.count_points(self.hyperparameters)
        completed = sum(trial.status == _Status.COMPLETED for trial in self.trials.values())
        if completed < self.num_initial_points:
            return self._random_values()
        if count is not None and count <= _LISTED_POINTS:
            return self._best_untried()
        state = (self.seed + len(self.trials)) % 2**32
        self._random_state = np.random.RandomState(state)
        values = super().populate_space("")["values"]
        return self._random_values() if self._duplicate(values) else values

    def _best_untried(self) -> dict[str, Any] | None:
        points = finite_space.finite_points(self.hyperparameters)
        untried = [point for point in points or () if not self._duplicate(point)]
        if not untried:
            return None
        self.gpr.fit(*self._vectorize_trials())
        mean, deviation = self.gpr.predict(self._vectors(untried), return_std=True)
        return untried[int(np.argmin(mean - self.beta * deviation))]

    def _vectorize_trials(self) -> tuple[np.ndarray, np.ndarray]:
        """Points and scores, lower is better; a pessimistic guess for trials without one yet.

        KerasTuner guesses with whatever was fitted last, so that a search which was interrupted
        goes another way, and mistakes a trial that waits for a worker for one with a score.
        """
        trials = self.trials.values()
        completed = [trial for trial in trials if trial.status == _Status.COMPLETED]
        pending = [trial for trial in trials if trial.status == _Status.RUNNING]
        sign = -1 if self.objective.direction == "max" else 1
        scores = np.array([sign * trial.score for trial in completed])
        points = self._vectors([trial.hyperparameters.values for trial in completed])
        if not pending:
            return points, scores
        self.gpr.fit(points, scores)
        guessed = self._vectors([trial.hyperparameters.values for trial in pending])
        mean, deviation = self.gpr.predict(guessed, return_std=True)
        return np.concatenate([points, guessed]), np.concatenate([scores, mean + deviation])

    def _vectors(self, points: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Points as rows of numbers from 0 to 1; what is not active stands at its default."""
        space = self._nonfixed_space()
        rows = [
            [
                parameter.value_to_prob(
                    values[parameter.name]
                    if finite_space.is_active(parameter, values)
                    else parameter.default
                )
                for parameter in space
            ]
            for values in points
        ]
        return np.array(rows).reshape(len(points), len(space))


class HyperbandOracle(SearchOracle, keras_tuner.oracles.HyperbandOracle):
    """Hyperband, whose brackets shrink to the trials that there are.

    A round holds one `factor`-th of the trials of the round before, rounded up. Where the space is
    exhausted before the first round of a bracket is full, later rounds follow its real size; a
    bracket that gets no trial is skipped. A failed trial is never promoted.
    """

    #: Of KerasTuner's class.
    _brackets: list[dict[str, Any]]

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Promotes a trial or draws a new point, in the first bracket that can use one.

        Args:
            trial_id: Of the trial to be.
        """
        while True:
            self._remove_completed_brackets()
            for bracket in self._brackets:
                values = self._begin(bracket, trial_id) or self._promote(bracket, trial_id)
                if values:
                    return {"status": _Status.RUNNING, "values": values}
            if self._current_bracket == 0:
                return {"status": _Status.IDLE if self.ongoing_trials else _Status.STOPPED}
            self._increment_bracket_num()
            self._start_new_bracket()

    def _begin(self, bracket: dict[str, Any], trial_id: str) -> dict[str, Any] | None:
        """Values for the first round, as long as it is not full."""
        number, first = bracket["bracket_num"], bracket["rounds"][0]
        if len(first) >= self._targets(bracket)[0]:
            return None
        values = self._random_values()
        if values is None:
            bracket["size"] = len(first)
            return None
        first.append({"past_id": None, "id": trial_id})
        return {**values, **self._stage(number, 0)}

    def _promote(self, bracket: dict[str, Any], trial_id: str) -> dict[str, Any] | None:
        """Values of the best trial of a round that is sure to be among those that go on."""
        number, rounds = bracket["bracket_num"], bracket["rounds"]
        targets = self._targets(bracket)
        for index in range(1, len(rounds)):
            promoted = {entry["past_id"] for entry in rounds[index]}
            past = [self.trials[entry["id"]] for entry in rounds[index - 1]]
            waiting = [trial for trial in past if trial.trial_id not in promoted]
            completed = [trial for trial in waiting if trial.status == _Status.COMPLETED]
            failed = sum(trial.status == _Status.FAILED for trial in waiting)
            dropped = targets[index - 1] - targets[index]
            # Trials that still run cannot push it out of the places that are left.
            if completed and len(completed) + failed > dropped:
                choose = max if self.objective.direction == "max" else min
                best = choose(completed, key=lambda trial: trial.score)
                rounds[index].append({"past_id": best.trial_id, "id": trial_id})
                values = {**best.hyperparameters.values, **self._stage(number, index)}
                return {**values, "tuner/trial_id": best.trial_id}
        return None

    def _stage(self, bracket: int, index: int) -> dict[str, int]:
        """What the tuner is told; KerasTuner names the newest bracket instead of the trial's."""
        return {
            "tuner/epochs": self._get_epochs(bracket, index),
            "tuner/initial_epoch": self._get_epochs(bracket, index - 1) if index else 0,
            "tuner/bracket": bracket,
            "tuner/round": index,
        }

    def _targets(self, bracket: dict[str, Any]) -> list[int]:
        """Trials in each round, as far as it is known yet."""
        target = bracket.get("size", self._get_size(bracket["bracket_num"], 0))
        targets = [target]
        for past in bracket["rounds"][:-1]:
            statuses = [self.trials[entry["id"]].status for entry in past]
            is_over = len(past) == target and _Status.RUNNING not in statuses
            target = math.ceil(target / self.factor)
            if is_over:
                target = min(target, statuses.count(_Status.COMPLETED))
            targets.append(target)
        return targets

    def _remove_completed_brackets(self) -> None:
        self._brackets = [
            bracket
            for bracket in self._brackets
            if len(bracket["rounds"][-1]) < self._targets(bracket)[-1]
        ]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a search will do, if no trial fails or stops early.

    Attributes:
        trials: In all.
        epochs: In all; a promoted trial trains only those that it was not trained for yet.
        rounds: For each bracket that gets trials its rounds, each with the number of trials and the
            epochs that they were trained for at its end. Only Hyperband has more than one.
    """

    trials: int
    epochs: int
    rounds: list[list[tuple[int, int]]]


def plan(
    tuner: str,
    hyperparameters: keras_tuner.HyperParameters,
    *,
    max_trials: int | None,
    max_epochs: int,
    factor: int,
) -> Plan:
    """Returns what a search will do.

    Args:
        tuner: "hyperband", "bayesian", "random" or "grid".
        hyperparameters: The space.
        max_trials: Trials at most, or None.
        max_epochs: Epochs at most of a trial.
        factor: Of Hyperband.

    Raises:
        PapError: If the search has no end, or no such tuner.

    Example:
        >>> hp = keras_tuner.HyperParameters()
        >>> rate = hp.Choice("rate", [0.1, 0.2, 0.3, 0.4])
        >>> plan("hyperband", hp, max_trials=None, max_epochs=9, factor=3).rounds
        [[(4, 1), (2, 3), (1, 9)]]
    """
    # It knows the sizes; the objective plays no part in them.
    objective = keras_tuner.Objective("score", "max")
    oracle = build(
        tuner,
        hyperparameters,
        objective,
        seed=0,
        max_trials=max_trials,
        max_epochs=max_epochs,
        factor=factor,
    )
    limit = math.inf if max_trials is None else max_trials
    if tuner != "hyperband":
        count = finite_space.count_points(hyperparameters)
        if tuner == "grid":
            count = finite_space.count_grid_points(hyperparameters)
        trials = int(min(limit, math.inf if count is None else count))
        return Plan(trials, trials * max_epochs, [[(trials, max_epochs)]])
    return _hyperband_plan(oracle, limit)


def build(
    tuner: str,
    hyperparameters: keras_tuner.HyperParameters,
    objective: keras_tuner.Objective,
    *,
    seed: int,
    max_trials: int | None,
    max_epochs: int,
    factor: int,
) -> SearchOracle:
    """Builds an oracle.

    Args:
        tuner: "hyperband", "bayesian", "random" or "grid".
        hyperparameters: The space; it is copied, and does not grow.
        objective: What is optimised.
        seed: Every draw follows from it.
        max_trials: Trials at most, or None: until the space is exhausted, or Hyperband's number.
        max_epochs: Of Hyperband: epochs at most of a trial.
        factor: Of Hyperband: one of so many trials goes on.

    Raises:
        PapError: If the search has no end, or no such tuner.
    """
    classes = {
        "hyperband": HyperbandOracle,
        "bayesian": BayesianOracle,
        "random": RandomOracle,
        "grid": GridOracle,
    }
    if tuner not in classes:
        raise PapError(f"tuner={tuner}: expected one of {', '.join(classes)}")
    endless = tuner in ("bayesian", "random") and finite_space.count_points(hyperparameters) is None
    if endless and max_trials is None:
        raise PapError(f"max_trials: expected a number, for tuner={tuner} would never end")
    return classes[tuner](
        objective=objective,
        hyperparameters=hyperparameters.copy(),
        seed=seed,
        max_trials=max_trials,
        **({"max_epochs": max_epochs, "factor": factor} if tuner == "hyperband" else {}),
    )


def _hyperband_plan(oracle: HyperbandOracle, limit: float) -> Plan:
    count = finite_space.count_points(oracle.hyperparameters)
    left = math.inf if count is None else count
    trials, epochs, brackets = 0, 0, []
    for bracket in reversed(range(oracle._get_num_brackets())):
        size = min(oracle._get_size(bracket, 0), left)
        left -= size
        rounds = []
        for index in range(oracle._get_num_rounds(bracket)):
            # A search that is cut short on one process ends in the midst of a round.
            run = int(min(size, limit - trials))
            if run:
                stage = oracle._stage(bracket, index)
                trials += run
                epochs += run * (stage["tuner/epochs"] - stage["tuner/initial_epoch"])
                rounds.append((run, stage["tuner/epochs"]))
            size = math.ceil(size / oracle.factor)
        if rounds:
            brackets.append(rounds)
    return Plan(trials, epochs, brackets)
