"""pap_folders: any tree of class folders, for comparison, cross-validation and audit."""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets.public_api as tfds

from tfds_pap import classes, folders, tree_builder

#: Characters that TFDS allows in the name of a configuration.
_NAME = re.compile(r"[^A-Za-z0-9_]+")


@dataclasses.dataclass
class FoldersConfig(tree_builder.PapConfig):
    """One tree; see `config`.

    Attributes:
        root: The tree's folder.
        class_names: Names of its class folders, in order of severity.
    """

    root: str = ""
    class_names: tuple[str, ...] = ()


def config(root: str | os.PathLike) -> FoldersConfig:
    """Describes a tree by its folders and the fingerprint of its files.

    Args:
        root: The tree's folder.

    Raises:
        folders.TreeError: If there is no such folder, or it has fewer than two class folders.
    """
    root = Path(root).expanduser().resolve()
    class_names = classes.in_order_of_severity(folders.class_folders(root))
    fingerprint = folders.fingerprint(root, {name: name for name in class_names}, splits=())
    return FoldersConfig(
        name=f"{_NAME.sub('_', root.name)}_{fingerprint[:12]}",
        description="A tree of class folders.",
        root=str(root),
        class_names=class_names,
    )


class Builder(tree_builder.TreeBuilder):
    """Any tree of class folders.

    Example:
        >>> builder = Builder(config=config("fields"))  # doctest: +SKIP
        >>> builder.download_and_prepare()  # doctest: +SKIP
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names that the labels index."""
        return self.builder_config.class_names

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        class_folders = {name: name for name in self.class_names}
        tree = folders.read_tree(self.builder_config.root, class_folders, splits=())
        return self._tree_generators(tree)
