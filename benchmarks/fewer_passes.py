"""What folding saves: networks as Keras builds them, and as a processor computes them here.

    python benchmarks/fewer_passes.py                              # every network, both precisions
    python benchmarks/fewer_passes.py --networks=resnet50 --precisions=float32
    python benchmarks/fewer_passes.py --csv=results/fewer_passes.csv

Forward passes of frozen backbones with random weights (they cost the same), and training steps of
P2 and P3, both ways in turn in one process on the same images. Prints the ratio of their speeds and
how far the features are apart.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from replication.runs import device
from replication.whole_paper import plan
from tfds_pap import commands

_NETWORKS = flags.DEFINE_list(
    "networks",
    ["p2", "p3", "resnet50", *plan.PAPER_BACKBONES, "mobilenetv2"],
    "Backbones, or p2 and p3 for a training step (default: those of the papers, mobilenetv2).",
)
_PRECISIONS = flags.DEFINE_list(
    "precisions", ["float32", "mixed_bfloat16"], "Keras dtype policies (default: both)."
)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images a batch (default: 32).", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Batches of each way (default: 5).", lower_bound=1)
_CSV = flags.DEFINE_string("csv", None, "File that the rows go to (default: none).")
_COLUMNS = ("network", "precision", "plain_images_per_second", "images_per_second", "times")


def main(argv: list[str]) -> None:
    """Times every network both ways."""
    del argv
    commands.prepare_tensorflow()
    import keras

    policy = device.configure()
    if not policy.fewer_passes:
        sys.exit("benchmarks/fewer_passes.py: expected a processor without a GPU")
    print(machine.describe())
    print(f"{'network':16s}{'precision':16s}{'plain':>10s}{'here':>10s}{'times':>8s}{'apart':>10s}")
    rows = []
    for precision in _PRECISIONS.value:
        keras.config.set_dtype_policy(precision)
        for name in _NETWORKS.value:
            plain, here = _step(name, policy) if name in ("p2", "p3") else _forward(name)
            apart = _apart(plain(), here())
            slow, fast = _fastest(plain, here)
            print(
                f"{name:16s}{precision:16s}{_BATCH.value / slow:10.1f}{_BATCH.value / fast:10.1f}"
                f"{slow / fast:8.2f}{apart:>10s}",
                flush=True,
            )
            rates = (f"{_BATCH.value / seconds:.1f}" for seconds in (slow, fast))
            rows.append((name, precision, *rates, f"{slow / fast:.2f}", apart))
    if _CSV.value:
        machine.write_rows(_CSV.value, (*_COLUMNS, "relative_difference"), rows)


def _fastest(*ways: Callable[[], object]) -> list[float]:
    """Returns the seconds of the fastest call of each way, called in turn."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(_ROUNDS.value):
        for way, found in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            way()
            found.append(time.perf_counter() - start)
    return [min(found) for found in seconds]


def _apart(expected: np.ndarray | None, found: np.ndarray | None) -> str:
    """Returns the largest difference in parts of the largest value; "" where two ways train."""
    if expected is None or found is None:
        return ""
    return f"{np.abs(expected - found).max() / np.abs(expected).max():.0e}"


def _forward(name: str) -> tuple[Callable, Callable]:
    import tensorflow as tf

    from replication.learning import folding, models

    entry = models.backbone(name)
    extractor = models.feature_extractor(entry.build(entry.size), entry.size, entry.preprocessing)
    images = tf.constant(_pixels(entry.size))

    def way(model: object) -> Callable:
        graph = tf.function(lambda: model(images, training=False), autograph=False)
        return lambda: graph().numpy()

    return way(extractor), way(folding.folded(extractor))


def _step(name: str, policy: device.DevicePolicy) -> tuple[Callable, Callable]:
    from replication.learning import recipes, training

    network = {"p2": "cnn", "p3": "resnet50"}[name]
    recipe = recipes.plan("paper", 2, phantoms=False, stage2=network, weights_spec="none")
    images, labels = _pixels(recipe.size), np.zeros(_BATCH.value, np.int64)

    def way(model: object) -> Callable:
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        return lambda: model.train_on_batch(images, labels) and None

    return (
        way(recipe.build(recipe.size)),
        way(training.in_fewer_passes(recipe.build(recipe.size), policy)),
    )


def _pixels(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (_BATCH.value, size, size, 3), np.uint8)


if __name__ == "__main__":
    app.run(main)
