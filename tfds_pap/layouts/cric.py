"""CRIC: whole fields and a table of nuclei; every nucleus is an image, a window around it.

Rezende et al., Sci. Data 2021, doi 10.1038/s41597-021-00933-8: 400 fields of 1,376 x 1,020 px,
11,534 nuclei in six classes. `classifications.csv` or `.json` as published, or a `nuclei.csv` with
the columns field, x, y, label. A field is a group.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tfds_pap import images, tables
from tfds_pap.errors import PapError
from tfds_pap.layouts.listing import ListedFile, Walk
from tfds_pap.taxonomy import ROI_SIZE
from tfds_pap.tree_files import TreeError

#: Columns of the published table, and of this project's own: picture, x, y and class.
_PUBLISHED = ("image_filename", "nucleus_x", "nucleus_y", "bethesda_system")
_OWN = ("field", "x", "y", "label")

#: The papers' ROI has 150 px in a field 1,280 px wide.
_FIELD_WIDTH = 1280

_NILM = "negative for intraepithelial lesion"


class _Nucleus(NamedTuple):
    where: str
    picture: str
    x: float
    y: float
    label: str
    name: str


def table_of(walk: Walk) -> Path | None:
    """Returns the table of nuclei that lies in the root, or None.

    A `nuclei.csv` counts only where fields lie beside it or in one folder, not in class folders.
    """
    found = [child for child in walk.children(walk.root) if _is_published(child)]
    own = walk.root / "nuclei.csv"
    if not found and own.exists() and len(walk.folders(walk.root)) < 2:
        found = [own]
    if len(found) > 1:
        # The same nuclei twice, as published: CSV and JSON.
        found = sorted(found, key=lambda path: path.suffix)
    return found[0] if found else None


def read(walk: Walk) -> tuple[list[ListedFile], list[str]]:
    """Lists a window around every nucleus.

    A window has 150 / 1,280 of the field's width, as the papers' ROI; it is moved into the field
    where it would reach over its border.

    Args:
        walk: Over the tree.

    Raises:
        TreeError: If there is no table, or it cannot be read.
    """
    table = table_of(walk)
    if table is None:
        raise TreeError(
            f"{walk.root}: expected a table of nuclei, classifications.csv or .json with "
            f"{', '.join(_PUBLISHED)}, or nuclei.csv with {', '.join(_OWN)}"
        )
    nuclei = _from_json(table) if table.suffix.lower() == ".json" else _from_csv(table)
    pictures = {walk.relative(path): path for path in walk.pictures(walk.root)}
    for child in walk.children(walk.root):
        if _is_published(child):
            walk.passed_over.pop(walk.relative(child), None)
    names = tables.Names(pictures)
    by_picture: dict[str, list[_Nucleus]] = {}
    for nucleus in nuclei:
        meant = names.find(nucleus.picture)
        if len(meant) == 1:
            by_picture.setdefault(meant[0], []).append(nucleus)
        else:
            why = f"may be any of {', '.join(meant)}" if meant else "is not in the tree"
            walk.offenders.setdefault(nucleus.picture, f"{why} ({nucleus.where})")
    files: list[ListedFile] = []
    for id_, path in pictures.items():
        if id_ not in by_picture:
            walk.pass_over(path, "no nucleus in the table")
            continue
        try:
            size = _size(path)
        except images.ImageError as error:
            walk.offenders.setdefault(id_, f"cannot be decoded ({error})")
            continue
        files += _windows(walk, path, id_, size, by_picture[id_])
    notes = [
        f"{len(files)} windows of {ROI_SIZE} / {_FIELD_WIDTH} of the field's width around nuclei "
        f"of {table.name}; {len({file.group for file in files})} fields are groups"
    ]
    return files, notes


def _windows(
    walk: Walk, path: Path, id_: str, size: tuple[int, int], nuclei: Iterable[_Nucleus]
) -> list[ListedFile]:
    width, height = size
    side = round(ROI_SIZE * width / _FIELD_WIDTH)
    if side > min(size):
        walk.offenders.setdefault(id_, f"{width} x {height} px hold no window of {side} px")
        return []
    files: dict[str, ListedFile] = {}
    for nucleus in nuclei:
        name = f"{id_}#{nucleus.name or f'{nucleus.x:g}-{nucleus.y:g}'}"
        if not (0 <= nucleus.x <= width and 0 <= nucleus.y <= height):
            walk.offenders.setdefault(
                name,
                f"lies outside {width} x {height} px ({nucleus.where})",
            )
        elif name in files:
            walk.offenders.setdefault(name, f"the same nucleus twice ({nucleus.where})")
        else:
            left = min(max(round(nucleus.x - side / 2), 0), width - side)
            top = min(max(round(nucleus.y - side / 2), 0), height - side)
            files[name] = ListedFile(path, name, "", nucleus.label, id_, (left, top, side))
    return [*files.values()]


def _size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as the file stores them."""
    with images.one_error(), Image.open(path) as image:
        return image.size


def _is_published(path: Path) -> bool:
    if path.suffix.lower() == ".csv":
        try:
            head = tables.decode(path.read_bytes()[:4096]).partition("\n")[0].lower()
        except UnicodeDecodeError:
            return False
        return all(column in head for column in _PUBLISHED)
    if path.suffix.lower() == ".json" and path.is_file():
        with path.open("rb") as file:
            head_bytes = file.read(4096)
        return b"bethesda_system" in head_bytes and b"nucleus_x" in head_bytes
    return False


def _from_csv(path: Path) -> list[_Nucleus]:
    columns = _PUBLISHED if _is_published(path) else _OWN
    nuclei = []
    for row in tables.read(path, columns, ("cell_id",)):
        picture, _, _, label = (row.values[column] for column in columns)
        if not picture or not label:
            raise tables.problem(path, row.line, f"expected {columns[0]} and {columns[3]}")
        x, y = (tables.number(path, row, column) for column in columns[1:3])
        name = row.values["cell_id"]
        nuclei.append(_Nucleus(f"{path.name} line {row.line}", picture, x, y, _label(label), name))
    return nuclei


def _from_json(path: Path) -> list[_Nucleus]:
    try:
        fields = json.loads(path.read_text("utf-8-sig"))
        return [
            _Nucleus(
                f"{path.name}, cell {cell.get('cell_id', number)}",
                field.get("image_name") or field["image_filename"],
                float(cell["nucleus_x"]),
                float(cell["nucleus_y"]),
                _label(cell["bethesda_system"]),
                str(cell.get("cell_id", "")),
            )
            for field in fields
            for number, cell in enumerate(field["classifications"], 1)
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PapError(
            f"{path}: expected CRIC's list of fields, each with image_name and classifications "
            f"({type(error).__name__}: {error})"
        ) from None


def _label(text: str) -> str:
    return "NILM" if text.lower() == _NILM else text
