"""Both stages joined: the same cells whatever the blocks, and as single images would be named."""

from concurrent import futures

import cv2
import keras
import numpy as np
import pytest

from replication.fields.find import scanner, summary
from replication.fields.find.cells import Cells
from replication.fields.find.dense import Stage1
from replication.fields.find.lattice import Lattice
from replication.fields.find.stages import Stage2, Stages
from replication.fields.read.field import ArrayField, FieldError
from replication.learning import models
from replication.measures import decisions
from tfds_pap import decoding, phantom
from tfds_pap.errors import PapError
from tfds_pap.taxonomy import STAGE2_CLASSES


@pytest.fixture(scope="module")
def pixels():
    return phantom.draw_field(5, slide=5, width=700, height=500, cells=40)[0]


@pytest.fixture(scope="module")
def networks():
    keras.utils.set_random_seed(4)
    images = keras.Input((64, 64, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(images)
    x = keras.layers.Conv2D(8, 5, strides=3, activation="relu")(x)
    x = keras.layers.GlobalMaxPooling2D()(x)
    x = keras.layers.Dense(4, activation="softmax", kernel_initializer="orthogonal")(x)
    return models.stage1_cnn(), keras.Model(images, x)


@pytest.fixture(scope="module")
def stages(networks):
    decision = decisions.Decision(STAGE2_CLASSES, 1.7, 0.3)
    return Stages(Stage1(networks[0], "nearest"), Stage2(networks[1], "bilinear", decision), {})


@pytest.fixture(scope="module")
def pool():
    with futures.ThreadPoolExecutor(3) as pool:
        yield pool


def middle(stages, pixels):
    return float(np.median(stages.stage1.scores(pixels)))


def test_cells_are_named_as_their_pictures_would_be(stages, networks, pixels, pool):
    threshold = middle(stages, pixels)
    found = scanner.scan(
        ArrayField("a", pixels), stages, threshold=threshold, radius=60, pool=pool
    ).cells
    assert len(found) > 20
    assert len(set(found.labels)) > 1
    for number in range(len(found)):
        left, top = int(found.x[number] - 75), int(found.y[number] - 75)
        crop = cv2.imencode(".png", pixels[top : top + 150, left : left + 150, ::-1])[1].tobytes()
        for model, size, resize, said in (
            (networks[0], 20, "nearest", found.scores[number]),
            (networks[1], 64, "bilinear", found.probabilities[number]),
        ):
            image = decoding.decode_and_resize(crop, size, resize)[None]
            expected = model.predict_on_batch(np.float32(image))[0]
            np.testing.assert_allclose(said, expected if np.ndim(said) else expected[1], atol=1e-5)
    calibrated = found.probabilities ** (1 / 1.7)
    calibrated /= calibrated.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.hsil_plus, calibrated[:, 2:].sum(axis=1), atol=1e-6)
    np.testing.assert_array_equal(found.abstain, calibrated.max(axis=1) < 0.3 - 1e-9)
    assert (np.diff(found.hsil_plus) <= 0).all()


@pytest.mark.parametrize("block", [1, 150, 175, 333, 10_000])
def test_blocks_change_nothing(stages, pixels, pool, block):
    field, threshold = ArrayField("a", pixels), middle(stages, pixels)
    whole = scanner.scan(field, stages, threshold=threshold, radius=50, pool=pool)
    parts = scanner.scan(field, stages, threshold=threshold, radius=50, pool=pool, block=block)
    np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-6)
    np.testing.assert_array_equal(parts.cells.x, whole.cells.x)
    np.testing.assert_allclose(parts.cells.probabilities, whole.cells.probabilities, atol=1e-5)


@pytest.mark.parametrize("side", [1, 160, 300, 10_000])
def test_blocks_cover_every_roi_once(side):
    lattice = Lattice(1000, 700, roi=100, stride=30)
    covered = np.zeros((lattice.rows, lattice.columns), int)
    for rows, columns in scanner.blocks(lattice, side):
        covered[rows, columns] += 1
        assert max(side, 100) >= (rows.stop - rows.start - 1) * 30 + 100
    assert (covered == 1).all()


def test_the_shares_of_a_field_add_up(stages, pixels, pool):
    for part in (pixels, pixels[:100], pixels[:200, :200]):
        shares = []
        scanner.scan(
            ArrayField("a", part), stages, threshold=0, radius=50, pool=pool, advance=shares.append
        )
        assert sum(shares) == pytest.approx(1)


def test_places_are_those_of_the_file(stages, pixels, pool):
    threshold = middle(stages, pixels)
    plain, scaled = (
        scanner.scan(
            ArrayField("a", pixels, scale=scale), stages, threshold=threshold, radius=50, pool=pool
        ).cells
        for scale in (1.0, 2.5)
    )
    np.testing.assert_allclose(scaled.x, 2.5 * plain.x)
    np.testing.assert_allclose(scaled.y, 2.5 * plain.y)


def test_a_field_without_cells(stages, pixels, pool):
    found = scanner.scan(ArrayField("a", pixels), stages, threshold=1, radius=50, pool=pool)
    assert (len(found.cells), found.detections) == (0, 0)
    assert summary.summary(found.cells)["most_severe"] is None


class Damaged(ArrayField):
    def read(self, left, top, width, height):
        raise FieldError("a.tif: damaged")


def test_a_damaged_field_says_so(stages, pixels, pool):
    with pytest.raises(FieldError, match=r"a\.tif: damaged"):
        scanner.scan(Damaged("a", pixels), stages, threshold=0, radius=50, pool=pool)


def test_stage2_must_know_the_four_classes(networks):
    decision = decisions.Decision(("background", "cell"), None, None)
    with pytest.raises(PapError, match="names background, cell, expected a network of stage"):
        Stage2(networks[0], "nearest", decision)


def test_cells_come_back_from_their_table(tmp_path):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 30)
    cells = Cells(
        *rng.random((3, 30)).round(4), probabilities, rng.random(30), rng.random(30) > 0.5
    ).sorted()
    cells.write(tmp_path / "cells.csv")
    back = Cells.read(tmp_path / "cells.csv")
    for name in ("x", "y", "scores", "probabilities", "hsil_plus", "abstain"):
        np.testing.assert_allclose(getattr(back, name), getattr(cells, name), rtol=1e-5)
    assert back.labels == cells.labels
    assert cells.table()["class"].tolist() == cells.labels


def test_an_empty_table_comes_back(tmp_path):
    Cells.empty().write(tmp_path / "cells.csv")
    assert len(Cells.read(tmp_path / "cells.csv")) == 0


@pytest.mark.parametrize("text", ["", "x,y\n1,2\n", "x,y,score,class,NILM,LSIL,HSIL,SCC,hsil_plus"])
def test_a_broken_table_is_named(tmp_path, text):
    path = tmp_path / "cells.csv"
    path.write_text(text)
    with pytest.raises(PapError, match=r"cells\.csv: expected a table of cells"):
        Cells.read(path)


def test_summary():
    hsil = np.linspace(0.05, 0.6, 12)
    probabilities = np.zeros((12, 4))
    probabilities[np.arange(12), [0] * 7 + [1] * 3 + [2] * 2] = 1
    zeros = np.zeros(12)
    found = summary.summary(Cells(zeros, zeros, zeros, probabilities, hsil, zeros > 1))
    assert found["counts"] == {"NILM": 7, "LSIL": 3, "HSIL": 2, "SCC": 0}
    assert found["most_severe"] == "HSIL"
    assert found["slide_score"]["value"] == pytest.approx(hsil[2:].mean())
    assert found["slide_score"]["cells"] == 10
