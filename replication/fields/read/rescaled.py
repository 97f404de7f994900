"""A field at another pixel size than that of its file."""

import abc
import functools
import math

import numpy as np
from PIL import Image

from replication.fields.read.field import Field, FieldError

#: A pixel size that differs by no more is the same: scanners are calibrated no better.
SAME_MPP = 0.01

#: Side of the tiles that a rescaled field is made of, pixels, and how many are kept (50 MB).
_TILE, _TILES = 256, 256

#: Pixels around a tile that interpolation looks at, for each pixel of the reduction.
_MARGIN = 4


class Pyramid(Field):
    """A field whose file holds smaller copies of it."""

    @abc.abstractmethod
    def level(self, reduction: float) -> Field:
        """Returns the smallest copy that is reduced by no more.

        Args:
            reduction: Pixels of the file per pixel.

        Returns:
            The copy. Its `read` may be off by half a pixel of the file: it starts at
            `round(left * scale) / scale`, for the vertical likewise.
        """


class Rescaled(Field):
    """A field at another pixel size, interpolated by Pillow's bicubic filter.

    It is made of tiles of a fixed grid, each of which is always computed alike: pixels do not
    depend on the rectangle that is asked for.

    Args:
        field: The field, of a known pixel size; closed with this one.
        mpp: Micrometres per pixel that it is wanted at.

    Raises:
        FieldError: If less than a pixel would be left.
        ValueError: If its pixel size is not known.
    """

    def __init__(self, field: Field, mpp: float) -> None:
        if field.mpp is None:
            raise ValueError(f"{field.name}: expected a field of a known pixel size")
        self._field = field
        self.name, self.mpp = field.name, mpp
        self.scale = mpp / field.mpp
        self.width, self.height = int(field.width / self.scale), int(field.height / self.scale)
        if min(self.width, self.height) < 1:
            raise FieldError(f"{field.name}: nothing is left of it at {mpp:g} micrometres a pixel")
        self.notes = (
            *field.notes,
            f"rescaled: {self.scale:.4g} pixels of the file ({field.mpp:.4g} micrometres) a pixel "
            f"as read ({mpp:g})",
        )
        self._source = field.level(self.scale) if isinstance(field, Pyramid) else field
        # Scanners cut a level to whole pixels, in each direction by another fraction.
        self._ratios = (
            self.scale * self._source.width / field.width,
            self.scale * self._source.height / field.height,
        )
        self._tile = functools.lru_cache(_TILES)(self._rescaled_tile)

    def read(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `Field.read`."""
        pixels = np.empty((height, width, 3), np.uint8)
        for row in range(top // _TILE, -(-(top + height) // _TILE)):
            for column in range(left // _TILE, -(-(left + width) // _TILE)):
                tile = self._tile(row, column)
                y, x = row * _TILE - top, column * _TILE - left
                part = tile[max(0, -y) : height - y, max(0, -x) : width - x]
                y, x = max(0, y), max(0, x)
                pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
        return pixels

    def _rescaled_tile(self, row: int, column: int) -> np.ndarray:
        (left, width), columns, (x0, x1) = self._span(column, self.width, self._source.width, 0)
        (top, height), rows, (y0, y1) = self._span(row, self.height, self._source.height, 1)
        pixels = Image.fromarray(self._source.read(left, top, width, height))
        # Pillow chooses the order of the two passes by size, and rounds between them: at the rim,
        # where tiles are smaller, it would be another one.
        tile = pixels.resize((columns, height), Image.Resampling.BICUBIC, (x0, 0, x1, height))
        tile = tile.resize((columns, rows), Image.Resampling.BICUBIC, (0, y0, columns, y1))
        return np.asarray(tile)

    def _span(
        self, number: int, side: int, source_side: int, axis: int
    ) -> tuple[tuple[int, int], int, tuple[float, float]]:
        """One direction of a tile.

        Returns:
            First pixel and count of what is read of the source, how many pixels they become, and
            the part of what is read that these cover.
        """
        ratio, scale = self._ratios[axis], self._source.scale
        margin = math.ceil(_MARGIN * max(1.0, ratio))
        first, last = number * _TILE, min((number + 1) * _TILE, side)
        start = max(0, math.floor(first * ratio) - margin)
        count = min(source_side, math.ceil(last * ratio) + margin) - start
        origin = round(start * scale) / scale
        end = min(last * ratio - origin, count)
        return (start, count), last - first, (first * ratio - origin, end)

    def overview(self, longest: int) -> np.ndarray:
        """See `Field.overview`."""
        return self._field.overview(min(longest, max(self.width, self.height)))

    def close(self) -> None:
        """See `Field.close`."""
        # The cache holds this object, which holds the cache: neither would go before long.
        del self._tile
        self._field.close()
