"""Hostile image bytes are refused by their header; honest ones reach the decoder unchanged."""

import functools
import io
import resource
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.model import guard
from tfds_pap import decoding

refused = tf.errors.InvalidArgumentError


@functools.cache
def graph(max_pixels):
    return tf.function(
        lambda data: guard.checked(data, max_pixels),
        input_signature=[tf.TensorSpec([], tf.string)],
    )


def check(data, max_pixels=guard.MAX_PIXELS):
    return graph(max_pixels)(data).numpy()


def picture(width=7, height=5, seed=0):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    )


def encode(image, form, **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


FILES = {
    "JPEG": encode(picture(), "JPEG"),
    "progressive JPEG": encode(picture(), "JPEG", progressive=True),
    "grey JPEG": encode(picture().convert("L"), "JPEG"),
    "CMYK JPEG": encode(picture().convert("CMYK"), "JPEG"),
    "PNG": encode(picture(), "PNG"),
    "palette PNG": encode(picture().convert("P"), "PNG"),
    "BMP": encode(picture(), "BMP"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_limit_is_exact_and_the_bytes_stay(name):
    data = FILES[name]
    assert check(data, 35) == data
    with pytest.raises(refused, match="of 7 x 5 pixels: expected at most"):
        check(data, 34)


def with_size(name, width, height):
    data = bytearray(FILES[name])
    if name == "PNG":
        data[16:24] = struct.pack(">II", width, height)
    elif name == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    else:
        start = data.find(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "BMP"])
def test_a_bomb_is_refused_before_its_pixels_are_allocated(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(refused, match="60000 x 60000 pixels: expected at most"):
        check(with_size(name, 60_000, 60_000))
    # The picture would have 10.8 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_rows_from_the_top_down():
    assert check(with_size("BMP", 7, -5), 35) == with_size("BMP", 7, -5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected the bytes of a JPEG, PNG or BMP image, got 0 other bytes"),
        (b"<html>", "got 6 other bytes"),
        (encode(picture(), "WEBP"), "expected the bytes of a JPEG, PNG or BMP image"),
        (b"\xff\xd8\xff", "Invalid JPEG data"),
        (FILES["PNG"][:23], "PNG image: it ends within its header"),
        (b"BM", "BMP image: it ends within its header"),
        (encode(picture(), "GIF"), "expected the bytes of a JPEG, PNG or BMP image"),
        (with_size("PNG", 0, 5), "its header announces no pixels"),
        (with_size("PNG", 2**31 + 7, 5), "its header announces no pixels"),
        (with_size("BMP", -7, 5), "its header announces no pixels"),
        (with_size("BMP", 7, -(2**31)), "its header announces no pixels"),
        (with_size("PNG", 2**31 - 1, 2**31 - 1), "2147483647 x 2147483647"),
    ],
)
def test_what_is_no_picture(data, message):
    with pytest.raises(refused, match=message):
        check(data)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=20),
)
def test_changed_bytes_are_refused_or_small(name, changes):
    data = bytearray(FILES[name])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        image = decoding.decode(tf.constant(check(bytes(data), 10_000)))
    except refused:
        return
    assert image.shape[0] * image.shape[1] <= 10_000
