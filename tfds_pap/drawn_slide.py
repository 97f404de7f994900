"""Draws a whole slide as a tiled TIFF, as large as wanted and yet a small file.

A field is drawn once and repeated: tiles that look alike are stored once, and the file's directory
points to them many times. So a slide of 100,000 x 100,000 px is written in seconds.

    python -m tfds_pap.drawn_slide --file=slide.tif --side=20000
"""

import struct
from pathlib import Path

import numpy as np
from absl import app, flags

from tfds_pap import commands, path_flags, phantom, phantom_set

TILE = 256  # Pixels, side of a tile of the file.
FIELD = 2048  # Pixels, side of the field that is repeated.
CELLS = 160  # In that field.

# TIFF 6.0: field types, and the tags that follow.
_SHORT, _LONG, _RATIONAL, _LONG8 = 3, 4, 5, 16
_JPEG, _YCBCR, _CENTIMETRE = 7, 6, 3


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
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        offsets, counts = np.zeros((2, down, across), np.uint64)
        for row in range(down):
            for column in range(across):
                place = (
                    slice(row * TILE, (row + 1) * TILE),
                    slice(column * TILE, (column + 1) * TILE),
                )
                data = phantom_set.encode(field[place])
                offsets[row, column], counts[row, column] = file.tell(), len(data)
                file.write(data)
        pick = np.ix_(np.arange(rows) % down, np.arange(columns) % across)
        arrays = []
        for values in (offsets[pick], counts[pick]):
            arrays.append(file.tell())
            file.write(values.astype("<u8").tobytes())
        entries = [
            (256, _LONG, 1, struct.pack("<I", width)),
            (257, _LONG, 1, struct.pack("<I", height)),
            (258, _SHORT, 3, struct.pack("<3H", 8, 8, 8)),
            (259, _SHORT, 1, struct.pack("<H", _JPEG)),
            (262, _SHORT, 1, struct.pack("<H", _YCBCR)),
            (277, _SHORT, 1, struct.pack("<H", 3)),
            (284, _SHORT, 1, struct.pack("<H", 1)),
            (322, _SHORT, 1, struct.pack("<H", TILE)),
            (323, _SHORT, 1, struct.pack("<H", TILE)),
            _array(324, arrays[0], offsets[pick]),
            _array(325, arrays[1], counts[pick]),
            # OpenCV's JPEGs have half the colour resolution in both directions.
            (530, _SHORT, 2, struct.pack("<2H", 2, 2)),
        ]
        if mpp is not None:
            dots = struct.pack("<II", round(1e7 / mpp), 1000)
            entries += [(282, _RATIONAL, 1, dots), (283, _RATIONAL, 1, dots)]
            entries += [(296, _SHORT, 1, struct.pack("<H", _CENTIMETRE))]
        directory = file.tell()
        file.write(struct.pack("<Q", len(entries)))
        for tag, kind, count, value in sorted(entries):
            file.write(struct.pack("<HHQ8s", tag, kind, count, value))
        file.write(struct.pack("<Q", 0))
        file.seek(8)
        file.write(struct.pack("<Q", directory))


def _array(tag: int, offset: int, values: np.ndarray) -> tuple[int, int, int, bytes]:
    """A directory entry; a single value stands in the entry itself."""
    inline = values.size == 1
    return tag, _LONG8, values.size, struct.pack("<Q", int(values.flat[0]) if inline else offset)


def main(argv: list[str]) -> None:
    """Writes a slide."""
    asked = flags.FLAGS
    if len(argv) > 1 or not asked.file:
        raise app.UsageError("give --file=FILE.tif")
    write_slide(Path(asked.file), asked.side, mpp=asked.slide_mpp)


if __name__ == "__main__":
    # Defined here and not on import, so that importers keep these names free.
    path_flags.define("file", None, "TIFF file to write (required).", path_flags.NEW_FILE)
    flags.DEFINE_integer("side", 20_000, "Side of the slide in pixels (default: 20000).", 1)
    flags.DEFINE_float("slide_mpp", 0.25, "Micrometres per pixel it states (default: 0.25).")
    commands.run(main, commands.STARTS_AGAIN)
