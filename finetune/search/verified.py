"""What a search directory states, computed again from its predictions; see `pap verify`.

A trial's figures follow from what it said of the scored images, the epoch that it kept from its
history, its score from the figures of its executions; ranking, search.csv and best.json from all
trials. How often each was trained, and the rest of its history, only the command tells (--again).
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from keras_tuner.engine import trial as trial_module

from finetune.search import base_oracle, collect, scoring, steps, trials
from replication.measures.predictions import Predictions
from replication.runs.directory import RunDirectory
from replication.verification import figures, recomputed
from replication.verification.figures import Checked, Rule
from tfds_pap import files
from tfds_pap.errors import PapError

_RULE = Rule()

#: Role in predictions.csv -> beginning of the names of its figures.
_ROLES = {"tune": "val_", "test": "held_out_"}

#: Of an execution, what is measured and never the same twice.
_MEASURED = frozenset({"seconds"})


def checks(run: RunDirectory) -> Iterator[Checked]:
    """Compares everything that follows from a search's own files.

    Args:
        run: Of `pap search`, finished.

    Yields:
        What came out of each execution, each trial and each table.

    Raises:
        PapError: The directory holds no trial that ended.
    """
    project = run.path / collect.PROJECT
    state = _state(project / "oracle.json")
    if not state.get("end_order"):
        raise PapError(f"--run_dir={run.path}: expected trials that ended, got none")
    sealed = _sealed(run, project / "oracle.json")
    yield sealed
    whole = not sealed.different
    objective = run.manifest()["identity"]["objective"]
    clean = run.manifest()["identity"]["protocol"] == "clean"
    for trial_id in state["end_order"]:
        folder = project / f"trial_{trial_id}"
        # A trial that failed may have left one that did not end.
        executions = [
            one
            for one in sorted(folder.glob("execution_*"))
            if (one / files.SUMS).exists() or (one / "result.json").exists()
        ]
        for execution in executions:
            digests = recomputed.digests(run, execution)
            whole = whole and not digests.different
            yield digests
            yield _execution(run, execution, objective, clean=clean)
        sealed = _sealed(run, folder / "trial.json")
        whole = whole and not sealed.different
        yield sealed
        yield _trial(run, folder, executions)
    yield from recomputed.images(run)
    if not whole:
        # What readers refuse cannot be ranked, and the digests above say so.
        return
    yield from _published(run, objective)


def _state(path: Path) -> dict[str, Any]:
    """What an oracle wrote, changed or not."""
    try:
        state = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PapError(f"{path}: expected what a search writes ({error})") from None
    return state if isinstance(state, dict) else {}


def _sealed(run: RunDirectory, path: Path) -> Checked:
    """The digest that a state has in itself."""
    checked = Checked(f"{path.relative_to(run.path)}: digest")
    state = _state(path)
    stated = state.pop(base_oracle.DIGEST, None)
    if stated is None:
        checked.notes.append("none kept (made before states had them); not looked at")
    else:
        checked.compare(path.name, stated, base_oracle.digest(state), _RULE)
    return checked


def _execution(run: RunDirectory, folder: Path, objective: str, *, clean: bool) -> Checked:
    """The figures of `result.json` by predictions and history."""
    checked = Checked(f"{folder.relative_to(run.path)}/result.json")
    try:
        # Not `files.read_json`, which refuses a changed file: here each figure is to be named.
        result = json.loads((folder / "result.json").read_text("utf-8"))
        if result["status"] == "diverged":
            for name, direction in scoring.OBJECTIVES.items():
                checked.compare(name, result["metrics"][name], scoring.WORST[direction], _RULE)
            return checked
        now = _scored(Predictions.read(folder / "predictions.csv"))
        kept = len(result["history"]) - 1
        if clean:
            values = [epoch[objective] for epoch in result["history"]]
            kept = int(np.argmin(values) if _is_least(objective) else np.argmax(values))
        now |= {name: result["history"][kept][name] for name in ("accuracy", "loss")}
        checked.compare("metrics", result["metrics"], now, _RULE)
        checked.compare("best_epoch", result["best_epoch"], kept + 1, _RULE)
        checked.compare("epochs", result["epochs"], len(result["history"]), _RULE)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        checked.different.append(f"not what a search writes: {' '.join(str(error).split())[:200]}")
    return checked


def _is_least(objective: str) -> bool:
    return scoring.OBJECTIVES[objective] == "min"


def _scored(predictions: Predictions) -> dict[str, float]:
    by_name: dict[str, float] = {}
    for role, prefix in _ROLES.items():
        if role in predictions.splits:
            part = predictions.select(role)
            by_name |= scoring.figures(part.labels, part.probabilities, part.classes, prefix)
    return by_name


def _trial(run: RunDirectory, folder: Path, executions: list[Path]) -> Checked:
    """A trial's figures and score: means over its executions."""
    identity = run.manifest()["identity"]
    checked = Checked(f"{folder.relative_to(run.path)}/trial.json")
    try:
        state = _state(folder / "trial.json")
        state.pop(base_oracle.DIGEST, None)
        trial = trial_module.Trial.from_state(state)
        if trial.status != "COMPLETED":
            checked.notes.append(f"{trial.status.lower()}: no score to compute again")
            return checked
        results = [
            json.loads((one / "result.json").read_text("utf-8"))["metrics"] for one in executions
        ]
        stated = {n: float(one.get_best_value()) for n, one in trial.metrics.metrics.items()}
        now = {name: float(np.mean([one[name] for one in results])) for name in stated}
        checked.compare("metrics", stated, now, _RULE)
        checked.compare("score", trial.score, now[identity["objective"]], _RULE)
        wanted = identity["executions_per_trial"]
        checked.compare("executions", wanted, len(executions), _RULE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        checked.different.append(f"not what a search writes: {' '.join(str(error).split())[:200]}")
    return checked


def _published(run: RunDirectory, objective: str) -> Iterator[Checked]:
    """search.csv and best.json by the trials."""
    ended = collect.read_trials(run.path)
    direction = scoring.OBJECTIVES[objective]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trials.write_csv(
            folder / "search.csv", ended, direction, run.manifest().get("source", "unknown")
        )
        yield _rankings(run.path, folder, _RULE)
        best = trials.rank(ended, direction)[0]
        if best.status == "completed":
            steps.write_best(folder, best, objective)
            yield recomputed.json_files("best.json", run.path, folder, _RULE)


def _rankings(then: Path, now: Path, rule: Rule) -> Checked:
    """search.csv of two directories, by trial."""
    name = "search.csv"
    if not (then / name).exists():
        return Checked(name, different=["is not there: the search did not end, or it was deleted"])
    numbers = dict.fromkeys(("trial", "inherited", "superseded_by"), str)
    before, after = (pd.read_csv(folder / name, dtype=numbers) for folder in (then, now))
    return figures.tables(name, before, after, rule, ("trial",))


def again(stated: RunDirectory, now: RunDirectory, what: Rule) -> Iterator[Checked]:
    """Compares a search with that of the repeated command, trial by trial.

    Args:
        stated: The search.
        now: Made by its command.
        what: Counts as the same.

    Yields:
        What came out of each trial and of the ranking.
    """
    what = dataclasses.replace(what, ignored=what.ignored | _MEASURED)
    for path in sorted(stated.path.glob(f"{collect.PROJECT}/*/execution_*/result.json")):
        place = path.parent.relative_to(stated.path)
        made = recomputed.json_files("result.json", path.parent, now.path / place, what)
        made.place = f"{place}/result.json"
        yield made
    yield _rankings(stated.path, now.path, what)
    yield recomputed.json_files("best.json", stated.path, now.path, what)
