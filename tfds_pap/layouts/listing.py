"""What every layout gives, and the walk that they share."""

import dataclasses
import fnmatch
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfds_pap import images, tree_files
from tfds_pap.tree_files import TreeError

#: Tables that are read, and so not listed as passed over.
TABLES = frozenset({"groups.csv", "splits.csv", "classes.csv", "nuclei.csv"})


@dataclasses.dataclass(frozen=True)
class ListedFile:
    """One image of a tree: a picture, or a window of one.

    Attributes:
        path: Where the picture lies.
        id: Path relative to the root, with forward slashes, and where the window is; stable.
        split: 'train', 'validation' or 'test'; "" where the tree has no splits.
        label: Class name.
        group: Slide, cluster, field or patient; "" where the tree names none.
        crop: Left, top and side of a window in pixels of the picture; None for all of it.
    """

    path: Path
    id: str
    split: str
    label: str
    group: str = ""
    crop: tuple[int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of a tree, found by names alone: no picture was decoded.

    Attributes:
        root: The tree.
        layout: Name of the layout that was chosen.
        files: Every image, sorted by id.
        class_names: In order of severity, then by name.
        passed_over: Files and folders that are no images of the set, and why, sorted.
        notes: What is to be said before anything starts, a line each.
        offenders: What cannot be used, a line each.
    """

    root: Path
    layout: str
    files: tuple[ListedFile, ...]
    class_names: tuple[str, ...]
    passed_over: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    offenders: tuple[str, ...]

    @property
    def has_splits(self) -> bool:
        """Whether the tree says which images train and which test."""
        return any(file.split for file in self.files)

    def lines(self) -> list[str]:
        """Returns what a command says of the tree before it starts: notes and a line a class."""
        lines = [f"{self.root.name}: {note}" for note in self.notes]
        splits = [
            s for s in ("train", "validation", "test") if any(f.split == s for f in self.files)
        ]
        for name in self.class_names:
            own = [file for file in self.files if file.label == name]
            groups = {file.group for file in own}
            known = f"{len(groups):,} groups" if "" not in groups else "groups unknown"
            by_split = [f"{sum(f.split == s for f in own):,} {s}" for s in splits]
            counts = f"{len(own):,} images" + (f" ({', '.join(by_split)})" if by_split else "")
            lines.append(f"  {name}: {counts}, {known}")
        return lines


class Walk:
    """Looks at a tree once and keeps account of what it leaves out.

    Attributes:
        root: The tree.
        passed_over: From relative path to why.
        offenders: From relative path to what is wrong.
    """

    def __init__(self, root: Path, ignore: Sequence[str] = ()) -> None:
        """Takes the tree and patterns of names or relative paths that are no part of it."""
        self.root = root
        self.passed_over: dict[str, str] = {}
        self.offenders: dict[str, str] = {}
        self._ignore = tuple(ignore)

    def relative(self, path: Path) -> str:
        """Returns a path below the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def pass_over(self, path: Path, why: str) -> None:
        """Notes that a file or folder is left out."""
        self.passed_over.setdefault(self.relative(path), why)

    def children(self, folder: Path) -> list[Path]:
        """Returns what a folder holds, sorted, without what is hidden or ignored."""
        return [
            child
            for child in sorted(folder.iterdir())
            if not tree_files.is_hidden(child) and not self._is_ignored(child)
        ]

    def folders(self, folder: Path) -> list[Path]:
        """Returns the folders in a folder, sorted."""
        return [child for child in self.children(folder) if child.is_dir()]

    def pictures(self, folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
        """Yields every picture below a folder, sorted; keeps account of everything else."""
        above |= tree_files.real_parents(folder)
        for child in self.children(folder):
            if child.is_dir() and os.path.realpath(child) not in above:
                yield from self.pictures(child, above)
            elif tree_files.is_sidecar(child):
                if child.name not in TABLES:
                    is_outline = child.suffix.lower() == ".dat"
                    self.pass_over(child, "outline" if is_outline else "no picture")
            elif why := tree_files.broken_link(child) or _wrong_ending(child):
                self.offenders.setdefault(self.relative(child), why)
            else:
                yield child

    def holds_pictures(self, folder: Path) -> bool:
        """Whether there is a picture anywhere below a folder."""
        return any(True for _ in self.pictures(folder))

    def unused_patterns(self) -> list[str]:
        """Returns the patterns that left nothing out."""
        used = {why for why in self.passed_over.values()}
        return [pattern for pattern in self._ignore if _because(pattern) not in used]

    def _is_ignored(self, path: Path) -> bool:
        for pattern in self._ignore:
            if any(fnmatch.fnmatch(n, pattern) for n in (path.name, self.relative(path))):
                self.pass_over(path, _because(pattern))
                return True
        return False


def label_of(folder: Path) -> str:
    """Returns the class that a folder names; macOS writes accents decomposed."""
    return unicodedata.normalize("NFC", folder.name)


def require_folder(root: Path, expected: str) -> None:
    """Refuses a root that is not there.

    Raises:
        TreeError: There is no such folder.
    """
    if not root.is_dir():
        raise TreeError(f"{root}: no such folder; expected {expected}")


def _because(pattern: str) -> str:
    return f"--ignore={pattern}"


def _wrong_ending(path: Path) -> str:
    if path.suffix.lower() in images.FORMATS:
        return ""
    return f"unexpected ending {path.suffix!r}; --ignore='*{path.suffix}' passes it over"
