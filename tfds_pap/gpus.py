"""Which GPUs of this machine a process sees, told without TensorFlow or JAX."""

import os
from pathlib import Path

#: Names the GPUs that a process sees, for TensorFlow and for JAX.
VISIBLE = "CUDA_VISIBLE_DEVICES"

#: Where NVIDIA's driver lists its devices: nvidia0, nvidia1, ... beside others without a number.
_DEVICES = Path("/dev")


def visible() -> list[str]:
    """Returns what `CUDA_VISIBLE_DEVICES` calls each GPU that this process sees."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name]
    numbers = (path.name.removeprefix("nvidia") for path in _DEVICES.glob("nvidia[0-9]*"))
    return sorted((number for number in numbers if number.isdecimal()), key=int)


def in_turn(worker: int) -> dict[str, str]:
    """Returns the environment in which one of several workers sees a GPU of its own.

    Args:
        worker: Its number, from 0; where there are more workers than GPUs some share one.

    Example:
        >>> in_turn(0)  # on a machine without GPUs
        {}
    """
    gpus = visible()
    return {VISIBLE: gpus[worker % len(gpus)]} if gpus else {}
