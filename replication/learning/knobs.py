"""The knobs of training and of a head: one record, which the next one extends.

`training.Recipe` adds what a network of its own needs, `finetune.tuning.Tuning` what a search does.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimization:
    """How weights are fitted, whatever the network; the defaults are those of P6.

    Attributes:
        epochs: Epochs at most.
        patience: Epochs without a better one on the tune role after which training ends; 0 never
            does.
        batch_size: Images a step.
        optimizer: One of `optimizers.NAMES`.
        momentum: Of SGD, 0 to below 1.
        weight_decay: Of AdamW.
        learning_rate: Of the optimizer; the highest one where a schedule changes it.
        schedule: "constant", or "cosine": falls to 0 over all epochs, after a linear warm-up.
        warmup_epochs: Of the cosine schedule.
        backbone_learning_rate: Of the trainable variables of a nested model, on the same schedule.
        label_smoothing: Share of the label that is spread over all classes.
        class_weights: "none", or "balanced": weighs each class by the inverse of its number of
            images.
    """

    epochs: int = 50
    patience: int = 20
    batch_size: int = 16
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    learning_rate: float = 0.01
    schedule: str = "constant"
    warmup_epochs: int = 0
    backbone_learning_rate: float = 1e-5
    label_smoothing: float = 0.0
    class_weights: str = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadRecipe(Optimization):
    """How a head is built and trained; the defaults are those of P6.

    Attributes:
        hidden_units: Of each hidden layer of the head, at most 4; () for none.
        dropout: Share of values that are dropped before every dense layer of the head.
    """

    hidden_units: tuple[int, ...] = (64,)
    dropout: float = 0.2


#: The published space of P5, 162 points: hidden layers, dropout, SGD's learning rate, batch size.
P5_SPACE: Mapping[str, Sequence[Any]] = {
    "head": ("16", "32", "64", "32-16", "32-8", "16-8"),
    "dropout": (0.2, 0.5, 0.8),
    "learning_rate": (0.01, 0.1, 1.0),
    "batch_size": (16, 32, 64),
}
#: Epochs at most of a point of P5, and epochs without a higher training accuracy that end it.
P5_EPOCHS, P5_PATIENCE = 30, 5


def p5_points() -> list[HeadRecipe]:
    """Returns every point of P5's grid, in the order of `P5_SPACE`.

    Example:
        >>> len(p5_points()), p5_points()[0].hidden_units
        (162, (16,))
    """
    return [
        HeadRecipe(
            hidden_units=tuple(map(int, head.split("-"))),
            dropout=dropout,
            learning_rate=learning_rate,
            batch_size=batch_size,
            epochs=P5_EPOCHS,
            patience=P5_PATIENCE,
        )
        for head, dropout, learning_rate, batch_size in itertools.product(*P5_SPACE.values())
    ]
