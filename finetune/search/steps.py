"""The steps of a search beside the search itself: describe, show the space, publish."""

from pathlib import Path
from typing import Any

import keras_tuner
import tensorflow_datasets.public_api as tfds

from finetune import space
from finetune.report import page as search_report
from finetune.search import collect, finite_space, oracles, scoring, summary, trials, tuner
from replication.drawing import terminal
from replication.learning import training_state
from replication.measures import published
from replication.runs import description, device
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from tfds_pap import roles
from tfds_pap.errors import PapError

_PAPER = (
    "Paper protocol, defects included: the images that score a trial are among those that it was "
    "trained on."
)


def describe(
    run: RunDirectory,
    builder: tfds.core.DatasetBuilder,
    policy: DevicePolicy,
    assigned: roles.Roles,
    *,
    untrained: bool,
    protocol: str,
    images: published.Source | None = None,
) -> None:
    """Writes what is searched on what into the manifest, which holds the audit already.

    Args:
        run: The search directory.
        builder: A prepared builder.
        policy: The device policy in force.
        assigned: Role of every image.
        untrained: Whether the backbone has random weights.
        protocol: "paper" or "clean".
        images: Whose they are by declaration: "original", "stand-in", or None.
    """
    remarks = {description.UNTRAINED: untrained, _PAPER: protocol == "paper"}
    description.describe(
        run,
        {2: builder},
        policy,
        program="finetune.search",
        images=images,
        remarks=[remark for remark, holds in remarks.items() if holds],
        assigned={protocol: assigned},
    )


def print_space(
    searched: space.Space,
    hyperparameters: keras_tuner.HyperParameters,
    plan: oracles.Plan,
    executions: int,
) -> None:
    """Prints every hyperparameter, and how many fits and epochs the search has.

    Args:
        searched: The space.
        hyperparameters: All of it.
        plan: Number of trials and of epochs.
        executions: Fits a trial.
    """
    headings = ("hyperparameter", "values", "only where")
    rows = [(each.name, _values(each), _conditions(each)) for each in hyperparameters.space]
    console = terminal.console(width=80)
    console.print(terminal.table(headings, rows, title=f"Space: {searched.name}"))
    points = finite_space.count_points(hyperparameters)
    console.print(
        f"{'Infinitely many' if points is None else f'{points:,}'} points; "
        f"{plan.trials:,} trials, {plan.trials * executions:,} fits, at most "
        f"{plan.epochs * executions:,} epochs"
    )


def _values(parameter: Any) -> str:
    if isinstance(parameter, keras_tuner.engine.hyperparameters.Float) and parameter.step is None:
        scale = f", {parameter.sampling}" if parameter.sampling != "linear" else ""
        return f"{parameter.min_value:g} to {parameter.max_value:g}{scale}"
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in parameter.values)


def _conditions(parameter: Any) -> str:
    return " and ".join(
        f"{condition.name} is {' or '.join(map(str, condition.values))}"
        for condition in parameter.conditions
    )


def publish(run: RunDirectory, study: tuner.Study, plan: oracles.Plan, *, name: str) -> Path:
    """Writes search.csv, best.json and the report; prints the summary.

    Args:
        run: The search directory.
        study: What trials shared.
        plan: How many trials there were to be.
        name: Of the tuner.

    Returns:
        The page.

    Raises:
        PapError: If no trial came to its end.
    """
    direction = scoring.OBJECTIVES[study.objective]
    ended = collect.read_trials(run.path)
    run.update_manifest(peak_memory_mib=round(device.peak_memory_mib()))
    search = search_report.Search(
        trials=ended,
        objective=study.objective,
        direction=direction,
        tuner=name,
        space=study.space.name,
        protocol=study.protocol,
        backbone=study.spec.backbone,
        weights=study.spec.weights.label,
        planned=plan.trials,
        executions=study.executions,
        paper_values=space.PAPER_CHOICE if study.space.name == "paper" else None,
        seconds=sum(trial.seconds for trial in ended),
    )
    page = search_report.write(run, search)
    if search.best is None:
        raise PapError(f"{run.path}: no trial of this search came to its end")
    write_best(run.path, search.best, study.objective)
    # Nothing goes on from these any more.
    for folder in (run.path / collect.PROJECT).glob("trial_*/execution_*"):
        training_state.remove_state(folder)
    summary.print_summary(search, announcement=run.manifest()["announcement"])
    return page


def write_best(directory: Path, best: trials.Trial, objective: str) -> None:
    """Writes best.json, which `finetune.train --hparams` takes.

    Args:
        directory: Where to.
        best: The trial of the highest rank.
        objective: One of `scoring.OBJECTIVES`.
    """
    collect.tuning(best).write(
        directory / "best.json", _trial=best.trial_id, _objective={objective: best.score}
    )
