"""Plain: `PATH/CLASS/**`. Split: `PATH/{train,val,test}/CLASS/**`."""

from pathlib import Path

from tfds_pap import images
from tfds_pap.layouts.listing import TABLES, ListedFile, Walk, label_of
from tfds_pap.tree_files import AmbiguousTreeError, TreeError

#: What people call the parts of a split, and what they are called here.
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def branches(walk: Walk, layout: str) -> tuple[dict[Path, str], list[str]]:
    """Finds the folders that hold the class folders.

    Args:
        walk: Over the tree.
        layout: 'plain' takes every folder for a class, 'split' asks for splits, any other name
            takes what is there.

    Returns:
        From folder to split, or the root alone with split "", and notes.

    Raises:
        AmbiguousTreeError: Class folders stand beside splits, two folders are one split, or splits
            hold no class folders.
        TreeError: 'split' was asked for and there is none.
    """
    root = walk.root
    tops = walk.folders(root)
    splits = {top: SPLITS[top.name.lower()] for top in tops if top.name.lower() in SPLITS}
    if layout == "plain" or not splits:
        if layout == "split":
            raise TreeError(
                f"{root}: expected {root.name}/{{train,validation,test}}/CLASS/*, got "
                f"{_names(tops) or 'no folder'}"
            )
        notes = [f"{_names(splits)} look like splits and are taken as classes"] if splits else []
        return {root: ""}, notes
    others = [top for top in tops if top not in splits and walk.holds_pictures(top)]
    if others:
        raise AmbiguousTreeError(
            f"{root}: {_names(others)} beside the splits {_names(splits)}; expected splits alone "
            f"(--ignore={others[0].name} passes a folder over), or --layout=plain, which takes "
            "every folder as a class"
        )
    for split in sorted({*splits.values()}):
        if len(same := [top for top, name in splits.items() if name == split]) > 1:
            raise AmbiguousTreeError(
                f"{root}: {' and '.join(top.name for top in same)} are both {split}; put them "
                "together, or pass one over with --ignore"
            )
    bare = [top for top in splits if not any(map(walk.holds_pictures, walk.folders(top)))]
    if bare:
        raise AmbiguousTreeError(
            f"{root}: {_names(bare)}: named like {'a split' if len(bare) == 1 else 'splits'}, and "
            f"without class folders; expected {root.name}/{bare[0].name}/CLASS/*, or "
            "--layout=plain, which takes every folder as a class"
        )
    if len(splits) == 1:
        return {next(iter(splits)): ""}, [f"{_names(splits)} is the only split; it is cut in parts"]
    return splits, []


def read(walk: Walk, layout: str) -> tuple[list[ListedFile], list[str], bool]:
    """Lists the images of class folders.

    Args:
        walk: Over the tree.
        layout: See `branches`.

    Returns:
        The images, notes, and whether there are splits.

    Raises:
        TreeError: See `branches`, or fewer than two class folders.
    """
    parents, notes = branches(walk, layout)
    files: list[ListedFile] = []
    spellings: dict[str, str] = {}
    for parent, split in parents.items():
        for child in walk.children(parent):
            if not child.is_dir():
                _outside(walk, child)
                continue
            label = label_of(child)
            spelling = spellings.setdefault(label.lower(), label)
            if spelling != label:
                raise AmbiguousTreeError(
                    f"{walk.root}: the class folders {spelling} and {label} differ in case only; "
                    "rename one"
                )
            below = list(walk.pictures(child))
            if not below:
                walk.offenders.setdefault(walk.relative(child), "class folder is empty")
            files += [ListedFile(path, walk.relative(path), split, label) for path in below]
    for child in walk.children(walk.root) if walk.root not in parents else ():
        if not child.is_dir():
            _outside(walk, child)
    _check_number(walk, [*spellings.values()])
    labels = {
        split: {file.label for file in files if file.split == split} for split in parents.values()
    }
    union = set().union(*labels.values())
    for split, present in labels.items():
        if missing := sorted(union - present):
            notes.append(f"{split} has no image of {', '.join(missing)}")
    return files, notes, len(parents) > 1


def _outside(walk: Walk, path: Path) -> None:
    """A file beside class folders or splits: one that is no picture does no harm."""
    if path.suffix.lower() in images.FORMATS:
        walk.offenders.setdefault(
            walk.relative(path), "unexpected picture outside the class folders"
        )
    elif path.name.lower() not in TABLES:
        walk.pass_over(path, "no picture")


def _check_number(walk: Walk, labels: list[str]) -> None:
    expected = f"expected {walk.root.name}/CLASS/* with 2 to 20 class folders, got {len(labels)}"
    if len(labels) < 2:
        below = [top for top in walk.folders(walk.root) if len(walk.folders(top)) > 1]
        hint = f"; {below[0]} may be meant" if len(below) == 1 else ""
        raise TreeError(f"{walk.root}: {expected}{hint}")
    if len(labels) > 20:
        raise TreeError(f"{walk.root}: {expected}")


def _names(folders: list[Path] | dict[Path, str]) -> str:
    return ", ".join(folder.name for folder in folders)
