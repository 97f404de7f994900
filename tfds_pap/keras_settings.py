"""The user's own Keras settings: where they lie, and those that this package needs otherwise.

`keras.json` and environment variables are left from other projects: channels first, float16, a
backend that is not installed. What results depend on is set here, in one place.
"""

import contextlib
import importlib.util
import json
import os
from pathlib import Path

from tfds_pap.errors import PapError

#: Backends that train here, and the package of each.
_BACKENDS = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}

#: Makes `tf.keras`, which TensorFlow's own libraries ask for, another package.
_LEGACY = "TF_USE_LEGACY_KERAS"


def home() -> Path:
    """Returns where Keras keeps its settings and the weights that it downloaded."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()


def check_backend() -> None:
    """Refuses a backend that cannot be loaded, before Keras tries.

    Raises:
        PapError: One line that names who chose it.
    """
    source, backend = _chosen_backend()
    package = _BACKENDS.get(backend)
    if package is None:
        raise PapError(f"{source}{backend}: expected one of {', '.join(_BACKENDS)}")
    if importlib.util.find_spec(package) is None:
        raise PapError(
            f"{source}{backend}: its package is not installed; expected tensorflow, or "
            f"pip install {package}"
        )


def take_tensorflow() -> str:
    """Has this process compute with TensorFlow, whatever the user chose, before Keras is imported.

    Returns:
        The backend that the user chose.
    """
    _, chosen = _chosen_backend()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    return chosen


def before_import() -> None:
    """Sets what is read when TensorFlow is imported."""
    os.environ[_LEGACY] = "0"


def after_import() -> None:
    """Sets what `keras.json` may say otherwise; models and images here are channels-last."""
    import keras

    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    leave_gpus()


def leave_gpus() -> None:
    """Has TensorFlow take of a GPU's memory what it uses, and nothing where another one computes.

    All of it at once, as it does otherwise, would shut out a TensorBoard, a second run or JAX.
    """
    import keras
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    # Once TensorFlow has computed, its devices are what the program around this package made them.
    with contextlib.suppress(RuntimeError):
        if keras.backend.backend() != "tensorflow" and gpus:
            tf.config.set_visible_devices([], "GPU")
            return
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)


def backend() -> str:
    """Returns the name of the backend that Keras takes, without importing it."""
    return _chosen_backend()[1]


def _chosen_backend() -> tuple[str, str]:
    """Who chose the backend, in words, and which."""
    if "KERAS_BACKEND" in os.environ:
        return "KERAS_BACKEND=", os.environ["KERAS_BACKEND"]
    path = home() / "keras.json"
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        # Keras, too, takes its defaults then.
        settings = {}
    backend = settings.get("backend", "tensorflow") if isinstance(settings, dict) else "tensorflow"
    return f"{path}: backend ", str(backend)
