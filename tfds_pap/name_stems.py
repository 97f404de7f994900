"""File names that tell of augmentation: a hint that an image is a variant of another one."""

import collections
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

#: What programs and people add to the name of a changed copy.
_CHANGE = (
    r"(?:copy|aug(?:ment(?:ed|ation)?)?|rot(?:at(?:ed?|ion))?|turn(?:ed)?|[hv]?flip(?:ped)?|"
    r"mirror(?:ed)?|zoom(?:ed)?|crop(?:ped)?|shift(?:ed)?|stretch(?:ed)?|shear(?:ed)?|"
    r"bright(?:ness|er)?|dark(?:er)?|contrast|noise|noisy|blur(?:red)?|resized?)"
)
_ENDING = re.compile(
    rf"(?:[\s_.\-]*\((?:\d+)\)|[\s_.\-]+(?:{_CHANGE})[\s_.\-]*-?\d*|\.rf\.[0-9a-f]{{8,}})$", re.I
)
_BEGINNING = re.compile(rf"^{_CHANGE}[\s_.\-]*\d*[\s_.\-]+", re.I)


def stem(image: str) -> str:
    """Returns the name of the image that this one may be a variant of.

    Args:
        image: Id, a path; folders and the ending of the file do not count.

    Example:
        >>> stem("train/HSIL/cell_7_rot90_flip.png")
        'cell_7'
    """
    name = PurePosixPath(image).name.rpartition(".")[0]
    while True:
        shorter = _BEGINNING.sub("", _ENDING.sub("", name))
        if shorter == name or not shorter:
            return name.lower()
        name = shorter


def variants(sides: Mapping[str, str]) -> int:
    """Counts images whose name is that of a variant of one on another side.

    Args:
        sides: From id to split. Of one split alone every image with such a name counts that
            shares its stem with another.
    """
    by_stem = collections.defaultdict(list)
    for image in sides:
        by_stem[stem(image)].append(image)
    one_side = len(set(sides.values())) < 2
    count = 0
    for name, images in by_stem.items():
        changed = [i for i in images if PurePosixPath(i).name.rpartition(".")[0].lower() != name]
        if len(images) > 1 and changed and (one_side or len({sides[i] for i in images}) > 1):
            count += len(changed)
    return count
