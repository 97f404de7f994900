"""How much memory a command takes at most, from one step of the work that it would do."""

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from replication.learning import training
from replication.runs import device
from replication.runs.device import DevicePolicy
from tfds_pap import pipeline, roles

#: Share by which a whole command takes more than the fits alone: figures, reports, fields.
_MARGIN = 0.2


def held(images: int, size: int) -> int:
    """Returns how many bytes of decoded images are held in memory.

    Args:
        images: How many.
        size: Their side, pixels.

    Example:
        >>> held(4800, 190), held(1_000_000, 190)
        (519840000, 0)
    """
    count = 3 * images * size**2
    return count if count <= pipeline.CACHE_BUDGET_BYTES else 0


def of_training(
    recipes: Iterable[training.Recipe], images: Mapping[int, int], policy: DevicePolicy
) -> tuple[float, float]:
    """Trains and scores one batch by each recipe, on random pixels.

    Args:
        recipes: Those that train on images.
        images: How many a stage has.
        policy: Where and how to compute.

    Returns:
        Bytes at most of a command that trains by all of them, and those of images among them.
    """
    stored = {}
    for recipe in dict.fromkeys(recipes):
        _train_a_batch(recipe, policy)
        stored[recipe.stage, recipe.size, recipe.resize] = held(images[recipe.stage], recipe.size)
    pixels = sum(stored.values())
    return (1 + _MARGIN) * 2**20 * device.peak_memory_mib() + pixels, pixels


def _train_a_batch(recipe: training.Recipe, policy: DevicePolicy) -> None:
    count = 2 * recipe.batch_size
    names = tuple(str(number) for number in range(recipe.build(recipe.size).output_shape[-1]))
    index = pipeline.Index(
        ids=np.array([str(number) for number in range(count)]),
        groups=np.full(count, ""),
        labels=np.arange(count) % len(names),
        splits=np.full(count, "train"),
        class_names=names,
    )
    shape = (count, recipe.size, recipe.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    store = pipeline.ImageStore(index, tf.constant(pixels))
    train, tune = np.split(np.arange(count), 2)
    with tempfile.TemporaryDirectory() as folder:
        model, _ = training.fit(
            dataclasses.replace(recipe, epochs=1), store, roles.Roles(train, tune, tune[:0]),
            seed=0, policy=policy, directory=Path(folder), label=None,
        )  # fmt: skip
        training.predict(model, store, np.arange(count))
