"""A field as the two stages see it: pixels that are read piece by piece."""

import abc
from types import TracebackType

import numpy as np


class FieldError(ValueError):
    """A field that cannot be read; the message is one line that names the file."""


class Field(abc.ABC):
    """One field, at the magnification that it is read at; a context manager.

    Attributes:
        name: File name without folders.
        width: Pixels as read.
        height: Pixels as read.
        scale: Pixels of the file per pixel as read; 1 where nothing is rescaled.
        mpp: Micrometres per pixel as read; None where the pixel size is not known.
    """

    name: str
    width: int
    height: int
    scale: float = 1.0
    mpp: float | None = None

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
            uint8 RGB `[height, width, 3]`.
        """
        import cv2

        pixels = self.read(0, 0, self.width, self.height)
        shrink = min(1.0, longest / max(self.width, self.height))
        size = (max(1, round(self.width * shrink)), max(1, round(self.height * shrink)))
        return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)

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
        scale: See `Field`.
        mpp: See `Field`.
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
