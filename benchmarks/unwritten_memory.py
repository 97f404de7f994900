"""Which convolutions of P2 compute with memory that nobody has written.

    python benchmarks/unwritten_memory.py
    python benchmarks/unwritten_memory.py --precision=float32

Every allocation is filled with ones, which read as NaN, before anybody else writes there (glibc's
mallopt). What then is NaN in an output or a gradient was computed from such memory; where it
holds numbers, they are multiplied by zero and nobody sees it. Ends with status 0 either way.
"""

import ctypes
import os
import sys
from pathlib import Path

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

_PRECISION = flags.DEFINE_enum(
    "precision", "bfloat16", ["bfloat16", "float32"], "Of all tensors (default: bfloat16)."
)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images (default: 32).", lower_bound=1)
_CALLS = flags.DEFINE_integer("calls", 5, "Of each operation (default: 5).", lower_bound=1)

#: glibc's name of what fills memory (malloc.h), and a value that fills it with ones.
_M_PERTURB, _ONES = -6, 0x100


def main(argv: list[str]) -> None:
    """Prints a line a convolution: in how many calls something was NaN."""
    del argv
    # TensorFlow's own pool would not ask glibc, and hands out what it had before.
    os.environ["TF_CPU_ALLOCATOR_USE_BFC"] = "false"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    from replication.learning import models

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        sys.exit("benchmarks/unwritten_memory.py: expected glibc")
    random = np.random.default_rng(0)

    def tensor(*shape: int | None) -> tf.Tensor:
        numbers = random.standard_normal((_BATCH.value, *shape[1:]), np.float32)
        return tf.cast(tf.constant(numbers), _PRECISION.value)

    print(f"{machine.describe()}; {_PRECISION.value}, {_CALLS.value} calls each")
    print(f"{'':8s}{'output':>10s}{'of input':>10s}{'of filter':>10s}")
    how = {"strides": [1] * 4, "padding": "VALID"}
    for layer in models.stage2_cnn("paper").layers:
        if not isinstance(layer, keras.layers.Conv2D):
            continue
        images, upstream = tensor(*layer.input.shape), tensor(*layer.output.shape)
        kernel = tf.cast(layer.kernel, _PRECISION.value)
        operations = (
            lambda i=images, k=kernel: tf.raw_ops.Conv2D(input=i, filter=k, **how),
            lambda i=images, k=kernel, u=upstream: tf.raw_ops.Conv2DBackpropInput(
                input_sizes=i.shape, filter=k, out_backprop=u, **how
            ),
            lambda i=images, k=kernel, u=upstream: tf.raw_ops.Conv2DBackpropFilter(
                input=i, filter_sizes=k.shape, out_backprop=u, **how
            ),
        )
        libc.mallopt(_M_PERTURB, _ONES)
        counts = [
            sum(bool(np.isnan(tf.cast(operation(), tf.float32)).any()) for _ in range(_CALLS.value))
            for operation in operations
        ]
        libc.mallopt(_M_PERTURB, 0)
        print(f"{layer.name:8s}" + "".join(f"{count:10d}" for count in counts), flush=True)


if __name__ == "__main__":
    app.run(main)
