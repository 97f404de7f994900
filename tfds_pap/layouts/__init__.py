"""Layouts of image trees: plain class folders, splits, and those of published sets.

Names alone decide; no picture is decoded.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tfds_pap.classes import in_order_of_severity
from tfds_pap.errors import PapError
from tfds_pap.layouts import class_folders, cric, herlev, mendeley_lbc, naming, sipakmed, suspicions
from tfds_pap.layouts.listing import ListedFile, Listing, Walk, require_folder

__all__ = ["NAMES", "ListedFile", "Listing", "read"]

#: What can be asked for; "auto" recognises the others.
NAMES = ("auto", "plain", "split", "sipakmed", "herlev", "cric", "mendeley_lbc")


def read(
    root: Path,
    layout: str = "auto",
    *,
    groups_from: str | None = None,
    ignore: Sequence[str] = (),
    fields: bool = False,
) -> Listing:
    """Lists the images of a tree.

    Args:
        root: The tree.
        layout: One of `NAMES`.
        groups_from: Regular expression of file names that gives each its group, see
            `naming.with_groups`.
        ignore: Patterns, such as '*.dat', of names or relative paths that are passed over.
        fields: Whether SIPaKMeD's whole fields are the images; else its cells.

    Raises:
        tree_files.TreeError: The tree has no such layout; its subclass `AmbiguousTreeError` where
            it can be meant in several ways. One line that says what to do.
        PapError: The layout is unknown, or groups or splits are named in two ways.

    Example:
        >>> read(Path("sipakmed")).notes[0]  # doctest: +SKIP
        'layout sipakmed: 5 classes, 4049 images'
    """
    if layout not in NAMES:
        raise PapError(f"--layout={layout}: expected one of {', '.join(NAMES)}")
    require_folder(root, f"{root.name}/CLASS/*")
    walk = Walk(root, ignore)
    has_splits = False
    notes: list[str] = []
    if layout == "sipakmed" or (layout == "auto" and sipakmed.matches(walk)):
        layout = "sipakmed"
        files, notes = sipakmed.read(walk, fields=fields)
    elif layout == "cric" or (layout == "auto" and cric.table_of(walk)):
        layout = "cric"
        files, notes = cric.read(walk)
    else:
        files, notes, has_splits = class_folders.read(walk, layout)
        layout, files, more = _recognised(walk, layout, files, has_splits=has_splits)
        notes += more
    if fields and layout != "sipakmed":
        raise PapError(f"fields: {layout} has no fields beside its cells; expected layout sipakmed")
    files, more = naming.with_groups(walk, files, groups_from)
    notes += more
    files, more = naming.with_splits(walk, files, has_splits=has_splits)
    notes += more
    if layout in ("plain", "split"):
        notes += suspicions.of((file.id, file.label) for file in files)
    notes += [f"--ignore={pattern} left nothing out" for pattern in walk.unused_patterns()]
    return Listing(
        root,
        layout,
        tuple(sorted(files, key=lambda file: file.id)),
        in_order_of_severity({file.label for file in files}),
        tuple(sorted(walk.passed_over.items())),
        (_announced(layout, files), *notes, *_passed_over(walk)),
        tuple(f"{id_}: {why}" if why else id_ for id_, why in walk.offenders.items()),
    )


def _recognised(
    walk: Walk, layout: str, files: list[ListedFile], *, has_splits: bool
) -> tuple[str, list[ListedFile], list[str]]:
    """Class folders with names of a known set."""
    if layout == "herlev" or (layout == "auto" and herlev.matches(files)):
        return "herlev", *herlev.without_masks(walk, files)
    if layout == "mendeley_lbc" or (layout == "auto" and mendeley_lbc.matches(files)):
        return "mendeley_lbc", *mendeley_lbc.read(walk, files)
    if layout == "auto":
        layout = "split" if has_splits else "plain"
    return layout, files, []


def _announced(layout: str, files: Sequence[ListedFile]) -> str:
    classes = len({file.label for file in files})
    splits = Counter(file.split for file in files if file.split)
    parts = "".join(
        f", {splits[name]} {name}" for name in ("train", "validation", "test") if name in splits
    )
    return f"layout {layout}: {classes} classes, {len(files)} images{parts}"


def _passed_over(walk: Walk) -> list[str]:
    """How many files each reason left out; variants of one image are one reason."""
    reasons = Counter(
        "augmented copy" if why.startswith("augmented copy") else why
        for why in walk.passed_over.values()
    )
    if not reasons:
        return []
    return ["passed over: " + ", ".join(f"{n} ({why})" for why, n in sorted(reasons.items()))]
