"""What a training step of the stage-2 CNN costs: TensorFlow as it comes, and as prepared here.

    TF_ENABLE_ONEDNN_OPTS=0 python benchmarks/training_step.py     # without oneDNN

Each way runs in a process of its own, in turn. Processor time leaves out what else is at work.
"""

import hashlib
import os
import resource
import subprocess
import sys
import time

import machine
import numpy as np
from absl import app, flags

_STEPS = flags.DEFINE_integer("steps", 6, "Steps that are measured (default: 6).", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 2, "Processes of each way (default: 2).", lower_bound=1)
_SIZE = flags.DEFINE_integer("size", 250, "Input in pixels (default: the paper's 250).")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images a step (default: the paper's 32).")
_WAY = flags.DEFINE_string("way", None, "Measure this way in this process (default: none).")

#: Name -> (pooled memory, compiled gradient of max pooling).
_WAYS = {
    "TensorFlow as it comes": (False, False),
    "pooled memory": (True, False),
    "pooled memory, compiled pooling (this package)": (True, True),
}


def main(argv: list[str]) -> None:
    """Measures every way in turn and prints images a processor second, and their ratios."""
    del argv
    if _WAY.value:
        print(*_measure(*_WAYS[_WAY.value]))
        return
    print(machine.describe())
    onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "as TensorFlow chooses")
    print(f"TF_ENABLE_ONEDNN_OPTS: {onednn}; {_SIZE.value} px, batches of {_BATCH.value}")
    found: dict[str, list[list[str]]] = {name: [] for name in _WAYS}
    for _ in range(_ROUNDS.value):
        for name in _WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], f"--way={name}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name].append(done.stdout.split())
    rates = {name: max(float(row[0]) for row in rows) for name, rows in found.items()}
    first = next(iter(rates.values()))
    for name, rows in found.items():
        clock = max(float(row[1]) for row in rows)
        system, memory = (min(float(row[column]) for row in rows) for column in (2, 3))
        print(
            f"{name:48} {rates[name]:6.1f} images a processor second ({rates[name] / first:.2f} "
            f"times), {clock:6.1f} images/s, {100 * system:4.1f} % system time, {memory:,.0f} MiB"
        )
    digests = {row[4] for rows in found.values() for row in rows}
    print(f"weights after {_STEPS.value + 3} steps: {'the same' if len(digests) == 1 else digests}")


def _measure(pooled: bool, compiled: bool) -> tuple[float, float, float, float, str]:
    """Returns images a processor second and a second, share of system time, MiB, digest."""
    os.environ["TF_CPU_ALLOCATOR_USE_BFC"] = str(pooled).lower()
    from tfds_pap import commands

    commands.prepare_tensorflow()
    import keras

    from replication.learning import models, pooling
    from replication.runs import device

    keras.utils.set_random_seed(0)
    plain = models.stage2_cnn("clean", _SIZE.value)
    model = pooling.for_training(plain) if compiled else plain
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    shape = (_BATCH.value, _SIZE.value, _SIZE.value, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels = np.arange(_BATCH.value) % 4
    # The first steps trace and fill the allocator.
    for _ in range(3):
        model.train_on_batch(images, labels)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(_STEPS.value):
        model.train_on_batch(images, labels)
    after, clock = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    count = _STEPS.value * _BATCH.value
    weights = b"".join(weight.tobytes() for weight in plain.get_weights())
    return (
        count / (user + system),
        count / clock,
        system / (user + system),
        device.peak_memory_mib(),
        hashlib.sha256(weights).hexdigest(),
    )


if __name__ == "__main__":
    app.run(main)
