"""What a search shows while it runs: a live table on a terminal, else a line a trial."""

import math
import time
from typing import Any

import keras_tuner
import rich.box
import rich.live
import rich.table

from finetune.search import collect, oracles
from replication.drawing import pages, terminal


class Progress:
    """Shows trials as they end. Used as a context.

    Args:
        oracle: Of the search, at the chief or alone.
        plan: Number of trials and of epochs.
    """

    def __init__(self, oracle: keras_tuner.Oracle, plan: oracles.Plan) -> None:
        self._oracle = oracle
        self._plan = plan
        self._start = time.monotonic()
        self._before = len(oracle.end_order)
        self._shown = self._before
        self._work_before = self._work()
        self._console = terminal.console(width=80)
        self._live: rich.live.Live | None = None

    def __enter__(self) -> "Progress":
        if self._before:
            self._console.print(
                f"Resuming: {self._before} of {self._plan.trials} trials ended before",
            )
        if self._console.is_terminal:
            self._live = rich.live.Live(self._table(), console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self) -> None:
        """Shows what ended since the last call."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        for trial_id in self._oracle.end_order[self._shown :]:
            self._shown += 1
            trial = self._oracle.trials[trial_id]
            self._console.print(
                f"trial {trial_id}{_bracket(trial)} ({self._shown} of {self._plan.trials}): "
                f"{self._oracle.objective.name} {_score(trial)}; {self._best()}; {self._left()}",
                soft_wrap=True,
            )

    def _table(self) -> rich.table.Table:
        ended = len(self._oracle.end_order)
        table = rich.table.Table(
            title=f"{ended} of {self._plan.trials} trials; {self._best()}; {self._left()}",
            box=rich.box.SIMPLE,
            title_justify="left",
        )
        for heading in ("trial", "bracket", self._oracle.objective.name, "values"):
            table.add_column(heading)
        recent = [self._oracle.trials[name] for name in self._oracle.end_order[-5:]]
        running = [trial for trial in self._oracle.ongoing_trials.values() if trial not in recent]
        for trial in [*recent, *running]:
            table.add_row(
                trial.trial_id,
                _bracket(trial).removeprefix(", bracket "),
                "running" if trial in running else _score(trial),
                ", ".join(f"{k} {_short(v)}" for k, v in _values(trial).items()),
            )
        return table

    def _best(self) -> str:
        ended = [self._oracle.trials[name] for name in self._oracle.end_order]
        scored = [t for t in ended if t.score is not None and math.isfinite(t.score)]
        if not scored:
            return "no score yet"
        sign = 1 if self._oracle.objective.direction == "max" else -1
        best = max(scored, key=lambda trial: sign * trial.score)
        return f"best {best.score:.4f} (trial {best.trial_id})"

    def _work(self) -> float:
        """Share of the search that is done; a fit costs its start as well as its epochs."""
        ended = [self._oracle.trials[name] for name in self._oracle.end_order]
        epochs = sum(_epochs(trial, self._plan) for trial in ended)
        return (len(ended) / self._plan.trials + epochs / self._plan.epochs) / 2

    def _left(self) -> str:
        work = self._work()
        done = work - self._work_before
        if not done:
            return "time left unknown yet"
        seconds = (time.monotonic() - self._start) / done * max(1 - work, 0)
        return f"about {pages.duration(seconds, digits=0)} left"


def _epochs(trial: Any, plan: oracles.Plan) -> float:
    """Epochs that a trial was to train itself, early stopping aside."""
    values = trial.hyperparameters.values
    if "tuner/epochs" in values:
        return values["tuner/epochs"] - values["tuner/initial_epoch"]
    return plan.epochs / plan.trials


def _values(trial: Any) -> dict[str, Any]:
    return collect.searched(trial.hyperparameters.values)


def _bracket(trial: Any) -> str:
    values = trial.hyperparameters.values
    if "tuner/bracket" not in values:
        return ""
    return f", bracket {values['tuner/bracket']} round {values['tuner/round']}"


def _score(trial: Any) -> str:
    return "failed" if trial.score is None else f"{trial.score:.4f}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
