"""Training examples that stay on a GPU: batches are positions, gathered within the training step.

For TensorFlow alone. A batch of images made by tf.data crosses to the GPU in every step; here they
cross once a process, and a step gets a few hundred bytes. Order, batches and views are those of
`ImageStore.batches` and `FeatureStore.batches`, and so are the weights (test).
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from replication.learning import features
from replication.runs import automatic
from replication.runs.device import DevicePolicy
from tfds_pap import augmentation, pipeline

#: Augmentations that are a choice of view, which is drawn with the order and applied on the GPU.
_AUGMENTATIONS = ("none", "flips", "stored_views")


def is_possible(store: Any, augment: str, policy: DevicePolicy) -> bool:
    """Tells whether examples can be kept on the device.

    Args:
        store: Decoded images, or stored features.
        augment: One of `augmentation.AUGMENTATIONS`.
        policy: Where and how to compute.
    """
    if isinstance(store, pipeline.ImageStore):
        # Pixels in a file are too many by definition.
        size = 0 if isinstance(store.pixels, np.memmap) else int(np.prod(store.pixels.shape))
    else:
        size = store.features.nbytes if isinstance(store, features.FeatureStore) else 0
    return (
        policy.accelerated
        and keras.backend.backend() == "tensorflow"
        and policy.sharing.devices == 1
        and augment in _AUGMENTATIONS
        and 0 < size <= automatic.KEPT_ON_DEVICE_BYTES
    )


@dataclasses.dataclass(frozen=True)
class PositionStore:
    """The examples of another store, whose batches are positions.

    Attributes:
        store: Decoded images, or stored features.
    """

    store: Any

    def __post_init__(self) -> None:
        """Brings the examples to the device before a step is traced, whose graph would own them."""
        self.store.on_device  # noqa: B018

    @property
    def index(self) -> pipeline.Index:
        """What is known of each image."""
        return self.store.index

    @property
    def input_size(self) -> int:
        """Height and width in pixels, or number of features."""
        return self.store.input_size

    def batches(
        self,
        positions: np.ndarray,
        batch_size: int,
        *,
        seed: int | None = None,
        epochs: range = range(1),
        augment: Any = None,
    ) -> tf.data.Dataset:
        """Returns batches of ((position, view), label); see `pipeline.ImageStore.batches`."""

        def drawn(chosen: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return chosen, augmentation.draw_views(tf.shape(chosen)[0], step)

        batches = pipeline.ordered_batches(
            lambda chosen: chosen,
            self.index.labels,
            positions,
            batch_size,
            seed=seed,
            epochs=epochs,
            augment=drawn if augment else None,
        )
        if augment:
            return batches
        return batches.map(lambda chosen, label: ((chosen, tf.zeros_like(chosen, tf.int32)), label))

    def gather(self, chosen: tf.Tensor, view: tf.Tensor, *, turned: bool) -> tf.Tensor:
        """Returns float32 examples, as the store itself would give them.

        Args:
            chosen: int64 `[b]`.
            view: int32 `[b]`, see `augmentation.view`.
            turned: Whether views differ from 0.
        """
        kept = self.store.on_device
        if isinstance(self.store, features.FeatureStore):
            return tf.gather(kept, chosen * self.store.features.shape[1] + tf.cast(view, tf.int64))
        # Of a variable, since TensorFlow gathers uint8 from a tensor on the processor alone, and
        # turned as floats for the same reason.
        images = tf.cast(kept.sparse_read(chosen), tf.float32)
        return augmentation.view(images, view) if turned else images


class TrainedByPosition(keras.Model):
    """A functional model that is trained and evaluated by position, and called with examples."""

    def gather_from(self, store: PositionStore, *, turned: bool) -> None:
        """Sets where examples come from.

        Args:
            store: Gives them.
            turned: Whether training augments.
        """
        self._gather, self._turned = store.gather, turned

    def train_step(self, data: Any) -> Any:
        """Gathers a batch and trains on it."""
        return super().train_step(self._gathered(data, self._turned))

    def test_step(self, data: Any) -> Any:
        """Gathers a batch and scores it."""
        return super().test_step(self._gathered(data, turned=False))

    def _gathered(self, data: Any, turned: bool) -> tuple:
        (chosen, view), label, weight = keras.utils.unpack_x_y_sample_weight(data)
        return self._gather(chosen, view, turned=turned), label, weight
