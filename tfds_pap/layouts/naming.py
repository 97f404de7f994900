"""Groups and splits that a table or a pattern of names gives to listed images."""

import collections
import dataclasses
import re
from collections.abc import Sequence

from tfds_pap import file_tables
from tfds_pap.errors import PapError
from tfds_pap.layouts.class_folders import SPLITS
from tfds_pap.layouts.listing import ListedFile, Walk

_SHOWN = 3


def with_groups(
    walk: Walk, files: Sequence[ListedFile], groups_from: str | None
) -> tuple[list[ListedFile], list[str]]:
    """Gives images the groups of `groups.csv` or of a pattern; else they keep their layout's.

    Args:
        walk: Over the tree.
        files: Its images.
        groups_from: Regular expression, searched in file names, or in paths below the root where
            it has a slash; its first group, or all that it matches, names the group.

    Returns:
        The images, and notes that list the groups.

    Raises:
        PapError: The pattern is none, or there is a `groups.csv` as well.
    """
    table = walk.root / "groups.csv"
    if groups_from is not None and table.exists():
        raise PapError(f"--groups_from: {table} names the groups already; expected one of the two")
    if groups_from is not None:
        files = _matched(walk, files, groups_from)
        source = f"--groups_from={groups_from}"
    elif table.exists():
        ids = {_picture(walk, file) for file in files}
        groups, wrong = file_tables.read(table, "group", ids, walk.passed_over)
        _add(walk, wrong)
        files = [
            dataclasses.replace(file, group=groups.get(_picture(walk, file), "")) for file in files
        ]
        source = "groups.csv"
    else:
        return list(files), []
    counts = collections.Counter(file.group for file in files if file.group)
    if not counts:
        return list(files), []
    shown = ", ".join(f"{group} ({n})" for group, n in counts.most_common(_SHOWN))
    more = f", and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    return list(files), [f"{len(counts)} groups from {source}, the largest first: {shown}{more}"]


def _matched(walk: Walk, files: Sequence[ListedFile], pattern: str) -> list[ListedFile]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise PapError(
            f"--groups_from={pattern}: expected a regular expression ({error})"
        ) from None
    named = []
    for file in files:
        picture = _picture(walk, file)
        match = expression.search(picture if "/" in pattern else file.path.name)
        group = (match[1] if expression.groups else match[0]) if match else ""
        if not group:
            walk.offenders.setdefault(picture, f"--groups_from={pattern} names no group")
        named.append(dataclasses.replace(file, group=group or ""))
    return named


def with_splits(
    walk: Walk, files: Sequence[ListedFile], *, has_splits: bool
) -> tuple[list[ListedFile], list[str]]:
    """Gives images the splits of `splits.csv`.

    Args:
        walk: Over the tree.
        files: Its images, with their groups.
        has_splits: Whether its folders are splits.

    Raises:
        PapError: Folders and the table both name splits.
    """
    table = walk.root / "splits.csv"
    if table.exists():
        if has_splits:
            raise PapError(f"{table}: the folders are splits already; expected one of the two")
        ids = {_picture(walk, file) for file in files}
        parts, wrong = file_tables.read(table, "split", ids, walk.passed_over)
        unknown = sorted({part for part in parts.values() if part.lower() not in SPLITS})
        wrong += [f"splits.csv: {part!r}: expected one of {', '.join(SPLITS)}" for part in unknown]
        _add(walk, wrong)
        files = [
            dataclasses.replace(
                file, split=SPLITS.get(parts.get(_picture(walk, file), "").lower(), "")
            )
            for file in files
        ]
    sides: dict[str, set[str]] = collections.defaultdict(set)
    for file in files:
        if file.group:
            sides[file.group].add(file.split)
    across = sorted(group for group, splits in sides.items() if len(splits) > 1)
    if not across:
        return list(files), []
    return list(files), [
        f"{len(across)} groups lie in more than one split, such as {across[0]}: figures flatter"
    ]


def _picture(walk: Walk, file: ListedFile) -> str:
    """The path that a table names; windows share that of their picture."""
    return walk.relative(file.path)


def _add(walk: Walk, offenders: Sequence[str]) -> None:
    for line in offenders:
        walk.offenders.setdefault(line, "")
