"""Whole slides and tiled TIFFs, read piece by piece with OpenSlide.

A slide of 100,000 x 100,000 px takes no more memory than what is read of it at a time. Formats:
Aperio .svs, Hamamatsu .ndpi and .vms, MIRAX .mrxs, Leica .scn, Ventana .bif, DICOM, tiled TIFF and
BigTIFF (https://openslide.org/formats).
"""

import math
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import openslide
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from replication.fields.read.field import Field, FieldError
from replication.fields.read.rescaled import SAME_MPP, Pyramid
from tfds_pap import images

#: Of decoded tiles that OpenSlide keeps, bytes.
_CACHE = 2**26

#: Rows and columns that are asked of OpenSlide at a time.
_ROWS, _COLUMNS = 1024, 4096

#: Micrometres per pixel that a microscope has. Editors state 72 or 300 dots an inch: 353 and 85.
_LIKELY_MPP = 0.01, 10.0


def open_slide(path: Path, file_mpp: float | None = None) -> Pyramid | None:
    """Opens a slide.

    Args:
        path: A file.
        file_mpp: Pixel size in micrometres, where the file does not state it.

    Returns:
        The slide; None if OpenSlide does not know the format.

    Raises:
        FieldError: If it cannot be read; one line that names the file.
    """
    try:
        vendor = openslide.OpenSlide.detect_format(path)
        if vendor is None:
            return None
        if vendor == "generic-tiff" and _bits(path) > 8:
            # OpenSlide would keep the high byte, black in the 12 bits that microscopes write.
            raise FieldError(f"{path}: more than 8 bits a channel; convert it first")
        return WholeSlide(path, file_mpp)
    except (OSError, openslide.OpenSlideError) as error:
        raise FieldError(f"{path}: expected a slide ({error})") from None


class WholeSlide(Pyramid):
    """What OpenSlide reads, every pixel of the file.

    Args:
        path: A file that OpenSlide knows.
        file_mpp: Pixel size in micrometres, where the file does not state it.

    Raises:
        FieldError: If its pixels are no squares.
        openslide.OpenSlideError: If it cannot be opened.
    """

    def __init__(self, path: Path, file_mpp: float | None = None) -> None:
        self._path, self.name = path, path.name
        self._cache = openslide.OpenSlideCache(_CACHE)
        self._slide = self._opened()
        self._sizes = self._slide.level_dimensions
        self._reductions = self._slide.level_downsamples
        self.width, self.height = self._sizes[0]
        self.mpp = _stated_mpp(path, self._slide.properties)
        if self.mpp is not None and not _LIKELY_MPP[0] <= self.mpp <= _LIKELY_MPP[1]:
            self.notes = (
                f"it states {self.mpp:.3g} micrometres a pixel, which is no microscope's: not "
                "believed",
            )
            self.mpp = None
        self.mpp = self.mpp or file_mpp

    def read(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `Field.read`."""
        return self.read_level(0, left, top, width, height)

    def read_level(self, number: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Reads from a level; all in pixels of that level. See `Pyramid.level`."""
        factor = self._reductions[number]
        rgb = np.empty((height, width, 3), np.uint8)
        # OpenSlide's own pixels take four bytes, and several copies of them.
        for y in range(0, height, _ROWS):
            for x in range(0, width, _COLUMNS):
                part = rgb[y : y + _ROWS, x : x + _COLUMNS]
                place = round((left + x) * factor), round((top + y) * factor)
                region = self._region(place, number, part.shape[1::-1])
                pixels = np.asarray(region)
                if pixels[..., 3].min() < 255:
                    # Where nothing was scanned it is transparent, and bright under the microscope.
                    white = Image.new("RGBA", region.size, "white")
                    pixels = np.asarray(Image.alpha_composite(white, region))
                part[:] = cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)
        return rgb

    def level(self, reduction: float) -> Field:
        """See `Pyramid.level`; one that is reduced by 1 % more will do."""
        most = reduction * (1 + SAME_MPP)
        fitting = [number for number, one in enumerate(self._reductions) if one <= most]
        number = max(fitting, default=0)
        return _Level(self, number, self._sizes[number], self._reductions[number])

    def overview(self, longest: int) -> np.ndarray:
        """See `Field.overview`; from the level that is best for it."""
        return self.level(max(self.width, self.height) / longest).overview(longest)

    def close(self) -> None:
        """See `Field.close`."""
        self._slide.close()

    def _opened(self) -> openslide.OpenSlide:
        slide = openslide.OpenSlide(self._path)
        slide.set_cache(self._cache)
        return slide

    def _region(self, place: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """Reads RGBA; after a damaged place the others can be read as before."""
        try:
            return self._slide.read_region(place, level, size)
        except openslide.OpenSlideError:
            # Whatever failed, perhaps for another thread: from then on this handle always does.
            pass
        try:
            fresh = self._opened()
            region = fresh.read_region(place, level, size)
        except (OSError, openslide.OpenSlideError) as error:
            raise FieldError(f"{self._path}: damaged ({error})") from None
        self._slide = fresh
        return region


class _Level(Field):
    """A level of a slide's pyramid."""

    def __init__(self, slide: WholeSlide, number: int, size: tuple[int, int], scale: float) -> None:
        self.name, self._slide, self._number = slide.name, slide, number
        (self.width, self.height), self.scale = size, scale

    def read(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        return self._slide.read_level(self._number, left, top, width, height)


def _stated_mpp(path: Path, properties: Mapping[str, str]) -> float | None:
    try:
        x, y = (float(properties[f"openslide.mpp-{axis}"]) for axis in "xy")
    except (KeyError, ValueError):
        return None
    if not (math.isfinite(x) and math.isfinite(y) and x > 0):
        return None
    if abs(y / x - 1) > SAME_MPP:
        raise FieldError(f"{path}: its pixels are {x:g} x {y:g} micrometres, expected squares")
    return x


def _bits(path: Path) -> int:
    """Bits a channel of a TIFF, from its first directory."""
    with path.open("rb") as file:
        header = file.read(8)
        if 43 in header[2:4]:  # BigTIFF
            header += file.read(8)
        directory = ImageFileDirectory_v2(header)
        file.seek(directory.next)
        directory.load(file)
    return max(directory.get(images.BITS, (1,)))
