"""A field as the two stages see it: pixels that are read piece by piece."""

import abc
from types import TracebackType

import cv2
import numpy as np

from tfds_pap.errors import PapError

#: Side of what is read at a time where all of a field is looked at, pixels.
_BLOCK = 1024


class FieldError(PapError):
    """A field that cannot be read; the message is one line that names the file."""


class Field(abc.ABC):
    """One field, at the magnification that it is read at; a context manager.

    Attributes:
        name: File name without folders.
        width: Pixels as read.
        height: Pixels as read.
        scale: Pixels of the file per pixel as read; 1 where nothing is rescaled.
        mpp: Micrometres per pixel as read; None where the pixel size is not known.
        notes: Sentences on how it is read.
    """

    name: str
    width: int
    height: int
    scale: float = 1.0
    mpp: float | None = None
    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def read(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Reads a rectangle; may be called from several threads at once.

        Args:
            left: Pixels as read, like the rest; the rectangle lies inside the field.
            top: Pixels.
            width: Pixels.
            height: Pixels.

        Returns:
            uint8 RGB `[height, width, 3]`; the same pixels whatever the rectangle.

        Raises:
            FieldError: If the file is damaged there.
        """

    def overview(self, longest: int) -> np.ndarray:
        """Reads the whole field, small.

        Args:
            longest: Longer side at most, in pixels; a smaller field is not enlarged.

        Returns:
            uint8 RGB `[height, width, 3]`, each pixel the mean of its area.
        """
        reduction = max(1.0, max(self.width, self.height) / longest)
        width, height = (max(1, round(side / reduction)) for side in (self.width, self.height))
        small = np.empty((height, width, 3), np.uint8)
        step = max(1, int(_BLOCK / reduction))
        # Block by block: all of it need not fit into memory.
        for top in range(0, height, step):
            for left in range(0, width, step):
                part = small[top : top + step, left : left + step]
                y0, y1 = (row * self.height // height for row in (top, top + part.shape[0]))
                x0, x1 = (column * self.width // width for column in (left, left + part.shape[1]))
                pixels = self.read(x0, y0, x1 - x0, y1 - y0)
                part[:] = cv2.resize(pixels, part.shape[1::-1], interpolation=cv2.INTER_AREA)
        return small

    def close(self) -> None:
        """Gives the file back; nothing to do for a field in memory."""
        return

    def __enter__(self) -> "Field":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class ArrayField(Field):
    """A field that is in memory already.

    Args:
        name: For messages and tables.
        pixels: uint8 RGB `[height, width, 3]`.
        scale: Pixels of the file per pixel as read.
        mpp: Micrometres per pixel as read; None where the pixel size is not known.
    """

    def __init__(
        self, name: str, pixels: np.ndarray, *, scale: float = 1.0, mpp: float | None = None
    ) -> None:
        self.name = name
        self.height, self.width = pixels.shape[:2]
        self.scale, self.mpp = scale, mpp
        self._pixels = pixels

    def read(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `Field.read`; a view, not a copy."""
        return self._pixels[top : top + height, left : left + width]
