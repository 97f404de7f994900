"""pap_folders: a lab's own images, in any layout that `layouts` reads."""

import dataclasses
import hashlib
import re
from collections.abc import Iterator

import tensorflow_datasets.public_api as tfds

from tfds_pap import folders, layouts, tree_builder
from tfds_pap.classes import Classes

#: Characters that TFDS allows in the name of a configuration.
_NAME = re.compile(r"[^A-Za-z0-9_]+")


@dataclasses.dataclass
class FoldersConfig(tree_builder.PapConfig):
    """One tree; see `config`.

    Attributes:
        listing: Its images.
        classes: What is known of its classes, in the order of the labels.
    """

    listing: layouts.Listing | None = None
    classes: Classes = dataclasses.field(default_factory=lambda: Classes((), ()))


def config(listing: layouts.Listing, classes: Classes) -> FoldersConfig:
    """Describes a tree by its name, the fingerprint of its files and the order of its classes.

    Args:
        listing: Its images.
        classes: What is known of its classes, in the order of the labels.

    Raises:
        folders.TreeError: If a file cannot be used.
    """
    name = f"{_NAME.sub('_', listing.root.name)}_{folders.listing_fingerprint(listing)[:12]}"
    if classes.names != listing.class_names:
        # Labels are numbers: another order is another data set.
        name += f"_{hashlib.sha256(repr(classes.names).encode()).hexdigest()[:4]}"
    return FoldersConfig(
        name=name,
        description="A lab's own images.",
        listing=listing,
        classes=classes,
    )


class Builder(tree_builder.TreeBuilder):
    """Any tree of class folders.

    Example:
        >>> listing = layouts.read(Path("fields"))  # doctest: +SKIP
        >>> classes = Classes.known(listing.class_names)  # doctest: +SKIP
        >>> builder = Builder(config=config(listing, classes))  # doctest: +SKIP
        >>> builder.download_and_prepare()  # doctest: +SKIP
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.1.0": "Layouts, splits and windows.", "1.0.0": "First release."}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names that the labels index."""
        return self.builder_config.classes.names

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        return self._tree_generators(folders.check_listing(self.builder_config.listing))


class PapRois(Builder):
    """Cells against backgrounds, for the first stage of a lab's own images."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
