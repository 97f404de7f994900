"""Opens fields of any size: ordinary images, tiled TIFFs, whole slides.

An ordinary image is decoded whole, with the pixels that training would see. What OpenSlide knows
(.svs, .ndpi, .mrxs, .scn, .bif, .vms, tiled .tif, DICOM) is read piece by piece, so that a slide of
100,000 x 100,000 px takes no more memory than what is read of it at a time.
"""

import functools
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
import openslide
import tensorflow as tf
from PIL import Image

from replication.fields.field import ArrayField, Field, FieldError, shrunken
from tfds_pap import decoding, folders

#: Pixels of an ordinary image at most: 400 MB when decoded.
MAX_PIXELS = 2**27

#: Endings of slides, beside those of images that folders are searched for.
_SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide")

#: Of decoded tiles that OpenSlide keeps, bytes.
_CACHE = 2**26

#: Rows that are asked of OpenSlide at a time.
_BAND = 1024

#: A pixel size that differs by no more is the same: scanners are calibrated no better.
_SAME_MPP = 0.01

#: Side of the tiles that a rescaled field is made of, pixels, and how many are kept (50 MB).
_TILE, _TILES = 256, 256

#: Pixels around a rectangle that interpolation looks at, for each pixel of the reduction.
_MARGIN = 4


def open_field(
    path: str | Path, *, mpp: float | None = None, file_mpp: float | None = None
) -> Field:
    """Opens a field.

    Args:
        path: An image or slide.
        mpp: Micrometres per pixel that it is wanted at; None reads every pixel of the file.
        file_mpp: Pixel size of a file that does not state its own. The resolution of JPEG and PNG
            files is not asked: cameras and editors write 72 or 96 dots an inch whatever the lens.

    Returns:
        The field, with an attribute `notes`: sentences on how it is read.

    Raises:
        FieldError: If it cannot be read; one line that names the file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise FieldError(f"{path}: expected an image, got no bytes")
        if openslide.OpenSlide.detect_format(path) is not None:
            field: Field = _Slide(path, file_mpp)
        else:
            field = ArrayField(path.name, _decoded(path), mpp=file_mpp)
    except OSError as error:
        raise FieldError(f"{path}: expected an image ({_first_line(error)})") from None
    except openslide.OpenSlideError as error:
        raise FieldError(f"{path}: expected a slide ({_first_line(error)})") from None
    if mpp is None or (field.mpp and abs(field.mpp / mpp - 1) <= _SAME_MPP):
        return field
    if field.mpp is None:
        field.notes = (
            f"its pixel size is not known: read as if it were {mpp:g} micrometres (give "
            "--field_mpp, or rescale the file)",
        )
        return field
    return _Rescaled(field, mpp)


def given_fields(arguments: Iterable[str]) -> list[str]:
    """Returns the fields that a command was given: files as they are, of folders all below them.

    Args:
        arguments: Files and folders.

    Raises:
        folders.TreeError: One does not exist, or is a folder without a field.
    """
    found = []
    for argument in arguments:
        path = Path(argument)
        if not path.is_dir():
            found += folders.given_images([argument])
            continue
        slides = {each for each in path.rglob("*") if each.suffix.lower() in _SLIDES}
        # A .mrxs keeps its pixels in a folder of its name.
        inside = {each.with_suffix("") for each in slides if each.suffix.lower() == ".mrxs"}
        images = {Path(each) for each in folders.image_paths(path)}
        fields = sorted(each for each in slides | images if not inside.intersection(each.parents))
        if not fields:
            raise folders.TreeError(f"{argument}: holds no field")
        found += map(str, fields)
    return found


def _decoded(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        # PIL warns of sizes that are allowed here.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
            raise FieldError(f"{path}: expected an image ({_first_line(error)})") from None
        if width * height > MAX_PIXELS:
            raise FieldError(
                f"{path}: {width} x {height} px, expected at most {MAX_PIXELS:,} in an image that "
                "is decoded whole; convert it to a tiled TIFF"
            )
        try:
            data = folders.decodable_bytes(path.read_bytes())
            return decoding.decode(data).numpy()
        except (OSError, tf.errors.InvalidArgumentError) as error:
            raise FieldError(f"{path}: cannot be decoded ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class _Slide(Field):
    """What OpenSlide reads, every pixel of the file."""

    def __init__(self, path: Path, file_mpp: float | None) -> None:
        self._path = path
        self._slide = openslide.OpenSlide(path)
        self._slide.set_cache(openslide.OpenSlideCache(_CACHE))
        self.name = path.name
        self.width, self.height = self._slide.dimensions
        self.mpp = _stated_mpp(path, self._slide.properties) or file_mpp

    def read(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `Field.read`."""
        return self.read_level(0, left, top, width, height)

    def read_level(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Reads from a level of the pyramid; all in pixels of that level."""
        factor = self._slide.level_downsamples[level]
        found = np.empty((height, width, 3), np.uint8)
        # OpenSlide's own pixels take four bytes, and several copies of them.
        for first in range(0, height, _BAND):
            rows = min(_BAND, height - first)
            place = (round(left * factor), round((top + first) * factor))
            try:
                region = self._slide.read_region(place, level, (width, rows))
            except openslide.OpenSlideError as error:
                raise FieldError(f"{self._path}: damaged ({_first_line(error)})") from None
            pixels = np.asarray(region)
            if pixels[..., 3].min() < 255:
                # Where nothing was scanned it is transparent, which is the light of the lamp.
                white = Image.new("RGBA", region.size, "white")
                pixels = np.asarray(Image.alpha_composite(white, region))
            cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB, dst=found[first : first + rows])
        return found

    def level(self, reduction: float) -> tuple[int, float]:
        """Returns the level to take for a reduction, and how much smaller than the file it is."""
        level = self._slide.get_best_level_for_downsample(reduction * (1 + _SAME_MPP))
        return level, self._slide.level_downsamples[level]

    def level_size(self, level: int) -> tuple[int, int]:
        """Returns width and height of a level, pixels."""
        return self._slide.level_dimensions[level]

    def overview(self, longest: int) -> np.ndarray:
        """See `Field.overview`; from the level that is best for it."""
        level, _ = self.level(max(1.0, max(self.width, self.height) / longest))
        width, height = self.level_size(level)
        return shrunken(functools.partial(self.read_level, level), width, height, longest)

    def close(self) -> None:
        """See `Field.close`."""
        self._slide.close()


def _stated_mpp(path: Path, properties: Mapping[str, str]) -> float | None:
    try:
        x, y = (float(properties[f"openslide.mpp-{axis}"]) for axis in "xy")
    except (KeyError, ValueError):
        return None
    if not (math.isfinite(x) and x > 0):
        return None
    if abs(y / x - 1) > _SAME_MPP:
        raise FieldError(f"{path}: its pixels are {x:g} x {y:g} micrometres, expected squares")
    return x


class _Rescaled(Field):
    """A field at another pixel size.

    It is made of tiles of a fixed grid, each of which is always computed alike: pixels do not
    depend on the rectangle that is asked for.
    """

    def __init__(self, field: Field, mpp: float) -> None:
        self._field = field
        self.name, self.mpp = field.name, mpp
        self.scale = mpp / field.mpp
        self.width, self.height = int(field.width / self.scale), int(field.height / self.scale)
        if min(self.width, self.height) < 1:
            raise FieldError(f"{field.name}: nothing is left of it at {mpp:g} micrometres a pixel")
        self.notes = (
            f"rescaled: {self.scale:.4g} pixels of the file ({field.mpp:.4g} micrometres) a pixel "
            f"as read ({mpp:g})",
        )
        self._level, self._factor = 0, 1.0
        self._size = field.width, field.height
        if isinstance(field, _Slide):
            self._level, self._factor = field.level(self.scale)
            self._size = field.level_size(self._level)
        self._tile = functools.lru_cache(_TILES)(self._rescaled_tile)

    def read(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """See `Field.read`."""
        found = np.empty((height, width, 3), np.uint8)
        for row in range(top // _TILE, -(-(top + height) // _TILE)):
            for column in range(left // _TILE, -(-(left + width) // _TILE)):
                tile = self._tile(row, column)
                y, x = row * _TILE - top, column * _TILE - left
                part = tile[max(0, -y) : height - y, max(0, -x) : width - x]
                y, x = max(0, y), max(0, x)
                found[y : y + part.shape[0], x : x + part.shape[1]] = part
        return found

    def _rescaled_tile(self, row: int, column: int) -> np.ndarray:
        ratio = self.scale / self._factor
        margin = math.ceil(_MARGIN * max(1.0, ratio))
        starts, sizes, box = [], [], []
        for number, side, whole in ((column, self.width, 0), (row, self.height, 1)):
            first, last = number * _TILE, min((number + 1) * _TILE, side)
            start = max(0, math.floor(first * ratio) - margin)
            end = min(self._size[whole], math.ceil(last * ratio) + margin)
            starts.append((start, end - start))
            sizes.append(last - first)
            box.append((first * ratio - start, min(last * ratio, self._size[whole]) - start))
        (left, width), (top, height) = starts
        if isinstance(self._field, _Slide):
            pixels = self._field.read_level(self._level, left, top, width, height)
        else:
            pixels = self._field.read(left, top, width, height)
        (x0, x1), (y0, y1) = box
        # Pillow chooses the order of the two passes by size, and rounds between them: at the rim,
        # where tiles are smaller, it would be another one.
        tile = Image.fromarray(pixels).resize(
            (sizes[0], height), Image.Resampling.BICUBIC, box=(x0, 0, x1, height)
        )
        tile = tile.resize(tuple(sizes), Image.Resampling.BICUBIC, box=(0, y0, sizes[0], y1))
        return np.asarray(tile)

    def overview(self, longest: int) -> np.ndarray:
        """See `Field.overview`."""
        return self._field.overview(min(longest, max(self.width, self.height)))

    def close(self) -> None:
        """See `Field.close`."""
        self._field.close()
