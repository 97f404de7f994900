"""Every image that costs more than it looks is refused, or made harmless, before it is decoded."""

import zlib

import hostile_images
import numpy as np
import pytest
import tensorflow as tf

from serving.model import guard, png_streams
from serving.server.errors import ServingError
from tfds_pap import decoding

#: Who refuses it, in which words; None: it is decoded, at a bounded cost.
EXPECTED = {
    "JPEG: 500 scans": "expected at most 32 scans, got more",
    "JPEG: 31 scans": None,
    "JPEG: restarts": None,
    "JPEG: a restart a block": None,
    "JPEG: empty comments": None,
    "JPEG: profiles": None,
    "JPEG: tables": None,
    "PNG: deep pixels": "its pixels go on behind the last row",
    "PNG: texts": None,
    "PNG: international texts": None,
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
            assert kept.count(b"\xff\xda") <= guard.MAX_SCANS or not name.startswith("JPEG")
            assert b"zTXt" not in kept and b"iTXt" not in kept


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
        hostile_images.chunk(b"zTXt"),
    ]
    plain = hostile_images.png(7, 9, rows)
    for count in range(4):
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


def test_large_pictures_need_bytes(checked):
    """A flat one of 16 megapixels is refused, with as much text beside it as it takes it passes."""
    side = hostile_images.LARGE
    rows = hostile_images.flat(side, side)
    data = hostile_images.png(side, side, rows)
    missing = side * side // guard.PIXELS_A_BYTE - len(data)
    assert missing > 100_000
    for padding, passes in ((missing - 13, False), (missing - 12, True)):
        text = hostile_images.chunk(b"tEXt", bytes(padding))
        data = hostile_images.png(side, side, rows, extra=text)
        if passes:
            assert checked(data).numpy() == data
        else:
            with pytest.raises(tf.errors.InvalidArgumentError, match="64 pixels for each byte"):
                checked(data)
    free = hostile_images.FREE
    flat = hostile_images.png(free, free, hostile_images.flat(free, free))
    assert len(flat) < 20_000
    assert checked(flat).numpy() == flat


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 10}])
def test_a_white_field_passes(checked, options):
    white = np.full((1536, 2048, 3), 255, np.uint8)
    for form in ("JPEG", "PNG"):
        data = hostile_images.encoded(white, form, **(options if form == "JPEG" else {}))
        assert checked(data).numpy() == data
    # Of 12 megapixels at 0.127 bits each, as libjpeg writes it.
    data = hostile_images.encoded(np.full((3000, 4000, 3), 255, np.uint8), "JPEG")
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
