"""How this process computes: seeds, and the device policy.

Nothing here imports TensorFlow before `configure` is called, so that help texts and flag errors do
not wait for it.
"""

import contextlib
import dataclasses
import math
import os
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from replication.runs import automatic
from tfds_pap import keras_settings
from tfds_pap.errors import PapError


@dataclasses.dataclass(frozen=True)
class DevicePolicy:
    """How this process computes.

    Attributes:
        device: The device in words, for the manifest.
        jit_compile: Whether models are compiled with XLA, where `compiles` says so.
        precision: Keras dtype policy.
        scope: Returns the context in which models are built.
        replicas: Devices that share a batch.
        compiled_pooling: Whether max pooling is trained with the gradient of `pooling`.
        compiled_from: Least work in GFLOP that is compiled, see `automatic.compiled_from`.
        accelerated: Whether there is a device beside the processor.
    """

    device: str
    jit_compile: bool
    precision: str
    scope: Callable[[], contextlib.AbstractContextManager]
    replicas: int = 1
    compiled_pooling: bool = False
    compiled_from: float = 0.0
    accelerated: bool = False

    def compiles(self, gigaflops: Callable[[], float]) -> bool:
        """Tells whether a model is compiled with XLA.

        Args:
            gigaflops: Counts all that it will compute, in units of 10^9 operations, where that
                matters.
        """
        if not self.jit_compile or not self.compiled_from:
            return self.jit_compile
        return gigaflops() >= self.compiled_from

    @property
    def xla(self) -> str:
        """When models are compiled, in a word or two."""
        if not self.jit_compile:
            return "off"
        return "for long work" if self.compiled_from else "on"


def configure(
    *,
    xla: str = "auto",
    precision: str = "auto",
    strategy: str = "none",
    deterministic: bool = False,
) -> DevicePolicy:
    """Sets this process up once, before any model is built.

    Args:
        xla: "on", "off", or "auto": on for JAX, which is nothing without it; else on for work of
            minutes on a GPU, off for a CPU, where XLA was measured slower (up to 22 times), and
            with `deterministic`.
        precision: A Keras dtype policy, or "auto": mixed_bfloat16 on a GPU that computes in
            bfloat16 (compute capability 8.0 or newer), else float32.
        strategy: "none", or "mirrored" for every GPU of this machine.
        deterministic: Turns on op determinism: the same weights from the same seed on the same
            machine and thread count, at 5 to 20 % of the speed for some models.

    Raises:
        PapError: If "mirrored" is asked for on another backend than TensorFlow.
    """
    import keras
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        # Taking all of a GPU's memory at once would shut out a TensorBoard or a second run.
        tf.config.experimental.set_memory_growth(gpu, True)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    accelerators = _accelerators()
    if precision == "auto":
        has_bfloat16 = accelerators and all(one.has_bfloat16 for one in accelerators)
        precision = "mixed_bfloat16" if has_bfloat16 else "float32"
    keras.mixed_precision.set_dtype_policy(precision)
    scope: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    replicas = 1
    if strategy == "mirrored":
        if keras.backend.backend() != "tensorflow":
            raise PapError(
                f"--strategy=mirrored needs KERAS_BACKEND=tensorflow, not {keras.backend.backend()}"
            )
        mirrored = tf.distribute.MirroredStrategy()
        scope, replicas = mirrored.scope, mirrored.num_replicas_in_sync
    backend = keras.backend.backend()
    compiled_from = automatic.compiled_from(
        xla, backend=backend, accelerated=bool(accelerators), deterministic=deterministic
    )
    jit_compile = compiled_from < math.inf
    if backend == "jax" and accelerators:
        _keep_compilations()
    names = ", ".join(one.name for one in accelerators)
    plain_cpu = backend == "tensorflow" and not accelerators and not jit_compile
    return DevicePolicy(
        device=names or f"CPU ({os.cpu_count()} cores, {processor()})",
        jit_compile=jit_compile,
        precision=precision,
        scope=scope,
        replicas=replicas,
        compiled_pooling=plain_cpu and strategy == "none",
        compiled_from=compiled_from,
        accelerated=bool(accelerators),
    )


@dataclasses.dataclass(frozen=True)
class _Accelerator:
    name: str
    has_bfloat16: bool


#: NVIDIA's first compute capability with bfloat16.
_BFLOAT16_SINCE = (8, 0)


def _accelerators() -> list[_Accelerator]:
    """What the backend itself computes on beside the processor."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        others = [one for one in jax.devices() if one.platform != "cpu"]
        return [
            _Accelerator(
                one.device_kind,
                # Of a GPU such as "9.0"; TPUs have had bfloat16 from the first.
                _capability(getattr(one, "compute_capability", "99.0")) >= _BFLOAT16_SINCE,
            )
            for one in others
        ]
    import tensorflow as tf

    details = [
        tf.config.experimental.get_device_details(gpu)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return [
        _Accelerator(
            detail.get("device_name", "GPU"),
            detail.get("compute_capability", (0, 0)) >= _BFLOAT16_SINCE,
        )
        for detail in details
    ]


def _keep_compilations() -> None:
    """Lets JAX find in the next process what it compiled in this one."""
    import jax

    # A place that the user named stays.
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(keras_settings.home() / "jax"))


def _capability(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in str(text).split("."))


def needs_tensorflow() -> None:
    """Refuses another backend before anything starts.

    Raises:
        PapError: In one line.
    """
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise PapError(f"needs KERAS_BACKEND=tensorflow, not {backend}: its graph is one")


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and the Keras backend."""
    import keras

    keras.utils.set_random_seed(seed)


def processor() -> str:
    """Returns the processor's name, as far as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_mib() -> float:
    """Returns the largest resident size of this process in MiB."""
    with contextlib.suppress(OSError):
        # On Linux the figure below starts at the peak of the process that started this one.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
