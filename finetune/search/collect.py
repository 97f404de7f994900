"""Reads what a search directory holds: every trial that ended, and the best of them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.search import base_oracle, scoring, trials
from finetune.tuning import Tuning
from replication.runs.directory import RunDirectory
from tfds_pap import files
from tfds_pap.errors import PapError

#: Where KerasTuner keeps the oracle and the trials, below the search directory.
PROJECT = "trials"

_PREFIX = "tuner/"


def searched(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hyperparameters without those that KerasTuner adds for itself.

    Args:
        values: Of a trial.
    """
    return {name: value for name, value in values.items() if not name.startswith(_PREFIX)}


def read_trials(directory: Path) -> list[trials.Trial]:
    """Returns every trial that ended, in the order in which they did.

    Args:
        directory: Of the search.

    Raises:
        PapError: If it holds no search, or one of its files is not readable.
    """
    oracle = base_oracle.read_state(directory / PROJECT / "oracle.json")
    return [
        _trial(directory / PROJECT / f"trial_{trial_id}", trial_id, order)
        for order, trial_id in enumerate(oracle["end_order"])
    ]


@dataclasses.dataclass(frozen=True)
class Best:
    """The best trial of a search, and what it was searched with.

    Attributes:
        trial: The trial.
        tuning: How it was trained.
        objective: One of `scoring.OBJECTIVES`.
        weights: Digest of the backbone's weights.
        data: Fingerprint of the images.
    """

    trial: trials.Trial
    tuning: Tuning
    objective: str
    weights: str
    data: str


def best(run: RunDirectory) -> Best:
    """Returns the best trial of a search, finished or not.

    Args:
        run: The search directory.

    Raises:
        PapError: If it is none, or no trial of it came to its end.
    """
    identity = run.manifest()["identity"]
    if "tuner" not in identity:
        raise PapError(f"{run.path}: not the directory of a search")
    objective = identity["objective"]
    ranked = trials.rank(read_trials(run.path), scoring.OBJECTIVES[objective])
    if not ranked or ranked[0].status != "completed":
        raise PapError(f"{run.path}: no trial of this search came to its end")
    return Best(
        ranked[0],
        tuning(ranked[0]),
        objective,
        identity["weights"],
        identity["data"],
    )


def tuning(trial: trials.Trial) -> Tuning:
    """Returns how a trial was trained.

    Args:
        trial: One that came to its end.
    """
    assert trial.directory is not None, "trials that are read from a search have one"
    return Tuning().replace(files.read_json(trial.directory / "key.json")["tuning"])


def _trial(folder: Path, trial_id: str, order: int) -> trials.Trial:
    trial = base_oracle.read_trial(folder / "trial.json")
    values = trial.hyperparameters.values
    executions = [files.read_json(path) for path in sorted(folder.glob("execution_*/result.json"))]
    if trial.status != "COMPLETED" or not executions:
        status = "failed"
    else:
        statuses = {result["status"] for result in executions}
        status = "completed" if statuses == {"completed"} else "diverged"
    return trials.Trial(
        trial_id=trial_id,
        values=searched(values),
        status=status,
        score=trial.score if trial.score is not None else float("nan"),
        metrics={name: history.get_best_value() for name, history in trial.metrics.metrics.items()},
        best_epoch=executions[0]["best_epoch"] if executions else 0,
        epochs=executions[0]["epochs"] if executions else 0,
        inherited=values.get("tuner/trial_id", ""),
        bracket=values.get("tuner/bracket"),
        round=values.get("tuner/round"),
        seconds=sum(result["seconds"] for result in executions),
        order=order,
        directory=folder / "execution_0",
    )
