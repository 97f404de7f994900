"""Reads a person's image files as models and servers take them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tfds_pap import images
from tfds_pap.errors import PapError

#: Of TIFF and BMP, which are never sent as they are.
_CONVERTED = (b"II*\0", b"MM\0*", b"BM")


def read(path: Path, *, max_bytes: int | None = None) -> bytes:
    """Returns an image file's bytes; TIFF and some BMP become PNG, of the same pixels.

    Args:
        path: The file.
        max_bytes: Larger files are refused; None takes any.

    Raises:
        PapError: With the reason alone, which stands beside the file's name in tables.
    """
    try:
        if not path.is_file():
            raise PapError("not a file")
        size = path.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise PapError(f"{size:,} bytes, expected at most --max_image_bytes={max_bytes}")
        data = path.read_bytes()
    except OSError as error:
        raise PapError(error.strerror or str(error)) from error
    return decodable(data)


def decodable(data: bytes) -> bytes:
    """Returns bytes of the same pixels that models and servers decode.

    What begins like no image is left to whoever decodes it.

    Raises:
        PapError: With the reason alone.
    """
    with reasoned():
        try:
            return images.decodable_bytes(data)
        except images.UnknownFormatError:
            if data.startswith(_CONVERTED):
                raise
            return data


@contextlib.contextmanager
def reasoned() -> Iterator[None]:
    """Turns whatever decoding raises into the reason why an image has no answer.

    Raises:
        PapError: With the reason alone.
    """
    try:
        with images.one_error():
            yield
    except images.ImageError as error:
        raise PapError(f"not a readable image ({error})") from error


def read_or_reason(path: Path) -> bytes | str:
    """Returns an image file's bytes as `read` does, or the reason why there are none."""
    try:
        return read(path)
    except PapError as error:
        return str(error)
