"""Does it pay to train many small heads at once, as one batched model?

    python benchmarks/stacked_heads.py                  # 1,185 images, as the stand-in cells
    python benchmarks/stacked_heads.py --images=3200    # the papers' number

K heads of P6 (BatchNorm, dropout, 64 units) become one model whose kernels have a leading axis of K
and which share each batch; every head has its own dropout and loss. Prints the time of one head and
epoch against one head alone. Random features cost what others cost.
"""

import math
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from tfds_pap import commands

_IMAGES = flags.DEFINE_integer("images", 1185, "Training images (default: 1185).", lower_bound=64)
_FEATURES = flags.DEFINE_integer(
    "features", 2048, "Features of an image (default: ResNet152's 2048).", lower_bound=1
)
_EPOCHS = flags.DEFINE_integer("epochs", 8, "Epochs; the first is not counted (default: 8).", 3)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images a step (default: 16).", lower_bound=1)
_HEADS = (3, 9, 27)


def main(argv: list[str]) -> None:
    """Times one head alone, then stacks of several."""
    del argv
    commands.prepare_tensorflow()
    import keras
    import numpy as np

    from replication.learning import models

    print(machine.describe())
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, _IMAGES.value)
    features = rng.normal(size=(_IMAGES.value, _FEATURES.value)).astype(np.float32)

    class Stack(keras.layers.Layer):
        """Several heads; BatchNorm's statistics are those of the shared batch."""

        def __init__(self, heads: int, units: int, dropout: float) -> None:
            super().__init__()
            self._heads, self._units, self._dropout = heads, units, dropout
            self._seed = keras.random.SeedGenerator(0)
            self._normalization = keras.layers.BatchNormalization(center=False, scale=False)

        def build(self, shape: tuple) -> None:
            self._normalization.build(shape)

            def weight(initializer: str, *sizes: int) -> Any:
                return self.add_weight(shape=(self._heads, *sizes), initializer=initializer)

            width = shape[-1]
            self._scale, self._centre = weight("ones", 1, width), weight("zeros", 1, width)
            self._kernel = weight("glorot_uniform", width, self._units)
            self._bias = weight("zeros", 1, self._units)
            self._last_kernel = weight("glorot_uniform", self._units, 4)
            self._last_bias = weight("zeros", 1, 4)

        def call(self, inputs: Any, training: bool = False) -> Any:
            x = self._normalization(inputs, training=training)[None] * self._scale + self._centre
            x = self._dropped(x, training)
            x = keras.ops.relu(keras.ops.matmul(x, self._kernel) + self._bias)
            x = self._dropped(x, training)
            x = keras.ops.matmul(x, self._last_kernel) + self._last_bias
            return keras.ops.transpose(keras.ops.softmax(x), (1, 0, 2))

        def _dropped(self, x: Any, training: bool) -> Any:
            return keras.random.dropout(x, self._dropout, seed=self._seed) if training else x

    def loss(truth: Any, said: Any) -> Any:
        heads = keras.ops.shape(said)[1]
        truth = keras.ops.repeat(keras.ops.reshape(truth, (-1, 1)), heads, axis=1)
        return keras.ops.sum(keras.losses.sparse_categorical_crossentropy(truth, said), axis=1)

    alone = _fit(models.head(_FEATURES.value, 4), features, labels, None)
    print(f"{'heads at once':>16s}{'start':>9s}{'head, epoch':>14s}{'speed-up':>10s}")
    print(f"{'one alone':>16s}{alone[0]:7.1f} s{1000 * alone[1]:11.1f} ms{1:10.1f}")
    for heads in _HEADS:
        inputs = keras.Input((_FEATURES.value,))
        stack = keras.Model(inputs, Stack(heads, 64, 0.2)(inputs))
        start, epoch = _fit(stack, features, labels, loss)
        each = epoch / heads
        print(f"{heads:16d}{start:7.1f} s{1000 * each:11.1f} ms{alone[1] / each:10.1f}", flush=True)


def _fit(model: Any, features: Any, labels: Any, loss: Any) -> tuple[float, float]:
    """Seconds to start, and seconds an epoch."""
    import keras
    import tensorflow as tf

    ends: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            ends.append(time.perf_counter())

    steps = math.ceil(len(labels) / _BATCH_SIZE.value)
    model.compile(
        keras.optimizers.SGD(0.01),
        loss or "sparse_categorical_crossentropy",
        jit_compile=False,
        steps_per_execution=steps,
    )
    stored, truth = tf.constant(features), tf.constant(labels)
    batches = tf.data.Dataset.range(len(labels)).shuffle(len(labels), seed=0)
    batches = batches.batch(_BATCH_SIZE.value).repeat()
    data = batches.map(lambda rows: (tf.gather(stored, rows), tf.gather(truth, rows)))
    begin = time.perf_counter()
    model.fit(
        data,
        steps_per_epoch=steps,
        epochs=_EPOCHS.value,
        shuffle=False,
        verbose=0,
        callbacks=[Clock()],
    )
    epoch = (ends[-1] - ends[0]) / (len(ends) - 1)
    return ends[0] - begin - epoch, epoch


if __name__ == "__main__":
    app.run(main)
