"""What a search looks at: its objectives, the images that it scores, and the defect of P5."""

import math
from collections.abc import Callable, Mapping

import keras
import keras_tuner
import numpy as np

from finetune.search.trials import Direction
from replication.learning import heads, training, training_state
from replication.measures import confusion
from tfds_pap import pipeline, roles
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError

#: Objective -> direction. All are of the tune role, or of the fold that P5 took for one.
OBJECTIVES: Mapping[str, Direction] = {
    "val_macro_f1": "max",
    "val_accuracy": "max",
    "val_loss": "min",
    "val_hsil_plus_sensitivity": "max",
}

#: Score of a trial whose loss left the finite numbers. No loss that Keras computes is higher: it
#: keeps probabilities above `keras.config.epsilon()`.
WORST = {"max": 0.0, "min": -math.log(keras.config.epsilon())}


def objective(name: str) -> keras_tuner.Objective:
    """Returns an objective with its direction.

    Args:
        name: One of `OBJECTIVES`.
    """
    return keras_tuner.Objective(name, OBJECTIVES[name])


def assign_roles(
    index: pipeline.Index, protocol: str, blocks: Mapping[str, str] | None = None
) -> roles.Roles:
    """Assigns every image its role in a search.

    Args:
        index: What is known of the images.
        protocol: "clean": a fifth of the train folder tunes, the validation folder is not looked
            at. "paper": as P5 did, see `heads.scored_on_training`.
        blocks: What the clean protocol keeps together, by id; None keeps groups together.

    Returns:
        The roles. In the paper protocol tune is part of train: that is the defect. Its test role,
        the validation folder, is scored beside it and chooses nothing.

    Raises:
        roles.CutError: If the train folder is too small to cut.
    """
    if protocol == "paper":
        return heads.scored_on_training(index)
    return roles.assign_roles(index, protocol, stage=2, blocks=blocks)


def check_objective(name: str, index: pipeline.Index, positions: np.ndarray) -> None:
    """Checks that an objective is defined on some images.

    Args:
        name: One of `OBJECTIVES`.
        index: What is known of the images.
        positions: Which images are scored.

    Raises:
        PapError: If it is not.
    """
    severe = np.isin(index.labels[positions], index.classes.severe)
    if name == "val_hsil_plus_sensitivity" and not severe.any():
        positive = " or ".join(index.classes.positive) or "a positive class"
        raise PapError(f"--objective={name}: no image of {positive} is scored")


def validator(
    examples: training.Store, positions: np.ndarray
) -> Callable[[keras.Model], dict[str, float]]:
    """Returns what scores a model after every epoch.

    Args:
        examples: Decoded images, or stored features.
        positions: Which of them are scored.
    """
    labels, classes = examples.index.labels[positions], examples.index.classes
    return lambda model: figures(
        labels, training.predict(model, examples, positions), classes, "val_"
    )


def figures(
    labels: np.ndarray, probabilities: np.ndarray, classes: Classes, prefix: str
) -> dict[str, float]:
    """Returns the figures that can be an objective, and HSIL+ specificity beside sensitivity.

    Args:
        labels: int64 `[n]`.
        probabilities: `[n, classes]`.
        classes: In the order of the probabilities.
        prefix: Of the names of the figures.

    Raises:
        training_state.Diverged: If a probability is not finite.
    """
    if not np.isfinite(probabilities).all():
        raise training_state.Diverged("probabilities are not finite")
    count = len(classes.names)
    matrix = confusion.counts(
        labels, probabilities.argmax(axis=1), count, np.ones((1, len(labels)))
    )
    present = np.bincount(labels, minlength=count) > 0
    statistics = confusion.statistics(matrix, present, classes.severity, classes.severe)
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    result = {
        "accuracy": float(statistics["accuracy"][0]),
        "macro_f1": float(statistics["macro_f1"][0]),
        "loss": float(-np.log(np.clip(chosen, keras.config.epsilon(), 1)).mean()),
    }
    for name in ("hsil_plus_sensitivity", "hsil_plus_specificity"):
        if np.isfinite(value := statistics.get(name, [np.nan])[0]):
            result[name] = float(value)
    return {f"{prefix}{name}": value for name, value in result.items()}
