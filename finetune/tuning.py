"""How a backbone is fine-tuned: every knob in one record, read from a file or drawn by a search."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replication.learning.knobs import HeadRecipe
from tfds_pap import files
from tfds_pap.errors import PapError

#: P6, the paper's final model, as a file for `finetune.train --hparams`.
P6 = Path(__file__).with_name("p6.json")

_OPTIMIZERS = ("sgd", "adam", "adamw")
_SCHEDULES = ("constant", "cosine")
_CLASS_WEIGHTS = ("none", "balanced")
_VIEWS = (1, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning(HeadRecipe):
    """Hyperparameters of one fit; the defaults are those of P6.

    Attributes:
        backbone: See `models.backbone`.
        size: Height and width of the input in pixels; 0 takes the backbone's own.
        views: 8 trains on flips and quarter-turns, picked at random in every epoch.
        unfrozen_blocks: Blocks of the backbone that are trained too, from its end; 0 trains the
            head on stored features. BatchNorm stays in inference mode.
    """

    backbone: str = "resnet152"
    size: int = 0
    views: int = 1
    unfrozen_blocks: int = 0

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            PapError: If one is not what it should be; the message names it.
        """
        if isinstance(self.hidden_units, list):
            object.__setattr__(self, "hidden_units", tuple(self.hidden_units))
        for name, (fits, expected) in _RULES.items():
            value = getattr(self, name)
            try:
                right = fits(value)
            except TypeError:
                right = False
            if not right:
                raise PapError(f"{name}={value!r}: expected {expected}")
        if self.warmup_epochs >= self.epochs:
            raise PapError(
                f"warmup_epochs={self.warmup_epochs}: expected fewer than epochs={self.epochs}"
            )

    def replace(self, values: Mapping[str, Any]) -> "Tuning":
        """Returns a copy with other values; None keeps what is there.

        Args:
            values: By name of the attribute.

        Raises:
            PapError: If a name is unknown, or a value is not what it should be.
        """
        for name in values:
            if name not in _RULES:
                raise PapError(f"{name}: expected one of {', '.join(_RULES)}")
        return dataclasses.replace(self, **{k: v for k, v in values.items() if v is not None})

    def write(self, path: Path, **beside: Any) -> None:
        """Writes it as JSON.

        Args:
            path: The file.
            beside: Further entries for readers, such as where it comes from; `read` skips those
                that begin with an underscore.
        """
        files.write_json(path, {**beside, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: Path) -> "Tuning":
        """Reads it.

        Args:
            path: JSON, one object; what is absent keeps its default.

        Raises:
            PapError: If the file is missing, is no JSON object, or holds what is not known.
        """
        values = files.read_json(path)
        if not isinstance(values, dict):
            raise PapError(f"{path}: expected a JSON object, got {json.dumps(values)[:40]}")
        try:
            return cls().replace({k: v for k, v in values.items() if not k.startswith("_")})
        except PapError as error:
            raise PapError(f"{path}: {error}") from None


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


#: Attribute -> test of its value, and what is expected in words.
_RULES = {
    "backbone": (lambda v: isinstance(v, str) and bool(v), "a name"),
    "size": (lambda v: v == 0 or _whole(v, 32), "a whole number of pixels from 32, or 0"),
    "epochs": (lambda v: _whole(v, 1), "a whole number from 1"),
    "patience": (lambda v: _whole(v, 0), "a whole number from 0"),
    "hidden_units": (
        lambda v: isinstance(v, tuple) and len(v) <= 4 and all(_whole(u, 1) for u in v),
        "a list of at most 4 whole numbers from 1",
    ),
    "dropout": (lambda v: _number(v) and 0 <= v < 1, "a number from 0, below 1"),
    "batch_size": (lambda v: _whole(v, 1), "a whole number from 1"),
    "optimizer": (lambda v: v in _OPTIMIZERS, f"one of {', '.join(_OPTIMIZERS)}"),
    "momentum": (lambda v: _number(v) and 0 <= v < 1, "a number from 0, below 1"),
    "weight_decay": (lambda v: _number(v) and v >= 0, "a number from 0"),
    "learning_rate": (lambda v: _number(v) and v > 0, "a number above 0"),
    "schedule": (lambda v: v in _SCHEDULES, f"one of {', '.join(_SCHEDULES)}"),
    "warmup_epochs": (lambda v: _whole(v, 0), "a whole number from 0"),
    "label_smoothing": (lambda v: _number(v) and 0 <= v < 1, "a number from 0, below 1"),
    "class_weights": (lambda v: v in _CLASS_WEIGHTS, f"one of {', '.join(_CLASS_WEIGHTS)}"),
    "views": (lambda v: v in _VIEWS, "1 or 8"),
    "unfrozen_blocks": (lambda v: _whole(v, 0), "a whole number from 0"),
    "backbone_learning_rate": (lambda v: _number(v) and v > 0, "a number above 0"),
}
