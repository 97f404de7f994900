"""Draws a whole slide as a tiled TIFF, as large as wanted and yet a small file.

A field is drawn once and repeated: tiles that look alike are stored once, and the file's directory
points to them many times. So a slide of 100,000 x 100,000 px is written in seconds.

    python -m tfds_pap.drawn_slide --file=slide.tif --side=20000
    python -m tfds_pap.drawn_slide --file=slide.tif --side=30720 --glass=0.75
"""

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from absl import app, flags

from tfds_pap import commands, path_flags, phantom, phantom_set
from tfds_pap.errors import PapError

TILE = 256  # Pixels, side of a tile of the file.
FIELD = 2048  # Pixels, side of the field that is repeated.
CELLS = 160  # In that field.

# TIFF 6.0: field types, and the tags that follow.
_SHORT, _LONG, _RATIONAL, _LONG8 = 3, 4, 5, 16
_JPEG, _YCBCR, _CENTIMETRE, _REDUCED = 7, 6, 3, 1


def write_slide(path: Path, side: int, *, mpp: float = 0.25, seed: int = 0) -> None:
    """Writes a square BigTIFF of JPEG tiles.

    Args:
        path: The file.
        side: Of the slide, pixels.
        mpp: Micrometres per pixel that the file states.
        seed: Which field and slide is drawn; see `phantom.draw_field`.
    """
    field, _ = phantom.draw_field(seed, slide=seed, width=FIELD, height=FIELD, cells=CELLS)
    write_tiles(path, field, side, side, mpp=mpp)


def write_smear(
    path: Path, side: int, *, glass: float, mpp: float | None = None, seed: int = 0
) -> None:
    """Writes a square BigTIFF with a pyramid: fields full of cells in the middle, glass around.

    Args:
        path: The file.
        side: Of the slide, a multiple of `FIELD` pixels.
        glass: Share of its fields without a cell, 0 to 1.
        mpp: Micrometres per pixel that the file states; None states nothing.
        seed: Which field and slide is drawn; see `phantom.draw_field`.

    Raises:
        PapError: If fields do not fill the side.
    """
    along = side // FIELD
    if along * FIELD != side:
        raise PapError(f"--side={side}: with --glass expected a multiple of {FIELD} pixels")
    fields = [
        phantom.draw_field(seed, slide=seed, width=FIELD, height=FIELD, cells=cells)[0]
        for cells in (CELLS, 0)
    ]
    rows, columns = np.mgrid[:along, :along] - (along - 1) / 2
    nearest = np.argsort(np.hypot(rows, columns), axis=None, kind="stable")
    places = np.ones(along**2, int)
    places[nearest[: round((1 - glass) * along**2)]] = 0
    write_mosaic(path, fields, places.reshape(along, along), mpp=mpp)


def write_tiles(
    path: Path, field: np.ndarray, width: int, height: int, *, mpp: float | None = None
) -> None:
    """Writes a BigTIFF of JPEG tiles that repeats a field.

    Args:
        path: The file.
        field: uint8 RGB, its sides multiples of `TILE`.
        width: Of the file, pixels.
        height: Of the file, pixels.
        mpp: Micrometres per pixel that the file states; None states nothing.
    """
    down, across = field.shape[0] // TILE, field.shape[1] // TILE
    rows, columns = -(-height // TILE), -(-width // TILE)
    numbers = np.arange(down * across).reshape(down, across)
    pick = numbers[np.ix_(np.arange(rows) % down, np.arange(columns) % across)]
    with path.open("wb") as file:
        _write(file, [_Level(_cut(field), pick, width, height)], mpp)


def write_mosaic(
    path: Path,
    fields: Sequence[np.ndarray],
    places: np.ndarray,
    *,
    mpp: float | None = None,
    reductions: Sequence[int] = (1, 8),
) -> None:
    """Writes a BigTIFF of JPEG tiles with a pyramid, each of whose fields may lie at many places.

    Args:
        path: The file.
        fields: Each uint8 RGB `[FIELD, FIELD, 3]`.
        places: Which of them lies where, int `[rows, columns]`.
        mpp: Micrometres per pixel that the file states; None states nothing.
        reductions: Of the levels, powers of 2 up to 8.
    """
    levels = []
    for reduction in reductions:
        side = FIELD // reduction
        tiles, count = [], side // TILE
        for field in fields:
            tiles += _cut(cv2.resize(field, (side, side), interpolation=cv2.INTER_AREA))
        inside = np.arange(count * count).reshape(count, count)
        pick = np.block([[count * count * place + inside for place in row] for row in places])
        height, width = (side * fields_along for fields_along in places.shape)
        levels.append(_Level(tiles, pick, width, height))
    with path.open("wb") as file:
        _write(file, levels, mpp)


@dataclasses.dataclass(frozen=True)
class _Level:
    """A picture of the file.

    Attributes:
        tiles: Encoded.
        pick: Which of them lies where, int `[rows, columns]`.
        width: Pixels.
        height: Pixels.
    """

    tiles: list[bytes]
    pick: np.ndarray
    width: int
    height: int


def _cut(field: np.ndarray) -> list[bytes]:
    """Encoded tiles of a field, row by row."""
    return [
        phantom_set.encode(field[top : top + TILE, left : left + TILE])
        for top in range(0, field.shape[0], TILE)
        for left in range(0, field.shape[1], TILE)
    ]


def _write(file: BinaryIO, levels: Sequence[_Level], mpp: float | None) -> None:
    file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
    # Where the number stands that says where the next directory lies.
    link = 8
    for number, level in enumerate(levels):
        places = []
        for tile in level.tiles:
            places.append((file.tell(), len(tile)))
            file.write(tile)
        offsets, counts = np.array(places, "<u8").T
        arrays = []
        for values in (offsets[level.pick], counts[level.pick]):
            arrays.append(file.tell())
            file.write(values.tobytes())
        entries = [
            (256, _LONG, 1, struct.pack("<I", level.width)),
            (257, _LONG, 1, struct.pack("<I", level.height)),
            (258, _SHORT, 3, struct.pack("<3H", 8, 8, 8)),
            (259, _SHORT, 1, struct.pack("<H", _JPEG)),
            (262, _SHORT, 1, struct.pack("<H", _YCBCR)),
            (277, _SHORT, 1, struct.pack("<H", 3)),
            (284, _SHORT, 1, struct.pack("<H", 1)),
            (322, _SHORT, 1, struct.pack("<H", TILE)),
            (323, _SHORT, 1, struct.pack("<H", TILE)),
            _array(324, arrays[0], offsets[level.pick]),
            _array(325, arrays[1], counts[level.pick]),
            # OpenCV's JPEGs have half the colour resolution in both directions.
            (530, _SHORT, 2, struct.pack("<2H", 2, 2)),
        ]
        if number:
            entries.append((254, _LONG, 1, struct.pack("<I", _REDUCED)))
        elif mpp is not None:
            dots = struct.pack("<II", round(1e7 / mpp), 1000)
            entries += [(282, _RATIONAL, 1, dots), (283, _RATIONAL, 1, dots)]
            entries += [(296, _SHORT, 1, struct.pack("<H", _CENTIMETRE))]
        directory = file.tell()
        file.write(struct.pack("<Q", len(entries)))
        for tag, kind, count, value in sorted(entries):
            file.write(struct.pack("<HHQ8s", tag, kind, count, value))
        following = file.tell()
        file.write(struct.pack("<Q", 0))
        file.seek(link)
        file.write(struct.pack("<Q", directory))
        file.seek(0, 2)
        link = following


def _array(tag: int, offset: int, values: np.ndarray) -> tuple[int, int, int, bytes]:
    """A directory entry; a single value stands in the entry itself."""
    inline = values.size == 1
    return tag, _LONG8, values.size, struct.pack("<Q", int(values.flat[0]) if inline else offset)


def main(argv: list[str]) -> None:
    """Writes a slide."""
    asked = flags.FLAGS
    if len(argv) > 1 or not asked.file:
        raise app.UsageError("give --file=FILE.tif")
    if asked.glass:
        write_smear(Path(asked.file), asked.side, glass=asked.glass, mpp=asked.slide_mpp)
    else:
        write_slide(Path(asked.file), asked.side, mpp=asked.slide_mpp)


if __name__ == "__main__":
    # Defined here and not on import, so that importers keep these names free.
    path_flags.define("file", None, "TIFF file to write (required).", path_flags.NEW_FILE)
    flags.DEFINE_integer("side", 20_000, "Side of the slide in pixels (default: 20000).", 1)
    flags.DEFINE_float("glass", 0.0, "Share of the slide without cells, 0 to 1 (default: 0).", 0, 1)
    flags.DEFINE_float("slide_mpp", 0.25, "Micrometres per pixel it states (default: 0.25).")
    commands.run(main, commands.STARTS_AGAIN)
