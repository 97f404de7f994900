"""Fields of any size and kind: the right pixels, whatever the rectangle, within bounded memory."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from replication.fields import reader
from replication.fields.field import FieldError
from tfds_pap import decoding, folders, phantom, phantom_slide


@pytest.fixture(scope="module")
def picture():
    return phantom.draw_field(1, slide=1, width=700, height=500, cells=10)[0]


@pytest.fixture(scope="module")
def tiled(picture, tmp_path_factory):
    """A tiled TIFF of 0.25 micrometres a pixel, lossless."""
    path = tmp_path_factory.mktemp("slides") / "tiled.tif"
    tifffile.imwrite(
        path,
        picture,
        tile=(64, 64),
        compression="zlib",
        photometric="rgb",
        resolution=(40_000, 40_000),
        resolutionunit="CENTIMETER",
    )
    return path


@pytest.fixture(scope="module")
def pyramidal(picture, tmp_path_factory):
    """The same with a second level of half the size, whose pixels are told by their blue."""
    path = tmp_path_factory.mktemp("slides") / "pyramid.tif"
    half = cv2.resize(picture, (350, 250), interpolation=cv2.INTER_AREA)
    with tifffile.TiffWriter(path) as writer:
        options = {"tile": (64, 64), "compression": "zlib", "photometric": "rgb"}
        options |= {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
        writer.write(picture, **options)
        writer.write(half, subfiletype=1, **options)
    return path


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "tif"])
def test_ordinary_images_have_the_pixels_of_training(picture, tmp_path, ending):
    path = tmp_path / f"field.{ending}"
    Image.fromarray(picture).save(path)
    field = reader.open_field(path)
    expected = decoding.decode(folders.decodable_bytes(path.read_bytes())).numpy()
    assert (field.width, field.height, field.scale, field.mpp) == (700, 500, 1.0, None)
    np.testing.assert_array_equal(field.read(0, 0, 700, 500), expected)
    np.testing.assert_array_equal(field.read(50, 20, 300, 100), expected[20:120, 50:350])


def test_rotation_flags_are_not_followed_as_in_training(picture, tmp_path):
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert reader.open_field(tmp_path / "turned.jpg").width == 700


def test_tiled_tiff(tiled, picture):
    with reader.open_field(tiled) as field:
        assert (field.width, field.height, field.mpp) == (700, 500, 0.25)
        np.testing.assert_array_equal(field.read(0, 0, 700, 500), picture)
        np.testing.assert_array_equal(field.read(123, 45, 400, 321), picture[45:366, 123:523])


@pytest.mark.parametrize("mpp", [0.5, 0.37, 0.2, 0.8])
def test_rescaled_pixels_do_not_depend_on_the_rectangle(tiled, picture, mpp):
    with reader.open_field(tiled, mpp=mpp) as field:
        assert field.scale == pytest.approx(mpp / 0.25)
        assert (field.width, field.height) == (int(175 / mpp), int(125 / mpp))
        assert field.mpp == mpp
        assert "rescaled" in field.notes[0]
        whole = field.read(0, 0, field.width, field.height)
        rng = np.random.default_rng(0)
        for _ in range(20):
            left, top = rng.integers(0, field.width), rng.integers(0, field.height)
            width = rng.integers(1, field.width - left + 1)
            height = rng.integers(1, field.height - top + 1)
            part = field.read(int(left), int(top), int(width), int(height))
            np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])
        # Pillow at once, in the same order of its two passes.
        box = (0, 0, field.width * field.scale, 500)
        once = Image.fromarray(picture).resize((field.width, 500), Image.Resampling.BICUBIC, box)
        box = (0, 0, field.width, field.height * field.scale)
        once = once.resize((field.width, field.height), Image.Resampling.BICUBIC, box)
        assert np.abs(whole.astype(int) - np.asarray(once)).max() <= 2


def test_the_same_pixel_size_is_not_rescaled(tiled, picture):
    with reader.open_field(tiled, mpp=0.251) as field:
        np.testing.assert_array_equal(field.read(0, 0, 700, 500), picture)


def test_an_unknown_pixel_size_is_said(picture, tmp_path):
    path = tmp_path / "field.png"
    Image.fromarray(picture).save(path, dpi=(300, 300))
    unknown = reader.open_field(path, mpp=0.5)
    assert (unknown.width, unknown.scale) == (700, 1.0)
    assert "pixel size is not known" in unknown.notes[0]
    told = reader.open_field(path, mpp=0.5, file_mpp=0.25)
    assert (told.width, told.scale) == (350, 2.0)


def test_a_level_of_the_pyramid_is_used(pyramidal, picture):
    with reader.open_field(pyramidal, mpp=0.5) as field:
        half = cv2.resize(picture, (350, 250), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(field.read(0, 0, 350, 250), half)
    with reader.open_field(pyramidal) as field:
        assert field.overview(350).shape == (250, 350, 3)


def test_overview(tiled, picture):
    with reader.open_field(tiled) as field:
        small = field.overview(70)
        assert small.shape == (50, 70, 3)
        expected = cv2.resize(picture, (70, 50), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - expected).max() <= 1
        assert field.overview(10_000).shape == picture.shape


def test_pixels_that_are_no_squares_are_refused(picture, tmp_path):
    path = tmp_path / "oblong.tif"
    tifffile.imwrite(
        path,
        picture,
        tile=(64, 64),
        photometric="rgb",
        resolution=(40_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    with pytest.raises(FieldError, match=r"oblong\.tif: its pixels are 0\.25 x 0\.5 micrometres"):
        reader.open_field(path)


def test_a_damaged_tile_is_named(tiled, tmp_path):
    data = bytearray(tiled.read_bytes())
    data[20_000:60_000] = bytes(40_000)
    path = tmp_path / "damaged.tif"
    path.write_bytes(data)
    with pytest.raises(FieldError, match=r"damaged\.tif: "):
        reader.open_field(path).read(0, 0, 700, 500)


@pytest.mark.parametrize("content", [b"", b"no picture", None, b"\xff\xd8\xff\xe0 cut"])
def test_what_is_no_field_is_named(tmp_path, content):
    path = tmp_path / "field.jpg"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(FieldError, match=r"field\.jpg: expected an image"):
        reader.open_field(path)


def test_a_cut_jpeg_and_a_missing_file_are_named(picture, tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(FieldError, match=r"cut\.jpg: cannot be decoded"):
        reader.open_field(path)
    with pytest.raises(FieldError, match=r"none\.jpg: expected an image .*No such file"):
        reader.open_field(tmp_path / "none.jpg")


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "huge.png"
    data = bytearray(cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes())
    data[16:24] = (12_000).to_bytes(4, "big") * 2
    path.write_bytes(data)
    with pytest.raises(FieldError, match=r"huge\.png: .*(12000 x 12000 px|expected an image)"):
        reader.open_field(path)


def test_given_fields(picture, tmp_path):
    Image.fromarray(picture[:10, :10]).save(tmp_path / "b.jpg")
    for name in ("a.svs", "c.mrxs", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "Data0001.jpg").write_bytes(b"x")
    found = [path.rpartition("/")[2] for path in reader.given_fields([str(tmp_path)])]
    assert found == ["a.svs", "b.jpg", "c.mrxs"]
    with pytest.raises(folders.TreeError, match="no such file or folder"):
        reader.given_fields([str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(folders.TreeError, match="holds no field"):
        reader.given_fields([str(tmp_path / "empty")])


_MEMORY = """
import resource, sys
from replication.fields.reader import open_field
with open_field(sys.argv[1]) as field:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for left, top in ((0, 0), (60_000, 40_000), (97_000, 97_000)):
        print(field.read(left, top, 3000, 3000).mean(axis=(0, 1)).round(3).tolist())
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_ten_gigapixels_take_little_memory(tmp_path):
    path = tmp_path / "slide.tif"
    # Each tile of the field has a colour of its own: what is read tells where it was read.
    side = 4 * phantom_slide.TILE
    rows, columns = np.mgrid[:side, :side] // phantom_slide.TILE
    field = np.dstack([60 * rows, 60 * columns, np.full_like(rows, 90)]).astype(np.uint8)
    phantom_slide.write_tiles(path, field, 100_000, 100_000, mpp=0.25)
    assert path.stat().st_size < 10e6
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(path)], capture_output=True, text=True, check=True
    )
    *means, memory = done.stdout.splitlines()
    for (left, top), mean in zip(((0, 0), (60_000, 40_000), (97_000, 97_000)), means, strict=True):
        y, x = (np.arange(start, start + 3000) // 256 % 4 * 60 for start in (top, left))
        np.testing.assert_allclose(json.loads(mean), [y.mean(), x.mean(), 90], atol=1.5)
    assert int(memory) < 300
