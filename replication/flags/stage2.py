"""Flags that say which images of stage 2 are used, and where their features are kept."""

from pathlib import Path
from typing import Any, Literal

from absl import flags

from replication.flags import images as image_flags
from replication.flags import shared
from tfds_pap import folder_flags, path_flags

_MANUAL_DIR = shared.manual_dir("DB_4")
_DATA_DIR = shared.data_dir()
_FEATURES_DIR = path_flags.define(
    "features_dir",
    "runs/features",
    "Where features are stored (default: runs/features).",
    path_flags.STORE,
)

flags.adopt_module_key_flags(image_flags)
flags.adopt_module_key_flags(folder_flags)


def manual_dir() -> str | None:
    """Returns the folder that holds DB_4, if one is given."""
    return _MANUAL_DIR.value


def images() -> Literal["original", "stand-in"] | None:
    """Returns whose images are declared to lie there: "original", "stand-in" or None.

    Raises:
        app.UsageError: If no folder is given whose images it could be about, or flags contradict
            one another.
    """
    folder_flags.check(_MANUAL_DIR.value)
    return image_flags.declared(_MANUAL_DIR.value)


def data_dir() -> str | None:
    """Returns where TFDS keeps prepared data, if it is given."""
    return _DATA_DIR.value


def features_dir() -> Path:
    """Returns where features are stored."""
    return Path(_FEATURES_DIR.value)


def source() -> str:
    """Returns "original" for a copy of the authors' tree, "folders" for another, or "phantom"."""
    if folder_flags.given():
        return "folders"
    return "original" if _MANUAL_DIR.value else "phantom"


def name() -> str:
    """Returns what names the images in a path: the source, or the tree's own name."""
    return folder_flags.name() if folder_flags.given() else source()


def builder() -> Any:
    """Returns the builder of DB_4, or of the tree that is given instead, prepared or not."""
    import tensorflow_datasets.public_api as tfds

    from tfds_pap import preparing

    if folder_flags.given():
        return preparing.listing_builder(folder_flags.listing(), _DATA_DIR.value)
    return tfds.builder(f"pap_db4/{source()}", data_dir=_DATA_DIR.value)


def prepare() -> Any:
    """Returns the prepared builder of DB_4, or of the tree that is given instead.

    Raises:
        folders.TreeError: If the tree cannot be used.
    """
    # TensorFlow takes seconds to import; flag errors and --help need not wait for it.
    from tfds_pap import preparing

    if folder_flags.given():
        return folder_flags.prepare(_DATA_DIR.value)
    return preparing.prepare("pap_db4", source(), _MANUAL_DIR.value, _DATA_DIR.value)
