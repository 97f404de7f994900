"""A field as tiles of several sizes, in the Deep Zoom Image layout that many viewers open.

    tiles.dzi  tiles_files/<level>/<column>_<row>.jpg

Level 0 is one pixel; each level is twice as large as the one before.
"""

import shutil
from pathlib import Path

import cv2
import numpy as np

from replication.fields.read.field import Field
from tfds_pap import files as file_writing

#: Side of a tile, pixels.
TILE = 256

#: Pixels of the largest level. What is larger is shrunk: a slide of 10 gigapixels would be 150,000
#: files; its cells have pictures of their own at full size.
MAX_PIXELS = 2**25

_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 85]
_DZI = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpg" Overlap="0" '
    'TileSize="{tile}"><Size Width="{width}" Height="{height}"/></Image>\n'
)


def write(folder: Path, field: Field) -> np.ndarray:
    """Writes the tiles.

    Args:
        folder: Gets `tiles.dzi` and `tiles_files/`; what was there is replaced.
        field: The field.

    Returns:
        The largest level, uint8 RGB `[height, width, 3]`: the field itself where it has no more
        than `MAX_PIXELS`.
    """
    shrink = min(1.0, (MAX_PIXELS / (field.width * field.height)) ** 0.5)
    # A rounded side must not enlarge the other.
    longest = int(max(field.width, field.height) * shrink)
    largest = field.overview(longest) if shrink < 1 else field.read(0, 0, field.width, field.height)
    height, width = largest.shape[:2]
    files = folder / "tiles_files"
    shutil.rmtree(files, ignore_errors=True)
    pixels = cv2.cvtColor(largest, cv2.COLOR_RGB2BGR)
    for level in range(levels(width, height) - 1, -1, -1):
        directory = files / str(level)
        directory.mkdir(parents=True)
        for top in range(0, pixels.shape[0], TILE):
            for left in range(0, pixels.shape[1], TILE):
                tile = pixels[top : top + TILE, left : left + TILE]
                path = directory / f"{left // TILE}_{top // TILE}.jpg"
                path.write_bytes(cv2.imencode(".jpg", tile, _QUALITY)[1].tobytes())
        half = tuple(-(-side // 2) for side in pixels.shape[1::-1])
        pixels = cv2.resize(pixels, half, interpolation=cv2.INTER_AREA)
    file_writing.write_atomically(
        folder / "tiles.dzi", _DZI.format(tile=TILE, width=width, height=height)
    )
    return largest


def levels(width: int, height: int) -> int:
    """Returns how many levels a picture has.

    Args:
        width: Pixels.
        height: Pixels.

    Example:
        >>> levels(1, 1), levels(256, 200), levels(257, 200)
        (1, 9, 10)
    """
    return (max(width, height) - 1).bit_length() + 1
