"""SIPaKMeD: `im_CLASS/{im_CLASS/}NNN.bmp` whole fields, `CROPPED/NNN_MM.bmp` their cells.

Plissiti et al., ICIP 2018, doi 10.1109/ICIP.2018.8451588: 966 fields of cell clusters, 4,049 cells
in five classes, outlines of nuclei and cytoplasm as `.dat`. A field is a cluster, and so a group.
"""

import re
from pathlib import Path

from tfds_pap.layouts.listing import ListedFile, Walk, label_of
from tfds_pap.tree_files import TreeError

_CELLS = "cropped"
_CELL = re.compile(r"(\d+)_\d+")
_FIELD = re.compile(r"\d+")


def matches(walk: Walk) -> bool:
    """Whether every folder has cells named NNN_MM in a folder CROPPED."""
    tops = walk.folders(walk.root)
    return len(tops) > 1 and all(
        any(_is_cell(path) and _CELL.fullmatch(path.stem) for path in walk.pictures(top))
        for top in tops
    )


def read(walk: Walk, *, fields: bool) -> tuple[list[ListedFile], list[str]]:
    """Lists the cells, or the whole fields.

    Args:
        walk: Over the tree.
        fields: Whether whole fields are the images; else cells.

    Raises:
        TreeError: If there are fewer than two class folders.
    """
    files: list[ListedFile] = []
    classes = set()
    for top in walk.folders(walk.root):
        label = label_of(top)
        label = label[3:] if label.lower().startswith("im_") else label
        classes.add(label)
        before = len(files)
        for path in walk.pictures(top):
            is_cell = _is_cell(path)
            name = (_CELL if is_cell else _FIELD).fullmatch(path.stem)
            if name is None:
                expected = "NNN_MM" if is_cell else "NNN"
                walk.offenders.setdefault(
                    walk.relative(path), f"expected a name such as {expected}.bmp in SIPaKMeD"
                )
            elif is_cell == fields:
                walk.pass_over(path, "cell" if is_cell else "whole field")
            else:
                cluster = name[1] if is_cell else name[0]
                files.append(ListedFile(path, walk.relative(path), "", label, f"{label} {cluster}"))
        if len(files) == before:
            what = "field" if fields else "cell in CROPPED"
            walk.offenders.setdefault(walk.relative(top), f"class folder has no {what}")
    if len(classes) < 2:
        raise TreeError(
            f"{walk.root}: expected {walk.root.name}/im_CLASS/im_CLASS/CROPPED/NNN_MM.bmp with two "
            f"or more class folders, got {len(classes)}"
        )
    what = "fields" if fields else "cells"
    other = "cells" if fields else "whole fields"
    left = sum(why in ("cell", "whole field") for why in walk.passed_over.values())
    clusters = len({file.group for file in files})
    return files, [
        f"the {what} are read, {left} {other} passed over; {clusters} clusters are groups"
    ]


def _is_cell(path: Path) -> bool:
    return path.parent.name.lower() == _CELLS
