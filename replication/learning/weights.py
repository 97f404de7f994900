"""Where a backbone's weights come from, and loading them whole or not at all.

There is no silent fall-back: a missing or ill-fitting file ends in one line that names it.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras
import numpy as np

from replication.learning import models
from replication.runs import device
from tfds_pap import files, keras_settings
from tfds_pap.errors import PapError

#: What `--weights` may say besides a path.
IMAGENET, NONE = "imagenet", "none"

#: Label of random weights in every table; nobody should mistake them.
UNTRAINED = "untrained"

#: Seed of random weights, so that features can be stored and compared.
_UNTRAINED_SEED = 0

#: Keras multiplies by 1 / sqrt of these when EfficientNet is built with weights="imagenet", and
#: does not when the same file is loaded afterwards (keras/src/applications/efficientnet.py).
_EFFICIENTNET_DEVIATIONS = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Weights:
    """One backbone's weights.

    Attributes:
        label: What tables call them: "imagenet", a file's name, or "untrained".
        path: The file; None for "untrained".
        digest: What tells them from any others.
    """

    label: str
    path: Path | None
    digest: str


def cache_dir() -> Path:
    """Returns where Keras keeps the weights it has downloaded."""
    return keras_settings.home() / "models"


def find(name: str, spec: str) -> Weights:
    """Finds the weights that `--weights` names for a backbone.

    Args:
        name: A backbone, see `models.backbone`.
        spec: "imagenet" (Keras's download and cache), "none", or the path of a `.h5`,
            `.weights.h5` or `.keras` file or of a directory of files under their published names.

    Raises:
        PapError: If there is no such file.
    """
    backbone = models.backbone(name)
    if spec == NONE:
        return Weights(UNTRAINED, None, f"{UNTRAINED}-{_UNTRAINED_SEED}-keras-{keras.__version__}")
    if spec == IMAGENET:
        path = _download(name, backbone)
        return Weights(IMAGENET, path, files.sha256(path))
    path = Path(spec).expanduser()
    if path.is_dir():
        if not backbone.weights_file:
            raise PapError(
                f"--weights={spec}: the published file name of {name} is not known here; give the "
                "file itself"
            )
        path = path / backbone.weights_file
    if not path.is_file():
        raise PapError(f"--weights={spec}: no file {path} for {name}")
    return Weights(path.name, path, files.sha256(path))


def available(name: str, directory: str) -> bool:
    """Tells whether a directory holds a backbone's weights under their published name."""
    file = models.backbone(name).weights_file
    return bool(file) and (Path(directory).expanduser() / file).is_file()


def _download(name: str, backbone: models.Backbone) -> Path:
    """Lets Keras fetch the file where its cache lacks it."""
    path = cache_dir() / (backbone.weights_file or f"<weights of {backbone.constructor}>")
    if not path.is_file():
        before = {*cache_dir().glob("*.h5")}
        try:
            backbone.build(backbone.size, weights="imagenet")
        # Keras raises a plain Exception for every way in which a download can fail.
        except Exception as error:
            raise PapError(
                f"{name}: Keras has no {path.name} in {cache_dir()} and could not download it "
                f"({_first_line(error)}); put the file there or give --weights=PATH, or take "
                "--weights=none for an untrained backbone"
            ) from None
        if not path.is_file():
            path = max({*cache_dir().glob("*.h5")} - before, key=lambda p: p.stat().st_mtime)
    return path


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def build(name: str, weights: Weights, size: int) -> keras.Model:
    """Builds a backbone with its weights, every one of them.

    Args:
        name: See `models.backbone`.
        weights: From `find`.
        size: Height and width of the input in pixels.

    Returns:
        Model from preprocessed pixels `[b, size, size, 3]` to a map `[b, h, w, d]`.

    Raises:
        PapError: If the file does not fit; the message names the first layer that differs.
    """
    if weights.path is None:
        device.set_seed(_UNTRAINED_SEED)
    network = models.backbone(name).build(size)
    if weights.path is None:
        return network
    if weights.path.suffix == ".keras":
        source = _load_keras(weights.path)
        _check_fit(name, weights.path, _layers_with_weights(source), _layers_with_weights(network))
        network.set_weights(source.get_weights())
        made_for_imagenet = sum(isinstance(x, keras.layers.Rescaling) for x in source.layers) == 2
    else:
        _load_h5(name, network, weights.path)
        made_for_imagenet = True
    if made_for_imagenet and models.backbone(name).constructor.startswith("EfficientNetB"):
        _mend_efficientnet(network)
    return network


def _load_keras(path: Path) -> keras.Model:
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError) as error:
        raise PapError(f"{path}: not a Keras model ({_first_line(error)})") from None


def _load_h5(name: str, network: keras.Model, path: Path) -> None:
    try:
        with h5py.File(path) as file:
            root = file.get("model_weights", file)
            stored = list(_stored_layers(root)) or None
    except (OSError, KeyError) as error:
        raise PapError(f"{path}: not an HDF5 file of weights ({_first_line(error)})") from None
    if stored is None:
        try:
            network.load_weights(path)
        except (ValueError, KeyError) as error:
            raise PapError(f"{path} does not fit {name}: {_first_line(error)}") from None
    else:
        _check_fit(name, path, stored, _layers_with_weights(network))
        network.load_weights(path)


def _stored_layers(root: h5py.Group) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    """Name and shapes of every layer with weights, in the order of Keras's HDF5 format."""
    for layer in _names(root, "layer_names"):
        group = root[layer]
        shapes = [group[weight].shape for weight in _names(group, "weight_names")]
        if shapes:
            yield layer, shapes


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """Names in an attribute, which Keras cuts into numbered ones above 64 kB."""
    keys = [attribute] if attribute in group.attrs else []
    keys += sorted(
        (key for key in group.attrs if re.fullmatch(rf"{attribute}\d+", key)),
        key=lambda key: int(key.removeprefix(attribute)),
    )
    names = [name for key in keys for name in group.attrs[key]]
    return [name.decode() if isinstance(name, bytes) else name for name in names]


def _layers_with_weights(network: keras.Model) -> list[tuple[str, list[tuple[int, ...]]]]:
    # Keras's HDF5 format stores trainable weights first.
    return [
        (
            layer.name,
            [tuple(w.shape) for w in [*layer.trainable_weights, *layer.non_trainable_weights]],
        )
        for layer in network.layers
        if layer.weights
    ]


def _check_fit(name: str, path: Path, stored: list, wanted: list) -> None:
    """Compares a file with a network layer by layer; Keras's own message names no file."""
    for (stored_name, stored_shapes), (layer, shapes) in zip(stored, wanted, strict=False):
        if stored_shapes != shapes:
            raise PapError(
                f"{path} does not fit {name}: first at layer {layer!r}, which has weights "
                f"{shapes}, where the file has {stored_shapes} ({stored_name!r})"
            )
    if len(stored) != len(wanted):
        longer, where = (stored, "file") if len(stored) > len(wanted) else (wanted, "network")
        first = longer[min(len(stored), len(wanted))][0]
        raise PapError(
            f"{path} does not fit {name}: {len(stored)} layers with weights, expected "
            f"{len(wanted)}; first at layer {first!r}, which only the {where} has"
        )


def _mend_efficientnet(network: keras.Model) -> None:
    """Puts the factor that Keras applies to ImageNet weights only into the normalization."""
    layer = next(layer for layer in network.layers if isinstance(layer, keras.layers.Normalization))
    # y = (x - mean) / sqrt(variance) * 1 / sqrt(deviation)
    variance = np.asarray(layer.adapt_variance) * np.array(_EFFICIENTNET_DEVIATIONS)
    layer.adapt_variance.assign(variance.astype(np.float32))
    layer.finalize_state()


def mebibytes(model: keras.Model) -> float:
    """Returns the size of a model's float32 weights on disk in MiB."""
    return 4 * sum(math.prod(weight.shape) for weight in model.weights) / 2**20
