"""Fields of any size and kind: the right pixels, whatever the rectangle, within bounded memory."""

import json
import re
import struct
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import cv2
import numpy as np
import pytest
import slides
import tifffile
from PIL import Image

from replication.fields.read import reader, whole_slide
from replication.fields.read.field import FieldError
from tfds_pap import drawn_slide, folders, images, phantom


@pytest.fixture(scope="module")
def picture():
    return phantom.draw_field(1, slide=1, width=700, height=500, cells=10)[0]


@pytest.fixture(scope="module")
def half(picture):
    return cv2.resize(picture, (350, 250), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def tiled(picture, tmp_path_factory):
    """A tiled TIFF of 0.25 micrometres a pixel, lossless."""
    path = tmp_path_factory.mktemp("slides") / "tiled.tif"
    slides.write_tiled(path, picture, mpp=0.25)
    return path


@pytest.fixture(scope="module")
def aperio(picture, half, tmp_path_factory):
    """As scanners of Aperio write it, with a second level of half the size."""
    path = tmp_path_factory.mktemp("slides") / "pyramid.svs"
    description = "Aperio Image Library v11.2.1\n700x500 (64x64) |AppMag = 40|MPP = 0.25"
    slides.write_tiled(path, picture, half, description=description)
    return path


def rectangles(field, count):
    """Left, top, width and height, anywhere in a field."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        left, top = rng.integers(0, (field.width, field.height)).tolist()
        yield left, top, *rng.integers(1, (field.width - left + 1, field.height - top + 1)).tolist()


def of_training(path):
    return images.decode(path.read_bytes())


_KINDS = {
    "jpg": ("RGB", "L", "CMYK"),
    "png": ("RGB", "L", "P", "RGBA"),
    "bmp": ("RGB", "L", "P"),
    "tif": ("RGB", "L", "P", "RGBA", "CMYK"),
}


@pytest.mark.parametrize(
    ("ending", "mode"), [(ending, mode) for ending, modes in _KINDS.items() for mode in modes]
)
def test_ordinary_images_have_the_pixels_of_training(picture, tmp_path, ending, mode):
    path = tmp_path / f"field.{ending}"
    Image.fromarray(picture).convert(mode).save(path)
    field = reader.open_field(path)
    expected = of_training(path)
    assert (field.width, field.height, field.scale, field.mpp) == (700, 500, 1.0, None)
    np.testing.assert_array_equal(field.read(0, 0, 700, 500), expected)
    np.testing.assert_array_equal(field.read(50, 20, 300, 100), expected[20:120, 50:350])


def test_tall_tiffs_are_whole(tmp_path):
    path = tmp_path / "tall.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (2500, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(reader.open_field(path).read(0, 0, 30, 2500), pixels)


def test_rotation_flags_are_not_followed_as_in_training(picture, tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(path, exif=exif)
    pixels = reader.open_field(path).read(0, 0, 700, 500)
    np.testing.assert_array_equal(pixels, of_training(path))
    data = np.frombuffer(path.read_bytes(), np.uint8)
    stored = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    np.testing.assert_array_equal(pixels, stored[..., ::-1])


def test_real_fields_have_the_pixels_of_training(shared_data):
    path = min((shared_data / "lbc_fields_full").rglob("*.jpg"))
    field = reader.open_field(path)
    expected = of_training(path)
    assert expected.shape == (1536, 2048, 3)
    np.testing.assert_array_equal(field.read(0, 0, 2048, 1536), expected)


def test_tiled_tiff(tiled, picture):
    with reader.open_field(tiled) as field:
        assert (field.width, field.height, field.mpp, field.notes) == (700, 500, 0.25, ())
        for left, top, width, height in [(0, 0, 700, 500), *rectangles(field, 20)]:
            expected = picture[top : top + height, left : left + width]
            np.testing.assert_array_equal(field.read(left, top, width, height), expected)


def test_wide_strips_are_whole(tmp_path):
    path = tmp_path / "strip.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (1100, 5000, 3), np.uint8)
    slides.write_tiled(path, pixels, tile=(128, 128))
    with reader.open_field(path) as field:
        np.testing.assert_array_equal(field.read(0, 0, 5000, 1100), pixels)


def test_the_first_of_several_pages_is_read(picture, half, tmp_path):
    path = tmp_path / "pages.tif"
    first, second = Image.fromarray(picture), Image.fromarray(half)
    first.save(path, save_all=True, append_images=[second])
    np.testing.assert_array_equal(reader.open_field(path).read(0, 0, 700, 500), picture)


@pytest.mark.parametrize("mpp", [0.5, 0.37, 0.2, 0.8])
def test_rescaled_pixels_do_not_depend_on_the_rectangle(tiled, picture, mpp):
    with reader.open_field(tiled, mpp=mpp) as field:
        assert field.scale == pytest.approx(mpp / 0.25)
        assert (field.width, field.height) == (int(175 / mpp), int(125 / mpp))
        assert field.mpp == mpp
        assert "rescaled" in field.notes[0]
        whole = field.read(0, 0, field.width, field.height)
        for left, top, width, height in rectangles(field, 20):
            part = field.read(left, top, width, height)
            np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])
        # Pillow at once, in the same order of its two passes.
        box = (0, 0, field.width * field.scale, 500)
        once = Image.fromarray(picture).resize((field.width, 500), Image.Resampling.BICUBIC, box)
        box = (0, 0, field.width, field.height * field.scale)
        once = once.resize((field.width, field.height), Image.Resampling.BICUBIC, box)
        assert np.abs(whole.astype(int) - np.asarray(once)).max() <= 2


def test_ordinary_images_are_rescaled_alike(tiled, picture, tmp_path):
    path = tmp_path / "field.png"
    Image.fromarray(picture).save(path)
    with (
        reader.open_field(tiled, mpp=0.37) as slide,
        reader.open_field(path, mpp=0.37, file_mpp=0.25) as image,
    ):
        np.testing.assert_array_equal(image.read(7, 9, 400, 300), slide.read(7, 9, 400, 300))


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


def test_the_dots_an_inch_of_editors_are_not_believed(picture, tmp_path):
    path = tmp_path / "edited.tif"
    slides.write_tiled(path, picture, resolution=(72, 72), resolutionunit="INCH")
    with reader.open_field(path, mpp=0.25) as field:
        assert (field.width, field.mpp) == (700, None)
        assert "states 353 micrometres" in field.notes[0]
        assert "pixel size is not known" in field.notes[1]
    with reader.open_field(path, mpp=0.5, file_mpp=0.25) as field:
        assert field.width == 350
        assert [note[:8] for note in field.notes] == ["it state", "rescaled"]


def test_a_level_of_the_pyramid_is_used(aperio, picture, half):
    with reader.open_field(aperio, mpp=0.5) as field:
        np.testing.assert_array_equal(field.read(0, 0, 350, 250), half)
    with reader.open_field(aperio) as field:
        assert field.mpp == 0.25
        np.testing.assert_array_equal(field.read(0, 0, 700, 500), picture)
        np.testing.assert_array_equal(field.overview(350), half)


@pytest.mark.parametrize("size", [(2001, 1403), (4003, 503)])
def test_levels_that_were_cut_to_whole_pixels_lie_where_they_should(tmp_path, size):
    def level(width, height):
        y, x = np.mgrid[:height, :width] + 0.5
        return waves(x * size[0] / width, y * size[1] / height).round().astype(np.uint8)

    def waves(x, y):
        return 128 + 100 * np.sin(np.stack([x / 9, y / 11, (x + y) / 13], axis=-1))

    slides.write_tiled(
        tmp_path / "cut.tif", level(*size), level(size[0] // 4, size[1] // 4), mpp=0.25
    )
    with reader.open_field(tmp_path / "cut.tif", mpp=1.1) as field:
        pixels = field.read(0, 0, field.width, field.height)
        y, x = (np.mgrid[: field.height, : field.width] + 0.5) * field.scale
        assert np.abs(pixels - waves(x, y))[3:-3, 3:-3].max() < 4


def test_overview(tiled, picture):
    with reader.open_field(tiled) as field:
        small = field.overview(70)
        assert small.shape == (50, 70, 3)
        expected = cv2.resize(picture, (70, 50), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - expected).max() <= 1
        assert field.overview(10_000).shape == picture.shape


def test_many_threads_read_the_same(tiled):
    with reader.open_field(tiled, mpp=0.37) as field, futures.ThreadPoolExecutor(8) as pool:
        places = list(rectangles(field, 40))
        found = list(pool.map(lambda place: field.read(*place), places))
        whole = field.read(0, 0, field.width, field.height)
    for (left, top, width, height), part in zip(places, found, strict=True):
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def test_what_was_not_scanned_is_white(tmp_path):
    path = tmp_path / "sparse.tif"
    grey = np.full((slides.TILE, slides.TILE, 3), 90, np.uint8)
    slides.write_repeated(path, [grey], np.array([[0, -1], [-1, 0]]), "deflate")
    with reader.open_field(path) as field:
        expected = np.kron([[90, 255], [255, 90]], np.ones((slides.TILE, slides.TILE)))
        pixels = field.read(0, 0, 2 * slides.TILE, 2 * slides.TILE)
        np.testing.assert_array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))


def test_pixels_that_are_no_squares_are_refused(picture, tmp_path):
    path = tmp_path / "oblong.tif"
    slides.write_tiled(path, picture, mpp=(0.25, 0.5))
    with pytest.raises(FieldError, match=r"oblong\.tif: its pixels are 0\.25 x 0\.5 micrometres"):
        reader.open_field(path)


@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
def test_a_damaged_tile_is_named_and_the_others_are_read(tmp_path, compression):
    path = tmp_path / "damaged.tif"
    grey = np.full((slides.TILE, slides.TILE, 3), 90, np.uint8)
    slides.write_repeated(path, [grey, b"rubbish"], np.array([[0, 1]]), compression)

    def read(number):
        if number % 3:
            return field.read(number, number, 100, 100)
        with pytest.raises(FieldError, match=rf"^{re.escape(str(path))}: damaged \(.+\)$"):
            field.read(200, 0, 100, 100)
        return None

    with reader.open_field(path) as field, futures.ThreadPoolExecutor(4) as pool:
        for pixels in pool.map(read, range(60)):
            assert pixels is None or (pixels == 90).all()


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize("shape", [(500, 700), (500, 700, 3)])
def test_twelve_bits_are_refused_as_in_training(tmp_path, shape, tile):
    path = tmp_path / "deep.tif"
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(path, np.full(shape, 4095, np.uint16), tile=tile, photometric=photometric)
    with pytest.raises(FieldError, match=r"deep\.tif: more than 8 bits a channel"):
        reader.open_field(path)


@pytest.mark.parametrize("content", [b"", b"no picture", None, b"II*\0 cut", b"GIF89a"])
@pytest.mark.parametrize("name", ["field.jpg", "slide.svs"])
def test_what_is_no_field_is_named(tmp_path, name, content):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(FieldError, match=rf"^{re.escape(str(path))}: expected an image") as caught:
        reader.open_field(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("kept", [10, 5000])
def test_a_cut_image_is_named(picture, tmp_path, ending, kept):
    path = tmp_path / f"cut.{ending}"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FieldError, match=rf"cut\.{ending}: (cannot be decoded|expected)") as caught:
        reader.open_field(path)
    assert "function_node" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FieldError, match=r"none\.jpg: expected an image .*No such file"):
        reader.open_field(tmp_path / "none.jpg")


@pytest.mark.parametrize(
    ("form", "before", "size"),
    [
        # Height and width after the length and precision of the frame; after BITMAPINFOHEADER's.
        ("JPEG", b"\xff\xc0\x00\x11\x08", struct.pack(">HH", 12_000, 12_000)),
        ("BMP", b"\x28\0\0\0", struct.pack("<ii", 12_000, 12_000)),
    ],
)
def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path, form, before, size):
    path = tmp_path / "huge"
    Image.new("RGB", (1, 1)).save(path, form)
    data = bytearray(path.read_bytes())
    start = data.index(before) + len(before)
    data[start : start + len(size)] = size
    path.write_bytes(data)
    with pytest.raises(FieldError, match=r"huge: 12000 x 12000 px, .*convert it to a tiled TIFF"):
        reader.open_field(path)


def test_a_small_file_of_many_pixels_is_refused(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (12_000, 12_000)).save(path)
    assert path.stat().st_size < 50_000
    with pytest.raises(FieldError, match=r"huge\.png: 12000 x 12000 px, expected at most"):
        reader.open_field(path)


def test_ordinary_images_need_no_openslide(picture, half, tmp_path, monkeypatch):
    # As where the library is missing: its import fails.
    monkeypatch.setitem(sys.modules, "replication.fields.read.whole_slide", None)
    monkeypatch.delattr("replication.fields.read.whole_slide")
    for ending in ("jpg", "tif"):
        Image.fromarray(picture).save(tmp_path / f"field.{ending}")
        assert reader.open_field(tmp_path / f"field.{ending}").width == 700
    slides.write_tiled(tmp_path / "slide.svs", half)
    with pytest.raises(FieldError, match=r"slide\.svs: needs OpenSlide, which does not load"):
        reader.open_field(tmp_path / "slide.svs")


def test_names_of_any_kind(tiled, tmp_path):
    for name in ("ü 图 <i>#%.tif", b"\xff.tif".decode(errors="surrogateescape")):
        path = tmp_path / name
        path.write_bytes(tiled.read_bytes())
        with reader.open_field(path) as field:
            assert (field.name, field.width) == (name, 700)


def test_expand_fields(picture, tmp_path):
    Image.fromarray(picture[:10, :10]).save(tmp_path / "b.jpg")
    for name in (
        "a.svs",
        "c.MRXS",
        "d/e.ndpi",
        "d/._e.ndpi",
        ".f.svs",
        "__MACOSX/g.svs",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "Data0001.jpg").write_bytes(b"x")
    (tmp_path / "folder.svs").mkdir()
    found = reader.expand_fields([str(tmp_path), str(tmp_path / "notes.txt")])
    names = [str(Path(path).relative_to(tmp_path)) for path in found]
    assert names == ["a.svs", "b.jpg", "c.MRXS", "d/e.ndpi", "notes.txt"]
    with pytest.raises(folders.TreeError, match="no such file or folder"):
        reader.expand_fields([str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(folders.TreeError, match="holds no field"):
        reader.expand_fields([str(tmp_path / "empty")])


_MEMORY = """
import json, sys
from pathlib import Path
from replication.fields.read.rescaled import Rescaled
from replication.fields.read.whole_slide import open_slide
found = []
for path in sys.argv[1:]:
    with open_slide(Path(path), 0.25) as field:
        for left, top in ((0, 0), (60_000, 40_000), (97_000, 97_000)):
            found.append(field.read(left, top, 3000, 3000)[::50, ::50].tolist())
with Rescaled(open_slide(Path(sys.argv[1]), 0.25), 0.5) as field:
    field.read(40_000, 30_000, 3000, 3000)
# Of this program alone: what getrusage tells starts with the peak of the program that started it.
peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
size = field.width, field.height
print(json.dumps({"size": size, "pixels": found, "peak": int(peak) // 1024}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak of memory")
def test_ten_gigapixels_take_little_memory(tmp_path):
    # Sixteen colours, arranged so that those around a place tell where it is.
    row, column = np.mgrid[:391, :391]
    pick = (5 * row + 3 * column + row * column) % 16
    colours = np.random.default_rng(0).integers(0, 256, (16, 3), np.uint8)
    tiles = [np.broadcast_to(colour, (slides.TILE, slides.TILE, 3)) for colour in colours]
    paths = [tmp_path / f"{compression}.tif" for compression in ("deflate", "jpeg")]
    for path in paths:
        slides.write_repeated(path, tiles, pick, path.stem)
        assert path.stat().st_size < 5e6
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["size"] == [50_048, 50_048]
    places = [(0, 0), (60_000, 40_000), (97_000, 97_000)] * 2
    for (left, top), pixels in zip(places, told["pixels"], strict=True):
        rows, columns = ((start + np.arange(0, 3000, 50)) // slides.TILE for start in (top, left))
        expected = colours[pick[np.ix_(rows, columns)]].astype(int)
        assert np.abs(np.array(pixels) - expected).max() <= 3  # JPEG's rounding of colours.
    assert told["peak"] < 350


def test_drawn_slides_are_read(tmp_path):
    path = tmp_path / "slide.tif"
    # Each tile of the field has a colour of its own: what is read tells where it was read.
    side = 4 * drawn_slide.TILE
    rows, columns = np.mgrid[:side, :side] // drawn_slide.TILE
    drawn = np.dstack([60 * rows, 60 * columns, np.full_like(rows, 90)]).astype(np.uint8)
    drawn_slide.write_tiles(path, drawn, 100_000, 90_000, mpp=0.25)
    assert path.stat().st_size < 10e6
    with whole_slide.open_slide(path) as field:
        assert (field.width, field.height, field.mpp) == (100_000, 90_000, 0.25)
        pixels = field.read(97_000, 60_000, 2000, 1000)
    expected = drawn[np.ix_(np.arange(60_000, 61_000) % side, np.arange(97_000, 99_000) % side)]
    assert np.abs(pixels.astype(int) - expected).max() <= 3
