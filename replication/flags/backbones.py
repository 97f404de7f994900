"""Flags that choose pre-trained backbones and where their weights are."""

from absl import app, flags

from replication.flags import shared
from tfds_pap import path_flags

_BACKBONES = flags.DEFINE_list(
    "backbones",
    None,
    "Backbones: names of the table in replication/learning/models.py or of keras.applications "
    "(default: the whole table; with a directory of weights, those whose file lies in it).",
)
_WEIGHTS = flags.DEFINE_list(
    "weights",
    ["imagenet"],
    "imagenet (default; Keras's download and cache), none, or the path of a file or directory of "
    ".h5 or .keras files; NAME=one of these sets it for one backbone: none,mobilenetv2=DIR.",
)
_SIZE = flags.DEFINE_integer(
    "size", None, "Input in pixels (default: the backbone's own, 224 for most).", lower_bound=32
)


def check() -> None:
    """Refuses weights that are not there.

    Raises:
        app.UsageError: In one line.
    """
    for where in sources().values():
        if not path_flags.is_word_or_path(where, shared.WEIGHTS):
            raise app.UsageError(f"--weights={where}: {shared.NO_WEIGHTS}")


def names() -> list[str] | None:
    """Returns the backbones that were asked for; None for all whose weights can be had."""
    return _BACKBONES.value


def size() -> int | None:
    """Returns the input in pixels; None for each backbone's own."""
    return _SIZE.value


def sources() -> dict[str, str]:
    """Returns where weights are, by name of the backbone; "" stands for every other one."""
    specs = {"": "imagenet"}
    for entry in _WEIGHTS.value:
        name, equals, spec = entry.rpartition("=")
        specs[name.lower() if equals else ""] = spec
    return specs


def source(name: str) -> str:
    """Returns where the weights of a backbone are."""
    specs = sources()
    return specs.get(name, specs[""])
