"""What all oracles of this package share: safe resuming, leases, failures, small spaces.

`oracles.py` lists the pitfalls of KerasTuner that are worked round here.
"""

import functools
import hashlib
import itertools
import json
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner.engine import trial as trial_module

from finetune.search import finite_space, place
from tfds_pap import files
from tfds_pap.errors import PapError

_Status = trial_module.TrialStatus


#: Entry of `oracle.json` and `trial.json`: a digest of the others.
DIGEST = "sha256"


def read_state(path: Path) -> dict[str, Any]:
    """Reads what an oracle wrote of itself or of a trial.

    Args:
        path: `oracle.json` or `trial.json`.

    Raises:
        PapError: If it is missing, or is not what was written.
    """
    state = files.read_json(path)
    # Searches of before have no digest.
    if not isinstance(state, dict) or state.pop(DIGEST, None) not in (None, digest(state)):
        raise PapError(
            f"{path}: is damaged or was changed; restore it, or search again in another directory"
        )
    return state


def read_trial(path: Path) -> trial_module.Trial:
    """Reads a trial; errors as of `read_state`."""
    return trial_module.Trial.from_state(read_state(path))


def _write_state(path: Path, state: dict[str, Any]) -> None:
    # As it reads back: tuples become lists.
    state = json.loads(json.dumps(state))
    files.write_atomically(path, json.dumps({**state, DIGEST: digest(state)}))


def digest(state: dict[str, Any]) -> str:
    """Returns the digest of a state without its digest."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _locked(method: Callable) -> Callable:
    """One caller at a time; unlike KerasTuner's own, the lock is freed where the method raises."""

    @functools.wraps(method)
    def locked(self: "SearchOracle", *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked


class SearchOracle(keras_tuner.Oracle):
    """Base of all oracles; comes before KerasTuner's class among the bases of each.

    A directory holds `oracle.json` and one `trial.json` a trial. Each is replaced as a whole, a
    trial before the list that names it. After a kill between the two, a trial that is on no list
    was handed to nobody and is drawn again; one that ended, but is still listed as running, has
    ended.

    A worker holds a lease from the last time it was heard of. Only a chief ends leases, with
    `expire_leases`; a process on its own never loses its trial.

    Args:
        seed: Every draw follows from it; 0 is a seed like any other.
        max_trials: Trials at most, or None.
        **options: Of KerasTuner's class.

    Attributes:
        lock: Held while the oracle changes.
        clock: Returns seconds, for leases.
        given_up: Why the search was ended before its time, or "".
    """

    def __init__(self, *, seed: int, max_trials: int | None, **options: Any) -> None:
        self.lock = threading.RLock()
        self.clock: Callable[[], float] = time.monotonic
        self.given_up = ""
        # When each worker was heard of, and who was last given a trial.
        self._heard: dict[str, float] = {}
        self._runners: dict[str, str] = {}
        self._retry_queue: list[str]
        self.ongoing_trials: dict[str, trial_module.Trial]
        super().__init__(seed=seed, allow_new_entries=False, tune_new_entries=False, **options)
        self.max_trials = max_trials
        # KerasTuner takes 0 for "any seed".
        self.seed = self._seed_state = seed

    @_locked
    def create_trial(self, tuner_id: str) -> trial_module.Trial:
        """Returns the next trial of a tuner, or the one it was already given.

        Args:
            tuner_id: Names the tuner.

        Returns:
            A trial whose status is "RUNNING", "IDLE" (ask again later) or "STOPPED" (no trial is
            left). A tuner is not stopped while others work: it may have to take over from them.

        Raises:
            PapError: If too many trials failed in a row; not at a chief, whose workers are
                stopped instead.
        """
        self._hear(tuner_id)
        if tuner_id in self.ongoing_trials:
            # It was started again, or its call was sent twice.
            return self._hand_out(self._renewed(self.ongoing_trials[tuner_id]), tuner_id)
        if self.given_up:
            if not place.is_chief():
                raise PapError(self.given_up)
            trial = self._empty(_Status.STOPPED)
        elif self._retry_queue:
            trial = self._renewed(self.trials[self._retry_queue.pop(0)])
        else:
            trial = self._draw()
        if trial.status == _Status.RUNNING:
            return self._hand_out(trial, tuner_id)
        if trial.status == _Status.STOPPED:
            self.tuner_ids.discard(tuner_id)
            self._heard.pop(tuner_id, None)
            self.save()
        return trial

    @_locked
    def update_trial(
        self, trial_id: str, metrics: Mapping[str, float], step: int = 0
    ) -> trial_module.Trial:
        """Records figures of a trial; those of a step that has some already are dropped.

        A second report of a step is a call that was sent twice, or another worker that ran the
        same trial after a lease ended: KerasTuner would store the mean.

        Args:
            trial_id: The trial.
            metrics: By name, the objective among them.
            step: Of the trial.

        Raises:
            ValueError: If the objective is missing.
        """
        trial = self.trials[trial_id]
        self._hear(self._runners.get(trial_id))
        self._check_objective_found(metrics)
        if trial_id in self.end_order:
            return trial
        for name, value in metrics.items():
            if not trial.metrics.exists(name):
                is_objective = name == self.objective.name
                trial.metrics.register(name, self.objective.direction if is_objective else None)
            if all(observed.step != step for observed in trial.metrics.get_history(name)):
                trial.metrics.update(name, value, step=step)
        self._save_trial(trial)
        return trial

    @_locked
    def end_trial(self, trial: trial_module.Trial) -> None:
        """Ends a trial for good; whoever ends it a second time is not listened to.

        A trial that did not complete, or whose objective is not a finite number, has failed and is
        not run again.

        Args:
            trial: As the tuner returns it; its status and message count, not its values, which may
                have changed on their way (booleans become integers).
        """
        ended = self.trials[trial.trial_id]
        self._hear(self._runners.get(ended.trial_id))
        if ended.trial_id in self.end_order:
            return
        ended.status, ended.message = trial.status, trial.message
        if ended.status == _Status.COMPLETED:
            self._score(ended)
        else:
            ended.status = _Status.FAILED
        self._save_trial(ended)
        self.end_order.append(ended.trial_id)
        if ended.trial_id in self._retry_queue:
            self._retry_queue.remove(ended.trial_id)
        self.ongoing_trials = {
            tuner_id: other
            for tuner_id, other in self.ongoing_trials.items()
            if other.trial_id != ended.trial_id
        }
        failed = self._failed_in_a_row()
        if len(failed) >= self.max_consecutive_failed_trials:
            self.given_up = (
                f"{len(failed)} trials in a row failed, {ended.trial_id} with: "
                f"{_last_line(ended.message)}; the same command runs them again"
            )
        self.save()
        self._display.on_trial_end(ended)

    def get_trial(self, trial_id: str) -> trial_module.Trial:
        """Returns a trial, and renews the lease of whoever was given it.

        Args:
            trial_id: The trial.
        """
        # Without the lock: a proposal for another worker may take longer than a lease.
        self._hear(self._runners.get(trial_id))
        return self.trials[trial_id]

    @_locked
    def get_best_trials(self, num_trials: int = 1) -> list[trial_module.Trial]:
        """Returns the best trials, then others if there are too few.

        Args:
            num_trials: How many at most.
        """
        return super().get_best_trials(num_trials)

    @_locked
    def expire_leases(self, lease_seconds: float) -> list[str]:
        """Takes trials away from workers that were not heard of; the next ones to ask get them.

        Args:
            lease_seconds: Silence after which a worker is taken for dead.

        Returns:
            The trials.
        """
        now = self.clock()
        # A list, for `get_trial` adds to the dictionary without the lock.
        heard = list(self._heard.items())
        silent = sorted(name for name, at in heard if now - at > lease_seconds)
        expired = []
        for name in silent:
            del self._heard[name]
            self.tuner_ids.discard(name)
            if name in self.ongoing_trials:
                expired.append(self.ongoing_trials.pop(name).trial_id)
        self._retry_queue += expired
        if silent:
            self.save()
        return expired

    @_locked
    def is_over(self) -> bool:
        """Tells a chief whether no trial is left, and no worker is left that does not know it.

        Where nobody is there to ask for it, the next trial is drawn for the first worker to come.
        """
        if self.tuner_ids or self.ongoing_trials or not self.start_order:
            return False
        if self.given_up:
            return True
        if self._retry_queue:
            return False
        trial = self._draw()
        if trial.status == _Status.STOPPED:
            return True
        self._retry_queue.append(trial.trial_id)
        self._save_trial(trial)
        self.save()
        return False

    @_locked
    def resume(self) -> bool:
        """Goes on with what the directory holds, if it holds a search.

        Returns:
            Whether it does.

        Raises:
            PapError: If one of its files is missing or no JSON.
        """
        if not Path(self._get_oracle_fname()).exists():
            return False
        self.reload()
        return True

    @_locked
    def save(self) -> None:
        """Writes the oracle's state; trials are written as they change."""
        _write_state(Path(self._get_oracle_fname()), self.get_state())

    @_locked
    def reload(self) -> None:
        """Reads the state and all trials; those that did not end are run again.

        A chief leaves them to their workers, under fresh leases. Trials whose failures ended the
        search are run again, for their cause may be gone.

        Raises:
            PapError: If a file is missing or no JSON.
        """
        state = read_state(Path(self._get_oracle_fname()))
        self.trials = {
            trial_id: read_trial(self._trial_path(trial_id)) for trial_id in state["start_order"]
        }
        self.set_state(state)
        ended = {trial_id for trial_id, trial in self.trials.items() if self._has_ended(trial)}
        # A failed trial that waits for its second run keeps its status until then.
        again = {i for i in self._retry_queue if self.trials[i].status == _Status.FAILED}
        missing = [i for i in self.start_order if i in ended - again and i not in self.end_order]
        self.end_order += missing
        failed = self._failed_in_a_row()
        if len(failed) >= self.max_consecutive_failed_trials:
            del self.end_order[-len(failed) :]
        is_chief = place.is_chief()
        self.ongoing_trials = {
            tuner_id: trial
            for tuner_id, trial in self.ongoing_trials.items()
            if is_chief and trial.trial_id not in self.end_order
        }
        self.tuner_ids = set(state["tuner_ids"]) if is_chief else set()
        self._heard = dict.fromkeys({*self.tuner_ids, *self.ongoing_trials}, self.clock())
        self._runners = {t.trial_id: name for name, t in self.ongoing_trials.items()}
        kept = {*self.end_order, *self._runners}
        self._retry_queue = [i for i in self.start_order if i not in kept]

    def get_state(self) -> dict[str, Any]:
        """Returns what `oracle.json` holds."""
        return {**super().get_state(), "tuner_ids": sorted(self.tuner_ids)}

    def _random_values(self) -> dict[str, Any] | None:
        """Draws a point that was not tried; None where there is none left."""
        values = super()._random_values()
        if values is not None:
            return values
        # KerasTuner gives up after 20 collisions. So many tell that a finite space is small, or
        # nearly exhausted, so that it can be listed.
        points = finite_space.finite_points(self.hyperparameters)
        if points is None:
            while values is None:
                values = super()._random_values()
            return values
        untried = [point for point in points if not self._duplicate(point)]
        if not untried:
            return None
        self._seed_state += 1
        return random.Random(self._seed_state).choice(untried)

    def _draw(self) -> trial_module.Trial:
        """Asks the search method for a trial, which nobody runs yet."""
        if self.max_trials is not None and len(self.trials) >= self.max_trials:
            return self._empty(_Status.IDLE if self.ongoing_trials else _Status.STOPPED)
        trial_id = f"{len(self.trials):04d}"
        response = self.populate_space(trial_id)
        if response["status"] != _Status.RUNNING:
            return self._empty(_Status.IDLE if self.ongoing_trials else response["status"])
        hyperparameters = self.hyperparameters.copy()
        hyperparameters.values = response["values"]
        trial = trial_module.Trial(hyperparameters, trial_id, _Status.RUNNING)
        self._record_values(trial)
        self.trials[trial_id] = trial
        self.start_order.append(trial_id)
        return trial

    def _hand_out(self, trial: trial_module.Trial, tuner_id: str) -> trial_module.Trial:
        self.ongoing_trials[tuner_id] = trial
        self._runners[trial.trial_id] = tuner_id
        self._hear(tuner_id)
        self._display.on_trial_begin(trial)
        self._save_trial(trial)
        self.save()
        return trial

    def _renewed(self, trial: trial_module.Trial) -> trial_module.Trial:
        """The same trial without what an interrupted run left."""
        renewed = trial_module.Trial(trial.hyperparameters, trial.trial_id, _Status.RUNNING)
        self.trials[trial.trial_id] = renewed
        return renewed

    def _empty(self, status: str) -> trial_module.Trial:
        return trial_module.Trial(self.hyperparameters.copy(), "", status)

    def _score(self, trial: trial_module.Trial) -> None:
        name = self.objective.name
        history = trial.metrics.get_history(name) if trial.metrics.exists(name) else []
        if history and all(math.isfinite(observed.mean()) for observed in history):
            self.score_trial(trial)
            return
        values = ", ".join(f"{observed.mean():g}" for observed in history)
        trial.status = _Status.FAILED
        trial.message = f"{name}: expected a finite number, got {values or 'none'}"

    def _failed_in_a_row(self) -> list[str]:
        """The trials at the end of the search that all failed."""
        return list(
            itertools.takewhile(
                lambda trial_id: self.trials[trial_id].status == _Status.FAILED,
                reversed(self.end_order),
            )
        )

    def _has_ended(self, trial: trial_module.Trial) -> bool:
        return trial.status in (_Status.COMPLETED, _Status.FAILED)

    def _hear(self, tuner_id: str | None) -> None:
        if tuner_id is not None:
            self._heard[tuner_id] = self.clock()
            # It may have been taken for dead.
            self.tuner_ids.add(tuner_id)

    def _trial_path(self, trial_id: str) -> Path:
        return Path(self._project_dir) / f"trial_{trial_id}" / "trial.json"

    def _save_trial(self, trial: trial_module.Trial) -> None:
        _write_state(self._trial_path(trial.trial_id), trial.get_state())


def _last_line(message: str | None) -> str:
    # The message does not travel from worker to chief.
    lines = (message or "").strip().splitlines()
    return lines[-1] if lines else "see the output of its worker"
