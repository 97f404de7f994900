"""Optimizers with a schedule, and with a learning rate of its own for a backbone."""

from typing import Any

import keras

from replication.learning.knobs import Optimization

_CLASSES = {
    "sgd": keras.optimizers.SGD,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
}
NAMES = tuple(_CLASSES)


def learning_rate(
    knobs: Optimization, steps_per_epoch: int, *, epochs: int | None = None
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate, constant or as a schedule over all epochs.

    Args:
        knobs: Optimizer, rates and schedule.
        steps_per_epoch: Steps of an epoch.
        epochs: Over which a schedule falls; None takes `knobs.epochs`.
    """
    if knobs.schedule == "constant":
        return knobs.learning_rate
    warmup = knobs.warmup_epochs * steps_per_epoch
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else knobs.learning_rate,
        decay_steps=(epochs or knobs.epochs) * steps_per_epoch - warmup,
        warmup_target=knobs.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def build(
    knobs: Optimization, model: keras.Model, steps_per_epoch: int, *, epochs: int | None = None
) -> keras.optimizers.Optimizer:
    """Builds an optimizer.

    The trainable variables of a nested model take `knobs.backbone_learning_rate`, on the same
    schedule, and no weight decay.

    Args:
        knobs: Optimizer, rates and schedule.
        model: To be trained.
        steps_per_epoch: Steps of an epoch.
        epochs: See `learning_rate`.
    """
    # Keras would number the names of one process.
    options: dict[str, Any] = {"name": knobs.optimizer}
    options |= {
        "sgd": {"momentum": knobs.momentum},
        "adam": {},
        "adamw": {"weight_decay": knobs.weight_decay},
    }[knobs.optimizer]
    rate = learning_rate(knobs, steps_per_epoch, epochs=epochs)
    backbone = backbone_variables(model)
    if not backbone:
        return _CLASSES[knobs.optimizer](rate, **options)
    slow = {id(variable) for variable in backbone}
    numbers = {
        number for number, variable in enumerate(model.trainable_variables) if id(variable) in slow
    }
    factor = knobs.backbone_learning_rate / knobs.learning_rate
    two_rates = _two_rates(_CLASSES[knobs.optimizer], numbers, factor)
    optimizer = two_rates(rate, **options)
    # Decay is applied at the head's rate, which would be far too much for the backbone.
    optimizer.exclude_from_weight_decay(var_list=backbone)
    return optimizer


def backbone_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables of nested models that are trained.

    Args:
        model: A classifier that holds a backbone; a network of its own has none.
    """
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    return [variable for network in nested for variable in network.trainable_variables]


def described(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Returns what an optimizer really was, in JSON values.

    Args:
        optimizer: Of a compiled model.
    """
    config = optimizer.get_config()
    rate = config["learning_rate"]
    if isinstance(rate, float):
        # Keras keeps it in float32, whose further digits say nothing.
        config["learning_rate"] = float(f"{rate:.6g}")
    return config


def _two_rates(base: type, slow: set[int], factor: float) -> type:
    """An optimizer that multiplies the learning rate of some variables, given by number."""

    class TwoRates(base):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            if self._get_variable_index(variable) in slow:
                learning_rate = learning_rate * factor
            super().update_step(gradient, variable, learning_rate)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "backbone_learning_rate_factor": factor}

    return TwoRates
