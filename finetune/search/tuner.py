"""The tuner: runs one trial after another, each of which a kill may interrupt at any moment.

A trial's directory holds, beside KerasTuner's `trial.json`, one directory an execution:

    execution_0/
        key.json          what is trained; another key, and the directory is begun afresh
        *.npz             training state, while it may still be needed
        predictions.csv   of the scored images
        result.json       written last: the execution is finished
"""

import contextlib
import dataclasses
import gc
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np

from finetune import recipes
from finetune.search import cluster, collect, place, scoring, tensorboard
from finetune.space import Space
from finetune.tuning import Tuning
from replication.learning import features, training, training_state
from replication.measures import evaluation
from replication.runs.device import DevicePolicy
from tfds_pap import files, pipeline, roles
from tfds_pap.errors import PapError

#: A state is written at most that often; a head takes seconds to train.
_SECONDS_BETWEEN_WRITES = 10.0

#: To look for garbage among all that TensorFlow holds takes as long as half a trial.
_TRIALS_BETWEEN_COLLECTIONS = 20


@dataclasses.dataclass(frozen=True)
class Study:
    """What every trial of a search shares.

    Attributes:
        space: What is searched.
        spec: The backbone's features.
        store: Of every image.
        assigned: Role of every image, from `scoring.assign_roles`.
        images: Gives the decoded images, for trials that train blocks.
        protocol: "paper" or "clean".
        objective: One of `scoring.OBJECTIVES`.
        executions: Fits a trial, each with a seed of its own.
        seed: Of the first of them.
        policy: Where and how to compute.
    """

    space: Space
    spec: features.FeatureSpec
    store: features.FeatureStore
    assigned: roles.Roles
    images: Callable[[], pipeline.ImageStore]
    protocol: str
    objective: str
    executions: int
    seed: int
    policy: DevicePolicy


class SearchTuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Trains heads on stored features, and blocks on images, for any oracle.

    Args:
        oracle: From `oracles.build`.
        study: What trials share.
        directory: Of the search; trials lie in `directory/trials`.
        lease_seconds: After which a chief takes a silent worker for dead.
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        study: Study,
        directory: Path,
        *,
        lease_seconds: float,
    ) -> None:
        self._study = study
        self._logs = directory / "logs"
        self._lease_seconds = lease_seconds
        self._on_trial: Callable[[], None] = lambda: None
        oracle.verbose = 0
        super().__init__(oracle, directory=str(directory), project_name=collect.PROJECT)
        if place.is_worker():
            cluster.connect(self.oracle)
        self._asked_at = -math.inf
        self._trials_here = 0

    def search_alone(self, on_trial: Callable[[], None]) -> None:
        """Runs trials in this process until the oracle has no more.

        Args:
            on_trial: Called when a trial begins, and when it ends.
        """
        self._on_trial = on_trial
        self.search()

    def serve(self, on_tick: Callable[[], None]) -> None:
        """Hands trials out to workers until the oracle has no more and the last one ended.

        Args:
            on_tick: Called about every second.
        """
        cluster.serve(self.oracle, lease_seconds=self._lease_seconds, on_tick=on_tick)

    def _populate_initial_space(self) -> None:
        """Goes on with what the directory holds; the space is known already."""
        if not place.is_worker():
            self.oracle.resume()

    def save(self) -> None:
        """Does nothing: the oracle writes what changes, when it does.

        KerasTuner takes a file of the tuner, first written after its first trial, for the sign that
        there is something to resume.
        """

    def pre_create_trial(self) -> None:
        """Waits a moment where the oracle had nothing to do when it was asked last."""
        # KerasTuner asks again at once, hundreds of times a second.
        wait = self._asked_at + 0.2 - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self._asked_at = time.monotonic()

    def on_trial_begin(self, trial: keras_tuner.engine.trial.Trial) -> None:
        """Takes note that there was something to do, and shows it."""
        super().on_trial_begin(trial)
        self._asked_at = -math.inf
        self._on_trial()

    def on_trial_end(self, trial: keras_tuner.engine.trial.Trial) -> None:
        """Reports the trial to the oracle and shows it."""
        super().on_trial_end(trial)
        self._trials_here += 1
        if self._trials_here % _TRIALS_BETWEEN_COLLECTIONS == 0:
            # Models hold themselves in cycles; without this, each trial leaves some MiB behind.
            gc.collect()
        self._on_trial()

    def _run_and_update_trial(
        self, trial: keras_tuner.engine.trial.Trial, *args: Any, **kwargs: Any
    ) -> None:
        try:
            super()._run_and_update_trial(trial, *args, **kwargs)
        except (OSError, PapError) as error:
            # A full disk or unfit weights are no property of the trial: the search must stop, and
            # KerasTuner goes on after any error but this kind.
            raise keras_tuner.errors.FatalRuntimeError(str(error)) from error

    def run_trial(self, trial: keras_tuner.engine.trial.Trial) -> dict[str, float]:
        """Trains and scores one point of the space.

        Args:
            trial: Holds the values.

        Returns:
            Mean of every figure over the executions.
        """
        beat: contextlib.AbstractContextManager = contextlib.nullcontext()
        if place.is_worker():
            beat = cluster.Heartbeat(self.oracle, trial.trial_id, self._lease_seconds)
        with beat:
            results = [self._execute(trial, number) for number in range(self._study.executions)]
        means = {
            name: float(np.mean([result["metrics"][name] for result in results]))
            for name in sorted(set.intersection(*(set(result["metrics"]) for result in results)))
        }
        tensorboard.write_trial(
            self._logs,
            trial.trial_id,
            collect.searched(trial.hyperparameters.values),
            means,
            results[0]["history"],
        )
        return means

    def _execute(self, trial: keras_tuner.engine.trial.Trial, number: int) -> dict[str, Any]:
        """One fit of a trial; returns what `result.json` holds."""
        study = self._study
        tuning = study.space.tuning(trial.hyperparameters.copy())
        if tuning.views > study.store.features.shape[1]:
            raise PapError(
                f"--space={study.space.name}: views={tuning.views}: "
                f"{study.store.features.shape[1]} stored, as no corner of the space asks for more"
            )
        values = trial.hyperparameters.values
        key = {
            "tuning": dataclasses.asdict(tuning),
            "epochs": values.get("tuner/epochs", tuning.epochs),
            "inherited": values.get("tuner/trial_id", ""),
            "seed": study.seed + number,
        }
        # As it reads back: tuples become lists.
        key = evaluation.jsonable(key)
        directory = Path(self.get_trial_dir(trial.trial_id)) / f"execution_{number}"
        if not (directory / "key.json").exists() or files.read_json(directory / "key.json") != key:
            shutil.rmtree(directory, ignore_errors=True)
            files.write_json(directory / "key.json", key)
        if (directory / "result.json").exists():
            return files.read_json(directory / "result.json")
        if key["inherited"] and not (directory / "state.npz").exists():
            past = Path(self.get_trial_dir(key["inherited"])) / f"execution_{number}"
            training_state.copy_state(past, directory)
        result = self._fit(tuning, key, directory)
        scored = ("predictions.csv",) if result["status"] == "completed" else ()
        files.write_last(directory / "result.json", result, ("key.json", *scored))
        # Only Hyperband goes on where a trial ended.
        if "tuner/epochs" not in values:
            training_state.remove_state(directory)
        return result

    def _fit(self, tuning: Tuning, key: Mapping[str, Any], directory: Path) -> dict[str, Any]:
        study = self._study
        store: training.Store = study.images() if tuning.unfrozen_blocks else study.store
        recipe = recipes.recipe(
            tuning,
            study.spec,
            classes=len(store.index.class_names),
            seed=key["seed"],
            epochs=key["epochs"],
            # P5 stopped on the accuracy of the training itself, and kept the last weights.
            keep="best" if study.protocol == "clean" else "last",
            monitor=study.objective if study.protocol == "clean" else "accuracy",
            name="trial",
        )

        start = time.perf_counter()
        try:
            model, outcome = training.fit(
                recipe,
                store,
                self._study.assigned,
                seed=key["seed"],
                policy=study.policy,
                directory=directory,
                label=None,
                validate=scoring.validator(store, self._study.assigned.tune),
                seconds_between_writes=_SECONDS_BETWEEN_WRITES,
            )
        except training_state.Diverged as error:
            return {
                "status": "diverged",
                "message": str(error),
                "metrics": self._worst(),
                "history": [],
                "epochs": key["epochs"],
                "best_epoch": 0,
                "seconds": time.perf_counter() - start,
            }
        metrics = self._score(model, store, directory)
        kept = outcome["best_epoch"] if outcome["kept"] == "best" else outcome["epochs_run"] - 1
        return {
            "status": "completed",
            "metrics": {
                **{name: outcome["history"][kept][name] for name in ("accuracy", "loss")},
                **metrics,
            },
            "history": outcome["history"],
            "epochs": outcome["epochs_run"],
            "best_epoch": kept + 1,
            "seconds": time.perf_counter() - start,
        }

    def _score(
        self, model: keras.Model, store: training.Store, directory: Path
    ) -> dict[str, float]:
        """Writes the predictions of what the protocol scores; returns their figures."""
        # In the clean protocol no one looks at the test images before everything is chosen.
        scored = [("tune", self._study.assigned.tune)]
        if self._study.protocol == "paper":
            # An image of the train folder and one of the validation folder never share an id.
            scored.append(("test", self._study.assigned.test))
        positions = np.concatenate([rows for _, rows in scored])
        predictions = evaluation.Predictions.of(
            store.index, scored, training.predict(model, store, positions)
        )
        predictions.write(directory / "predictions.csv")
        by_name: dict[str, float] = {}
        for split, prefix in (("tune", "val_"), ("test", "held_out_"))[: len(scored)]:
            part = predictions.select(split)
            by_name |= scoring.figures(part.labels, part.probabilities, part.classes, prefix)
        return by_name

    def _worst(self) -> dict[str, float]:
        """Figures of a trial that said nothing."""
        return {name: scoring.WORST[direction] for name, direction in scoring.OBJECTIVES.items()}
