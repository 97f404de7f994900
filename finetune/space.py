"""What is searched: the paper's 162 points, a larger space, or a file of the user's own.

A space is a function from `keras_tuner.HyperParameters` to fields of `tuning.Tuning`; a field that
it leaves out, or sets to None (a parameter that is not active), keeps its value.
"""

import dataclasses
import functools
import hashlib
import json
import runpy
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras_tuner

from finetune.tuning import Tuning
from replication.learning import knobs
from tfds_pap.errors import PapError

NAMES = ("paper", "extended")

Declare = Callable[[keras_tuner.HyperParameters], Mapping[str, Any]]


def paper(hp: keras_tuner.HyperParameters) -> dict[str, Any]:
    """The space of P5: 6 heads x 3 dropouts x 3 learning rates of SGD x 3 batch sizes."""
    values = {name: hp.Choice(name, list(choices)) for name, choices in knobs.P5_SPACE.items()}
    hidden_units = tuple(map(int, values.pop("head").split("-")))
    return {"hidden_units": hidden_units, "optimizer": "sgd", **values}


#: The point that the authors chose (P5); the batch size is that of P6.
PAPER_CHOICE: Mapping[str, str | int | float | bool] = {
    "head": "64",
    "dropout": 0.2,
    "learning_rate": 0.01,
    "batch_size": 16,
}


def extended(
    hp: keras_tuner.HyperParameters, *, epochs: int, max_unfrozen_blocks: int = 2
) -> dict[str, Any]:
    """A space that holds the paper's and asks what else helps.

    Args:
        hp: KerasTuner's hyperparameters.
        epochs: Epochs at most, of which a warm-up takes at most 4 and never all.
        max_unfrozen_blocks: Blocks of the backbone that may be trained; 0 leaves them out.
    """
    values: dict[str, Any] = {
        "optimizer": hp.Choice("optimizer", ["sgd", "adam", "adamw"]),
        "schedule": hp.Choice("schedule", ["constant", "cosine"]),
        "label_smoothing": hp.Choice("label_smoothing", [0.0, 0.05, 0.1, 0.2]),
        "dropout": hp.Float("dropout", 0.0, 0.8, step=0.1, default=0.2),
        "batch_size": hp.Choice("batch_size", [16, 32, 64]),
        "class_weights": hp.Choice("class_weights", ["none", "balanced"]),
        "views": hp.Choice("views", [1, 8]),
    }
    # Adam's steps have the size of the learning rate whatever the gradient.
    with hp.conditional_scope("optimizer", ["sgd"]):
        values["momentum"] = hp.Choice("momentum", [0.0, 0.9])
        values["learning_rate"] = hp.Float(
            "sgd_learning_rate", 1e-3, 1.0, sampling="log", default=1e-2
        )
    with hp.conditional_scope("optimizer", ["adam", "adamw"]):
        rate = hp.Float("adam_learning_rate", 1e-5, 1e-2, sampling="log", default=1e-3)
        values["learning_rate"] = values["learning_rate"] or rate
    with hp.conditional_scope("optimizer", ["adamw"]):
        values["weight_decay"] = hp.Float("weight_decay", 1e-5, 1e-1, sampling="log")
    with hp.conditional_scope("schedule", ["cosine"]):
        values["warmup_epochs"] = hp.Int("warmup_epochs", 0, min(4, epochs - 1))
    layers = hp.Int("hidden_layers", 0, 2, default=1)
    units = []
    for number in (1, 2):
        with hp.conditional_scope("hidden_layers", list(range(number, 3))):
            units.append(hp.Choice(f"units_{number}", [16, 32, 64, 128, 256], default=64))
    # A layer that is not there has no active number of units.
    values["hidden_units"] = tuple(units[:layers])
    if max_unfrozen_blocks:
        values["unfrozen_blocks"] = hp.Int("unfrozen_blocks", 0, max_unfrozen_blocks)
        with hp.conditional_scope("unfrozen_blocks", list(range(1, max_unfrozen_blocks + 1))):
            values["backbone_learning_rate"] = hp.Float(
                "backbone_learning_rate", 1e-6, 1e-3, sampling="log"
            )
    return values


@dataclasses.dataclass(frozen=True)
class Space:
    """What is searched, and around which fixed values.

    Attributes:
        name: "paper", "extended" or the name of a file.
        declare: From hyperparameters to fields of `Tuning`.
        base: What the space does not set.
    """

    name: str
    declare: Declare
    base: Tuning

    def hyperparameters(self) -> keras_tuner.HyperParameters:
        """Returns all hyperparameters, those that are not active by default included.

        Raises:
            PapError: If the space is empty or raises.
        """
        hp = keras_tuner.HyperParameters()
        seen = -1
        # A space may ask for a parameter only where another one has a certain value.
        while len(hp.space) > seen:
            seen = len(hp.space)
            for values in _corners(hp):
                hp.values = values
                self.tuning(hp)
        if not hp.space:
            raise PapError(f"--space={self.name}: it declares no hyperparameter")
        hp.values = {}
        for parameter in hp.space:
            if hp.is_active(parameter):
                hp.values[parameter.name] = parameter.default
        return hp

    def views(self, hp: keras_tuner.HyperParameters) -> int:
        """Returns how many views of each image the space may ask for.

        Args:
            hp: From `hyperparameters`.
        """
        corner = hp.copy()
        views = set()
        for corner.values in _corners(hp):
            views.add(self.tuning(corner).views)
        return max(views)

    def tuning(self, hp: keras_tuner.HyperParameters) -> Tuning:
        """Returns how to fine-tune at one point of the space.

        Args:
            hp: Holds the values.

        Raises:
            PapError: If the space raises, or returns what is no field of `Tuning`.
        """
        try:
            values = self.declare(hp)
        except Exception as error:
            raise PapError(f"--space={self.name}: {_words(error)}") from error
        if not isinstance(values, Mapping):
            raise PapError(
                f"--space={self.name}: space(hp) returned {type(values).__name__}, expected a dict "
                "of fields of finetune.tuning.Tuning"
            )
        try:
            return self.base.replace(values)
        except PapError as error:
            raise PapError(f"--space={self.name}: {error}") from None

    def digest(self, hp: keras_tuner.HyperParameters) -> str:
        """Tells one resolved space from another, whatever their names.

        Args:
            hp: From `hyperparameters`.
        """
        config = {"space": hp.get_config()["space"], "base": dataclasses.asdict(self.base)}
        text = json.dumps(config, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def find(spec: str, base: Tuning, *, max_unfrozen_blocks: int = 0) -> Space:
    """Returns a space by name, or from a Python file with a function `space(hp)`.

    Args:
        spec: "paper", "extended", or the path of a file ending in .py.
        base: What the space does not set.
        max_unfrozen_blocks: Of the extended space.

    Raises:
        PapError: If there is no such space, or its file cannot be run.
    """
    if spec == "paper":
        return Space(spec, paper, base)
    if spec == "extended":
        declare = functools.partial(
            extended, epochs=base.epochs, max_unfrozen_blocks=max_unfrozen_blocks
        )
        return Space(spec, declare, base)
    path = Path(spec)
    if path.suffix != ".py" or not path.is_file():
        raise PapError(
            f"--space={spec}: expected {', '.join(NAMES)}, or a Python file with a function "
            "space(hp)"
        )
    try:
        names = runpy.run_path(str(path), run_name=f"space_{path.stem}")
    except Exception as error:
        raise PapError(f"--space={spec}: {_words(error)}") from error
    if not callable(names.get("space")):
        raise PapError(f"--space={spec}: expected a function space(hp) in it")
    return Space(spec, names["space"], base)


def _corners(hp: keras_tuner.HyperParameters) -> list[dict[str, Any]]:
    """Defaults, and for every value of every choice the defaults with that value."""
    defaults = {parameter.name: parameter.default for parameter in hp.space}
    corners = [defaults]
    for parameter in hp.space:
        if isinstance(parameter, keras_tuner.engine.hyperparameters.Float):
            continue
        corners += [{**defaults, parameter.name: value} for value in parameter.values]
    return corners


def _words(error: Exception) -> str:
    """What a user's file raised, and in which line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raised = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    return f"{raised} (line {frame.lineno} of {Path(frame.filename).name})"
