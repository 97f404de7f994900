"""Image files: their formats, their pixels as training sees them, and one error where none come.

TensorFlow is loaded only where it decodes: a client that sends files does without.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from tfds_pap.errors import PapError

#: What a name may end in (any case), and the format its bytes must then have.
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}

#: PIL modes with 8 bits a channel or less.
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})

#: Tags of a TIFF: bits of each channel, and how it is to be turned.
BITS, _ORIENTATION = 258, 274

#: How an image is turned back that was turned for its orientation.
_TURNED_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

#: Pixels of a picture that is decoded whole: 400 MB of them. A whole slide is read in pieces.
MAX_PIXELS = 2**27

#: Bytes of the file of such a picture, as it would have them without any compression.
MAX_BYTES = 4 * MAX_PIXELS

#: Rows of a TIFF that are converted at a time.
_ROWS = 1024

#: What TensorFlow puts around the reason of a failure.
_FRAME = re.compile(r"\{\{.*?\}\}\s*|\s*\[Op:.*")


# Pillow warns of sizes that are taken here, and of faults that are refused. Once for all threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(PapError):
    """A picture that cannot be read; the message is the reason alone, in one line.

    Whoever opened the file adds its name.
    """


class UnknownFormatError(ImageError):
    """Bytes that begin like no image."""


class RefusedError(ImageError):
    """A sound picture that would be read as another one, or that is too large."""


class TooLargeError(RefusedError):
    """A picture of more than `MAX_PIXELS` pixels."""


@contextlib.contextmanager
def opened(file: Path | IO[bytes], formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """Opens a picture that can be read as it is meant; every place that reads pictures does.

    Args:
        file: Its path, or its bytes as a file.
        formats: Of Pillow that are tried; None tries all.

    Yields:
        The picture, its pixels not loaded.

    Raises:
        RefusedError: It has more than `MAX_PIXELS` pixels or 8 bits a channel, or holds several
            pictures; by its header alone.
        ImageError: It cannot be read, here or within the block.
    """
    with one_error(), Image.open(file, formats=formats) as image:
        _refuse(image)
        yield image


def _refuse(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise TooLargeError(f"{width} x {height} px, expected at most {MAX_PIXELS:,} pixels")
    if _is_deep(image):
        raise RefusedError(f"more than 8 bits a channel (mode {image.mode}); convert it first")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        pages = _pages(image)
        if pages > 1:
            grey = "; save three grey pages as one colour picture" if image.mode == "L" else ""
            raise RefusedError(f"holds {pages} pictures, expected one{grey}")


def _pages(image: TiffImagePlugin.TiffImageFile) -> int:
    """How many pages are as large as the first; smaller ones are reduced copies of it."""
    if image.n_frames < 2:
        return 1
    sizes = []
    for page in range(image.n_frames):
        image.seek(page)
        sizes.append(image.size)
    image.seek(0)
    (width, height), *others = sizes
    return 1 + sum(size[0] >= width or size[1] >= height for size in others)


@contextlib.contextmanager
def one_error() -> Iterator[None]:
    """Turns whatever reading a picture raises into an `ImageError`.

    Pillow raises a dozen types on broken files, TensorFlow others; whichever it is, the file is to
    blame. Errors of this package pass.
    """
    try:
        yield
    except PapError:
        raise
    except Image.UnidentifiedImageError as error:
        # Pillow's own text holds the address of a buffer.
        raise UnknownFormatError("no known image format") from error
    except Image.DecompressionBombError:
        raise TooLargeError(f"expected at most {MAX_PIXELS:,} pixels, got more") from None
    except Exception as error:
        text = str(error)
        reason = _FRAME.sub("", text.splitlines()[0]) if text else type(error).__name__
        raise ImageError(reason) from error


def format_of(image: Image.Image) -> str | None:
    """Returns the format of an opened image, one of those in `FORMATS` or another of Pillow's."""
    # A phone's multi-picture JPEG starts with an ordinary JPEG.
    return "JPEG" if image.format == "MPO" else image.format


def _is_deep(image: Image.Image) -> bool:
    """Whether an opened image has more than 8 bits a channel.

    Pillow opens colours of 16 bits as if they had 8, and keeps the high byte, which is black in the
    12 bits that microscopes write. TensorFlow does so with PNG.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.mode not in _EIGHT_BIT_MODES or max(image.tag_v2.get(BITS, (1,))) > 8
    # "RGB;16B" is how the rows of a PNG are unpacked.
    return isinstance(image, PngImagePlugin.PngImageFile) and any(
        ";16" in str(tile[3]) for tile in image.tile
    )


def decodable_bytes(data: bytes) -> bytes:
    """Returns bytes that TensorFlow decodes to the pixels of `data`.

    The bytes themselves for JPEG, PNG and 24-bit BMP; a lossless PNG for TIFF and for the BMP
    variants that TensorFlow misreads.

    Args:
        data: A whole image file.

    Raises:
        ImageError: If it cannot be read, see `opened`.
    """
    with opened(io.BytesIO(data)) as image:
        if image.format != "TIFF" and not (image.format == "BMP" and data[28] != 24):
            return data
        png = io.BytesIO()
        _as_stored(image).convert("RGB").save(png, "PNG")
    return png.getvalue()


def window(data: bytes, crop: tuple[int, int, int] | None) -> bytes:
    """Cuts a window out of a picture.

    Args:
        data: From `decodable_bytes`.
        crop: Left, top and side in pixels; None takes all of it.

    Returns:
        The bytes themselves without a crop; else a PNG.
    """
    if crop is None:
        return data
    left, top, side = crop
    return encode_png(decode(data)[top : top + side, left : left + side])


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns the PNG of uint8 RGB pixels `[height, width, 3]`."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return png.getvalue()


def decode(data: bytes) -> np.ndarray:
    """Decodes an image file to the pixels that training sees; see `decoding.decode`.

    Args:
        data: A whole image file: JPEG, PNG, BMP or TIFF.

    Returns:
        uint8 RGB `[height, width, 3]`.

    Raises:
        ImageError: If it cannot be read.
    """
    from tfds_pap import decoding

    with one_error():
        return np.asarray(decoding.decode(decodable_bytes(data)))


def tiff_pixels(image: Image.Image) -> np.ndarray:
    """Returns the pixels of `decode`, whose way through a PNG takes seventy times as long.

    Strip by strip, as Pillow's own pixels take four bytes, and several copies of them.

    Args:
        image: A TIFF, opened and not loaded yet.

    Returns:
        uint8 RGB `[height, width, 3]`.
    """
    image = _as_stored(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _ROWS):
        strip = pixels[top : top + _ROWS]
        strip[:] = np.asarray(image.crop((0, top, image.width, top + len(strip))).convert("RGB"))
    return pixels


def _as_stored(image: Image.Image) -> Image.Image:
    """A TIFF's pixels as the file stores them; Pillow turns them by the orientation tag."""
    orientation = 1
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        orientation = image.tag_v2.get(_ORIENTATION, 1)
    image.load()
    return image.transpose(_TURNED_BACK[orientation]) if orientation in _TURNED_BACK else image
