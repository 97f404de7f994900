"""One rule for orientations in EXIF and TIFF tags: they are ignored, wherever an image is read."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from replication.fields.read import reader
from tfds_pap import decoding, images

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


def encoded(form, orientation):
    image = Image.fromarray(PIXELS)
    data = io.BytesIO()
    if form == "TIFF":
        image.save(data, form, tiffinfo={274: orientation})
    else:
        exif = Image.Exif()
        exif[274] = orientation
        image.save(data, form, exif=exif, **({"quality": 100} if form == "JPEG" else {}))
    return data.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_pixels_stay_as_stored(form, orientation, tmp_path):
    data = encoded(form, orientation)
    # PIL itself does turn them, or the tag would be none.
    tag = Image.open(io.BytesIO(data)).getexif().get(274)
    assert tag == orientation
    decoded = images.decode(data)
    expected = PIXELS if form != "JPEG" else decoding.decode(tf.constant(encoded("JPEG", 1)))
    np.testing.assert_array_equal(decoded, expected)
    path = tmp_path / f"field.{form.lower()}"
    path.write_bytes(data)
    np.testing.assert_array_equal(reader._decoded(path), expected)
