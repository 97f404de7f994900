"""What runs a trained network: Keras's own backend, or ONNX Runtime on the CPU.

Both give a function from resized images to the network's outputs. Nothing here imports TensorFlow
before a network is at hand, so that help texts and flag errors do not wait for it.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfds_pap import files, keras_settings
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import keras

#: "auto" is Keras's backend: what is recorded must not change with what else is installed.
ENGINES = ("auto", "tensorflow", "onnx")

#: Outputs of ONNX Runtime differ from Keras's by this at most: probabilities by the difference
#: itself, features by its ratio to the largest of them.
LARGEST_DIFFERENCE = 1e-5

#: What "onnx" needs: Keras exports through tf2onnx.
_PACKAGES = ("onnxruntime", "tf2onnx")

#: From uint8 RGB `[b, h, w, 3]` to float32 `[b, d]`; safe to call from several threads.
Forward = Callable[[np.ndarray], np.ndarray]


def resolve(engine: str) -> str:
    """Returns the name that manifests give an engine: "onnx", or Keras's backend.

    Args:
        engine: One of `ENGINES`, or such a name.

    Raises:
        PapError: If it cannot be had in this process.
    """
    backend = keras_settings.backend()
    if engine in ("auto", backend):
        return backend
    if backend != "tensorflow":
        raise PapError(
            f"--engine={engine}: needs KERAS_BACKEND=tensorflow, not {backend}; --engine=auto "
            "takes any"
        )
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise PapError(
            f"--engine=onnx: {missing[0]} is not installed; pip install 'pap-two-stage[onnx]'"
        )
    return engine


def forward(
    model: "keras.Model",
    engine: str = "auto",
    *,
    jit_compile: bool = False,
    threads: int | None = None,
    kept_in: Path | None = None,
    relative: bool = False,
) -> Forward:
    """Returns a network's forward pass.

    Args:
        model: From RGB, 0..255, `[b, h, w, 3]` to `[b, d]`.
        engine: One of `ENGINES`. The first batch that "onnx" is given is computed by Keras as well.
        jit_compile: Whether TensorFlow compiles with XLA; JAX always does.
        threads: That ONNX Runtime uses for one batch: 1 where several threads call; None: one a
            core.
        kept_in: Where ONNX Runtime's form of the network is kept for the next process; None keeps
            none, and converts anew.
        relative: Whether outputs are features of any scale, not probabilities.

    Raises:
        PapError: If the engine cannot be had, or cannot run this network. The forward pass raises
            it where ONNX Runtime and Keras differ by more than `LARGEST_DIFFERENCE`.
    """
    by_keras = _keras_forward(model, jit_compile)
    if resolve(engine) != "onnx":
        return by_keras
    with _onnx_file(model, kept_in) as path:
        run = _session(path, threads or os.cpu_count() or 1)
    return _Checked(run, by_keras, model.name if kept_in is None else str(path), relative)


def jax_function(
    function: Callable[..., Any], variables: Sequence["keras.Variable"]
) -> Callable[..., np.ndarray]:
    """Compiles a function of Keras's layers and operations for JAX.

    Args:
        function: Of arrays; what it computes with `variables` it may not change.
        variables: That it reads.

    Returns:
        The same from and to arrays of NumPy, float32.
    """
    import jax
    import keras

    @jax.jit
    def compiled(values: list, *inputs: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return keras.ops.cast(function(*inputs), "float32")

    # Each variable is an argument: as a constant it would be compiled into the program.
    return lambda *inputs: np.asarray(compiled([one.value for one in variables], *inputs))


def _keras_forward(model: "keras.Model", jit_compile: bool) -> Forward:
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        return jax_function(
            lambda images: model(keras.ops.cast(images, "float32"), training=False), model.variables
        )
    if backend != "tensorflow":
        return lambda images: np.asarray(model.predict_on_batch(images), np.float32)
    import tensorflow as tf

    # It imports Keras, for which a wrong flag need not wait.
    from replication.learning import folding

    if not jit_compile and not tf.config.list_physical_devices("GPU"):
        model = folding.folded(model)
    # A last batch of another size is no other trace.
    images = tf.TensorSpec([None, *model.inputs[0].shape[1:]], tf.uint8)

    @functools.partial(tf.function, input_signature=[images], jit_compile=jit_compile)
    def graph(images: tf.Tensor) -> tf.Tensor:
        return tf.cast(model(tf.cast(images, tf.float32), training=False), tf.float32)

    return lambda images: graph(images).numpy()


@contextlib.contextmanager
def _onnx_file(model: "keras.Model", kept_in: Path | None) -> Iterator[Path]:
    """Gives a file with the network in ONNX's form, which is written where it is not there yet."""
    policies = {layer.compute_dtype for layer in model.layers} - {"float32"}
    if policies:
        raise PapError(
            f"--engine=onnx: {model.name} computes in {policies.pop()}; expected "
            "--precision=float32"
        )
    with contextlib.ExitStack() as stack:
        folder = kept_in or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / f"{model.name}-{_digest(model)}.onnx"
        if not path.exists():
            _export(model, path)
        yield path


def _digest(model: "keras.Model") -> str:
    """Of all that a network's outputs depend on, and of the Keras that writes it."""
    import keras

    # Keras counts layers without a name of their own over all networks of a process.
    layers = re.sub(r"_\d+\"", '"', model.to_json())
    digest = hashlib.sha256(f"{keras.__version__} {layers}".encode())
    for values in model.get_weights():
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def _export(model: "keras.Model", path: Path) -> None:
    # Keras refuses to export what was never called; a symbolic call computes nothing.
    model(model.inputs[0])
    with files.replacing(path) as partial, warnings.catch_warnings():
        # tf2onnx asks NumPy 2 for names that it had once.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            model.export(partial, format="onnx", verbose=False)
        except (ValueError, RuntimeError, NotImplementedError, KeyError) as error:
            raise PapError(
                f"--engine=onnx: {model.name} has no form in ONNX ({_first_line(error)})"
            ) from error


def _session(path: Path, threads: int) -> Forward:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as raised

    unreadable = (raised.Fail, raised.InvalidProtobuf, raised.InvalidGraph, raised.NotImplemented)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait between two operations would take the processor from those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except unreadable as error:
        raise PapError(
            f"{path}: not what ONNX Runtime reads ({_first_line(error)}); delete it"
        ) from error
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.astype(np.float32)})[0]


class _Checked:
    """ONNX Runtime, whose first batch Keras computes as well.

    Args:
        run: ONNX Runtime's forward pass.
        by_keras: Keras's.
        name: Of the file or network, for messages.
        relative: Whether differences are told as ratios to the largest output.
    """

    def __init__(self, run: Forward, by_keras: Forward, name: str, relative: bool) -> None:
        self._run, self._by_keras, self._name = run, by_keras, name
        self._relative, self._lock, self._is_checked = relative, threading.Lock(), False

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self._is_checked:
            return self._run(images)
        with self._lock:
            outputs = self._run(images)
            if not self._is_checked:
                self._check(outputs, self._by_keras(images))
                self._is_checked = True
        return outputs

    def _check(self, outputs: np.ndarray, expected: np.ndarray) -> None:
        if outputs.shape != expected.shape:
            raise PapError(
                f"--engine=onnx: {self._name} answers {outputs.shape}, Keras {expected.shape}"
            )
        difference = float(np.abs(outputs - expected).max())
        if self._relative:
            difference /= float(np.abs(expected).max()) or 1.0
        # Written so that what is no number is refused.
        if not difference <= LARGEST_DIFFERENCE:
            of_what = " of the largest feature" if self._relative else ""
            raise PapError(
                f"--engine=onnx: {self._name} differs from Keras by {difference:.2g}{of_what} on "
                f"{len(outputs)} images, expected {LARGEST_DIFFERENCE:g} at most"
            )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
