"""Reads a person's image files as models and servers take them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tfds_pap import images, redaction, urls
from tfds_pap.errors import PapError

#: Of TIFF and BMP, which are never sent as they are.
_CONVERTED = (b"II*\0", b"MM\0*", b"BM")


def read(path: str | os.PathLike, *, max_bytes: int | None = None) -> bytes:
    """Returns an image file's bytes; TIFF and some BMP become PNG, of the same pixels.

    Args:
        path: The file, or its URL as a `str`.
        max_bytes: Larger files are refused; None takes what a picture can have.

    Raises:
        PapError: With the reason alone, which stands beside the file's name in tables.
    """
    if isinstance(path, str) and urls.is_url(path):
        try:
            if max_bytes is not None:
                _check_size(int(urls.state(path)["bytes"]), max_bytes)
            data = urls.read(path, images.MAX_BYTES if max_bytes is None else max_bytes)
        except urls.UrlError as error:
            raise PapError(str(error).removeprefix(f"{redaction.redacted(path)}: ")) from error
        return decodable(data)
    path = Path(path)
    try:
        if not path.is_file():
            raise PapError("not a file")
        if max_bytes is not None:
            _check_size(path.stat().st_size, max_bytes)
        elif path.stat().st_size > images.MAX_BYTES:
            raise PapError(f"more than the {images.MAX_BYTES:,} bytes that a picture can have")
        data = path.read_bytes()
    except OSError as error:
        raise PapError(error.strerror or str(error)) from error
    return decodable(data)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise PapError(f"{size:,} bytes, expected at most --max_image_bytes={most}")


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


def read_or_reason(path: str | os.PathLike) -> bytes | str:
    """Returns an image file's bytes as `read` does, or the reason why there are none."""
    try:
        return read(path)
    except PapError as error:
        return str(error)
