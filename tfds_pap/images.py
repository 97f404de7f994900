"""Image files: their formats, their pixels as training sees them, and one error where none come.

TensorFlow is loaded only where it decodes: a client that sends files does without.
"""

import contextlib
import io
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image, TiffImagePlugin

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

#: Rows of a TIFF that are converted at a time.
_ROWS = 1024

#: What TensorFlow puts around the reason of a failure.
_FRAME = re.compile(r"\{\{.*?\}\}\s*|\s*\[Op:.*")


class ImageError(PapError):
    """A picture that cannot be read; the message is the reason alone, in one line.

    Whoever opened the file adds its name.
    """


class UnknownFormatError(ImageError):
    """Bytes that begin like no image."""


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
    except Exception as error:
        text = str(error)
        reason = _FRAME.sub("", text.splitlines()[0]) if text else type(error).__name__
        raise ImageError(reason) from error


def format_of(image: Image.Image) -> str | None:
    """Returns the format of an opened image, one of those in `FORMATS` or another of Pillow's."""
    # A phone's multi-picture JPEG starts with an ordinary JPEG.
    return "JPEG" if image.format == "MPO" else image.format


def is_deep_tiff(image: Image.Image) -> bool:
    """Whether an opened image is a TIFF of more than 8 bits a channel.

    Pillow opens colours of 16 bits as if they had 8, and keeps the high byte, which is black in the
    12 bits that microscopes write.
    """
    return isinstance(image, TiffImagePlugin.TiffImageFile) and (
        image.mode not in _EIGHT_BIT_MODES or max(image.tag_v2.get(BITS, (1,))) > 8
    )


def decodable_bytes(data: bytes) -> bytes:
    """Returns bytes that TensorFlow decodes to the pixels of `data`.

    The bytes themselves for JPEG, PNG and 24-bit BMP; a lossless PNG for TIFF and for the BMP
    variants that TensorFlow misreads.

    Args:
        data: A whole image file.

    Raises:
        ImageError: If it cannot be read.
    """
    with one_error(), Image.open(io.BytesIO(data)) as image:
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
    png = io.BytesIO()
    pixels = decode(data)[top : top + side, left : left + side]
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
