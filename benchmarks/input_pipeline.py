"""How fast images reach a model: this pipeline beside the notebooks' way and the ceiling.

    python benchmarks/input_pipeline.py --images=4800

Draws a tree of phantoms in the authors' layout (250 x 250 px JPEGs), then reads it in six ways in
one run.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

# Run as a script, Python puts this folder on the path; as a module, its parent.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from tfds_pap import commands

_IMAGES = flags.DEFINE_integer("images", 4_800, "Images in the tree (default: 4800, as DB_4).")
_PASSES = flags.DEFINE_integer("passes", 3, "Timed passes of each way (default: 3).")
_SIZE = 250
_BATCH = 32


def main(argv: list[str]) -> None:
    """Draws the tree, times each way, prints one table."""
    del argv
    commands.prepare_tensorflow()
    import cv2
    import keras
    import numpy as np
    import tensorflow as tf

    from tfds_pap import phantom_set, pipeline, preparing

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # A sixth validates, as in DB_4; DB_3 is not read here.
        validation = _IMAGES.value // 24
        train = _IMAGES.value // 4 - validation
        phantom_set.write_tree(root, db3={}, db4={"train": train, "validation": validation})
        paths = sorted((root / "DB_4").rglob("*.jpg"))
        contents = [path.read_bytes() for path in paths]
        builder = preparing.prepare("pap_db4", "original", root, root / "data")

        decode_only = tf.data.Dataset.from_tensor_slices(contents).map(
            lambda data: tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE")[0, 0, 0],
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=False,
        )
        uncached = pipeline.examples(builder, "train+validation", _SIZE).batch(_BATCH)
        kept = pipeline.load_images(builder, _SIZE)
        from_directory = keras.utils.image_dataset_from_directory(
            root / "DB_4" / "train", image_size=(_SIZE, _SIZE), batch_size=_BATCH, verbose=False
        )

        def first_epoch() -> None:
            store = pipeline.load_images(builder, _SIZE)
            for _ in store.batches(range(len(paths)), _BATCH, seed=0):
                pass

        def notebooks(dtype: type) -> None:
            np.array([cv2.resize(cv2.imread(str(path)), (_SIZE, _SIZE)) for path in paths], dtype)

        passes, images = _PASSES.value, len(paths)
        print(machine.describe())
        print(
            f"{images} JPEGs of {_SIZE} x {_SIZE} px; datasets over {passes} epochs after a first "
            f"one, loops the best of {passes}\n"
        )
        print(f"{'':56s}{'images/s':>10s}{'of ceiling':>12s}")
        ceiling = 0.0
        for name, rate in (
            ("decode only, all cores (the ceiling)", lambda: _steady(decode_only.batch(_BATCH))),
            ("this pipeline, uncached", lambda: _steady(uncached.prefetch(tf.data.AUTOTUNE))),
            ("this pipeline, cache being filled", lambda: images / _best(first_epoch)),
            (
                "this pipeline, cached",
                lambda: _steady(kept.batches(range(images), _BATCH, seed=0)),
            ),
            ("keras image_dataset_from_directory", lambda: _steady(from_directory)),
            (
                "the notebooks' loop, kept in uint8",
                lambda: images / _best(lambda: notebooks(np.uint8)),
            ),
            (
                "the notebooks' loop as written (float64)",
                lambda: images / _best(lambda: notebooks(np.float64)),
            ),
        ):
            measured = rate()
            ceiling = ceiling or measured
            print(f"{name:56s}{measured:10.0f}{measured / ceiling:11.2f}x", flush=True)


def _steady(dataset: Any) -> float:
    """Images a second of a dataset of batches, once it has started."""
    images = sum(_images(batch) for batch in dataset)
    batches = iter(dataset.repeat(_PASSES.value + 1))
    seen = 0
    while seen < images:
        seen += _images(next(batches))
    start = time.perf_counter()
    timed = sum(_images(batch) for batch in batches)
    return timed / (time.perf_counter() - start)


def _images(batch: Any) -> int:
    import tensorflow as tf

    return int(tf.nest.flatten(batch)[0].shape[0])


def _best(loop: Callable[[], None]) -> float:
    """Seconds of the fastest of several passes."""
    times = []
    for _ in range(_PASSES.value):
        start = time.perf_counter()
        loop()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    app.run(main)
