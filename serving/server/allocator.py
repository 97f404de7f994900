"""Gives memory of the C library back to the system.

glibc keeps what was freed in up to eight arenas a processor, and takes a block of 32 MiB for a
small one after the first was freed. A server lives for months, so it is told otherwise before
TensorFlow is imported. TensorFlow's own allocator stays pooled, as everywhere (`commands`).
"""

import ctypes
import os

_MEBIBYTE = 2**20

#: Numbers of malloc.h, and what they are set to: buffers of pictures are mapped and unmapped.
_TRIM_THRESHOLD = (-1, 8 * _MEBIBYTE)
_MMAP_THRESHOLD = (-3, 4 * _MEBIBYTE)
_ARENAS = (-8, 4)


def prepare() -> None:
    """Sets up the C library's allocator, unless the user's environment does."""
    own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not own:
        for parameter, value in (_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENAS):
            mallopt(parameter, value)


def trim() -> None:
    """Gives back what is free, where the C library can; takes some milliseconds."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
