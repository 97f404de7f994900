"""Cells and backgrounds for the first stage, where a lab has images of cells, or whole fields."""

import csv
import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tfds_pap import files, folders, images, layouts, tables
from tfds_pap.errors import PapError
from tfds_pap.layouts import ListedFile, Listing
from tfds_pap.taxonomy import ROI_SIZE, STAGE1_CLASSES

_BACKGROUND, _CELL = STAGE1_CLASSES

#: Distance from the middle of an ROI, pixels, within which no nucleus of a background may lie.
_FREE = ROI_SIZE // 3
#: Places that are tried for each background, and backgrounds for each cell.
_TRIES = 50


def against_backgrounds(cells: Listing, backgrounds: Path) -> Listing:
    """Lists a lab's cells against a folder of images without one.

    Where the group of every cell is known, a background is a group of its own unless the
    `groups.csv` beside it says otherwise.

    Args:
        cells: The lab's own images.
        backgrounds: Images, in folders of any depth.

    Raises:
        folders.TreeError: If there is no image, or one cannot be used.
    """
    paths = [Path(path) for path in folders.image_paths(backgrounds)]
    if not paths:
        raise folders.TreeError(f"--backgrounds={backgrounds}: holds no image")
    known = folders.groups_of(backgrounds, [_id(path, backgrounds) for path in paths])
    grouped = all(file.group for file in cells.files)
    ground = [
        ListedFile(
            path,
            f"{_BACKGROUND}/{_id(path, backgrounds)}",
            "",
            _BACKGROUND,
            known.get(_id(path, backgrounds)) or (f"background {path.name}" if grouped else ""),
        )
        for path in paths
    ]
    own = [
        dataclasses.replace(file, id=f"{_CELL}/{file.id}", label=_CELL, split="")
        for file in cells.files
    ]
    if not known and grouped:
        print(f"Note: {backgrounds.name}: groups unknown, each background is one of its own")
    return Listing(
        cells.root,
        "cells against backgrounds",
        tuple(sorted([*ground, *own], key=lambda file: file.id)),
        STAGE1_CLASSES,
        (),
        (),
        cells.offenders,
    )


def _id(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def cut_out(fields: Path, folder: Path, *, seed: int = 0) -> Listing:
    """Cuts ROIs out of annotated fields, and lists them.

    A cell is an ROI around a nucleus; a background one of as many others of the same field without
    a nucleus near their middle. A field is a group.

    Args:
        fields: Fields and their `nuclei.csv` (field,x,y,label; every nucleus of a field).
        folder: Gets the ROIs as PNG files; what is there of the same fields is used again.
        seed: Of the places of backgrounds.

    Raises:
        PapError: If there is no table, a field is missing or cannot be read, or there is no room
            for either class.
    """
    table = fields / "nuclei.csv"
    nuclei = _nuclei(table)
    place = folder / f"{fields.resolve().name}-{_digest(fields, table, nuclei, seed)}"
    if not (place / "groups.csv").exists():
        rows: list[tuple[str, str]] = []
        for number, (name, places) in enumerate(sorted(nuclei.items())):
            rng = np.random.default_rng([seed, number])
            rows += _cut_field(fields / name, np.array(places), place, rng)
        labels = {path.split("/")[0] for path, _ in rows}
        if missing := sorted({*STAGE1_CLASSES} - labels):
            raise PapError(f"{table}: no ROI of {' or '.join(missing)} fits into these fields")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("file", "group"), *rows])
        # Written last: all ROIs are there.
        files.write_atomically(place / "groups.csv", text.getvalue())
    print(f"Stage 1: ROIs of {len(nuclei)} annotated fields, in {place}")
    return layouts.read(place, "plain")


def _nuclei(table: Path) -> Mapping[str, list[tuple[float, float]]]:
    if not table.exists():
        raise PapError(
            f"{table}: no such file; expected the nuclei of the fields (field,x,y,label)"
        )
    nuclei: dict[str, list[tuple[float, float]]] = {}
    for row in tables.read(table, ("field", "x", "y")):
        x, y = (tables.number(table, row, axis) for axis in ("x", "y"))
        nuclei.setdefault(row.values["field"], []).append((x, y))
    if not nuclei:
        raise PapError(f"{table}: expected a line for each nucleus, got none")
    names = tables.Names(path.name for path in map(Path, folders.image_paths(table.parent)))
    for name in nuclei:
        if len(names.find(name)) != 1:
            raise PapError(f"{table}: {name} is not beside it")
    return {names.find(name)[0]: places for name, places in nuclei.items()}


def _digest(fields: Path, table: Path, nuclei: Mapping[str, object], seed: int) -> str:
    total = hashlib.sha256(f"{ROI_SIZE} {_FREE} {seed}".encode() + table.read_bytes())
    for name in sorted(nuclei):
        total.update((fields / name).read_bytes())
    return total.hexdigest()[:12]


def _cut_field(
    path: Path, nuclei: np.ndarray, place: Path, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Writes the ROIs of one field; returns the path of each, and the field."""
    try:
        pixels = images.decode(path.read_bytes())
    except images.ImageError as error:
        raise PapError(f"{path}: cannot be decoded ({error})") from None
    height, width = pixels.shape[:2]
    corners = np.rint(nuclei - ROI_SIZE / 2).astype(int)
    inside = ((corners >= 0) & (corners <= np.array([width, height]) - ROI_SIZE)).all(axis=1)
    cells = [tuple(corner) for corner in corners[inside].tolist()]
    rows = []
    for label, places in ((_CELL, cells), (_BACKGROUND, _free(pixels.shape, nuclei, cells, rng))):
        for left, top in places:
            name = f"{label}/{path.stem}_{left}_{top}.png"
            (place / label).mkdir(parents=True, exist_ok=True)
            roi = images.encode_png(pixels[top : top + ROI_SIZE, left : left + ROI_SIZE])
            files.write_atomically(place / name, roi)
            rows.append((name, path.name))
    return rows


def _free(
    shape: Sequence[int], nuclei: np.ndarray, cells: Sequence[tuple], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Corners of ROIs with no nucleus near their middle, as many as there are cells at most."""
    height, width = shape[:2]
    places: list[tuple[int, int]] = []
    if min(height, width) < ROI_SIZE:
        return places
    for _ in range(_TRIES * len(cells)):
        if len(places) == len(cells):
            break
        corner = rng.integers(0, [width - ROI_SIZE + 1, height - ROI_SIZE + 1])
        middle = corner + ROI_SIZE / 2
        others = np.array([*places, (-9 * ROI_SIZE, 0)]) + ROI_SIZE / 2
        apart = np.hypot(*(nuclei - middle).T).min() > _FREE
        if apart and np.hypot(*(others - middle).T).min() > _FREE:
            places.append((int(corner[0]), int(corner[1])))
    return places
