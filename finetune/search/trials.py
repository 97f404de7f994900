"""What a hyperparameter search tried: a record a trial, their ranking, and `search.csv`."""

import csv
import dataclasses
import functools
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np

from replication.measures import confusion
from replication.measures.predictions import Predictions
from tfds_pap import files
from tfds_pap.classes import Classes
from tfds_pap.taxonomy import STAGE2_CLASSES

Value = str | int | float | bool
Direction = Literal["max", "min"]

#: How a trial may end, in the order in which they are ranked.
STATUSES = ("completed", "diverged", "failed")

#: Name of the predictions file in the directory of a trial.
PREDICTIONS = "predictions.csv"

#: Keras computes its log loss with no smaller probability.
_LEAST_PROBABILITY = 1e-7

_BEFORE = ("rank", "trial", "status", "score")
_AFTER = ("best_epoch", "epochs", "seconds", "bracket", "round", "inherited", "superseded_by")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One configuration, trained once or a few times.

    Attributes:
        trial_id: Unique in its search.
        values: The active hyperparameters.
        status: "completed", "diverged" (its loss left the finite numbers; `score` is then the worst
            possible one) or "failed" (it says nothing about its configuration).
        score: The objective, mean over the executions.
        metrics: Figures of the scored epoch: 'val_accuracy', 'val_macro_f1', 'val_loss' and so on;
            in the paper protocol also 'held_out_accuracy' and so on, of the validation folder,
            which chooses nothing there.
        best_epoch: The scored epoch, from 1.
        epochs: Epochs trained in all, inherited ones included.
        inherited: The trial whose weights it went on with (Hyperband); "" = none.
        bracket: Of Hyperband.
        round: Of Hyperband, within the bracket.
        seconds: Wall time.
        order: In which trials ended.
        directory: Where `predictions.csv` of its first execution lies, if any: role 'tune' is what
            was scored, role 'test' the validation folder in the paper protocol.

    Raises:
        ValueError: The status is unknown, or the score of a completed trial is not finite.
    """

    trial_id: str
    values: Mapping[str, Value]
    status: str
    score: float
    metrics: Mapping[str, float]
    best_epoch: int
    epochs: int
    inherited: str = ""
    bracket: int | None = None
    round: int | None = None
    seconds: float = 0.0
    order: int = 0
    directory: Path | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(
                f"trial {self.trial_id}, status: expected one of {', '.join(STATUSES)}, "
                f"got {self.status!r}"
            )
        if self.status == "completed" and not math.isfinite(self.score):
            raise ValueError(
                f"trial {self.trial_id}, score: expected a finite number of a completed trial, "
                f"got {self.score}"
            )

    def predictions(self) -> Predictions | None:
        """Reads what its first execution said; None where there is no file.

        Raises:
            ValueError: The file is no predictions file; the message names it and the line.
        """
        if self.directory is None or not (self.directory / PREDICTIONS).is_file():
            return None
        return Predictions.read(self.directory / PREDICTIONS)


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """A search, finished or not.

    Attributes:
        trials: Those that ended, in any order.
        objective: 'val_accuracy', 'val_macro_f1', 'val_hsil_plus_sensitivity' or 'val_loss'.
        direction: "max" or "min".
        tuner: "grid", "random", "bayesian" or "hyperband".
        space: Name of the space.
        protocol: "clean", or "paper": scored on images that were trained on.
        backbone: For example 'resnet152'.
        weights: Where the backbone's weights come from.
        planned: Trials that a finished search has; None where that is not known beforehand.
        executions: Trainings of each trial, with different seeds.
        paper_values: The point that the paper's authors chose, if it lies in the space.
        seconds: Wall time of the whole search.
        unit: What a group of images is, for example 'slide'.
        resamples: Of every bootstrap.
    """

    trials: Sequence[Trial]
    objective: str
    direction: Direction
    tuner: str
    space: str
    protocol: str
    backbone: str
    weights: str
    planned: int | None = None
    executions: int = 1
    paper_values: Mapping[str, Value] | None = None
    seconds: float = 0.0
    unit: str = "group"
    resamples: int = 2000

    @functools.cached_property
    def ranked(self) -> list[Trial]:
        """From `rank`."""
        return rank(self.trials, self.direction)

    @functools.cached_property
    def classes(self) -> Classes:
        """What is known of the classes, by what a trial said; without that, those of the papers."""
        said = (trial.predictions() for trial in self.trials)
        first = next((predictions for predictions in said if predictions is not None), None)
        return Classes.known(STAGE2_CLASSES) if first is None else first.classes

    @property
    def scored(self) -> list[Trial]:
        """The ranked configurations that did not fail."""
        return [trial for trial in self.ranked if trial.status != "failed"]

    @property
    def held_out(self) -> list[Trial]:
        """The completed configurations that were scored on held-out images as well, by rank."""
        needed = {"val_accuracy", "held_out_accuracy"}
        return [t for t in self.ranked if t.status == "completed" and needed <= t.metrics.keys()]

    @property
    def paper(self) -> Trial | None:
        """The trial at the paper's point; None where it was not tried, or has failed."""
        return find(self.scored, self.paper_values) if self.paper_values else None

    @property
    def best(self) -> Trial | None:
        """The highest ranked trial that was completed."""
        return next((trial for trial in self.ranked if trial.status == "completed"), None)


def configurations(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Gathers the trials of each configuration: Hyperband trains the promising ones on and on.

    Args:
        trials: Of one search.

    Returns:
        One list for each configuration, the shortest training first; failed trials come before all
        others, as they never stand for a configuration that has another one.

    Raises:
        ValueError: A trial's id is there twice, or a trial inherits from itself.
    """
    parents: dict[str, str] = {}
    for trial in trials:
        if trial.trial_id in parents:
            raise ValueError(f"trial {trial.trial_id}: expected each id once, it is there twice")
        parents[trial.trial_id] = trial.inherited
    families: dict[str, list[Trial]] = {}
    for trial in trials:
        line = [trial.trial_id]
        while parent := parents.get(line[-1]):
            if parent in line:
                raise ValueError(f"trial {trial.trial_id}: it inherits from itself by {parent}")
            line.append(parent)
        families.setdefault(line[-1], []).append(trial)

    def length(trial: Trial) -> tuple:
        return trial.status != "failed", trial.epochs, trial.order

    return [sorted(family, key=length) for family in families.values()]


def rank(trials: Sequence[Trial], direction: Direction) -> list[Trial]:
    """Sorts the configurations of a search, each by its longest training.

    Args:
        trials: Of one search.
        direction: Whether "max" or "min" is best.

    Returns:
        The best first; of equals the one with fewer epochs, then the earlier one. Diverged trials
        come after completed ones, failed ones last.

    Raises:
        ValueError: As `configurations`, or the direction is unknown.
    """
    if direction not in ("max", "min"):
        raise ValueError(f"direction: expected max or min, got {direction!r}")
    sign = -1 if direction == "max" else 1

    def key(trial: Trial) -> tuple:
        score = sign * trial.score if trial.status == "completed" else 0
        return STATUSES.index(trial.status), score, trial.epochs, trial.order

    return sorted((family[-1] for family in configurations(trials)), key=key)


def superseded(trials: Sequence[Trial]) -> dict[str, str]:
    """The trials that a longer training of the same configuration replaces, and that trial.

    Args:
        trials: Of one search.
    """
    return {
        trial.trial_id: family[-1].trial_id
        for family in configurations(trials)
        for trial in family[:-1]
    }


def names(trials: Sequence[Trial]) -> list[str]:
    """The hyperparameters of a search, in the order in which its trials declare them."""
    return list(dict.fromkeys(name for trial in trials for name in trial.values))


def shown(value: Value) -> str:
    """Writes a value for a table, for example '0.01'."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def described(values: Mapping[str, Value]) -> str:
    """Writes a configuration in words.

    Example:
        >>> described({"head": "32-16", "learning_rate": 0.01})
        'head 32-16, learning rate 0.01'
    """
    return ", ".join(f"{worded(name)} {shown(value)}" for name, value in values.items())


def worded(name: str) -> str:
    """Writes the name of a hyperparameter in words; a number stays tied to its name.

    Example:
        >>> worded("learning_rate"), worded("units_1")
        ('learning rate', 'units_1')
    """
    return re.sub(r"_(?!\d)", " ", name)


def find(trials: Sequence[Trial], values: Mapping[str, Value]) -> Trial | None:
    """The trial at a point of the space; of several, the one that ended first.

    Args:
        trials: Where to look.
        values: What the trial must have; numbers may differ in their last bits.
    """

    def same(trial: Trial) -> bool:
        return all(equal(trial.values.get(name), value) for name, value in values.items())

    return min(filter(same, trials), key=lambda trial: trial.order, default=None)


def equal(one: Value | None, other: Value | None) -> bool:
    """Whether two values are the same, but for the last bits of a number."""
    if isinstance(one, bool | str | None) or isinstance(other, bool | str | None):
        return type(one) is type(other) and one == other
    return math.isclose(one, other, rel_tol=1e-9)


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What several trials said about the same images.

    Attributes:
        trials: K of them.
        labels: int64 ``[n]``.
        groups: Of each image; '' = unknown.
        classes: In the order of the probabilities.
        predicted: int64 ``[K, n]``.
        losses: float64 ``[K, n]``, the log loss of each image.
    """

    trials: tuple[Trial, ...]
    labels: np.ndarray
    groups: tuple[str, ...]
    classes: Classes
    predicted: np.ndarray
    losses: np.ndarray

    @classmethod
    def align(cls, scored: Sequence[tuple[Trial, Predictions]], split: str) -> Self | None:
        """Lines up the predictions of one role by image.

        Args:
            scored: Trials and their predictions.
            split: "tune" or "test".

        Returns:
            The answers, with images sorted by id; None where no trial has any.

        Raises:
            ValueError: Trials were scored on different images, labels or groups.
        """
        aligned: list[tuple[Trial, Predictions]] = []
        for trial, predictions in scored:
            rows = [row for row, role in enumerate(predictions.splits) if role == split]
            if rows:
                rows.sort(key=predictions.ids.__getitem__)
                aligned.append((trial, predictions.take(rows)))
        if not aligned:
            return None
        (trial, first), *others = aligned
        for other, predictions in others:
            for field in ("class_names", "ids", "groups"):
                if getattr(predictions, field) != getattr(first, field):
                    raise ValueError(
                        f"trial {other.trial_id}, {split} predictions: expected the {field} of "
                        f"trial {trial.trial_id}"
                    )
            if (predictions.labels != first.labels).any():
                raise ValueError(
                    f"trial {other.trial_id}, {split} predictions: expected the labels of trial "
                    f"{trial.trial_id}"
                )
        chosen = [p.probabilities[np.arange(len(p)), p.labels] for _, p in aligned]
        return cls(
            trials=tuple(trial for trial, _ in aligned),
            labels=first.labels,
            groups=first.groups,
            classes=first.classes,
            predicted=np.stack([p.predicted for _, p in aligned]),
            losses=-np.log(np.clip(chosen, _LEAST_PROBABILITY, 1)),
        )

    def row(self, trial: Trial) -> int | None:
        """Number of a trial; None where it has no predictions."""
        ids = [one.trial_id for one in self.trials]
        return ids.index(trial.trial_id) if trial.trial_id in ids else None

    @property
    def severe(self) -> tuple[np.ndarray, list[int]]:
        """Which images are HSIL or SCC, bool ``[n]``, and which classes these are."""
        classes = self.classes.severe
        return np.isin(self.labels, classes), classes

    def only(self, rows: Sequence[int]) -> "Answers":
        """The same of some trials, in the order given."""
        return dataclasses.replace(
            self,
            trials=tuple(self.trials[row] for row in rows),
            predicted=self.predicted[list(rows)],
            losses=self.losses[list(rows)],
        )

    def figures(self, metric: str, weights: np.ndarray) -> np.ndarray:
        """A figure of every trial under resampling weights.

        Args:
            metric: 'accuracy', 'macro_f1', 'loss' or 'hsil_plus_sensitivity'.
            weights: float64 ``[b, n]``: how often each image was drawn.

        Returns:
            float64 ``[b, K]``; NaN where it is undefined in a resample.

        Raises:
            ValueError: The metric is unknown.
        """
        if metric == "macro_f1":
            classes = len(self.classes.names)
            present = np.bincount(self.labels, minlength=classes) > 0
            by_trial = [
                confusion.statistics(
                    confusion.counts(self.labels, predicted, classes, weights),
                    present,
                    None,
                )["macro_f1"]
                for predicted in self.predicted
            ]
            return np.stack(by_trial, axis=1)
        are_severe, severe = self.severe
        counted = are_severe if metric == "hsil_plus_sensitivity" else slice(None)
        values = {
            "accuracy": lambda: self.predicted == self.labels,
            "hsil_plus_sensitivity": lambda: np.isin(self.predicted, severe),
            "loss": lambda: self.losses,
        }
        if metric not in values:
            raise ValueError(f"metric: expected macro_f1, {', '.join(values)}, got {metric!r}")
        drawn = weights[:, counted]
        total = drawn.sum(axis=1, keepdims=True)
        sums = drawn @ values[metric]()[:, counted].T.astype(float)
        return np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0)


def write_csv(
    path: Path, trials: Sequence[Trial], direction: Direction, source: str = "unknown"
) -> None:
    """Writes one row a trial, in order of rank, whole or not at all.

    Args:
        path: Where to.
        trials: Of one search. Those that a promotion superseded have no rank; they follow the
            others, and the last column but one names the trial that replaced them.
        direction: Whether "max" or "min" is best.
        source: Whose images they are, as in the manifest; every row says so.

    Raises:
        ValueError: As `rank`.
    """
    replaced = superseded(trials)
    ranked = rank(trials, direction)
    rows: list[tuple[int | str, Trial]] = list(enumerate(ranked, start=1))
    rest = sorted((t for t in trials if t.trial_id in replaced), key=lambda trial: trial.order)
    rows += [("", trial) for trial in rest]
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    # A user's space may name a hyperparameter like one of our columns.
    taken = {*_BEFORE, *metrics, *_AFTER, "source"}
    columns = {name: f"value_{name}" if name in taken else name for name in names(trials)}
    text = io.StringIO()
    header = [*_BEFORE, *columns.values(), *metrics, *_AFTER, "source"]
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    for place, trial in rows:
        writer.writerow(
            {
                "rank": place,
                "trial": trial.trial_id,
                "status": trial.status,
                "score": trial.score if math.isfinite(trial.score) else "",
                **{columns[name]: value for name, value in trial.values.items()},
                **trial.metrics,
                **{
                    name: "" if (value := getattr(trial, name)) is None else value
                    for name in _AFTER[:-1]
                },
                "superseded_by": replaced.get(trial.trial_id, ""),
                "source": source,
            }
        )
    files.write_atomically(path, text.getvalue())
