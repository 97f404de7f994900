"""How fast images reach a model: this pipeline beside the notebooks' way and the ceiling.

    python benchmarks/input_pipeline.py --images=4800

Draws a tree of phantoms in the authors' layout (250 x 250 px JPEGs), then reads it in six ways in
one run. Every figure is the best of three passes, in images a second.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags

# Run as a script, Python puts this folder on the path; as a module, its parent.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from replication import runs

_IMAGES = flags.DEFINE_integer("images", 4_800, "Images in the tree (default: 4800, as DB_4).")
_PASSES = flags.DEFINE_integer("passes", 3, "Passes of each way; the best counts (default: 3).")
_SIZE = 250
_BATCH = 32


def main(argv: list[str]) -> None:
    """Draws the tree, times each way, prints one table."""
    del argv
    runs.quiet_logs()
    import cv2
    import keras
    import numpy as np
    import tensorflow as tf

    from tfds_pap import phantom_set, pipeline

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # A sixth validates, as in DB_4; DB_3 is not read here.
        validation = _IMAGES.value // 24
        train = _IMAGES.value // 4 - validation
        phantom_set.write_tree(root, db3={}, db4={"train": train, "validation": validation})
        paths = sorted((root / "DB_4").rglob("*.jpg"))
        contents = [path.read_bytes() for path in paths]
        builder = pipeline.prepare("pap_db4", "original", root, root / "data")

        def drain(dataset: tf.data.Dataset) -> Iterator[int]:
            for batch in dataset:
                yield len(batch[0])

        encoded = tf.constant(contents)

        def decode_only() -> Iterator[int]:
            decoded = tf.data.Dataset.from_tensor_slices(encoded).map(
                lambda data: tf.reduce_sum(
                    tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE")[0, 0]
                ),
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=False,
            )
            yield from (len(batch) for batch in decoded.batch(_BATCH))

        def notebooks(dtype: type) -> Iterator[int]:
            images = [cv2.resize(cv2.imread(str(path)), (_SIZE, _SIZE)) for path in paths]
            yield len(np.array(images, dtype))

        def uncached() -> Iterator[int]:
            examples = pipeline.examples(builder, "train+validation", _SIZE)
            pairs = examples.map(lambda example: (example["image"], example["label"]))
            yield from drain(pairs.batch(_BATCH).prefetch(tf.data.AUTOTUNE))

        def first_epoch() -> Iterator[int]:
            store = pipeline.load_images(builder, _SIZE)
            yield from drain(store.batches(range(len(paths)), _BATCH, seed=0))

        kept = pipeline.load_images(builder, _SIZE)

        def cached() -> Iterator[int]:
            yield from drain(kept.batches(range(len(paths)), _BATCH, seed=0))

        def from_directory() -> Iterator[int]:
            for split in ("train", "validation"):
                yield from drain(
                    keras.utils.image_dataset_from_directory(
                        root / "DB_4" / split,
                        image_size=(_SIZE, _SIZE),
                        batch_size=_BATCH,
                        verbose=False,
                    )
                )

        ways: dict[str, Callable[[], Iterator[int]]] = {
            "decode only, all cores (the ceiling)": decode_only,
            "this pipeline, uncached": uncached,
            "this pipeline, first epoch with the cache being filled": first_epoch,
            "this pipeline, cached epoch": cached,
            "keras image_dataset_from_directory": from_directory,
            "the notebooks' loop, kept in uint8": lambda: notebooks(np.uint8),
            "the notebooks' loop as written (float64)": lambda: notebooks(np.float64),
        }
        print(machine.describe())
        print(f"{len(paths)} JPEGs of {_SIZE} x {_SIZE} px, best of {_PASSES.value} passes\n")
        print(f"{'':56s}{'images/s':>10s}{'of ceiling':>12s}")
        ceiling = 0.0
        for name, way in ways.items():
            rate = max(_rate(way) for _ in range(_PASSES.value))
            ceiling = ceiling or rate
            print(f"{name:56s}{rate:10.0f}{rate / ceiling:11.2f}x", flush=True)


def _rate(way: Callable[[], Iterator[int]]) -> float:
    start = time.perf_counter()
    images = sum(way())
    return images / (time.perf_counter() - start)


if __name__ == "__main__":
    app.run(main)
