"""Slides for tests: tiled TIFFs of real pixels, and huge ones whose tiles are stored once."""

import struct
import zlib

import cv2
import numpy as np
import tifffile

TILE = 256

_SHORT, _LONG, _LONG8 = 3, 4, 16
_COMPRESSIONS = {"jpeg": 7, "deflate": 8}
_RGB, _YCBCR = 2, 6


def write_tiled(path, *levels, mpp=None, description=None, tile=(64, 64), **options):
    """Writes a tiled TIFF without loss.

    Args:
        path: The file.
        *levels: uint8 RGB; the largest first.
        mpp: Micrometres per pixel of the first, or of its two directions.
        description: Such as Aperio's scanners write it.
        tile: Height and width of the tiles.
        **options: Of `tifffile.TiffWriter.write`, instead of those chosen here.
    """
    options = {"compression": "zlib", "photometric": "rgb", "metadata": None} | options
    if mpp is not None:
        x, y = np.broadcast_to(mpp, 2)
        options |= {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        for number, level in enumerate(levels):
            writer.write(
                level,
                tile=tile,
                description=description,
                subfiletype=int(number > 0),
                **options,
            )


def write_repeated(path, tiles, pick, compression):
    """Writes a BigTIFF whose directory points to few tiles many times.

    Args:
        path: The file.
        tiles: Each uint8 RGB `[TILE, TILE, 3]`, or bytes that are stored as they are.
        pick: int `[rows, columns]`, which tile is at each place; -1 where nothing was scanned.
        compression: "jpeg" or "deflate".
    """
    places = []
    with path.open("wb") as file:
        file.write(bytes(16))
        for tile in tiles:
            data = tile if isinstance(tile, bytes) else _compressed(tile, compression)
            places.append((file.tell(), len(data)))
            file.write(data)
        # Without bytes: not scanned. The number -1 picks this last one.
        places.append((0, 0))
        offsets, counts = np.array(places, "<u8").T
        arrays = []
        for values in (offsets, counts):
            arrays.append(file.tell())
            file.write(values[pick].tobytes())
        is_jpeg = compression == "jpeg"
        entries = [
            (256, _LONG, 1, struct.pack("<I", pick.shape[1] * TILE)),
            (257, _LONG, 1, struct.pack("<I", pick.shape[0] * TILE)),
            (258, _SHORT, 3, struct.pack("<3H", 8, 8, 8)),
            (259, _SHORT, 1, struct.pack("<H", _COMPRESSIONS[compression])),
            (262, _SHORT, 1, struct.pack("<H", _YCBCR if is_jpeg else _RGB)),
            (277, _SHORT, 1, struct.pack("<H", 3)),
            (284, _SHORT, 1, struct.pack("<H", 1)),
            (322, _SHORT, 1, struct.pack("<H", TILE)),
            (323, _SHORT, 1, struct.pack("<H", TILE)),
            (324, _LONG8, pick.size, struct.pack("<Q", arrays[0])),
            (325, _LONG8, pick.size, struct.pack("<Q", arrays[1])),
        ]
        if is_jpeg:
            # OpenCV's JPEGs have half the colour resolution in both directions.
            entries.append((530, _SHORT, 2, struct.pack("<2H", 2, 2)))
        directory = file.tell()
        file.write(struct.pack("<Q", len(entries)))
        for entry in entries:
            file.write(struct.pack("<HHQ8s", *entry))
        file.write(struct.pack("<Q", 0))
        file.seek(0)
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, directory))


def _compressed(tile, compression):
    if compression == "deflate":
        return zlib.compress(tile.tobytes())
    return cv2.imencode(".jpg", np.ascontiguousarray(tile[..., ::-1]))[1].tobytes()
