"""Refuses hostile image bytes inside the served graph, before a pixel is decoded.

A picture of a few kilobytes can announce 65,000 x 65,000 pixels, repeat its scan a thousand times,
or hold texts that unpack to gigabytes. What decoding costs is bounded here by what the file's bytes
say: announced pixels, scans of a JPEG, rows of a PNG, packed texts, and bytes against all of these.
GIF is refused as a whole: its pictures are many, and no training image is one. Arithmetic coding
is, too: it packs any number of blocks into no bytes at all.

An honest file is a photograph of a smear, or an empty white field as scanners write it, of at most
2,048 x 1,536 pixels. No accepted file costs ten times the dearest honest one of its format that has
at most as many bytes; results/hostile_images.csv holds the figures.

No operation of TensorFlow unpacks a part of a PNG: what goes on behind its last row is bounded
here by the file's bytes alone, and may unpack to a thousand times as many. `png_streams` finds it
outside of the graph; `--noaccept_png` of serving.export leaves PNG out.
"""

import functools
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import tensorflow as tf

#: What is accepted, and the bytes that each begins with.
MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "BMP": b"BM"}

#: Pixels an image may announce: 4,096 x 4,096, five times a field of 2,048 x 1,536.
MAX_PIXELS = 2**24

#: Scans of a JPEG. Each costs a pass over all pixels; libjpeg writes 10, and 14 of RGB.
MAX_SCANS = 16


class Budget(NamedTuple):
    """The work that a file of so many bytes may ask for, in units of some 5 ns of a core.

    Attributes:
        a_byte: Units for each byte. Photographs of smears need a sixth of it.
        free: Units, for all images of a request together, up to which `free_a_byte` holds: those of
            a white field of 2,048 x 1,536. Each of many has that of a white ROI of 512 x 512.
        free_a_byte: Units for each byte of such an image; a white one needs nearly as many.
    """

    a_byte: int
    free: int
    free_a_byte: int


#: A white JPEG of 2,048 x 1,536 has 19 kB and 10 scans where it is progressive; a white PNG has
#: four samples a pixel or one, which counts as three; deflate packs a thousand of them into a byte.
BUDGETS = {"JPEG": Budget(48, 27 * 2**18, 384), "PNG": Budget(18, 13 * 2**20, 2**12)}

#: Images of a request that share `Budget.free`; of more each has as much as one of these.
_SHARES = 12

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
_PNG_SAMPLES = np.array([1, 0, 3, 1, 2, 0, 4])
#: Chunks of a PNG that hold packed texts and profiles, of which the decoder uses none.
_PACKED = (b"zTXt", b"iTXt", b"iCCP")
#: A scan's marker, and the first byte of its length, which is 14 at most.
_SCAN = b"\xff\xda\0"
_PROGRESSIVE, _ARITHMETIC = b"\xff\xc2", (b"\xff\xc9", b"\xff\xca")
#: A frame may seem to begin where it does not; more often than this none does.
_MOST_FRAMES = 4
#: Blocks of the largest sampling: pixels that are decoded though the picture ends before them.
_MOST_BLOCK = 32
_BYTES = [bytes([value]) for value in range(256)]


class _Bounds(NamedTuple):
    """Pixels that an image may announce at most, and how many share what is free."""

    max_pixels: int
    sharing: tf.Tensor


def checked(
    data: tf.Tensor,
    max_pixels: int = MAX_PIXELS,
    formats: Collection[str] = tuple(MAGIC),
    images: tf.Tensor | int = 1,
) -> tf.Tensor:
    """Returns the bytes of one image that is safe to decode.

    Args:
        data: Scalar string, the file's bytes.
        max_pixels: Height times width that the header may announce.
        formats: Those of `MAGIC` that are accepted.
        images: How many the request holds; a scalar of int32.

    Returns:
        The same bytes; of a PNG without its packed texts.

    Raises:
        tf.errors.InvalidArgumentError: If the bytes are none of the formats, end within the header,
            announce no or too many pixels or more than 8 bits a channel, ask for more work than so
            few bytes may, or hold more bytes than those pixels need.

    Example:
        >>> white = tf.io.encode_png(tf.fill([4, 6, 3], tf.constant(255, tf.uint8)))
        >>> bool(checked(white, max_pixels=24) == white)
        True
    """
    accepted = [name for name in MAGIC if name in formats]
    magics = [MAGIC[name] for name in accepted]
    begins = [tf.equal(tf.strings.substr(data, 0, len(magic)), magic) for magic in magics]
    checks = {"JPEG": _jpeg, "PNG": _png, "BMP": _bmp}
    bounds = _Bounds(max_pixels, tf.cast(tf.clip_by_value(images, 1, _SHARES), tf.int64))
    branches = [functools.partial(checks[name], data, bounds) for name in accepted]
    # The first of them that is true, or none.
    format_number = tf.argmax(tf.stack([*begins, tf.constant(True)]), output_type=tf.int32)
    return tf.switch_case(format_number, [*branches, functools.partial(_refuse, data, accepted)])


def _refuse(data: tf.Tensor, accepted: list[str]) -> tf.Tensor:
    *others, last = accepted
    names = f"{', '.join(others)} or {last}" if others else last
    length = tf.as_string(tf.strings.length(data))
    expected = f"expected the bytes of a {names} image, got "
    refused = tf.debugging.Assert(False, [tf.strings.join([expected, length, " other bytes"])])
    with tf.control_dependencies([refused]):
        return tf.identity(data)


def _jpeg(data: tf.Tensor, bounds: _Bounds) -> tf.Tensor:
    shape = tf.io.extract_jpeg_shape(data)
    height, width, components = tf.unstack(tf.cast(shape, tf.int64), num=3)
    # Wherever libjpeg sees them these bytes stand together; they seldom do elsewhere.
    parts = _split(data, _SCAN, MAX_SCANS + 1)
    scans = tf.size(parts, tf.int64) - 1
    frame = [0, 8 + 3 * components, 8, height // 256, height % 256, width // 256, width % 256]
    frame = tf.strings.reduce_join(tf.gather(_BYTES, tf.stack([*frame, components]) % 256))
    before = _split(data, frame, _MOST_FRAMES + 1)
    lengths = tf.strings.length(before)
    kinds = tf.strings.substr(b"\0\0" + before, lengths, tf.fill(tf.shape(lengths), 2))[:-1]
    arithmetic = tf.reduce_any([kinds == kind for kind in _ARITHMETIC])
    # Coefficients are kept until all scans are read, unless the only one holds all components.
    whole = tf.strings.reduce_join(
        tf.gather(_BYTES, tf.stack([6 + 2 * components, components]) % 256)
    )
    one_pass = (scans == 1) & tf.reduce_all(kinds != _PROGRESSIVE)
    one_pass &= tf.strings.substr(parts[-1], 0, 2) == whole
    # As CMYK four components are multiplied for each pixel.
    eighths = tf.where(one_pass, tf.constant(3, tf.int64), 8 + scans)
    eighths *= 1 + tf.cast(components > 3, tf.int64)
    blocks = [_MOST_BLOCK * -(-side // _MOST_BLOCK) for side in (height, width)]
    work = blocks[0] * blocks[1] * eighths // 8
    affordable = height * width * eighths <= bounds.max_pixels * (8 + MAX_SCANS)
    conditions = [
        (scans <= MAX_SCANS, f"expected at most {MAX_SCANS} scans, got more"),
        (tf.size(before) <= _MOST_FRAMES + 1, "expected one frame, got more"),
        (tf.logical_not(arithmetic), "expected Huffman coding, got arithmetic coding"),
        ((components <= 3) | affordable, "expected fewer scans of so many CMYK pixels"),
    ]
    return _bounded("JPEG", data, height, width, work, bounds, conditions)


def _split(data: tf.Tensor, separator: tf.Tensor | bytes, at_most: int) -> tf.Tensor:
    """The parts between the first so many separators."""
    return tf.raw_ops.StringSplitV2(input=data[None], sep=separator, maxsplit=at_most).values


def _bmp(data: tf.Tensor, bounds: _Bounds) -> tf.Tensor:
    header, whole = _header(data, _BMP_HEADER)
    width, height = tf.unstack(tf.io.decode_raw(tf.strings.substr(header, 18, 8), tf.int32), num=2)
    # A negative height says that the rows go from the top down.
    # The decoder refuses one whose rows are not all there.
    return _bounded("BMP", data, tf.abs(height), width, tf.constant(0, tf.int64), bounds, [whole])


def _png(data: tf.Tensor, bounds: _Bounds) -> tf.Tensor:
    header, whole = _header(data, _PNG_HEADER)
    size = tf.io.decode_raw(tf.strings.substr(header, 16, 8), tf.int32, little_endian=False)
    width, height = tf.unstack(size, num=2)
    kind = tf.cast(tf.io.decode_raw(tf.strings.substr(header, 24, 5), tf.uint8), tf.int64)
    depth, colour, _, _, interlaced = tf.unstack(kind, num=5)
    samples = tf.gather(_PNG_SAMPLES, tf.minimum(colour, len(_PNG_SAMPLES) - 1))
    row = (tf.cast(width, tf.int64) * samples * depth + 7) // 8
    # A row's filter is one byte; those of an interlaced picture have up to two rows for each.
    packed = tf.cast(height, tf.int64) * (row + 3)
    # A row costs as much as 32 bytes beside its own; a pixel is written as three, interlaced twice.
    pixels = 3 * tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    work = tf.maximum(tf.cast(height, tf.int64) * (row + 32), pixels)
    work *= 1 + tf.cast(interlaced > 0, tf.int64)
    data, none_left = _without_packed_texts(data)
    texts = (none_left, f"expected at most {MAX_PACKED_TEXTS} packed texts, got more")
    # Of 16 the decoder keeps the high byte, black in the 12 bits that microscopes write.
    shallow = (depth <= 8, "more than 8 bits a channel; convert it first")
    return _bounded(
        *("PNG", data, height, width, work, bounds, [whole, texts, shallow]),
        packed + _PNG_BYTES_BESIDE,
    )


def _without_packed_texts(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The same PNG without packed texts and profiles; each may unpack to eight megabytes.

    Returns:
        The bytes, and whether all texts could be cut out in `MAX_PACKED_TEXTS` steps.
    """

    def cut_next(
        data: tf.Tensor, place: tf.Tensor, _: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        size = tf.strings.length(data)
        rest = tf.strings.substr(data, place, size)
        before = [tf.strings.length(_split(rest, name, 1)[0]) for name in _PACKED]
        name = place + tf.reduce_min(before)
        digits = tf.io.decode_raw(tf.strings.substr(data, name - 4, 4), tf.uint8)
        length = tf.reduce_sum(tf.cast(digits, tf.int64) * [2**24, 2**16, 2**8, 1])
        # Where the chunk and its checksum end.
        end = tf.cast(name, tf.int64) + 8 + length
        following = tf.strings.substr(data, tf.minimum(end + 4, tf.cast(size, tf.int64)), 4)
        # Within pixels the letters stand by chance; behind a chunk another follows, or nothing.
        is_chunk = (end <= tf.cast(size, tf.int64)) & tf.strings.regex_full_match(
            following, "([A-Za-z]{4})?"
        )
        behind = tf.strings.substr(data, tf.minimum(end, tf.cast(size, tf.int64)), tf.int64.max)
        cut = tf.strings.substr(data, 0, name - 4) + behind
        # What is cut out may join what lies before and behind it to another text.
        place = name + tf.where(is_chunk, -7, 4)
        return tf.where(is_chunk, cut, data), tf.minimum(place, size), name < size

    # The last step finds none.
    data, _, more = tf.while_loop(
        lambda data, place, more: more,
        cut_next,
        (data, tf.constant(len(MAGIC["PNG"])), tf.constant(True)),
        maximum_iterations=MAX_PACKED_TEXTS + 1,
    )
    return data, tf.logical_not(more)


def _bounded(
    kind: str,
    data: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    work: tf.Tensor,
    bounds: _Bounds,
    conditions: list[tuple[tf.Tensor, str]],
    most_bytes: tf.Tensor | None = None,
) -> tf.Tensor:
    """The bytes, if the conditions hold, and pixels, work and bytes are as many as they may be."""
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    length = tf.cast(tf.strings.length(data), tf.int64)
    if most_bytes is None:
        most_bytes = _BYTES_A_PIXEL * pixels + _BYTES_BESIDE
    least_bytes = tf.constant(0, tf.int64)
    if kind in BUDGETS:
        a_byte, free, free_a_byte = tf.unstack(tf.constant(BUDGETS[kind], tf.int64))
        least_bytes = -(-work // tf.where(work <= free // bounds.sharing, free_a_byte, a_byte))
    holds = [
        *(condition for condition, _ in conditions),
        (height > 0) & (width > 0),
        pixels <= bounds.max_pixels,
        length >= least_bytes,
        length <= most_bytes,
    ]

    def refuse() -> tf.Operation:
        """Says the first condition that does not hold."""
        size = f"{kind} image of ", tf.as_string(width), " x ", tf.as_string(height), " pixels"
        bytes_ = " in ", tf.as_string(length), " bytes: expected at "
        texts = [
            *(f"{kind} image: {text}" for _, text in conditions),
            f"{kind} image: its header announces no pixels",
            tf.strings.join([*size, f": expected at most {bounds.max_pixels:,} pixels"]),
            tf.strings.join([*size, *bytes_, "least ", tf.as_string(least_bytes), " for its work"]),
            tf.strings.join([*size, *bytes_, "most ", tf.as_string(most_bytes)]),
        ]
        first = tf.argmin(tf.cast(tf.stack(holds), tf.int32))
        return tf.debugging.Assert(False, [tf.stack(texts)[first]])

    # The text is made only where it is needed.
    with tf.control_dependencies([tf.cond(tf.reduce_all(tf.stack(holds)), tf.no_op, refuse)]):
        return tf.identity(data)


def _header(data: tf.Tensor, length: int) -> tuple[tf.Tensor, tuple[tf.Tensor, str]]:
    """The first bytes, zeros where there are none, and the condition that there are all."""
    head = tf.strings.substr(data, 0, length)
    padded = tf.strings.substr(head + b"\0" * length, 0, length)
    return padded, (tf.strings.length(head) >= length, "it ends within its header")
