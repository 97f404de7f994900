"""Refuses hostile image bytes inside the served graph, before a pixel is decoded.

A picture of a few kilobytes can announce 65,000 x 65,000 pixels, repeat its scan a thousand times,
or hold texts that unpack to gigabytes. What decoding costs is bounded here by what the file's bytes
say: announced pixels, scans of a JPEG, bytes against pixels, packed texts of a PNG. GIF is refused
as a whole: its pictures are many, and no training image is one.

No operation of TensorFlow unpacks a part of a PNG: what goes on behind its last row is bounded
here by the file's bytes alone, and may unpack to a thousand times as many. `png_streams` finds it
outside of the graph; `--noaccept_png` of serving.export leaves PNG out.
"""

from collections.abc import Callable, Collection

import tensorflow as tf

#: What is accepted, and the bytes that each begins with.
MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "BMP": b"BM"}

#: Pixels an image may announce: 4,096 x 4,096, five times a field of 2,048 x 1,536.
MAX_PIXELS = 2**24

#: Scans of a JPEG. Each costs a pass over all pixels; libjpeg writes 10, optimisers fewer than 20.
MAX_SCANS = 32

#: Texts and profiles of a PNG that are packed; they are cut out, one after another.
MAX_PACKED_TEXTS = 32

#: Bytes of a file for each of its pixels, and beyond that: profiles, thumbnails, comments. A pixel
#: of a BMP has four bytes, one of a JPEG of the best quality three.
_BYTES_A_PIXEL, _BYTES_BESIDE = 8, 2 * 2**20

#: The same of a PNG, beyond the rows that it packs; a thousand times as much may come out of them.
_PNG_BYTES_BESIDE = 128 * 2**10

_PNG_HEADER = 29
_BMP_HEADER = 26
#: Samples a pixel by the colour type of a PNG; 0 where there is no such type.
_PNG_SAMPLES = (1, 0, 3, 1, 2, 0, 4)
_SCAN_MARKER = b"\xff\xda"


def checked(
    data: tf.Tensor, max_pixels: int = MAX_PIXELS, formats: Collection[str] = tuple(MAGIC)
) -> tf.Tensor:
    """Returns the bytes of one image that is safe to decode.

    Args:
        data: Scalar string, the file's bytes.
        max_pixels: Height times width that the header may announce.
        formats: Those of `MAGIC` that are accepted.

    Returns:
        The same bytes; of a PNG without its packed texts.

    Raises:
        tf.errors.InvalidArgumentError: If the bytes are none of the formats, end within the header,
            announce no or too many pixels, or hold more than those pixels need.

    Example:
        >>> white = tf.io.encode_png(tf.fill([4, 6, 3], tf.constant(255, tf.uint8)))
        >>> bool(checked(white, max_pixels=24) == white)
        True
    """
    checks = {"JPEG": _jpeg, "PNG": _png, "BMP": _bmp}

    def of(name: str) -> Callable[[], tf.Tensor]:
        return lambda: checks[name](data, max_pixels)

    accepted = [name for name in MAGIC if name in formats]
    return tf.case(
        [
            (tf.equal(tf.strings.substr(data, 0, len(MAGIC[name])), MAGIC[name]), of(name))
            for name in accepted
        ],
        default=lambda: _refuse(data, accepted),
    )


def _refuse(data: tf.Tensor, accepted: list[str]) -> tf.Tensor:
    *others, last = accepted
    names = f"{', '.join(others)} or {last}" if others else last
    length = tf.as_string(tf.strings.length(data))
    expected = f"expected the bytes of a {names} image, got "
    return _with(
        [(tf.constant(False), lambda: tf.strings.join([expected, length, " other bytes"]))], data
    )


def _jpeg(data: tf.Tensor, max_pixels: int) -> tf.Tensor:
    shape = tf.io.extract_jpeg_shape(data)
    height, width = shape[0], shape[1]
    data = _bounded("JPEG", data, height, width, max_pixels)
    # Wherever libjpeg sees the marker its two bytes stand together; they seldom do elsewhere.
    scans = tf.size(_places(data, _SCAN_MARKER, MAX_SCANS))
    return _with(
        [
            (
                scans <= MAX_SCANS,
                lambda: tf.constant(f"JPEG image: expected at most {MAX_SCANS} scans, got more"),
            )
        ],
        data,
    )


def _bmp(data: tf.Tensor, max_pixels: int) -> tf.Tensor:
    header = _header(data, _BMP_HEADER, "BMP")
    width, height = tf.unstack(
        tf.reduce_sum(
            tf.reshape(header[18:26], [2, 4]) * tf.constant([1, 2**8, 2**16, 2**24]), axis=1
        )
    )
    # A negative height says that the rows go from the top down.
    return _bounded("BMP", data, tf.abs(height), width, max_pixels)


def _png(data: tf.Tensor, max_pixels: int) -> tf.Tensor:
    header = _header(data, _PNG_HEADER, "PNG")
    width, height = tf.unstack(
        tf.reduce_sum(
            tf.reshape(header[16:24], [2, 4]) * tf.constant([2**24, 2**16, 2**8, 1]), axis=1
        )
    )
    samples = tf.gather(tf.constant(_PNG_SAMPLES), tf.minimum(header[25], len(_PNG_SAMPLES) - 1))
    row = (tf.cast(width, tf.int64) * tf.cast(samples * header[24], tf.int64) + 7) // 8
    # A row's filter is one byte; those of an interlaced picture have up to two rows for each.
    packed = tf.cast(height, tf.int64) * (row + 3)
    data = _without_packed_texts(data)
    return _bounded("PNG", data, height, width, max_pixels, packed + _PNG_BYTES_BESIDE)


def _without_packed_texts(data: tf.Tensor) -> tf.Tensor:
    """The same PNG without zTXt and iTXt, of which each may unpack to eight megabytes."""
    found = _names_of_texts(data)
    names = _with(
        [
            (
                tf.size(found) <= MAX_PACKED_TEXTS,
                lambda: tf.constant(
                    f"PNG image: expected at most {MAX_PACKED_TEXTS} packed texts, got more"
                ),
            )
        ],
        found,
    )
    return tf.cond(tf.size(names) > 0, lambda: _cut(data, names), lambda: tf.identity(data))


def _cut(data: tf.Tensor, names: tf.Tensor) -> tf.Tensor:
    """The PNG without the chunks whose names stand at these places."""

    def cut_last(data: tf.Tensor, names: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # From behind, so that the places before it stay where they are.
        name = names[-1]
        size = tf.cast(tf.strings.length(data), tf.int64)
        rest = tf.strings.substr(data, tf.minimum(_end(data, name), size), size)
        kept = tf.strings.substr(data, 0, name - 4) + rest
        return tf.where(_is_chunk(data, name), kept, data), names[:-1]

    cut, _ = tf.while_loop(
        lambda _, names: tf.size(names) > 0,
        cut_last,
        (data, names),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
    )
    left = _names_of_texts(cut)
    # What is cut out may join what lies before and behind it to another text.
    is_left = tf.map_fn(
        lambda name: _is_chunk(cut, name), left, fn_output_signature=tf.bool, parallel_iterations=1
    )
    none = tf.logical_not(tf.reduce_any(is_left))
    return _with([(none, lambda: tf.constant("PNG image: expected no text within a text"))], cut)


def _names_of_texts(data: tf.Tensor) -> tf.Tensor:
    """Where zTXt or iTXt is written, in order; int32 `[n]`."""
    places = [_places(data, name, MAX_PACKED_TEXTS) for name in (b"zTXt", b"iTXt")]
    return tf.sort(tf.concat(places, axis=0))


def _places(data: tf.Tensor, word: bytes, most: int) -> tf.Tensor:
    """Where a word is written, the first `most` places and one more; int32 `[n]`."""
    parts = tf.raw_ops.StringSplitV2(input=data[None], sep=word, maxsplit=most + 1).values
    return tf.cumsum(tf.strings.length(parts[:-1]) + len(word)) - len(word)


def _end(data: tf.Tensor, name: tf.Tensor) -> tf.Tensor:
    """Where a chunk and its checksum end, int64; may lie behind the data."""
    digits = tf.io.decode_raw(tf.strings.substr(data, name - 4, 4), tf.uint8)
    length = tf.reduce_sum(tf.cast(digits, tf.int64) * [2**24, 2**16, 2**8, 1])
    return tf.cast(name, tf.int64) + 8 + length


def _is_chunk(data: tf.Tensor, name: tf.Tensor) -> tf.Tensor:
    """Whether another chunk follows, or nothing: within pixels the four letters stand by chance."""
    end, size = _end(data, name), tf.cast(tf.strings.length(data), tf.int64)
    following = tf.strings.substr(data, tf.minimum(end + 4, size), 4)
    return (end <= size) & tf.strings.regex_full_match(following, "([A-Za-z]{4})?")


def _bounded(
    kind: str,
    data: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    max_pixels: int,
    most_bytes: tf.Tensor | None = None,
) -> tf.Tensor:
    """The bytes, if pixels and bytes are as many as they may be."""
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    length = tf.cast(tf.strings.length(data), tf.int64)
    if most_bytes is None:
        most_bytes = _BYTES_A_PIXEL * pixels + _BYTES_BESIDE

    def of(rest: str) -> tf.Tensor:
        size = (tf.as_string(width), " x ", tf.as_string(height))
        return tf.strings.join([f"{kind} image of ", *size, f" pixels{rest}"])

    return _with(
        [
            (
                tf.logical_and(height > 0, width > 0),
                lambda: tf.constant(f"{kind} image: its header announces no pixels"),
            ),
            (
                pixels <= max_pixels,
                lambda: of(f": expected at most {max_pixels:,} pixels"),
            ),
            (
                length <= most_bytes,
                lambda: tf.strings.join(
                    [
                        *(of(" in "), tf.as_string(length), " bytes: expected at most "),
                        tf.as_string(most_bytes),
                    ]
                ),
            ),
        ],
        data,
    )


def _header(data: tf.Tensor, length: int, kind: str) -> tf.Tensor:
    head = _with(
        [
            (
                tf.strings.length(data) >= length,
                lambda: tf.constant(f"{kind} image: it ends within its header"),
            )
        ],
        tf.strings.substr(data, 0, length),
    )
    return tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int32)


def _with(
    conditions: list[tuple[tf.Tensor, Callable[[], tf.Tensor]]], value: tf.Tensor
) -> tf.Tensor:
    """The value, behind conditions of which the first that does not hold is said."""
    for condition, message in conditions:
        # The text is made only where it is needed.
        asserted = tf.cond(
            condition,
            tf.no_op,
            lambda message=message: tf.debugging.Assert(False, [message()]),
        )
        with tf.control_dependencies([asserted]):
            value = tf.identity(value)
    return value
