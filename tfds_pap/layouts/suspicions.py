"""What in a plain tree looks like something else: masks, whole fields, augmented copies, splits."""

import collections
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from tfds_pap import name_stems
from tfds_pap.layouts.class_folders import SPLITS

_MASK = re.compile(r"(?:[-_ ](?:d|mask|masks|seg|segmentation|gt|label|annotation))$", re.I)
_MASK_FOLDERS = frozenset({"mask", "masks", "segmentation", "segmentations", "annotations", "gt"})
_NUMBERED = re.compile(r"\s*\(\d+\)$")


def of(images: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Names what in a tree should be looked at before anything is trained on it.

    Args:
        images: Id, a path below the root, and class of every image.

    Yields:
        A line for each kind, with how many and an example.
    """
    ids = dict(images)
    yield from _count(sorted(_masks(ids)), "look like masks of others", "--ignore passes them over")
    yield from _nested(ids)
    yield from _count(
        sorted(_copies(ids)),
        "look like augmented copies of others",
        "they hold no more information, and leak where they fall in another part",
    )
    yield from _inner_splits(ids)


def _masks(ids: dict[str, str]) -> Iterator[str]:
    without_ending = {id_.rpartition(".")[0].lower() for id_ in ids}
    for id_ in ids:
        path = PurePosixPath(id_)
        own = id_.rpartition(".")[0].lower()
        is_named = _MASK.search(own) and _MASK.sub("", own) in without_ending
        if is_named or any(part.lower() in _MASK_FOLDERS for part in path.parts[:-1]):
            yield id_


def _nested(ids: dict[str, str]) -> Iterator[str]:
    """Folders that hold pictures beside a folder with more: often fields above their cells."""
    own: dict[PurePosixPath, int] = collections.Counter(PurePosixPath(id_).parent for id_ in ids)
    for folder in sorted(own):
        above = [parent for parent in folder.parents if parent in own]
        if above and folder.name.lower() not in _MASK_FOLDERS:
            yield (
                f"{own[above[0]]} pictures in {above[0]} beside {own[folder]} in {folder}: whole "
                "fields above their cells? All are read as images of one class"
            )


def _copies(ids: dict[str, str]) -> Iterator[str]:
    by_class: dict[str, set[str]] = collections.defaultdict(set)
    for id_, label in ids.items():
        by_class[label].add(_bare(id_))
    for id_, label in ids.items():
        stem, bare = name_stems.stem(id_), _bare(id_)
        # A number in brackets alone may count fields of a slide.
        if stem != bare and (stem in by_class[label] or stem != _NUMBERED.sub("", bare)):
            yield id_


def _bare(id_: str) -> str:
    return PurePosixPath(id_).name.rpartition(".")[0].lower()


def _inner_splits(ids: dict[str, str]) -> Iterator[str]:
    inner = {
        part for id_ in ids for part in PurePosixPath(id_).parts[1:-1] if part.lower() in SPLITS
    }
    if inner:
        yield (
            f"folders {', '.join(sorted(inner))} inside class folders look like splits and are not "
            "read as such; expected PATH/{train,validation,test}/CLASS, or splits.csv"
        )


def _count(ids: list[str], what: str, so: str) -> Iterator[str]:
    if ids:
        yield f"{len(ids)} files {what}, such as {ids[0]}; {so}"
