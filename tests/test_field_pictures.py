"""What a scanned field leaves to look at: overlay, heat map, tiles, thumbnails, GeoJSON."""

import json
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest

from replication.drawing.palette import COLOURS
from replication.fields.find.cells import Cells
from replication.fields.find.lattice import Lattice
from replication.fields.read.field import ArrayField
from replication.fields.show import geojson, pictures, pyramid
from tfds_pap import phantom


def cells_at(places, classes, scale=1.0, abstain=None):
    count = len(places)
    x, y = np.array(places, float).reshape(-1, 2).T * scale
    probabilities = np.full((count, 4), 0.1)
    probabilities[np.arange(count), classes] = 0.7
    hsil = probabilities[:, 2:].sum(axis=1)
    abstain = np.zeros(count, bool) if abstain is None else np.array(abstain)
    return Cells(x, y, np.linspace(0.99, 0.6, count), probabilities, hsil, abstain)


@pytest.fixture
def scanned(tmp_path):
    pixels = phantom.draw_field(2, slide=2, width=700, height=500, cells=10)[0]
    field, lattice = ArrayField("field <b>.jpg", pixels, scale=2.0, mpp=0.25), Lattice(700, 500)
    scores = np.linspace(0, 1, lattice.rois, dtype=np.float32).reshape(lattice.rows, -1)
    cells = cells_at([(100, 100), (300, 200), (500, 300), (600, 400)], [3, 2, 1, 0], scale=2.0)
    pictures.write_pictures(tmp_path / "id-1", field, lattice, scores, cells, threshold=0.5)
    return tmp_path / "id-1", field, lattice, scores, cells


def read(path):
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., :3], cv2.COLOR_BGR2RGB)


def test_tiles_put_together_are_the_field(scanned):
    folder, field, *_ = scanned
    deepest = pyramid.levels(700, 500) - 1
    assert sorted(int(path.name) for path in (folder / "tiles_files").iterdir()) == list(
        range(deepest + 1)
    )
    for level in range(deepest + 1):
        tiles = {
            tuple(int(n) for n in path.stem.split("_")): read(path)
            for path in (folder / "tiles_files" / str(level)).iterdir()
        }
        columns, rows = (max(place[axis] for place in tiles) + 1 for axis in (0, 1))
        whole = np.vstack(
            [np.hstack([tiles[column, row] for column in range(columns)]) for row in range(rows)]
        )
        size = tuple(-(-side // 2 ** (deepest - level)) for side in (700, 500))
        assert whole.shape == (size[1], size[0], 3)
        expected = cv2.resize(field.read(0, 0, 700, 500), size, interpolation=cv2.INTER_AREA)
        # Halving again and again rounds the sides of small levels.
        most = 6 if level >= deepest - 2 else 25
        assert np.abs(whole.astype(int) - expected).mean() < most
    assert 'Width="700" Height="500"' in (folder / "tiles.dzi").read_text()


def test_a_huge_field_is_shrunk(monkeypatch, tmp_path):
    monkeypatch.setattr(pyramid, "MAX_PIXELS", 10_000)
    pixels = phantom.draw_field(2, width=700, height=500, cells=10)[0]
    largest = pyramid.write(tmp_path, ArrayField("a", pixels))
    assert largest.shape[0] * largest.shape[1] <= 10_000
    assert largest.shape[1] / largest.shape[0] == pytest.approx(1.4, abs=0.02)


def test_boxes_have_the_colours_of_their_classes(scanned):
    folder, field, lattice, _, cells = scanned
    drawn = pictures.overlay(field.read(0, 0, 700, 500), field, lattice.roi, cells)
    assert drawn.shape[0] > 500
    for number in range(4):
        x, y = (int(axis[number] / 2) for axis in (cells.x, cells.y))
        colour = COLOURS[int(cells.class_ids[number])]
        # The middle of the upper edge of a box of half the ROI.
        near = drawn[y - 41 : y - 35, x].astype(int)
        assert np.abs(near - colour).sum(axis=1).min() < 60
    assert read(folder / "overlay.jpg").shape == drawn.shape


def test_abstained_boxes_are_dashed():
    white = np.full((400, 400, 3), 255, np.uint8)
    field = ArrayField("a", white)
    solid, dashed = (
        pictures.overlay(white, field, 150, cells_at([(200, 200)], [0], abstain=[abstain]))[:400]
        for abstain in (False, True)
    )
    inked = [(picture < 250).any(axis=2).sum() for picture in (solid, dashed)]
    assert 0.3 * inked[0] < inked[1] < 0.8 * inked[0]


def test_boxes_too_small_to_be_told_apart_are_points():
    white = np.full((400, 400, 3), 255, np.uint8)
    field = ArrayField("a", np.full((8000, 8000, 3), 255, np.uint8))
    cells = cells_at([(2000, 2000), (6000, 6000)], [2, 2], abstain=[False, True])
    drawn = pictures.overlay(white, field, 150, cells)[:400]
    assert np.abs(drawn[100, 100].astype(int) - COLOURS[2]).sum() < 30
    # Hollow, and no letter beside either.
    assert (drawn[300, 300] > 200).all()
    rows, columns = np.nonzero((drawn < 200).any(axis=2))
    assert set(rows // 10) | set(columns // 10) <= {9, 10, 29, 30}


def test_the_scale_bar_has_its_length():
    white = np.full((400, 800, 3), 255, np.uint8)
    drawn = pictures.overlay(white, ArrayField("a", white, mpp=0.5), 150, Cells.empty())[:400]
    # 160 px of 0.5 micrometres are 80: the longest round length within is 50, 100 px.
    widest = (drawn < 100).all(axis=2).sum(axis=1).max()
    assert 98 <= widest <= 106
    plain = pictures.overlay(white, ArrayField("a", white), 150, Cells.empty())[:400]
    assert (plain == 255).all()


def test_the_heat_map_lies_in_register():
    white = np.full((500, 700, 3), 255, np.uint8)
    lattice = Lattice(700, 500)
    scores = np.zeros((lattice.rows, lattice.columns), np.float32)
    scores[4, 9] = 1
    drawn = pictures.heat_map(white, lattice, scores, 0.5)[:500].astype(int)
    # Viridis ends in yellow, whose blue is least.
    yellow = np.argwhere(drawn[..., 0] - drawn[..., 2] > 60)
    x, y = lattice.centres(4, 9)
    np.testing.assert_allclose(yellow.mean(axis=0) + 0.5, [y, x], atol=1)
    assert len(yellow) == pytest.approx(25 * 25, rel=0.1)


def test_thumbnails_are_the_rois(scanned):
    folder, field, *_ = scanned
    found = read(folder / "thumbnails" / "0.jpg")
    expected = field.read(25, 25, 150, 150)
    assert np.abs(found.astype(int) - expected).mean() < 6
    assert len(list((folder / "thumbnails").iterdir())) == 4


def test_geojson_fits_its_schema(scanned):
    folder, _, _, _, cells = scanned
    found = json.loads((folder / "cells.geojson").read_text())
    schema = json.loads((Path(__file__).parent / "qupath_schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(found)
    assert len(found["features"]) == 4
    for number, feature in enumerate(found["features"]):
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len(ring) == 5
        x, y = np.array(ring[:-1]).T
        # Counter-clockwise, as RFC 7946 wants outer rings: the area by the shoelace formula.
        area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
        # In pixels of the file, of which two are one pixel as read.
        assert area == pytest.approx(300**2)
        assert (x.mean(), y.mean()) == pytest.approx((cells.x[number], cells.y[number]))
        assert feature["properties"]["classification"]["name"] == cells.labels[number]
    assert len({feature["id"] for feature in found["features"]}) == 4


def test_geojson_of_many_cells_holds_each(tmp_path):
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 1e5, (20_000, 2))
    geojson.write(tmp_path / "a.geojson", cells_at(places, rng.integers(0, 4, 20_000)), 150, "a")
    assert len(json.loads((tmp_path / "a.geojson").read_text())["features"]) == 20_000


def test_a_field_without_rois_is_drawn(tmp_path):
    pixels = np.full((90, 120, 3), 200, np.uint8)
    lattice = Lattice(120, 90)
    scores = np.zeros((lattice.rows, lattice.columns), np.float32)
    pictures.write_pictures(
        tmp_path / "a", ArrayField("a", pixels), lattice, scores, Cells.empty(), threshold=0.5
    )
    assert json.loads((tmp_path / "a" / "cells.geojson").read_text())["features"] == []
    assert read(tmp_path / "a" / "overlay.jpg").shape[1] == 120
