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

from replication.runs import automatic, sharing
from replication.runs.sharing import Sharing
from tfds_pap import keras_settings
from tfds_pap.errors import PapError


@dataclasses.dataclass(frozen=True)
class DevicePolicy:
    """How this process computes.

    Attributes:
        device: The device in words, for the manifest.
        jit_compile: Whether models are compiled with XLA, where `compiles` says so.
        precision: Keras dtype policy.
        sharing: How several devices share a batch.
        fewer_passes: Whether a processor computes models in a form that goes over memory less
            often: `folding`, and in training `pooling` and `dropout`.
        compiled_from: Least work in GFLOP that is compiled, see `automatic.compiled_from`.
        accelerators: Number of devices beside the processor.
    """

    device: str
    jit_compile: bool
    precision: str
    sharing: Sharing = dataclasses.field(default_factory=Sharing)
    fewer_passes: bool = False
    compiled_from: float = 0.0
    accelerators: int = 0

    def compiles(self, gigaflops: Callable[[], float]) -> bool:
        """Tells whether a model is compiled with XLA.

        Args:
            gigaflops: Counts all that it will compute, in units of 10^9 operations, where that
                matters.
        """
        if not self.jit_compile or not self.compiled_from:
            return self.jit_compile
        return gigaflops() >= self.compiled_from

    def on_one_device(self) -> "DevicePolicy":
        """Returns the policy for work that is too small to be shared."""
        return dataclasses.replace(self, sharing=Sharing())

    @property
    def accelerated(self) -> bool:
        """Whether there is a device beside the processor."""
        return self.accelerators > 0

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
        strategy: "none", or "mirrored": every GPU of this machine shares each batch.
        deterministic: Turns on op determinism: the same weights from the same seed on the same
            machine and thread count, at 5 to 20 % of the speed for some models.

    Raises:
        PapError: If "mirrored" is asked for on another backend than TensorFlow or JAX, or to be
            compiled with XLA on TensorFlow.
    """
    import keras

    if strategy == "mirrored" and keras.backend.backend() == "tensorflow":
        if xla == "on":
            raise PapError("--xla=on: TensorFlow compiles for one device, not --strategy=mirrored")
        xla = "off"
    sharing.divide_processor()
    _prepare(deterministic=deterministic)
    accelerators = _accelerators()
    if precision == "auto":
        has_bfloat16 = accelerators and all(one.has_bfloat16 for one in accelerators)
        precision = "mixed_bfloat16" if has_bfloat16 else "float32"
    keras.mixed_precision.set_dtype_policy(precision)
    shared = sharing.among_all() if strategy == "mirrored" else Sharing()
    backend = keras.backend.backend()
    compiled_from = automatic.compiled_from(
        xla, backend=backend, accelerated=bool(accelerators), deterministic=deterministic
    )
    jit_compile = compiled_from < math.inf
    if backend == "jax" and accelerators:
        _keep_compilations()
    plain_cpu = backend == "tensorflow" and not accelerators and not jit_compile
    return DevicePolicy(
        device=_in_words(accelerators, shared.devices),
        jit_compile=jit_compile,
        precision=precision,
        sharing=shared,
        fewer_passes=plain_cpu and strategy == "none",
        compiled_from=compiled_from,
        accelerators=len(accelerators),
    )


def _prepare(*, deterministic: bool) -> None:
    """Sets what is read when the backend looks for its devices."""
    import keras
    import tensorflow as tf

    keras_settings.leave_gpus()
    if not deterministic:
        return
    tf.config.experimental.enable_op_determinism()
    if keras.backend.backend() == "jax" and _DETERMINISTIC_XLA not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DETERMINISTIC_XLA}"


#: Has XLA take no operation on a GPU whose sums depend on the order of threads.
_DETERMINISTIC_XLA = "--xla_gpu_deterministic_ops=true"


def _in_words(accelerators: "list[_Accelerator]", sharing_devices: int) -> str:
    """Names what computes: one device, or all that share a batch."""
    count = f"{sharing_devices} x " if sharing_devices > 1 else ""
    if not accelerators:
        return f"CPU ({os.cpu_count()} cores, {processor()})" + (
            f", divided into {sharing_devices} devices" if count else ""
        )
    names = list(dict.fromkeys(one.name for one in accelerators[:sharing_devices]))
    return count + " and ".join(names)


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
    if keras.backend.backend() == "torch":
        import torch

        return [
            _Accelerator(
                torch.cuda.get_device_name(number),
                torch.cuda.get_device_capability(number) >= _BFLOAT16_SINCE,
            )
            for number in range(torch.cuda.device_count())
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
