"""Every kind of picture is the same everywhere: read right, or refused by name.

Places: a tree of images, `predict` and the client, a field to scan, and the served graph, which the
server's page asks as well.
"""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image

from replication.fields.read import reader
from replication.fields.read.field import FieldError
from replication.naming import reading
from serving.model import guard
from tfds_pap import decoding, folders
from tfds_pap.errors import PapError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
GREY = PIXELS[..., 0]
DEEP = GREY.astype(np.uint16) * 16
CLASSES = {"NILM": "NILM", "HSIL": "HSIL"}


def saved(form, pixels=PIXELS, mode="RGB", **options):
    data = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(data, form, **options)
    return data.getvalue()


def tiff(pixels, **options):
    data = io.BytesIO()
    tifffile.imwrite(data, pixels, **options)
    return data.getvalue()


def deep_png(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def turned(form):
    exif = Image.Exif()
    exif[274] = 6
    return saved(form, exif=exif)


def announced(width, height):
    """A PNG whose header announces more pixels than it holds."""
    data = bytearray(saved("PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def halved(data):
    return data[: len(data) // 2]


#: Ending, bytes, and the pixels that they mean.
READ = {
    "colour TIFF": ("tif", saved("TIFF"), PIXELS),
    "palette TIFF": ("tif", saved("TIFF", GREY, "P"), GREY[..., None].repeat(3, 2)),
    "CMYK TIFF": ("tif", saved("TIFF", mode="CMYK"), PIXELS),
    "turned TIFF": ("tif", saved("TIFF", tiffinfo={274: 6}), PIXELS),
    "TIFF with a smaller copy": ("tif", None, PIXELS),
    "palette PNG": ("png", saved("PNG", GREY, "P"), GREY[..., None].repeat(3, 2)),
    "turned PNG": ("png", turned("PNG"), PIXELS),
    "PNG with alpha": ("png", saved("PNG", mode="RGBA"), PIXELS),
    "CMYK JPEG": ("jpg", saved("JPEG", mode="CMYK"), None),
    "turned JPEG": ("jpg", turned("JPEG"), None),
    "palette BMP": ("bmp", saved("BMP", GREY, "P"), GREY[..., None].repeat(3, 2)),
}
small = io.BytesIO()
Image.fromarray(PIXELS).save(
    small, "TIFF", save_all=True, append_images=[Image.fromarray(PIXELS[::2, ::2])]
)
READ["TIFF with a smaller copy"] = ("tif", small.getvalue(), PIXELS)

#: Ending, bytes, and a part of what every place says.
REFUSED = {
    "12 of 16 bits, PNG": ("png", deep_png(DEEP), "more than 8 bits a channel"),
    "12 of 16 bits, TIFF": ("tif", tiff(DEEP), "more than 8 bits a channel"),
    "deep colours, TIFF": (
        "tif",
        tiff(PIXELS.astype(np.uint16), photometric="rgb"),
        "more than 8 bits a channel",
    ),
    "float TIFF": ("tif", tiff(GREY.astype(np.float32)), "more than 8 bits a channel"),
    "three grey pages": (
        "tif",
        tiff(PIXELS.transpose(2, 0, 1), photometric="minisblack"),
        "holds 3 pictures, expected one; save three grey pages as one colour picture",
    ),
    "150 megapixels": ("png", announced(15_000, 10_000), "pixels"),
    "400 megapixels": ("png", announced(20_000, 20_000), "pixels"),
    **{
        f"damaged {form}": (ending, halved(saved(form)), "")
        for form, ending in (("TIFF", "tif"), ("PNG", "png"), ("JPEG", "jpg"), ("BMP", "bmp"))
    },
}


def tree(path):
    """What a tree says of the file; "" where nothing."""
    try:
        folders.read_tree(path.parents[1], CLASSES, splits=())
    except folders.TreeError as error:
        _, line = str(error).splitlines()
        return line.strip()
    return ""


def graph(data):
    """What the served graph decodes; TIFF is none of its formats and says so."""
    return decoding.decode(guard.checked(tf.constant(data))).numpy()


@pytest.fixture
def place(tmp_path):
    def place(ending, data):
        for name in CLASSES:
            (tmp_path / "lab" / name).mkdir(parents=True)
        (tmp_path / "lab" / "HSIL" / "sound.png").write_bytes(saved("PNG", 255 - PIXELS))
        path = tmp_path / "lab" / "NILM" / f"kind.{ending}"
        path.write_bytes(data)
        return path

    return place


@pytest.mark.parametrize("kind", READ)
def test_a_kind_is_read_right_everywhere(kind, place):
    ending, data, meant = READ[kind]
    path = place(ending, data)
    assert tree(path) == ""
    named = decoding.decode(reading.read(path)).numpy()
    if meant is None:
        # As Pillow decodes JPEG, not turned.
        meant = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(named, meant)
    with reader.open_field(path) as field:
        np.testing.assert_array_equal(field.read(0, 0, 32, 24), meant)
    if ending == "tif":
        with pytest.raises(tf.errors.InvalidArgumentError, match="expected the bytes of a JPEG"):
            graph(data)
    elif kind == "palette BMP":
        with pytest.raises(tf.errors.InvalidArgumentError, match="24 or 32 bits"):
            graph(data)
    else:
        np.testing.assert_array_equal(graph(data), meant)
    # What a client sends is what the graph takes.
    np.testing.assert_array_equal(graph(reading.read(path)), meant)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_is_refused_by_name_everywhere(kind, place):
    ending, data, why = REFUSED[kind]
    path = place(ending, data)
    assert tree(path).startswith("NILM/kind.") and why in tree(path)
    with pytest.raises(FieldError) as caught:
        reader.open_field(path)
    assert why in str(caught.value) and "kind." in str(caught.value)
    # Headers tell of all but damage, which decoding finds.
    with pytest.raises(PapError) as caught, reading.reasoned():
        decoding.decode(reading.read(path))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        graph(data)
    if ending == "png":
        assert why in caught.value.message
