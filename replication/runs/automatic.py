"""What `auto` means once the work is known: compilation, batches, steps of one execution.

What these figures rest on, and what was not measured: docs/decisions/shape.md.
"""

import math

#: Least work, in GFLOP, that XLA compiles by itself on a GPU: 100 s at 10 TFLOP/s. Compiling took
#: 10 to 28 s for each of a network's graphs on an H100, whatever ran then.
COMPILED_FROM = 1e6

#: Images a forward pass where nothing is said.
_INFERENCE_BATCH, _ACCELERATED_INFERENCE_BATCH = 32, 128

#: Steps that one call of the backend makes at most: Ctrl-C waits for its end.
_MOST_STEPS = 500

#: Examples above this many bytes stay in the host's memory. TensorFlow does not tell how much
#: memory a GPU has; this leaves room for the stage-2 CNN on one of 8 GB.
KEPT_ON_DEVICE_BYTES = 2 * 1024**3


def compiled_from(xla: str, *, backend: str, accelerated: bool, deterministic: bool) -> float:
    """Returns from how much work on a model is compiled with XLA.

    Args:
        xla: "on", "off" or "auto".
        backend: Of Keras; JAX is nothing without compilation.
        accelerated: Whether there is a device beside the processor.
        deterministic: Whether op determinism is on, which XLA does not keep.

    Returns:
        GFLOP; 0 compiles everything, infinity nothing.
    """
    if xla == "on" or (xla == "auto" and backend == "jax"):
        return 0.0
    if xla == "off" or not accelerated or deterministic:
        return math.inf
    return COMPILED_FROM


def inference_batch(accelerated: bool) -> int:
    """Returns how many images one forward pass takes.

    Args:
        accelerated: Whether there is a device beside the processor.
    """
    return _ACCELERATED_INFERENCE_BATCH if accelerated else _INFERENCE_BATCH


def steps_per_execution(steps: int) -> int:
    """Returns how many steps one call of the backend makes, so that the host is not waited for.

    It divides the steps of an epoch: Keras would otherwise begin the next one.

    Args:
        steps: Of an epoch.

    Example:
        >>> steps_per_execution(120), steps_per_execution(1200)
        (120, 400)
    """
    return max(count for count in range(1, min(steps, _MOST_STEPS) + 1) if steps % count == 0)
