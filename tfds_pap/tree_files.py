"""Walks trees of images: sorted, what is no image passed over, links that lead nowhere told."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from etils import epath

from tfds_pap.errors import PapError

#: Files that commonly lie beside images and are none: tables, notes, and outlines of cells.
SIDECARS = frozenset(
    {".csv", ".txt", ".json", ".xml", ".md", ".ini", ".db", ".yaml", ".yml", ".dat"}
)

AnyPath = TypeVar("AnyPath", Path, epath.Path)


class TreeError(PapError):
    """An image tree that cannot be used; the message lists every offender."""


class AmbiguousTreeError(TreeError):
    """A tree that can be meant in several ways; the message says what to do."""

    status = 2


def is_hidden(path: Path | epath.Path) -> bool:
    """Whether a file or folder is hidden, or one that archivers leave behind."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def is_sidecar(path: Path | epath.Path) -> bool:
    """Whether a path is a file that lies beside images."""
    return path.suffix.lower() in SIDECARS and not path.is_dir()


def children(folder: AnyPath) -> list[AnyPath]:
    """Returns what a folder holds, sorted, without what is hidden or lies beside images."""
    return sorted(
        child for child in folder.iterdir() if not is_hidden(child) and not is_sidecar(child)
    )


def real_parents(folder: Path | epath.Path) -> frozenset[str]:
    """Returns where a folder and those above it really lie; a link to one of them is a loop."""
    here = Path(os.path.realpath(folder))
    return frozenset({str(here), *map(str, here.parents)})


def walk(folder: AnyPath, above: frozenset[str] = frozenset()) -> Iterator[AnyPath]:
    """Yields every file below a class folder, sorted; nested folders are part of the class.

    A link to a folder above it is given as it is and not followed, see `broken_link`.

    Args:
        folder: Where to begin.
        above: `real_parents` of folders that are not to be entered again.
    """
    above |= real_parents(folder)
    for child in children(folder):
        if child.is_dir() and os.path.realpath(child) not in above:
            yield from walk(child, above)
        else:
            yield child


def broken_link(path: Path | epath.Path) -> str:
    """Returns why a path of `walk` leads to no file; "" where it does."""
    if path.is_dir():
        return "is a link to a folder above it"
    return "" if path.exists() else "is a link to a file that is not there"
