"""Tables of one row a file, named by path or bare name: `groups.csv`, `splits.csv`."""

from collections.abc import Collection
from pathlib import Path

from tfds_pap import tables
from tfds_pap.errors import PapError


def read(
    path: Path, column: str, ids: Collection[str], others: Collection[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Reads the value of every file from a table `file,<column>`.

    Args:
        path: The table; where it is not there no file has a value.
        column: Whose value.
        ids: Of every file that must have a row, paths below a tree with forward slashes.
        others: Ids that may have a row, which is not read: files that are no images of the set.

    Returns:
        From id to value, and what is wrong with the table, a line each.
    """
    if not path.exists():
        return {}, []
    try:
        rows = tables.read(path, ("file", column))
    except PapError as error:
        return {}, [str(error)]
    names = tables.Names([*ids, *others])
    values: dict[str, str] = {}
    offenders = []
    for line, row in rows:
        file, value = row["file"], row[column]
        meant = names.find(file)
        if len(meant) > 1:
            meant = [id_ for id_ in meant if id_ in ids] or meant[:1]
        if value and meant and meant[0] not in ids:
            continue
        where = f"{path.name} line {line}"
        if not file or not value:
            offenders.append(f"{where}: expected file,{column}")
        elif not meant:
            offenders.append(f"{where}: {file} is not in the tree")
        elif len(meant) > 1:
            offenders.append(f"{where}: {file} may be any of {', '.join(sorted(meant))}")
        elif meant[0] in values:
            offenders.append(f"{where}: {file} is named twice")
        else:
            values[meant[0]] = value
    offenders += [f"{id_}: has no row in {path.name}" for id_ in sorted({*ids} - values.keys())]
    return values, offenders
