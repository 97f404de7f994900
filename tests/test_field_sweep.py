"""A sweep finds in each setting what a scan with that setting finds."""

import csv
import dataclasses
import io
import math
import xml.etree.ElementTree as ElementTree
from concurrent import futures

import keras
import numpy as np
import pytest
from pages import opening

from replication.fields.find import scanner
from replication.fields.find.dense import Stage1
from replication.fields.find.stages import Stage2, Stages
from replication.fields.judge import sweep
from replication.fields.judge.counts import AnnotatedField, Detections
from replication.fields.judge.evaluation import evaluate
from replication.fields.judge.truth import Nuclei
from replication.fields.read.field import ArrayField
from replication.fields.show import sweep_figure, sweep_page
from replication.learning import models
from replication.measures import decisions
from tfds_pap import phantom
from tfds_pap.classes import Classes
from tfds_pap.taxonomy import STAGE2_CLASSES

RADII = (30.0, 80.0)


@pytest.fixture(scope="module")
def stages():
    keras.utils.set_random_seed(2)
    images = keras.Input((64, 64, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(images)
    x = keras.layers.Conv2D(8, 5, strides=3, activation="relu")(x)
    x = keras.layers.GlobalMaxPooling2D()(x)
    x = keras.layers.Dense(4, activation="softmax", kernel_initializer="orthogonal")(x)
    network, named = models.stage1_cnn(), keras.Model(images, x)
    stage2 = Stage2(named, "bilinear", decisions.Decision(STAGE2_CLASSES, 1.7, 0.3))
    return {s: Stages(Stage1(network, "nearest", stride=s), stage2, {}) for s in (50, 25)}


@pytest.fixture(scope="module")
def annotated():
    found = []
    for seed, scale in ((5, 1.0), (6, 2.0)):
        mix = {"NILM": 1, "HSIL": 1}
        pixels, truth = phantom.draw_field(
            seed, slide=seed, width=520, height=400, cells=15, mix=mix
        )
        x, y, labels = zip(*((cell.x, cell.y, cell.label) for cell in truth), strict=True)
        nuclei = Nuclei.of(np.array(x) * scale, np.array(y) * scale, labels)
        found.append((ArrayField(f"field {seed}", pixels, scale=scale), nuclei))
    return found


@pytest.fixture(scope="module")
def pool():
    with futures.ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def thresholds(stages, annotated):
    scores = stages[25].stage1.scores(annotated[0][0].read(0, 0, 520, 400))
    return [float(value) for value in np.quantile(scores, [0.2, 0.6, 0.9])]


@pytest.fixture(scope="module")
def rows(stages, annotated, pool, thresholds):
    told = []
    found = sweep.sweep(
        annotated,
        stages,
        radii=RADII,
        thresholds=thresholds,
        pool=pool,
        complete=True,
        advance=lambda: told.append(1),
    )
    assert len(told) == len(annotated)
    return found


def test_every_setting_is_a_scan_of_its_own(rows, stages, annotated, pool, thresholds):
    assert [row.setting for row in rows] == [
        sweep.Setting(stride, radius, threshold)
        for stride in (25, 50)
        for radius in RADII
        for threshold in thresholds
    ]
    for row in rows:
        fields = []
        for field, nuclei in annotated:
            scanned = scanner.scan(
                field,
                stages[row.stride],
                threshold=row.threshold,
                radius=row.radius,
                pool=pool,
            )
            cells = scanned.cells
            kept = Detections(cells.x, cells.y, cells.scores)
            fields.append(
                AnnotatedField(field.name, kept, nuclei, scanned.lattice, field.scale, cells)
            )
        expected = evaluate(fields, threshold=row.threshold, complete=True)
        for name, value in (
            ("recall", row.recall),
            ("precision", row.precision),
            ("recall_by_chance", row.recall_by_chance),
            ("sensitivity HSIL+", row.hsil_plus_sensitivity),
            ("specificity HSIL+", row.hsil_plus_specificity),
        ):
            assert value == pytest.approx(expected.figure(name).value, nan_ok=True), name
        recall = expected.figure("recall")
        assert (row.recall_low, row.recall_high) == (recall.low, recall.high)
        assert row.kept_per_field == expected.detections / len(fields)
        assert row.rois_per_field == fields[0].lattice.rois
        assert row.precision_reliable


def test_costs_are_times_of_what_was_done(rows):
    assert all(row.stage1_seconds > 0 for row in rows)
    each = {row.stage2_seconds / row.kept_per_field for row in rows if row.kept_per_field}
    assert max(each) == pytest.approx(min(each))
    assert min(each) > 0


def test_the_table_comes_back(rows):
    found = list(csv.DictReader(io.StringIO(sweep.table(rows))))
    assert list(found[0]) == [field.name for field in dataclasses.fields(sweep.Row)]
    for line, row in zip(found, rows, strict=True):
        assert line["precision_reliable"] == "True"
        for name in ("stride", "threshold", "recall", "kept_per_field"):
            assert float(line[name]) == pytest.approx(getattr(row, name), rel=1e-5)


def row(stride, radius, threshold, kept, recall):
    return sweep.Row(
        *(stride, radius, threshold, recall, recall - 0.05, recall + 0.05, recall / 3, math.nan),
        *(True, 100.0, kept, 0.01, kept / 500, *[math.nan] * 6),
    )


@pytest.mark.parametrize("form", ["svg", "png"])
def test_the_figure(rows, form):
    picture = sweep_figure.sweep_figure(rows, form)
    assert picture == sweep_figure.sweep_figure(rows, form)
    if form == "svg":
        ElementTree.fromstring(picture)


@pytest.mark.parametrize(
    "given",
    [
        [row(25, 50.0, 0.5, 80.0, 0.7)],
        [row(25, 50.0, 0.5, 0.0, 0.0)],
        [row(s, r, 0.5, 10.0 * s, 0.5) for s in (1, 2, 3, 4, 5, 6, 7) for r in (30.0, 50.0)],
    ],
    ids=["one", "nothing kept", "more strides than styles"],
)
def test_borders_of_the_figure(given):
    ElementTree.fromstring(sweep_figure.sweep_figure(given))


def test_a_field_without_cells(stages, pool):
    blank = ArrayField("blank", np.full((100, 400, 3), 255, np.uint8))
    nuclei = Nuclei.of([200.0], [50.0], ["HSIL"])
    (found,) = sweep.sweep(
        [(blank, nuclei)],
        {25: stages[25]},
        radii=[50],
        thresholds=[0.5],
        pool=pool,
        complete=False,
    )
    assert (found.recall, found.kept_per_field, found.rois_per_field) == (0, 0, 0)
    assert math.isnan(found.precision)
    assert not found.precision_reliable
    assert sweep.table([found]).splitlines()[1].startswith("25,50,0.5,0,nan,nan,")


def test_the_page_opens_with_the_setting_that_finds_most(tmp_path):
    settings = [row(25, 50.0, 0.5, 80.0, 0.7), row(10, 30.0, 0.1, 400.0, 0.9)]
    page = sweep_page.write(
        tmp_path, settings, 3, "Drawings.", Classes.known(STAGE2_CLASSES), complete=False
    ).read_text()
    box = opening(page)
    assert box["lead"].startswith("Stride 10 px, radius 30 px, threshold 0.1 finds most")
    assert "the default (stride 25 px, radius 50 px, threshold 0.5)" in box["lead"]
    assert list(box["figures"].values()) == ["90.0 % [85.0, 95.0]", "70.0 % [65.0, 75.0]"]
    assert "chosen on these fields" in box["not"] and "3 fields" in box["not"]
    assert "Precision is not reliable" in box["not"]
    assert page.count("<tr>") == 3 and "Drawings." in page
    assert page.count("HSIL+ ") == 3


def test_classes_of_a_lab(annotated, pool, stages, tmp_path):
    """Of three classes, and of what the lab looks for; without that, of neither figure."""
    names = ("round", "long", "folded")
    images = keras.Input((64, 64, 3))
    x = keras.layers.GlobalMaxPooling2D()(keras.layers.Rescaling(1 / 127.5, -1)(images))
    named = keras.Model(images, keras.layers.Dense(3, activation="softmax")(x))
    declared = Classes(names, names, True, ("folded",), "folded or worse")
    (field, nuclei), *_ = annotated
    labels = np.where(nuclei.labels == "HSIL", "folded", "round")
    for classes in (declared, Classes.known(names)):
        stage2 = Stage2(named, "bilinear", decisions.Decision(names, None, None, classes))
        (found,) = sweep.sweep(
            [(field, Nuclei.of(nuclei.x, nuclei.y, labels, classes=classes))],
            {25: Stages(stages[25].stage1, stage2, {})},
            radii=[50],
            thresholds=[0.0],
            pool=pool,
            complete=True,
        )
        assert found.kept_per_field > 0
        assert math.isnan(found.hsil_plus_sensitivity) == (classes is not declared)
        page = sweep_page.write(
            tmp_path, [found], 1, "Drawings.", classes, complete=True
        ).read_text()
        assert "HSIL" not in page
        assert ("folded or worse sensitivity" in page) == (classes is declared)
