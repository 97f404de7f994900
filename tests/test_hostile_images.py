"""Every image that costs more than it looks is refused, or made harmless, before it is decoded."""

import io
import re
import struct
import zlib

import hostile_images
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from serving.model import guard, png_streams
from serving.server.errors import ServingError
from tfds_pap import decoding

#: Who refuses it, in which words; None: it is decoded, at a bounded cost.
EXPECTED = {
    "JPEG: 500 scans": "expected at most 16 scans, got more",
    "JPEG: 17 scans": "expected at most 16 scans, got more",
    "JPEG: 16 scans, refined": None,
    "JPEG: arithmetic coding": "expected Huffman coding, got arithmetic coding",
    "PNG: 250,000 rows": None,
    "PNG: 250,000 rows of a bit": "bytes: expected at least 2015 for its work",
    "PNG: interlaced": None,
    "JPEG: restarts": None,
    "JPEG: a restart a block": None,
    "JPEG: empty comments": None,
    "JPEG: profiles": None,
    "JPEG: tables": None,
    "PNG: deep pixels": "its pixels go on behind the last row",
    "PNG: texts": None,
    "PNG: international texts": None,
    "PNG: profiles": None,
    "PNG: 100 texts": "expected at most 32 packed texts, got more",
    "PNG: empty chunks": None,
    "PNG: 65,535 px a side": "65535 x 65535 pixels: expected at most",
    "BMP: 2^31 px a side": "2147483647 x 2147483647 pixels: expected at most",
    "BMP: header alone": "Input size should match",
    "TIFF": "expected the bytes of a JPEG, PNG or BMP image",
    "TIFF: header alone": "expected the bytes of a JPEG, PNG or BMP image",
    "GIF": "expected the bytes of a JPEG, PNG or BMP image",
    "WebP": "expected the bytes of a JPEG, PNG or BMP image",
}


@pytest.fixture(scope="module")
def checked():
    spec = [tf.TensorSpec([], tf.string)]
    return tf.function(guard.checked, input_signature=spec)


def taken(checked, data):
    """The bytes that reach the decoder, and the reason where none do."""
    try:
        png_streams.check(np.array([data], object))
        kept = checked(data).numpy()
        decoding.decode(tf.constant(kept))
    except ServingError as error:
        return None, error.message
    except tf.errors.InvalidArgumentError as error:
        return None, error.message
    return kept, None


def test_the_corpus(checked):
    corpus = list(hostile_images.corpus(np.random.default_rng(0)))
    assert [name for name, _ in corpus] == list(EXPECTED)
    for name, data in corpus:
        kept, why = taken(checked, data)
        assert (why is None) == (EXPECTED[name] is None), (name, why)
        assert EXPECTED[name] is None or EXPECTED[name] in why, (name, why)
        if kept is not None:
            assert kept.count(b"\xff\xda\0") <= guard.MAX_SCANS or not name.startswith("JPEG")
            assert not any(name in kept for name in (b"zTXt", b"iTXt", b"iCCP"))


def test_the_graph_bounds_pixels_that_go_on_by_the_files_bytes(checked):
    # It cannot look into them: this is what a real TensorFlow Serving is left with.
    side = 64
    large = hostile_images.png(side, side, hostile_images.deep(side, side, 150))
    assert len(large) > side * (3 * side + 3) + 128 * 2**10
    with pytest.raises(tf.errors.InvalidArgumentError, match="bytes: expected at most"):
        checked(large)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a JPEG or BMP image"):
        guard.checked(tf.constant(large), formats=["JPEG", "BMP"])


def test_texts_are_cut_and_pixels_stay(checked):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 7, 3), np.uint8)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    texts = [
        hostile_images.chunk(b"zTXt", b"key\0\0" + zlib.compress(b"a text")),
        hostile_images.chunk(b"iTXt", b"key\0\0\0\0\0a text"),
        hostile_images.chunk(b"iCCP", b"key\0\0" + zlib.compress(b"a profile")),
        hostile_images.chunk(b"zTXt"),
    ]
    plain = hostile_images.png(7, 9, rows)
    for count in range(len(texts) + 1):
        extra, behind = b"".join(texts[:count]), b"".join(texts[count:])
        kept = checked(hostile_images.png(7, 9, rows, extra=extra, behind=behind)).numpy()
        assert kept == plain
    np.testing.assert_array_equal(decoding.decode(tf.constant(plain)).numpy(), pixels)


def test_what_is_no_chunk_stays(checked):
    # Four letters within the pixels, whose length leads nowhere.
    for letters in (b"zTXt", b"\0\0\0\1zTXt", b"\xff\xff\xff\xffiTXt"):
        pixels = hostile_images.flat(7, 9) + letters
        data = hostile_images.png(7, 9, pixels)
        assert checked(data).numpy() == data


def test_a_text_that_appears_when_another_is_cut_is_cut(checked):
    plain = hostile_images.png(7, 9, hostile_images.flat(7, 9))
    inner = hostile_images.chunk(b"zTXt", b"a\0\0")
    hidden = hostile_images.chunk(b"zTXt", b"abcdef\0\0")
    for place in (5, 6):
        nested = hidden[:place] + inner + hidden[place:]
        assert nested.count(b"zTXt") == 1 and nested.replace(inner, b"") == hidden
        kept = checked(hostile_images.png(7, 9, hostile_images.flat(7, 9), extra=nested)).numpy()
        assert kept == plain


@pytest.mark.parametrize("count", [guard.MAX_PACKED_TEXTS, guard.MAX_PACKED_TEXTS + 1])
def test_the_number_of_texts_is_exact(checked, count):
    plain = hostile_images.png(7, 9, hostile_images.flat(7, 9))
    texts = hostile_images.chunk(b"iTXt", b"a") * count
    data = hostile_images.png(7, 9, hostile_images.flat(7, 9), behind=texts)
    if count == guard.MAX_PACKED_TEXTS:
        assert checked(data).numpy() == plain
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match="at most 32 packed texts"):
            checked(data)


def bytes_wanted(data):
    """The bytes that the guard wants at least, by its refusal."""
    with pytest.raises(tf.errors.InvalidArgumentError, match="for its work") as refused:
        guard.checked(tf.constant(data))
    return int(re.search(r"expected at least (\d+) for its work", str(refused.value))[1])


def test_large_pictures_need_bytes(checked):
    """A flat one of 16 megapixels is refused, with as much text beside it as it takes it passes."""
    side = hostile_images.LARGE
    rows = hostile_images.flat(side, side)
    plain = hostile_images.png(side, side, rows)
    least = -(-side * (3 * side + 32) // 18)
    assert bytes_wanted(plain) == least
    for missing in (1, 0):
        text = hostile_images.chunk(b"tEXt", bytes(least - len(plain) - 12 - missing))
        data = hostile_images.png(side, side, rows, extra=text)
        if missing:
            assert bytes_wanted(data) == least
        else:
            assert checked(data).numpy() == data
    # As large as a white field, and a little larger.
    for rows, passes in ((2048, True), (2240, False)):
        data = hostile_images.png(2048, rows, hostile_images.flat(2048, rows))
        if passes:
            assert checked(data).numpy() == data
        else:
            assert bytes_wanted(data) > 500_000


@pytest.mark.parametrize(
    ("options", "eighths"),
    [
        ({}, 3),
        ({"progressive": True}, 18),
        ({"mode": "L", "progressive": True}, 14),
        ({"mode": "CMYK"}, 6),
    ],
)
def test_the_work_of_a_jpeg_is_its_blocks_times_its_scans(options, eighths):
    options = dict(options)
    side = 4096
    picture = Image.new(options.pop("mode", "RGB"), (side - 31, side), 255)
    data = io.BytesIO()
    picture.save(data, "JPEG", **options)
    # Cut before its pixels: so few bytes are refused whatever the work.
    scans = data.getvalue()
    head = scans[: scans.find(b"\xff\xda")]
    marks = [scans[start : start + 16] for start in _places(scans, b"\xff\xda")]
    assert bytes_wanted(head + b"".join(marks)) == least_bytes(side, eighths)


def least_bytes(side, eighths):
    """Of a square JPEG whose side is a multiple of 32."""
    work = side * side * eighths // 8
    return -(-work // (384 if work <= 2048 * 1536 * 18 // 8 else 48))


def test_scans_of_cmyk_count_twice(checked):
    side = 2880
    for scans, eighths in ((16, 48), (3, 22)):
        data = hostile_images.slow_jpeg(side, scans - 1, components=4)
        assert bytes_wanted(data) == least_bytes(side, eighths)
    with pytest.raises(tf.errors.InvalidArgumentError, match="fewer scans of so many CMYK pixels"):
        checked(hostile_images.slow_jpeg(side + 32, 15, components=4))


def _places(data, mark):
    place = data.find(mark)
    while place >= 0:
        yield place
        place = data.find(mark, place + 1)


def test_what_seems_to_be_a_frame_makes_nothing_cheaper(checked):
    """Neither a frame in a comment, nor a scan there, nor one of a single component."""
    jpeg = hostile_images.encoded(np.full((96, 64, 3), 255, np.uint8), "JPEG")
    place = jpeg.find(b"\xff\xc0")
    frame = jpeg[place : place + 19]
    arithmetic = jpeg.replace(frame, b"\xff\xc9" + frame[2:])
    hidden = hostile_images.with_segments(arithmetic, hostile_images.segment(0xFE, frame * 2))
    with pytest.raises(tf.errors.InvalidArgumentError, match="got arithmetic coding"):
        checked(hidden)
    many = hostile_images.with_segments(jpeg, hostile_images.segment(0xFE, frame * 4))
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected one frame"):
        checked(many)
    few = hostile_images.with_segments(jpeg, hostile_images.segment(0xFE, frame * 3))
    assert checked(few).numpy() == few
    side = 4096
    components = b"\1\x11\0\2\x11\0\3\x11\0"
    one = hostile_images.segment(0xC0, struct.pack(">BHHB", 8, side, side, 3) + components)
    whole = hostile_images.segment(0xDA, b"\3\1\0\2\0\3\0\0\x3f\0")
    single = hostile_images.segment(0xDA, b"\1\1\0\0\x3f\0")
    for scan, eighths in ((whole, 3), (single, 9), (whole + b"\xff\xda\0", 10)):
        data = b"\xff\xd8" + one + scan
        assert bytes_wanted(data) == least_bytes(side, eighths)


#: A white field as it may be written. Of 2,048 x 1,536; the last of four times as many pixels.
WHITE = [
    *(("JPEG", "RGB", o) for o in ({}, {"optimize": True}, {"quality": 10}, {"subsampling": 0})),
    *(("JPEG", mode, {"progressive": True}) for mode in ("RGB", "L")),
    ("JPEG", "L", {"optimize": True}),
    *(("PNG", mode, {"optimize": True}) for mode in ("RGB", "L", "RGBA")),
]


@pytest.mark.parametrize(("form", "mode", "options"), WHITE)
def test_a_white_field_passes(checked, form, mode, options):
    for width, height in ((2048, 1536), (512, 512), (250, 250)):
        data = io.BytesIO()
        Image.new(mode, (width, height), "white").save(data, form, **options)
        data = data.getvalue()
        assert checked(data).numpy() == data
        assert guard.checked(tf.constant(data), images=100 if width < 1000 else 1) == data


def test_a_larger_white_field_passes_as_most_are_written(checked):
    white = np.full((3000, 4000, 3), 255, np.uint8)
    for options in ({}, {"optimize": True}, {"subsampling": 0}):
        data = hostile_images.encoded(white, "JPEG", **options)
        assert checked(data).numpy() == data


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("depth", "colour", "samples"), [(8, 2, 3), (16, 6, 4), (1, 0, 1)])
def test_honest_streams_pass(depth, colour, samples, interlaced):
    row = b"\0" + bytes((8 * depth * samples + 7) // 8)
    data = hostile_images.png(
        *(8, 8, zlib.compress(row * (15 if interlaced else 8))),
        **{"depth": depth, "colour": colour, "interlaced": interlaced},
    )
    png_streams.check(np.array([data, b"", b"no picture", data[:20], 1.0], object))


def test_a_picture_within_an_example_is_found():
    data = hostile_images.png(8, 8, hostile_images.deep(8, 8, 2))
    for within in (data, b"\x0a\x05image" + data + b"\0"):
        with pytest.raises(ServingError, match="8 x 8 pixels: its pixels go on"):
            png_streams.check(np.array([within], object))
    with pytest.raises(ServingError, match="at most 8 PNG images"):
        png_streams.check(np.array([hostile_images.png(1, 1, b"") * 9], object))
    with pytest.raises(ServingError, match="at most 16,384 chunks"):
        many = hostile_images.chunk(b"teXt") * 16_400
        png_streams.check(np.array([hostile_images.png(1, 1, b"", extra=many)], object))
