"""The steps of a search beside the search itself: describe, show the space, publish."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_tuner
import rich.box
import rich.console
import rich.table
import tensorflow_datasets.public_api as tfds

from finetune import (
    collect,
    oracles,
    scoring,
    search_report,
    space,
    tuner,
)
from replication import experiment, features, runs, training
from tfds_pap import pipeline, roles

_PAPER = (
    "Paper protocol, defects included: the images that score a trial are among those that it was "
    "trained on."
)


def describe(
    run: runs.RunDirectory,
    builder: tfds.core.DatasetBuilder,
    policy: runs.DevicePolicy,
    assigned: roles.Roles,
    *,
    untrained: bool,
    protocol: str,
) -> None:
    """Writes what is searched on what into the manifest.

    Args:
        run: The search directory.
        builder: A prepared builder.
        policy: The device policy in force.
        assigned: Role of every image.
        untrained: Whether the backbone has random weights.
        protocol: "paper" or "clean".
    """
    index = pipeline.read_index(builder)
    source, announcement = experiment.data_source({2: builder})
    sentences = [
        announcement,
        experiment.UNTRAINED if untrained else "",
        _PAPER if protocol == "paper" else "",
    ]
    run.update_manifest(
        source=source,
        announcement=" ".join(filter(None, sentences)),
        environment=runs.environment(policy, "finetune.search"),
        data={
            builder.name: {
                **experiment.describe_images(builder, index),
                "roles": {
                    protocol: {
                        role: experiment.class_counts(index, positions)
                        for role, positions in assigned.items()
                    }
                },
            }
        },
    )
    experiment.audit(run, [builder])


def decoded_images(
    builder: tfds.core.DatasetBuilder, spec: features.FeatureSpec
) -> Callable[[], pipeline.ImageStore]:
    """Returns a function that decodes all images when it is first called.

    Args:
        builder: A prepared builder.
        spec: Says at which size.
    """
    return functools.cache(lambda: pipeline.load_images(builder, spec.size, spec.resize))


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
    table = rich.table.Table(title=f"Space: {searched.name}", box=rich.box.SIMPLE)
    for heading in ("hyperparameter", "values", "only where"):
        table.add_column(heading)
    for parameter in hyperparameters.space:
        table.add_row(parameter.name, _values(parameter), _conditions(parameter))
    console = rich.console.Console()
    console.print(table)
    points = oracles.count_points(hyperparameters)
    console.print(
        f"{'Infinitely many' if points is None else f'{points:,}'} points; "
        f"{plan.trials:,} trials, {plan.trials * executions:,} fits, at most "
        f"{plan.epochs * executions:,} epochs",
        highlight=False,
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


def publish(run: runs.RunDirectory, study: tuner.Study, plan: oracles.Plan, *, name: str) -> Path:
    """Writes search.csv, best.json and the report; prints the summary.

    Args:
        run: The search directory.
        study: What trials shared.
        plan: How many trials there were to be.
        name: Of the tuner.

    Returns:
        The page.

    Raises:
        runs.RunError: If no trial came to its end.
    """
    direction = scoring.OBJECTIVES[study.objective]
    found = collect.read_trials(run.path)
    run.update_manifest(peak_memory_mib=round(runs.peak_memory_mib()))
    search = search_report.Search(
        trials=found,
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
        seconds=sum(trial.seconds for trial in found),
    )
    page = search_report.write(run, search)
    best = collect.best(run)
    best.tuning.write(
        run.path / "best.json",
        _trial=best.trial.trial_id,
        _objective={study.objective: best.trial.score},
    )
    # Nothing goes on from these any more.
    for folder in (run.path / collect.PROJECT).glob("trial_*/execution_*"):
        training.remove_state(folder)
    search_report.print_summary(search, announcement=run.manifest()["announcement"])
    return page
