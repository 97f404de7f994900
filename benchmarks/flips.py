"""Random flips and quarter-turns of a batch: one gather of pixels beside choosing by tf.where.

    python benchmarks/flips.py

Prints milliseconds of processor time for 32 images of 250 px, and whether the images are the same.
"""

import sys
import time
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from tfds_pap import commands

_REPEATS = flags.DEFINE_integer("repeats", 20, "Batches that are timed (default: 20).")
_SHAPE = (32, 250, 250, 3)


def main(argv: list[str]) -> None:
    """Times both ways on the same batch."""
    del argv
    commands.prepare_tensorflow()
    import numpy as np
    import tensorflow as tf

    from tfds_pap import augmentation

    def by_where(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        choice = tf.random.stateless_uniform([_SHAPE[0]], seed, 0, 8, tf.int32)
        choice = choice[:, None, None, None]
        images = tf.where(choice % 2 == 1, images[:, :, ::-1], images)
        images = tf.where(choice // 2 % 2 == 1, images[:, ::-1], images)
        return tf.where(choice // 4 == 1, tf.transpose(images, [0, 2, 1, 3]), images)

    images = tf.constant(np.random.default_rng(0).integers(0, 256, _SHAPE, np.uint8))
    ways = {"tf.where": tf.function(by_where), "one gather": tf.function(augmentation.random_flips)}
    results = {name: way(images, tf.constant([0, 0])) for name, way in ways.items()}
    print(machine.describe())
    for name, way in ways.items():
        start = time.process_time()
        for repeat in range(_REPEATS.value):
            way(images, tf.constant([0, repeat]))
        elapsed = (time.process_time() - start) / _REPEATS.value
        print(f"{name:12s}{1000 * elapsed:8.1f} ms of processor time a batch")
    same = bool(tf.reduce_all(results["tf.where"] == results["one gather"]))
    print(f"same images: {same}")


if __name__ == "__main__":
    app.run(main)
