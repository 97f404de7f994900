"""How long a search will take, from steps that are measured before it begins."""

import dataclasses
import math
import tempfile
import time
from pathlib import Path

import keras
import keras_tuner
import numpy as np

from finetune import recipes
from finetune.search import oracles, scoring
from finetune.search.tuner import Study
from finetune.tuning import Tuning
from replication.learning import models, optimizers, training, training_state

#: Epochs that are trained to measure; the first one pays for tracing.
_EPOCHS = 3
#: Points of the space whose costs are averaged.
_POINTS = 200


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a search will cost.

    Attributes:
        seconds: In all, on one process.
        words: How it was measured.
    """

    seconds: float
    words: str


class _Clock(keras.callbacks.Callback):
    """Notes when each epoch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.ends.append(time.perf_counter())


def estimate(study: Study, plan: oracles.Plan) -> Estimate:
    """Measures a few steps and multiplies.

    Args:
        study: What trials share.
        plan: Number of trials and of epochs.
    """
    rng = np.random.default_rng(0)
    hp = study.space.hyperparameters()
    points = [_draw(study, hp, int(seed)) for seed in rng.integers(1 << 30, size=_POINTS)]
    images, tuned = len(study.assigned.train), len(study.assigned.tune)
    heads = [point for point in points if not point.unfrozen_blocks]
    starts: list[float] = []
    costs: list[float] = []
    words = []
    if heads:
        smallest = min(heads, key=lambda point: point.batch_size)
        largest = max(heads, key=lambda point: point.batch_size)
        measured = {point.batch_size: _measure(study, point) for point in (smallest, largest)}
        sizes = sorted(measured)
        start = float(np.mean([begin for begin, _ in measured.values()]))
        steps = [measured[size][1] for size in sizes]
        starts += [start for _ in heads]
        costs += [
            math.ceil(images / point.batch_size) * float(np.interp(point.batch_size, sizes, steps))
            for point in heads
        ]
        words.append(
            f"{1000 * steps[0]:.2f} ms a step of {sizes[0]} on features, {start:.1f} s to start a "
            "fit"
        )
    blocks = [point for point in points if point.unfrozen_blocks]
    if blocks:
        most = max(blocks, key=lambda point: point.unfrozen_blocks)
        start, train, score = _measure_images(study, most)
        starts += [start for _ in blocks]
        costs += [images * train + tuned * score for _ in blocks]
        share = len(blocks) / len(points)
        words.append(
            f"{1000 * train:.0f} ms an image and {start:.1f} s to start in the {share:.0%} of "
            "trials with blocks"
        )
    total = plan.trials * float(np.mean(starts)) + plan.epochs * float(np.mean(costs))
    return Estimate(study.executions * total, ", ".join(words))


def _draw(study: Study, hp: keras_tuner.HyperParameters, seed: int) -> Tuning:
    hp.values = {}
    for number, parameter in enumerate(hp.space):
        if hp.is_active(parameter):
            hp.values[parameter.name] = parameter.random_sample(seed + number)
    return study.space.tuning(hp)


def _recipe(study: Study, point: Tuning) -> training.Recipe:
    return recipes.recipe(
        point,
        study.spec,
        classes=len(study.store.index.class_names),
        seed=0,
        epochs=_EPOCHS,
        keep="last",
        monitor="val_loss",
        name="measurement",
    )


def _measure(study: Study, point: Tuning) -> tuple[float, float]:
    """Seconds to start a fit, and seconds a step."""
    clock, begin = _Clock(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            training.fit(
                _recipe(study, dataclasses.replace(point, patience=0)),
                study.store,
                study.assigned,
                seed=0,
                policy=study.policy,
                directory=Path(folder),
                label=None,
                callbacks=(clock,),
                validate=scoring.validator(study.store, study.assigned.tune),
                seconds_between_writes=math.inf,
            )
        except training_state.Diverged:
            # It takes as long as any other step.
            clock.ends.append(time.perf_counter())
    epoch = (clock.ends[-1] - clock.ends[0]) / max(len(clock.ends) - 1, 1)
    steps = math.ceil(len(study.assigned.train) / point.batch_size)
    return max(clock.ends[0] - begin - epoch, 0.0), epoch / steps


def _measure_images(study: Study, point: Tuning) -> tuple[float, float, float]:
    """Seconds to start a fit that trains blocks, an image trained, and an image scored."""
    recipe = _recipe(study, point)
    images = np.zeros((point.batch_size, recipe.size, recipe.size, 3), np.float32)
    labels = np.zeros(point.batch_size, np.int64)
    begin = time.perf_counter()
    model = recipe.build(recipe.size)
    model = training.in_fewer_passes(model, study.policy)
    model.compile(
        optimizers.build(recipe, model, 1),
        "sparse_categorical_crossentropy",
        jit_compile=study.policy.compiles(
            lambda: models.training_gflops(model) * len(study.assigned.train) * point.epochs
        ),
    )
    # As a fit does.
    model.optimizer.build(model.trainable_variables)
    seconds = []
    for step in (model.train_on_batch, lambda pixels, _: model.predict_on_batch(pixels)):
        step(images, labels)
        first = time.perf_counter()
        step(images, labels)
        seconds.append(time.perf_counter() - first)
    start = time.perf_counter() - begin - 2 * sum(seconds)
    return start, seconds[0] / len(images), seconds[1] / len(images)
