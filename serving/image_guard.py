"""Refuses hostile image bytes inside the served graph, before a pixel is allocated.

A picture of a few kilobytes can announce 65,000 x 65,000 pixels, a GIF thousands of them: the
announced size is read from the header and compared with a limit, and of a GIF only the bytes of its
first picture reach the decoder.
"""

from collections.abc import Callable

import tensorflow as tf

#: What is accepted, and the bytes that each begins with.
MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "BMP": b"BM", "GIF": b"GIF8"}

#: Pixels an image may announce: 4,096 x 4,096, five times a field of 2,048 x 1,536.
MAX_PIXELS = 2**24

_PNG_HEADER = 24
_BMP_HEADER = 26
_GIF_HEADER = 13
_GIF_EXTENSION, _GIF_PICTURE = 0x21, 0x2C


def checked(data: tf.Tensor, max_pixels: int = MAX_PIXELS) -> tf.Tensor:
    """Returns the bytes of one image that is safe to decode.

    Args:
        data: Scalar string, the file's bytes.
        max_pixels: Height times width that the header may announce.

    Returns:
        The same bytes; of a GIF those of its first picture alone.

    Raises:
        tf.errors.InvalidArgumentError: If the bytes are none of `MAGIC`, end within the header, or
            announce no or too many pixels.

    Example:
        >>> white = tf.io.encode_png(tf.fill([4, 6, 3], tf.constant(255, tf.uint8)))
        >>> bool(checked(white, max_pixels=24) == white)
        True
    """
    sizes = {"JPEG": _jpeg_size, "PNG": _png_size, "BMP": _bmp_size, "GIF": _gif_size}

    def of(kind: str) -> Callable[[], tuple[tf.Tensor, ...]]:
        return lambda: (*sizes[kind](data), tf.constant(kind))

    height, width, end, kind = tf.case(
        [
            (tf.equal(tf.strings.substr(data, 0, len(magic)), magic), of(name))
            for name, magic in MAGIC.items()
        ],
        default=lambda: _refuse(data),
    )
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    asserted = [
        tf.debugging.Assert(
            tf.logical_and(height > 0, width > 0),
            [tf.strings.join([kind, " image: its header announces no pixels"])],
        ),
        tf.debugging.Assert(
            pixels <= max_pixels,
            [
                tf.strings.join(
                    [
                        *(kind, " image of ", tf.as_string(width), " x ", tf.as_string(height)),
                        f" pixels: expected at most {max_pixels:,} pixels",
                    ]
                )
            ],
        ),
    ]
    with tf.control_dependencies(asserted):
        return tf.cond(
            tf.equal(kind, "GIF"),
            lambda: tf.strings.substr(data, 0, end) + b"\x3b",
            lambda: tf.identity(data),
        )


def _refuse(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    length = tf.as_string(tf.strings.length(data))
    expected = "expected the bytes of a JPEG, PNG, BMP or GIF image, got "
    refused = tf.debugging.Assert(False, [tf.strings.join([expected, length, " other bytes"])])
    with tf.control_dependencies([refused]):
        return tf.constant(0), tf.constant(0), tf.constant(0), tf.constant("")


def _jpeg_size(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    shape = tf.io.extract_jpeg_shape(data)
    return shape[0], shape[1], tf.constant(0)


def _png_size(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    header = _header(data, _PNG_HEADER, "PNG")
    size = tf.reduce_sum(
        tf.reshape(header[16:24], [2, 4]) * tf.constant([2**24, 2**16, 2**8, 1]), axis=1
    )
    return size[1], size[0], tf.constant(0)


def _bmp_size(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    header = _header(data, _BMP_HEADER, "BMP")
    size = tf.reduce_sum(
        tf.reshape(header[18:26], [2, 4]) * tf.constant([1, 2**8, 2**16, 2**24]), axis=1
    )
    # A negative height says that the rows go from the top down.
    return tf.abs(size[1]), size[0], tf.constant(0)


def _gif_size(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Larger of the canvas and the first picture, and where the latter ends."""
    length = tf.strings.length(data)
    # Zeros end every chain of blocks, so that a cut file cannot lead beyond its end for ever.
    values = tf.cast(tf.io.decode_raw(data + b"\0" * 512, tf.uint8), tf.int32)

    def at(position: tf.Tensor) -> tf.Tensor:
        return values[tf.minimum(position, length)]

    def word(position: tf.Tensor) -> tf.Tensor:
        return at(position) + 256 * at(position + 1)

    def colour_table(flags: tf.Tensor) -> tf.Tensor:
        has_table = tf.bitwise.bitwise_and(flags, 0x80) > 0
        entries = tf.bitwise.left_shift(2, tf.bitwise.bitwise_and(flags, 7))
        return tf.where(has_table, 3 * entries, 0)

    def after_blocks(position: tf.Tensor) -> tf.Tensor:
        (last,) = tf.while_loop(lambda p: at(p) > 0, lambda p: (p + at(p) + 1,), (position,))
        return last + 1

    first = _GIF_HEADER + colour_table(at(tf.constant(10)))
    (picture,) = tf.while_loop(
        lambda p: tf.equal(at(p), _GIF_EXTENSION), lambda p: (after_blocks(p + 2),), (first,)
    )
    end = after_blocks(picture + 10 + colour_table(at(picture + 9)) + 1)
    whole = tf.debugging.Assert(
        tf.logical_and(tf.equal(at(picture), _GIF_PICTURE), end <= length),
        ["GIF image: it ends before its first picture does"],
    )
    with tf.control_dependencies([whole]):
        height = tf.maximum(word(tf.constant(8)), word(picture + 7))
        width = tf.maximum(word(tf.constant(6)), word(picture + 5))
    return height, width, end


def _header(data: tf.Tensor, length: int, kind: str) -> tf.Tensor:
    whole = tf.debugging.Assert(
        tf.strings.length(data) >= length, [f"{kind} image: it ends within its header"]
    )
    with tf.control_dependencies([whole]):
        return tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, length), tf.uint8), tf.int32)
