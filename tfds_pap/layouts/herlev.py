"""Herlev: class folders in which `X-d.bmp` is the mask of `X.BMP`.

Jantzen et al., NiSIS 2005: 917 cells in seven classes. Nothing in the names tells of a slide.
"""

from tfds_pap.layouts.listing import ListedFile, Walk

_MASK = "-d"


def is_mask(name: str) -> bool:
    """Whether a name without its ending is that of a mask."""
    return name.lower().endswith(_MASK)


def matches(files: list[ListedFile]) -> bool:
    """Whether in every class folder nine of ten pictures have a mask."""
    names = {(file.path.parent, file.path.stem.lower()) for file in files}
    by_class: dict[str, list[bool]] = {}
    for file in files:
        if not is_mask(file.path.stem):
            has_mask = (file.path.parent, file.path.stem.lower() + _MASK) in names
            by_class.setdefault(file.label, []).append(has_mask)
    return bool(by_class) and all(sum(have) >= 0.9 * len(have) for have in by_class.values())


def without_masks(walk: Walk, files: list[ListedFile]) -> tuple[list[ListedFile], list[str]]:
    """Leaves the masks out.

    Args:
        walk: Over the tree.
        files: Of the class folders.
    """
    masks = [file for file in files if is_mask(file.path.stem)]
    for mask in masks:
        walk.pass_over(mask.path, "mask")
    images = [file for file in files if not is_mask(file.path.stem)]
    return images, [f"{len(masks)} masks passed over"]
