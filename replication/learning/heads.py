"""Trains the head of P4 and P6 on stored features and scores it, once a seed and fold."""

import contextlib
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from replication.learning import features, models, training
from replication.learning.knobs import HeadRecipe
from replication.measures import evaluation
from replication.runs import device
from replication.runs.device import DevicePolicy
from tfds_pap import files, folds, pipeline, roles

#: Name of the cut that the authors published: folders train and validation.
PUBLISHED = "published"


def training_recipe(
    recipe: HeadRecipe, store: features.FeatureStore, protocol: str, seed: int, *, tuned: bool
) -> training.Recipe:
    """Returns how one head is trained on stored features.

    Args:
        recipe: How heads are built and trained.
        store: The features.
        protocol: "paper" watches accuracy on the tune role and keeps the last weights, as P6 did;
            "clean" watches the loss and keeps the best ones.
        seed: Of weights and dropout.
        tuned: Whether there is a tune role; without one the last epoch counts.
    """
    views = store.features.shape[1]
    return training.Recipe.of(
        recipe,
        name="head (P6)",
        stage=2,
        build=lambda size: models.head(
            size,
            len(store.index.class_names),
            units=recipe.hidden_units,
            dropout=recipe.dropout,
            seed=seed,
        ),
        size=0,
        resize="bilinear",
        keep="best" if tuned and protocol == "clean" else "last",
        patience=recipe.patience if tuned else 0,
        augment="stored_views" if views > 1 and protocol == "clean" else "none",
        monitor="val_accuracy" if protocol == "paper" else "val_loss",
    )


def cut(
    index: pipeline.Index,
    name: str,
    *,
    protocol: str,
    count: int,
    seed: int,
    blocks: Mapping[str, str] | None = None,
) -> list[roles.Roles]:
    """Returns the roles of every fit of one seed.

    Args:
        index: What is known of the images.
        name: `PUBLISHED` (one fit, on the published folders), or one of `folds.CUTS`.
        protocol: Of the published cut.
        count: Number of folds.
        seed: Of the folds.
        blocks: What is kept together, by id; None keeps groups together.

    Raises:
        roles.CutError: See `folds.cut` and `roles.assign_roles`.
    """
    if name == PUBLISHED:
        return [roles.assign_roles(index, protocol, stage=2, blocks=blocks)]
    return folds.cut(index, count, by=name, seed=seed, blocks=blocks)


def scored_on_training(index: pipeline.Index) -> roles.Roles:
    """Returns the roles of P5's search: all of the train folder trains, and its own rows tune.

    As many rows are scored as the validation folder has ("the first 800 rows of the concatenated
    array"); they are in the order in which P2's notebook shuffled them, as P5's is not published.

    Args:
        index: What is known of the images.

    Returns:
        The roles. Tune is part of train, which is defect D3; the validation folder, role test,
        chooses nothing.

    Raises:
        roles.CutError: If the train folder is too small to cut.
    """
    assigned = roles.assign_roles(index, "paper", stage=2)
    train = np.concatenate([assigned.train, assigned.tune])
    return roles.Roles(train, train[: len(assigned.test)], assigned.test)


def train_head(
    store: features.FeatureStore,
    recipe: HeadRecipe | None = None,
    fits: Sequence[roles.Roles] | None = None,
    *,
    protocol: str = "clean",
    seed: int = 0,
    policy: DevicePolicy | None = None,
    directory: Path | None = None,
) -> evaluation.Predictions:
    """Trains a head for each fold and scores what it did not train on; reads it where it is done.

    Args:
        store: Features of every image.
        recipe: How to train; None takes that of P6.
        fits: Roles of each fold, from `cut`; None takes the published folders.
        protocol: "paper" or "clean".
        seed: Of weights, order, views and dropout.
        policy: Where and how to compute; None takes `device.configure`'s defaults.
        directory: Where `predictions.csv`, `fit.json` (last) and, of a single fit, `head.keras`
            are kept; None keeps nothing.

    Returns:
        Predictions of the tune and test roles, pooled over the folds.

    Example:
        >>> builder = replication.prepare_images("pap_db4", "original", "drawn", "prepared")
        >>> spec = replication.feature_spec("mobilenetv2_035", source="none", size=32)
        >>> store = replication.extract_features(builder, spec)
        >>> predictions = replication.train_head(store)
        >>> len(predictions.select("test")), predictions.class_names
        (12, ('NILM', 'LSIL', 'HSIL', 'SCC'))
    """
    recipe, policy = recipe or HeadRecipe(), policy or device.configure()
    fits = fits or cut(store.index, PUBLISHED, protocol=protocol, count=0, seed=seed)
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return _trained(store, recipe, fits, protocol, seed, policy, directory)


def _trained(
    store: features.FeatureStore,
    recipe: HeadRecipe,
    fits: Sequence[roles.Roles],
    protocol: str,
    seed: int,
    policy: DevicePolicy,
    directory: Path,
) -> evaluation.Predictions:
    """See `train_head`."""
    if (directory / "fit.json").exists():
        return evaluation.Predictions.read(directory / "predictions.csv")
    start = time.perf_counter()
    parts, probabilities, outcomes = [], [], []
    for number, assigned in enumerate(fits):
        state = directory / f"fold_{number}"
        head, outcome = training.fit(
            training_recipe(recipe, store, protocol, seed, tuned=bool(len(assigned.tune))),
            store,
            assigned,
            seed=seed,
            policy=policy,
            directory=state,
            label=None,
        )
        scored = np.concatenate([assigned.tune, assigned.test])
        parts += [("tune", assigned.tune), ("test", assigned.test)]
        probabilities.append(training.predict(head, store, scored))
        outcomes.append(outcome)
        if len(fits) == 1:
            models.save_model(head, directory / "head.keras")
    predictions = evaluation.Predictions.of(store.index, parts, np.concatenate(probabilities))
    predictions.write(directory / "predictions.csv")
    files.write_last(
        directory / "fit.json",
        {
            "seed": seed,
            "protocol": protocol,
            "recipe": dataclasses.asdict(recipe),
            "optimizer_config": outcomes[0]["optimizer_config"],
            "weights": store.about["weights"],
            "features": store.about["key"],
            "folds": [
                {
                    "counts": {role: len(positions) for role, positions in assigned.items()},
                    "epochs_run": outcome["epochs_run"],
                    "best_epoch": outcome["best_epoch"],
                    "final": outcome["history"][-1],
                }
                for assigned, outcome in zip(fits, outcomes, strict=True)
            ],
            "seconds": time.perf_counter() - start,
        },
        ("predictions.csv", *(("head.keras",) if len(fits) == 1 else ())),
    )
    for number in range(len(fits)):
        shutil.rmtree(directory / f"fold_{number}", ignore_errors=True)
    return predictions
