"""Which ROIs are read: all with stain, none of clean glass, whatever the lamp."""

from concurrent import futures

import cv2
import numpy as np
import pytest
from slides import write_tiled

from replication.fields import scan_directory
from replication.fields.find import scanner, tissue
from replication.fields.find.lattice import Lattice
from replication.fields.read.field import ArrayField
from replication.fields.read.reader import open_field
from tfds_pap import drawn_slide, phantom
from tfds_pap.errors import PapError


def drawn(slide, cells, litter, seed=0, side=1024):
    return phantom.draw_field(
        seed, slide=slide, width=side, height=side, cells=cells, litter=litter
    )


def wanted(pixels):
    return tissue.rois(ArrayField("a", pixels), Lattice(*pixels.shape[1::-1]))


@pytest.mark.parametrize("slide", range(4))
def test_clean_glass_is_left_out_and_every_cell_is_read(slide):
    """An empty slide too, which Otsu's threshold would part into two."""
    assert not wanted(drawn(slide, 0, 0.0)[0]).any()
    pixels, cells = drawn(slide, 8, 0.0)
    read = wanted(pixels)
    assert 0.05 < read.mean() < 0.7
    for cell in cells:
        row, column = (int(np.clip((place - 75) / 25, 0, 34)) for place in (cell.y, cell.x))
        assert read[row : row + 2, column : column + 2].all()


def test_every_roi_that_touches_stain_is_wanted_and_no_other():
    """Against the rectangles themselves, at a size that no reduction divides."""
    pixels = np.full((601, 733, 3), 230, np.uint8)
    pixels[310:330, 400:424] = (90, 80, 150)
    read = wanted(pixels)
    lattice = Lattice(733, 601)
    touches = np.zeros_like(read)
    far = np.zeros_like(read)
    for row, column in np.ndindex(*read.shape):
        y, x = row * 25, column * 25
        touches[row, column] = y < 330 and y + 150 > 310 and x < 424 and x + 150 > 400
        # A pixel of the picture may reach beyond the stain.
        far[row, column] = y > 330 + 16 or y + 150 < 310 - 16 or x > 424 + 16 or x + 150 < 400 - 16
    assert read.shape == (lattice.rows, lattice.columns)
    assert touches.any() and read[touches].all() and not read[far].any()


def test_specks_are_glass_and_grey_cells_are_not():
    picture = np.full((40, 40, 3), (214, 220, 226), np.uint8)
    picture[5, 5:9] = picture[20, 20] = (60, 50, 120)
    assert not tissue.mask(picture).any()
    picture[30:33, 30:33] = 90
    assert tissue.mask(picture)[30:33, 30:33].all() and tissue.mask(picture).sum() == 9


def test_where_nothing_was_scanned_is_no_glass_to_compare_with():
    picture = np.full((64, 64, 3), (200, 214, 226), np.uint8)
    assert not tissue.mask(picture).any()
    picture[:32] = 255
    assert tissue.glass(picture).tolist() == [200, 214, 226]
    assert not tissue.mask(picture).any()
    assert not tissue.mask(np.full((9, 9, 3), 255, np.uint8)).any()


def test_the_picture_is_that_of_the_files_own_pyramid(tmp_path):
    """Stain that only the small level shows is what decides."""
    large = np.full((2048, 2048, 3), 220, np.uint8)
    small = np.full((256, 256, 3), 220, np.uint8)
    small[100:110, 100:110] = (90, 80, 150)
    write_tiled(tmp_path / "a.tif", large, small, tile=(256, 256))
    with open_field(tmp_path / "a.tif") as field:
        read = tissue.rois(field, Lattice(2048, 2048))
    rows, columns = np.nonzero(read)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (27, 35, 27, 35)


def test_blocks_shrink_to_what_is_wanted():
    lattice = Lattice(2048, 1024)
    every = np.zeros((lattice.rows, lattice.columns), bool)
    assert list(scanner.blocks(lattice, 500, every)) == []
    every[3, 4] = every[10, 6] = every[20, 50] = True
    blocks = list(scanner.blocks(lattice, 500, every))
    assert blocks == [(slice(3, 11), slice(4, 7)), (slice(20, 21), slice(50, 51))]
    whole = np.ones_like(every)
    assert list(scanner.blocks(lattice, 500, whole)) == list(scanner.blocks(lattice, 500))


class Counted:
    """A stand-in of stage 1: the score of an ROI is how dark its middle is."""

    roi, stride = 150, 25

    def __init__(self):
        self.pixels = 0

    def scores(self, pixels):
        self.pixels += pixels.shape[0] * pixels.shape[1]
        lattice = Lattice(pixels.shape[1], pixels.shape[0])
        rows, columns = np.arange(lattice.rows), np.arange(lattice.columns)
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        return 1 - grey[np.ix_(rows * 25 + 75, columns * 25 + 75)].astype(np.float32) / 255


def test_what_is_read_is_scored_as_without(tmp_path):
    pixels, _ = drawn(1, 4, 0.0, side=1536)
    field, lattice = ArrayField("a", pixels), Lattice(1536, 1536)
    read = tissue.rois(field, lattice)
    every, some = Counted(), Counted()

    def scores(stage1, places):
        stages = type("Stages", (), {"stage1": stage1})
        with futures.ThreadPoolExecutor(1) as pool:
            return scanner.score_map(field, stages, places, pool=pool)

    places = list(scanner.blocks(lattice, 500, read))
    whole, part = scores(every, None), scores(some, places)
    inside = np.zeros_like(read)
    for place in places:
        inside[place] = True
    assert (inside >= read).all() and not inside.all()
    np.testing.assert_array_equal(part, np.where(inside, whole, 0))
    assert some.pixels < 0.7 * every.pixels


def test_the_flag_is_part_of_what_a_scan_is():
    off, on = (scan_directory.Settings(skip_glass=value) for value in (False, True))
    assert off != on and off == scan_directory.Settings()


def test_a_drawn_mosaic_has_its_fields_in_their_places_at_every_level(tmp_path):
    fields = [
        np.full((drawn_slide.FIELD, drawn_slide.FIELD, 3), grey, np.uint8) for grey in (90, 200)
    ]
    fields[0][:300, :300] = 20
    places = np.array([[0, 1, 1], [1, 0, 1]])
    drawn_slide.write_mosaic(tmp_path / "a.tif", fields, places, mpp=0.25)
    with open_field(tmp_path / "a.tif") as field:
        assert (field.width, field.height, field.mpp) == (3 * 2048, 2 * 2048, pytest.approx(0.25))
        small = field.overview(3 * 256)
        assert field.level(8).scale == 8
        for row, column in np.ndindex(*places.shape):
            grey = (90, 200)[places[row, column]]
            here = field.read(column * 2048 + 1000, row * 2048 + 1000, 9, 9)
            assert abs(int(here.mean()) - grey) <= 1
            assert abs(int(small[row * 256 + 128, column * 256 + 128].mean()) - grey) <= 1
        assert field.read(2048 + 99, 2048 + 99, 9, 9).mean() < 25 > small[256 + 9, 256 + 9].mean()


def test_a_drawn_smear_has_its_cells_in_the_middle(tmp_path):
    side = 3 * drawn_slide.FIELD
    drawn_slide.write_smear(tmp_path / "a.tif", side, glass=0.9, mpp=0.25)
    with open_field(tmp_path / "a.tif") as field:
        assert (field.width, field.height) == (side, side)
        fields = field.overview(3 * 128).astype(int).reshape(3, 128, 3, 128, 3)
    spread = np.ptp(fields, axis=(1, 3, 4))
    # 1 of 9 fields has nuclei, which are dark.
    assert spread[1, 1] > 2 * np.delete(spread, 4).max()
    with pytest.raises(PapError, match="--side=3000: with --glass expected a multiple of 2048"):
        drawn_slide.write_smear(tmp_path / "b.tif", 3000, glass=0.5)
