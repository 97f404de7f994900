"""One fit of a run: trained, joined to its backbone, scored and saved; resumed after a kill."""

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow_datasets.public_api as tfds

from replication.drawing import tensorboard
from replication.learning import features, models, training, training_state, whole_model
from replication.measures import evaluation, names, triage
from replication.runs import description
from replication.runs import device as devices
from replication.runs import environment as run_environment
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from tfds_pap import files, pipeline, roles
from tfds_pap.errors import PapError

#: Of `fit.json`, what TensorBoard's HPARAMS sorts fits by.
_HYPERPARAMETERS = (
    *("protocol", "stage", "seed", "name", "size", "resize"),
    *("optimizer", "learning_rate", "batch_size", "epochs_at_most", "parameters"),
)

#: From examples and the positions of the tune role to what scores an epoch.
Validator = Callable[[training.Store, np.ndarray], Callable[[keras.Model], dict[str, float]]]


def run_fit(
    run: RunDirectory,
    recipe: training.Recipe,
    protocol: str,
    seed: int,
    *,
    builder: tfds.core.DatasetBuilder,
    policy: DevicePolicy,
    profile: bool = False,
    prevalence: float | None = None,
    features_dir: Path = features.DIRECTORY,
    validator: Validator | None = None,
    about: Mapping[str, Any] | None = None,
    progress: keras.callbacks.Callback | None = None,
    blocks: Mapping[str, str] | None = None,
    watch: Callable[[Path, training.Store, roles.Roles], keras.callbacks.Callback] | None = None,
) -> None:
    """Trains, saves and scores one model; returns at once where that is done.

    Args:
        run: Where the fit belongs.
        recipe: How to train.
        protocol: "paper" or "clean".
        seed: Of weights, order, augmentation and dropout; a whole number from 0.
        builder: Prepared builder of the recipe's stage.
        policy: Where and how to compute.
        profile: Whether to write a TensorBoard profile.
        prevalence: Of HSIL+ where the model is to be used, for predictive values.
        features_dir: Where features are stored.
        validator: Scores epochs with other figures than loss and accuracy.
        about: Further entries of `fit.json`.
        blocks: What roles keep together, by id; None keeps groups together.
        watch: From the fit's directory, its examples and roles to what looks on as it trains.
        progress: Shows how far training is, instead of a line of the fit's own.

    Raises:
        PapError: If it was trained at another size.
    """
    directory = run.fit_directory(recipe.stage, protocol, seed)
    words = label(recipe.stage, protocol, seed)
    if (directory / "fit.json").exists():
        check_size(run, recipe, protocol, seed)
        print(f"{words}: finished before")
        return
    start = time.perf_counter()
    examples = store(builder, recipe, policy, features_dir)
    assigned = _roles(recipe, examples.index, protocol, blocks)
    logs = run.path / "logs" / directory.relative_to(run.path)
    model, outcome = training.fit(
        recipe,
        examples,
        assigned,
        seed=seed,
        policy=policy,
        directory=directory,
        label=None if progress else words,
        callbacks=(
            *tensorboard.callbacks(logs, examples, assigned, profile=profile),
            *([watch(directory, examples, assigned)] if watch else []),
            *filter(None, [progress]),
        ),
        validate=validator(examples, assigned.tune) if validator and len(assigned.tune) else None,
    )
    predictions = _scored(directory, model, examples, assigned, prevalence)
    if recipe.features is not None:
        model = whole_model.join(recipe.features, model)
        outcome["whole_model_differs_by"] = whole_model.largest_difference(
            model, recipe.features, builder, predictions.select("test"), policy
        )
    models.save_model(model, directory / "model.keras")
    files.write_last(
        directory / "fit.json",
        {
            **_facts(recipe, examples.index, assigned),
            **{"protocol": protocol, "seed": seed, "device": policy.device},
            "parameters": model.count_params(),
            "trainable_parameters": sum(int(np.prod(w.shape)) for w in model.trainable_weights),
            "git_commit": run_environment.git_commit(),
            **outcome,
            **(about or {}),
        },
        ("model.keras", "predictions.csv", "metrics.json"),
    )
    _write_session(run, files.read_json(directory / "fit.json"), predictions.select("test"))
    training_state.remove_state(directory)
    _note_cost(run, words, time.perf_counter() - start)


def _roles(
    recipe: training.Recipe,
    index: pipeline.Index,
    protocol: str,
    blocks: Mapping[str, str] | None,
) -> roles.Roles:
    assigned = roles.assign_roles(
        index,
        protocol,
        stage=recipe.stage,
        test_within_train=recipe.test_within_train,
        blocks=blocks,
    )
    return assigned.with_tune_in_train() if recipe.train_on_tune else assigned


def _note_cost(run: RunDirectory, words: str, seconds: float) -> None:
    durations = {**run.manifest().get("durations", {}), words: round(seconds, 1)}
    run.update_manifest(durations=durations, peak_memory_mib=round(devices.peak_memory_mib()))


def _write_session(
    run: RunDirectory, info: Mapping[str, Any], test: evaluation.Predictions
) -> None:
    """Writes the fit's line of TensorBoard's HPARAMS: how it was trained, and its test figures."""
    values = {name: info[name] for name in _HYPERPARAMETERS if info.get(name) is not None}
    summary = evaluation.summarise_seeds([test], resamples=1)
    name = f"stage{info['stage']}_{info['protocol']}_seed_{info['seed']}"
    tensorboard.write_session(
        run.path / "logs" / "hparams" / name,
        values,
        {f"test/{metric}": figure.mean for metric, figure in summary.items()},
        name=label(info["stage"], info["protocol"], info["seed"]),
        shown={f"test/{metric}": f"test {names.METRICS[metric].words}" for metric in summary},
    )


def _scored(
    directory: Path,
    model: keras.Model,
    examples: training.Store,
    assigned: roles.Roles,
    prevalence: float | None,
) -> evaluation.Predictions:
    """Writes what the model says of the tune and test roles, and the figures of the latter."""
    scored = np.concatenate([assigned.tune, assigned.test])
    predictions = evaluation.Predictions.of(
        examples.index,
        (("tune", assigned.tune), ("test", assigned.test)),
        training.predict(model, examples, scored),
    )
    predictions.write(directory / "predictions.csv")
    metrics = evaluation.evaluate(predictions.select("test"))
    metrics["triage"] = triage.assess(predictions, prevalence)
    files.write_json(directory / "metrics.json", evaluation.jsonable(metrics))
    return predictions


def _facts(recipe: training.Recipe, index: pipeline.Index, assigned: roles.Roles) -> dict[str, Any]:
    """What `fit.json` says of the plan; `optimizer_config` tells what the optimizer really was."""
    return {
        "stage": recipe.stage,
        "name": recipe.name,
        "size": recipe.size,
        "resize": recipe.resize,
        "published": recipe.published,
        "optimizer": recipe.optimizer,
        "learning_rate": recipe.learning_rate,
        "batch_size": recipe.batch_size,
        "epochs_at_most": recipe.epochs,
        "monitor": recipe.monitor,
        "class_names": list(index.class_names),
        "counts": {
            role: description.class_counts(index, positions) for role, positions in assigned.items()
        },
    }


def store(
    builder: tfds.core.DatasetBuilder,
    recipe: training.Recipe,
    policy: DevicePolicy,
    features_dir: Path = features.DIRECTORY,
) -> training.Store:
    """Returns what a recipe trains on: stored features, or decoded images.

    Args:
        builder: A prepared builder.
        recipe: How to train.
        policy: Where and how to compute features that are not stored yet.
        features_dir: Where features are stored.
    """
    if recipe.features is None:
        return images(builder, recipe.size, recipe.resize)
    return features.extract_features(builder, recipe.features, features_dir, policy=policy)


@functools.lru_cache(maxsize=2)
def images(builder: tfds.core.DatasetBuilder, size: int, resize: str) -> pipeline.ImageStore:
    """Decodes every image once: both protocols, every seed and every trial share them.

    Args:
        builder: A prepared builder.
        size: Height and width in pixels.
        resize: One of `decoding.RESIZE_METHODS`.
    """
    return pipeline.load_images(builder, size, resize)


def label(stage: int, protocol: str, seed: int) -> str:
    """Returns how a fit is called on the terminal and in the manifest's durations."""
    return f"stage {stage}, {protocol} protocol, seed {seed}"


def check_size(run: RunDirectory, recipe: training.Recipe, protocol: str, seed: int) -> None:
    """Refuses a finished fit of another input size than the recipe's.

    Raises:
        PapError: In one line.
    """
    directory = run.fit_directory(recipe.stage, protocol, seed)
    if (size := files.read_json(directory / "fit.json")["size"]) != recipe.size:
        raise PapError(
            f"{directory} was trained at {size} px, not {recipe.size}; give another --run_dir"
        )
