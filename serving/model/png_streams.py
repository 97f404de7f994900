"""Refuses PNGs whose pixels unpack to more than their header announces.

libpng unpacks what follows the last row, too, only to throw it away: a megabyte of it costs two
seconds. No graph can look into packed bytes, so the server does before it runs one; a real
TensorFlow Serving has nothing of the kind.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from serving.model import guard
from serving.server.errors import invalid

_MAGIC = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">4x4sIIBB")
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

#: Pictures that one string is searched for: an image is one, a tf.Example holds one.
_MOST_PICTURES = 8

#: Chunks of a picture: 16 MiB in the smallest that any encoder writes.
_MOST_CHUNKS = 2**14

#: Bytes that are unpacked at a time.
_AT_ONCE = 2**18


def check(values: np.ndarray) -> None:
    """Looks at every PNG in an array of byte strings, be it the whole string or within it.

    Args:
        values: Object array of bytes; what is no bytes is passed over.

    Raises:
        ServingError: INVALID_ARGUMENT.

    Example:
        >>> check(np.array([b"no picture"], object))
    """
    for value in values.flat:
        if isinstance(value, bytes):
            _check(value)


def _check(data: bytes) -> None:
    start = data.find(_MAGIC)
    for _ in range(_MOST_PICTURES):
        if start < 0:
            return
        _check_picture(memoryview(data)[start + len(_MAGIC) :])
        start = data.find(_MAGIC, start + 1)
    if start >= 0:
        raise invalid(f"Expected at most {_MOST_PICTURES} PNG images in a string, got more")


def _check_picture(chunks: memoryview) -> None:
    if len(chunks) < _HEADER.size:
        return
    name, width, height, depth, colour = _HEADER.unpack_from(chunks)
    if name != b"IHDR":
        return
    row = (width * depth * _SAMPLES.get(colour, 4) + 7) // 8
    # A row's filter is one byte; those of an interlaced picture have up to two rows for each.
    most = height * (row + 3) + _AT_ONCE
    budget = guard.BUDGETS["PNG"]
    if height * row > max(budget.free, budget.a_byte * len(chunks)):
        return  # The guard refuses it, whatever it unpacks to.
    unpacked, stream = 0, zlib.decompressobj()
    for part in _packed(chunks):
        rest: bytes | memoryview = part
        while rest:
            try:
                unpacked += len(stream.decompress(rest, _AT_ONCE))
            except zlib.error:
                return  # libpng stops here as well, with words of its own.
            if unpacked > most:
                raise invalid(
                    f"PNG image of {width} x {height} pixels: its pixels go on behind the last row"
                )
            if stream.eof:
                return
            rest = stream.unconsumed_tail


def _packed(chunks: memoryview) -> Iterator[memoryview]:
    """The contents of the chunks IDAT, in order."""
    place = 0
    for _ in range(_MOST_CHUNKS):
        if place + 8 > len(chunks):
            return
        (length,) = struct.unpack_from(">I", chunks, place)
        if bytes(chunks[place + 4 : place + 8]) == b"IDAT":
            yield chunks[place + 8 : place + 8 + length]
        place += 12 + length
    raise invalid(f"PNG image: expected at most {_MOST_CHUNKS:,} chunks, got more")
