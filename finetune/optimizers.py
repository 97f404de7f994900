"""Optimizers with a schedule, and with a learning rate of its own for the backbone."""

from typing import Any

import keras

from finetune.tuning import Tuning

_CLASSES = {
    "sgd": keras.optimizers.SGD,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
}


def learning_rate(
    tuning: Tuning, steps_per_epoch: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate of the head, constant or as a schedule over all epochs.

    Args:
        tuning: What is asked for.
        steps_per_epoch: Steps of an epoch.
    """
    if tuning.schedule == "constant":
        return tuning.learning_rate
    warmup = tuning.warmup_epochs * steps_per_epoch
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else tuning.learning_rate,
        decay_steps=tuning.epochs * steps_per_epoch - warmup,
        warmup_target=tuning.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def build(
    tuning: Tuning,
    model: keras.Model,
    steps_per_epoch: int,
    backbone: list[keras.Variable] | None = None,
) -> keras.optimizers.Optimizer:
    """Builds an optimizer.

    Args:
        tuning: What is asked for.
        model: To be trained.
        steps_per_epoch: Steps of an epoch.
        backbone: Variables of the model that take `tuning.backbone_learning_rate`, on the same
            schedule, and no weight decay.
    """
    options = {
        "sgd": {"momentum": tuning.momentum},
        "adam": {},
        "adamw": {"weight_decay": tuning.weight_decay},
    }[tuning.optimizer]
    rate = learning_rate(tuning, steps_per_epoch)
    if not backbone:
        return _CLASSES[tuning.optimizer](rate, **options)
    slow = {id(variable) for variable in backbone}
    numbers = {
        number for number, variable in enumerate(model.trainable_variables) if id(variable) in slow
    }
    factor = tuning.backbone_learning_rate / tuning.learning_rate
    optimizer = _two_rates(_CLASSES[tuning.optimizer], numbers, factor)(rate, **options)
    # Decay is applied at the head's rate, which would be far too much for the backbone.
    optimizer.exclude_from_weight_decay(var_list=backbone)
    return optimizer


def _two_rates(base: type, slow: set[int], factor: float) -> type:
    """An optimizer that multiplies the learning rate of some variables, given by number."""

    class TwoRates(base):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            if self._get_variable_index(variable) in slow:
                learning_rate = learning_rate * factor
            super().update_step(gradient, variable, learning_rate)

    return TwoRates
