"""A run is a directory; this file also holds seeds and the device policy.

Nothing here imports TensorFlow before `configure_devices` is called, so that help texts and flag
errors do not wait for it.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_PACKAGES = (
    "tensorflow",
    "keras",
    "keras-tuner",
    "tensorflow-datasets",
    "numpy",
    "scikit-learn",
    "opencv-python-headless",
)


class RunError(ValueError):
    """A run directory or device request that cannot be served; the message is one line."""


@dataclasses.dataclass(frozen=True)
class DevicePolicy:
    """How this process computes.

    Attributes:
        device: The device in words, for the manifest.
        jit_compile: Whether models are compiled with XLA.
        precision: Keras dtype policy.
        scope: Returns the context in which models are built.
        replicas: Devices that share a batch.
        compiled_pooling: Whether max pooling is trained with the gradient of `pooling`.
    """

    device: str
    jit_compile: bool
    precision: str
    scope: Callable[[], contextlib.AbstractContextManager]
    replicas: int = 1
    compiled_pooling: bool = False


def configure_devices(
    *,
    xla: str = "auto",
    precision: str = "auto",
    strategy: str = "none",
    deterministic: bool = False,
) -> DevicePolicy:
    """Sets this process up once, before any model is built.

    Args:
        xla: "on", "off", or "auto": on for JAX, which is nothing without it; else on for a GPU, off
            for a CPU, where XLA was measured slower (up to 22 times), and with `deterministic`.
        precision: A Keras dtype policy, or "auto": mixed_bfloat16 on a GPU that computes in
            bfloat16 (compute capability 8.0 or newer), else float32.
        strategy: "none", or "mirrored" for every GPU of this machine.
        deterministic: Turns on op determinism: the same weights from the same seed on the same
            machine and thread count, at 5 to 20 % of the speed for some models.

    Raises:
        RunError: If "mirrored" is asked for on another backend than TensorFlow.
    """
    import keras
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        # Taking all of a GPU's memory at once would shut out a TensorBoard or a second run.
        tf.config.experimental.set_memory_growth(gpu, True)
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if precision == "auto":
        has_bfloat16 = gpus and all(d.get("compute_capability", (0, 0)) >= (8, 0) for d in details)
        precision = "mixed_bfloat16" if has_bfloat16 else "float32"
    keras.mixed_precision.set_dtype_policy(precision)
    scope: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    replicas = 1
    if strategy == "mirrored":
        if keras.backend.backend() != "tensorflow":
            raise RunError(
                f"--strategy=mirrored needs KERAS_BACKEND=tensorflow, not {keras.backend.backend()}"
            )
        mirrored = tf.distribute.MirroredStrategy()
        scope, replicas = mirrored.scope, mirrored.num_replicas_in_sync
    auto_xla = keras.backend.backend() == "jax" or (bool(gpus) and not deterministic)
    names = ", ".join(detail.get("device_name", "GPU") for detail in details)
    jit_compile = {"on": True, "off": False, "auto": auto_xla}[xla]
    plain_cpu = keras.backend.backend() == "tensorflow" and not gpus and not jit_compile
    return DevicePolicy(
        device=names or f"CPU ({os.cpu_count()} cores, {processor()})",
        jit_compile=jit_compile,
        precision=precision,
        scope=scope,
        replicas=replicas,
        compiled_pooling=plain_cpu and strategy == "none",
    )


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


def write_json(path: Path, value: Any) -> None:
    """Writes JSON beside the path and renames it into place: never half a file."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file beside its final path and renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_model(model: Any, path: Path) -> None:
    """Saves a functional Keras model, without optimizer and loss, beside its path; renames it.

    What was only needed for training might not load where this package is not installed.
    """
    import keras

    path.parent.mkdir(parents=True, exist_ok=True)
    # Keras insists on the ending, so the half-written file is hidden by a leading dot.
    partial = path.with_name(f".partial_{path.name}")
    keras.Model(model.inputs, model.outputs, name=model.name).save(partial)
    partial.replace(path)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        RunError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except ValueError as error:
        raise RunError(f"{path}: expected JSON ({error})") from None


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """A directory that one set of flags and data belongs to.

    Attributes:
        path: The directory.
    """

    path: Path

    @classmethod
    def open(
        cls, path: str | os.PathLike, identity: Mapping[str, Any], *, flag: str = "run_dir"
    ) -> "RunDirectory":
        """Creates the directory, or resumes it where it was made with the same identity.

        A key that the directory does not have yet is added: a run of stage 1 may be widened to
        stage 2, and only then does the data of stage 2 belong to it.

        Args:
            path: The directory.
            identity: Every flag and data fingerprint that results depend on; JSON values.
            flag: That names the directory, for messages.

        Raises:
            RunError: If the directory holds something else, or was made with another identity;
                the message names the first difference.
        """
        run = cls(Path(path))
        identity = json.loads(json.dumps(identity))
        if run.manifest_path.exists():
            before = run.manifest()["identity"]
            for key in sorted(identity.keys() & before.keys()):
                if identity[key] != before[key]:
                    raise RunError(
                        f"--{flag}={path} was made with {key}={before[key]}, "
                        f"not {identity[key]}; give another --{flag}, or delete it"
                    )
            # Of several workers that share a directory, none rewrites what the others read.
            if identity.keys() - before.keys():
                run.update_manifest(identity={**before, **identity})
        else:
            if run.path.exists() and any(run.path.iterdir()):
                raise RunError(f"--{flag}={path} is not empty and holds no manifest.json")
            run.update_manifest(identity=identity)
        return run

    @property
    def manifest_path(self) -> Path:
        """Where the manifest lies."""
        return self.path / "manifest.json"

    def manifest(self) -> dict[str, Any]:
        """Returns the manifest.

        Raises:
            RunError: If this is not a run directory.
        """
        if not self.manifest_path.exists():
            raise RunError(f"{self.path}: not a run directory (no manifest.json)")
        return read_json(self.manifest_path)

    def update_manifest(self, **values: Any) -> None:
        """Sets values of the manifest."""
        manifest = read_json(self.manifest_path) if self.manifest_path.exists() else {}
        write_json(self.manifest_path, {**manifest, **values})

    def fit_directory(self, stage: int, protocol: str, seed: int) -> Path:
        """Returns where one trained model and its predictions lie."""
        return self.path / f"stage{stage}" / protocol / f"seed_{seed}"

    def fits(self) -> Iterator[Path]:
        """Yields the directories of finished fits, sorted."""
        return (path.parent for path in sorted(self.path.glob("stage*/*/seed_*/fit.json")))


def environment(policy: DevicePolicy, program: str = "replication.run") -> dict[str, Any]:
    """Returns what a reader needs to judge or repeat a run: versions, commit, device.

    Args:
        policy: The device policy in force.
        program: The module that was run.
    """
    return {
        "command": " ".join([f"python -m {program}", *sys.argv[1:]]),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": versions(),
        "git_commit": git_commit(),
        "device": policy.device,
        "precision": policy.precision,
        "xla": policy.jit_compile,
    }


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


def versions() -> dict[str, str]:
    """Returns the installed version of each package that results depend on."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git_commit() -> str:
    """The commit of the checkout this file lies in; "unknown" for an installed package."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip()
