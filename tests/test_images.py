"""One decoder of image files, and one error of those that cannot be read."""

import io

import numpy as np
import pytest
from PIL import Image

from tfds_pap import images
from tfds_pap.errors import PapError


@pytest.mark.parametrize(
    ("mode", "form", "same"),
    [
        ("RGB", "JPEG", True),
        ("CMYK", "JPEG", True),
        ("RGB", "BMP", True),
        ("L", "BMP", False),
        ("P", "BMP", False),
        ("RGB", "TIFF", False),
        ("L", "TIFF", False),
    ],
)
def test_decodable_bytes(mode, form, same):
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, form)
    data = images.decodable_bytes(file.getvalue())
    assert (data == file.getvalue()) == same
    with Image.open(file) as original, Image.open(io.BytesIO(data)) as copy:
        np.testing.assert_array_equal(copy.convert("RGB"), original.convert("RGB"))
    np.testing.assert_array_equal(images.decode(file.getvalue()), decoded_by_pillow(data))


def decoded_by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def cut(form):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(
        file, form
    )
    return file.getvalue()[: len(file.getvalue()) * 2 // 3]


@pytest.mark.parametrize("data", [b"", b"no picture", *map(cut, ("JPEG", "PNG", "BMP", "TIFF"))])
def test_what_cannot_be_read_is_one_line_of_one_type(data):
    with pytest.raises(images.ImageError) as caught:
        images.decode(data)
    (line,) = str(caught.value).splitlines()
    # Neither the address of a buffer nor the frame that TensorFlow puts around its reason.
    assert line and not any(part in line for part in ("0x", "{{", "[Op:"))


def test_errors_of_this_package_pass_and_silent_ones_are_named():
    with pytest.raises(PapError, match=r"^too large$") as caught, images.one_error():
        raise PapError("too large")
    assert not isinstance(caught.value, images.ImageError)
    with pytest.raises(images.ImageError, match=r"^KeyError$"), images.one_error():
        raise KeyError
