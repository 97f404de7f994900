"""Compile and fit one model: progress, best weights, resume after a kill, TensorBoard."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

import keras
import numpy as np
import tqdm
from sklearn.utils import class_weight

from replication.learning import (
    dropout,
    features,
    folding,
    models,
    on_device,
    optimizers,
    pooling,
    training_state,
)
from replication.learning.knobs import Optimization
from replication.runs import automatic, device, sharing
from replication.runs.device import DevicePolicy
from tfds_pap import augmentation, pipeline, roles
from tfds_pap.errors import PapError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Optimization):
    """How one model is trained.

    Attributes:
        name: What the report calls it.
        stage: 1 or 2.
        build: From the size of the input (pixels, or number of stored features) to the model, not
            compiled.
        size: Height and width of the input in pixels.
        resize: One of `decoding.RESIZE_METHODS`.
        keep: "last" keeps the weights of the last epoch, "best" those of the best epoch on the
            tune role.
        augment: One of `augmentation.AUGMENTATIONS`.
        monitor: What makes an epoch better: a lower loss, or a higher one of any other figure.
        published: Key of the figure it is set beside, see `published.published`.
        features: A `features.FeatureSpec` where `build` makes a head for stored features.
        test_within_train: See `roles.assign_roles`.
        train_on_tune: Whether the tune role, once it has chosen everything, trains as well.
        schedule_epochs: Epochs over which a schedule falls, where training ends before; None takes
            `epochs`.
    """

    name: str
    stage: int
    build: Callable[[int], keras.Model]
    size: int
    resize: str
    keep: str
    augment: str
    monitor: str = "val_loss"
    published: str = ""
    features: Any = None
    test_within_train: bool = False
    train_on_tune: bool = False
    schedule_epochs: int | None = None

    @classmethod
    def of(cls, knobs: Optimization, **others: Any) -> Self:
        """Returns a recipe with the knobs of another record.

        Args:
            knobs: Gives every attribute of `Optimization`.
            **others: The attributes that it lacks, and those that differ.
        """
        shared = {
            field.name: getattr(knobs, field.name) for field in dataclasses.fields(Optimization)
        }
        return cls(**{**shared, **others})


class Store(Protocol):
    """Where examples come from: decoded images or stored features."""

    @property
    def index(self) -> pipeline.Index:
        """What is known of each image."""

    @property
    def input_size(self) -> int:
        """Height and width in pixels, or number of features."""

    def batches(
        self,
        positions: np.ndarray,
        batch_size: int,
        *,
        seed: int | None = None,
        epochs: range = range(1),
        augment: Callable | None = None,
    ) -> Any:
        """See `pipeline.ImageStore.batches`."""


#: Stored features that are scored at once.
_SCORED_AT_ONCE = 4096


class _Validation(keras.callbacks.Callback):
    """Adds figures to the logs of an epoch, for every callback that comes after it."""

    def __init__(self, validate: Callable[[keras.Model], dict[str, float]]) -> None:
        super().__init__()
        self._validate = validate

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Scores the model."""
        logs.update(self._validate(self.model))


class Progress(keras.callbacks.Callback):
    """One line a fit: epochs done, losses, images a second."""

    def __init__(self, name: str, epochs: int, first: int, images: int) -> None:
        super().__init__()
        self._images = images
        self._bar = tqdm.tqdm(desc=name, total=epochs, initial=first, unit="epoch")
        self._start = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Shows the epoch's figures."""
        shown = {k: f"{v:.3f}" for k, v in (logs or {}).items() if k != "learning_rate"}
        rate = self._images / (time.perf_counter() - self._start)
        self._bar.set_postfix({**shown, "images/s": f"{rate:.0f}"}, refresh=False)
        self._bar.update()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes the line."""
        self._bar.close()


def fit(
    recipe: Recipe,
    store: Store,
    assigned: roles.Roles,
    *,
    seed: int,
    policy: DevicePolicy,
    directory: Path,
    label: str | None,
    callbacks: tuple[keras.callbacks.Callback, ...] = (),
    validate: Callable[[keras.Model], dict[str, float]] | None = None,
    seconds_between_writes: float = 0.0,
) -> tuple[keras.Model, dict[str, Any]]:
    """Trains one model, or goes on where a killed fit left off.

    Args:
        recipe: How to train.
        store: Decoded images at the recipe's size, or stored features where a head is trained.
        assigned: Which image has which role.
        seed: Of initial weights, order, augmentation and dropout.
        policy: Where and how to compute; of stored features one device trains a head, whose step
            takes less than sharing it.
        directory: Where the state lies while training; nothing of it remains afterwards.
        label: Name of the progress line; None shows none.
        callbacks: Further callbacks, for example TensorBoard's.
        validate: From the model to the figures `val_...` of an epoch, instead of Keras's own loss
            and accuracy on the tune role.
        seconds_between_writes: Of the state; 0 writes it after every epoch.

    Returns:
        The trained model, and what happened: history, epochs run, best epoch, seconds (of this
        process alone), images a second, what the optimizer was, and whether XLA compiled it.

    Raises:
        Diverged: If the loss or a weight is no longer finite.
        PapError: If a batch cannot be shared evenly.
    """
    if not isinstance(store, pipeline.ImageStore):
        policy = policy.on_one_device()
    _check_batch(recipe, policy)
    with policy.sharing.scope():
        return _fit(
            recipe,
            store,
            assigned,
            seed,
            policy,
            directory,
            label,
            callbacks,
            validate,
            seconds_between_writes,
        )


def _fit(
    recipe: Recipe,
    store: Store,
    assigned: roles.Roles,
    seed: int,
    policy: DevicePolicy,
    directory: Path,
    label: str | None,
    callbacks: tuple[keras.callbacks.Callback, ...],
    validate: Callable[[keras.Model], dict[str, float]] | None,
    seconds_between_writes: float,
) -> tuple[keras.Model, dict[str, Any]]:
    """See `fit`; runs where its devices share batches."""
    devices = policy.sharing.devices
    device.set_seed(seed)
    model = recipe.build(store.input_size)
    trained, examples = _compiled(model, recipe, store, policy, len(assigned.train))
    state = training_state.TrainingState(
        directory, recipe.patience, recipe.monitor, seconds_between_writes
    )
    first = state.restore(trained)
    start = time.perf_counter()
    if first < recipe.epochs and not state.should_stop():
        tune = None
        if validate is None and len(assigned.tune):
            if devices > 1 or isinstance(store, features.FeatureStore):
                # Keras would count the last batch as often as there are devices, and begin another
                # dataset for each epoch of a head.
                validate = _loss_and_accuracy(recipe, store, assigned.tune)
            else:
                tune = examples.batches(assigned.tune, recipe.batch_size)
        if label is not None:
            progress = Progress(label, recipe.epochs, first, len(assigned.train))
            callbacks = (progress, *callbacks)
        train = examples.batches(
            assigned.train,
            recipe.batch_size,
            seed=seed,
            # Keras asks for one batch more than it uses.
            epochs=range(first, recipe.epochs + 1),
            augment=augmentation.AUGMENTATIONS[recipe.augment],
        )
        with sharing.synchronized(models.leaf_layers(trained), devices):
            trained.fit(
                sharing.evenly(train, devices),
                steps_per_epoch=math.ceil(len(assigned.train) / recipe.batch_size),
                validation_data=tune,
                initial_epoch=first,
                shuffle=False,
                epochs=recipe.epochs,
                class_weight=_class_weights(recipe, store.index.labels[assigned.train]),
                verbose=0,
                callbacks=[*([_Validation(validate)] if validate else []), state, *callbacks],
            )
    seconds = time.perf_counter() - start
    if recipe.keep == "best" and state.best_epoch is not None:
        state.restore_best(trained)
    outcome = _outcome(state, recipe, trained)
    images = (len(state.history) - first) * len(assigned.train)
    return model, {
        **outcome,
        "seconds": seconds,
        "images_per_second": images / seconds if images else None,
    }


def _outcome(
    state: training_state.TrainingState, recipe: Recipe, trained: keras.Model
) -> dict[str, Any]:
    return {
        "history": state.history,
        "epochs_run": len(state.history),
        "best_epoch": state.best_epoch,
        "kept": recipe.keep,
        "optimizer_config": optimizers.described(trained.optimizer),
        "xla": bool(trained.jit_compile),
        "steps_per_execution": trained.steps_per_execution,
    }


def _check_batch(recipe: Recipe, policy: DevicePolicy) -> None:
    devices = policy.sharing.devices
    if recipe.batch_size % devices:
        raise PapError(
            f"--batch_size={recipe.batch_size} must divide by the {devices} devices of "
            "--strategy=mirrored"
        )


def _compiled(
    model: keras.Model, recipe: Recipe, store: Store, policy: DevicePolicy, images: int
) -> tuple[keras.Model, Store]:
    """Returns what is trained in place of the model, whose weights it shares, and its examples."""
    steps = math.ceil(images / recipe.batch_size)
    trained, examples = in_fewer_passes(model, policy), store
    if on_device.is_possible(store, recipe.augment, policy):
        examples = on_device.PositionStore(store)
        trained = on_device.TrainedByPosition(model.inputs, model.outputs, name=model.name)
        trained.gather_from(examples, turned=recipe.augment != "none")
    trained.compile(
        optimizer=optimizers.build(recipe, trained, steps, epochs=recipe.schedule_epochs),
        loss=_loss(recipe, len(store.index.class_names)),
        # A metric with its variables, where a name alone would get them in the first step.
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        jit_compile=policy.compiles(lambda: models.training_gflops(model) * images * recipe.epochs),
        steps_per_execution=_steps_per_execution(store, policy, steps),
    )
    # Variables that were made in the first step would have TensorFlow trace it twice.
    trained.optimizer.build(trained.trainable_variables)
    return trained, examples


def in_fewer_passes(model: keras.Model, policy: DevicePolicy) -> keras.Model:
    """Returns what is trained in place of a model, whose weights it shares.

    Args:
        model: A functional model, not compiled.
        policy: Where and how to compute; `model` itself where it does not ask for fewer passes.
    """
    if not policy.fewer_passes:
        return model
    return dropout.for_training(pooling.for_training(folding.folded(model)))


def _steps_per_execution(store: Store, policy: DevicePolicy, steps: int) -> int:
    if not isinstance(store, pipeline.ImageStore):
        # A head's step takes about a millisecond, half of which is Python's.
        return steps
    # So does a CNN's on a GPU; on a processor it takes a hundred.
    alone = policy.accelerated and policy.sharing.devices == 1
    return automatic.steps_per_execution(steps) if alone else 1


def _loss(recipe: Recipe, classes: int) -> str | Callable:
    if not recipe.label_smoothing:
        return "sparse_categorical_crossentropy"

    def smoothed(labels: Any, probabilities: Any) -> Any:
        # Keras smooths one-hot labels only.
        truth = keras.ops.one_hot(keras.ops.reshape(labels, (-1,)), classes)
        return keras.losses.categorical_crossentropy(
            truth, probabilities, label_smoothing=recipe.label_smoothing
        )

    return smoothed


def _class_weights(recipe: Recipe, labels: np.ndarray) -> dict[int, float] | None:
    """Weights whose mean over the images is 1."""
    if recipe.class_weights == "none":
        return None
    present = np.unique(labels)
    weights = class_weight.compute_class_weight("balanced", classes=present, y=labels)
    return dict(zip(present.tolist(), weights.tolist(), strict=True))


def predict(
    model: keras.Model, store: Store, positions: np.ndarray, batch_size: int = 64
) -> np.ndarray:
    """Returns float32 probabilities `[n, classes]` of the images at these positions."""
    if isinstance(store, features.FeatureStore) and sharing.devices_of(model) == 1:
        # A dataset and a graph of their own would cost a head more than an epoch of training.
        stored = store.features[positions, 0]
        parts = range(0, max(len(stored), 1), _SCORED_AT_ONCE)
        said = (model(stored[first : first + _SCORED_AT_ONCE], training=False) for first in parts)
        return np.concatenate([keras.ops.convert_to_numpy(part) for part in said])
    if model.steps_per_execution > 1:
        # Keras would unroll as many forward passes into one graph.
        model = keras.Model(model.inputs, model.outputs)
    if not model.compiled:
        models.without_xla(model)
    devices = sharing.devices_of(model)
    # So that only the last batch may be one that cannot be divided.
    batch_size += -batch_size % devices
    batches = store.batches(positions, batch_size).map(lambda images, labels: images)
    return model.predict(sharing.evenly(batches, devices), verbose=0)[: len(positions)]


def _loss_and_accuracy(
    recipe: Recipe, store: Store, positions: np.ndarray
) -> Callable[[keras.Model], dict[str, float]]:
    """Returns what scores an epoch as Keras does, from probabilities of every image."""
    labels = store.index.labels[positions]
    loss = keras.losses.get(_loss(recipe, len(store.index.class_names)))

    def score(model: keras.Model) -> dict[str, float]:
        probabilities = predict(model, store, positions)
        losses = keras.ops.convert_to_numpy(loss(labels, probabilities))
        return {
            "val_loss": float(losses.mean()) + sum(float(penalty) for penalty in model.losses),
            "val_accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        }

    return score
