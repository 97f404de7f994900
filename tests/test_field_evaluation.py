"""Figures on annotated fields against loops over what they mean, and against scikit-learn."""

import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from sklearn import metrics

from replication.fields import scan_evaluation
from replication.fields.find import suppression
from replication.fields.find.cells import Cells
from replication.fields.find.lattice import Lattice
from replication.fields.judge import counts as field_counts
from replication.fields.judge import evaluation as field_evaluation
from replication.fields.judge import matching
from replication.fields.judge.counts import AnnotatedField, Detections
from replication.fields.judge.curves import Curves
from replication.fields.judge.evaluation import evaluate
from replication.fields.judge.results import NOT_FOUND
from replication.fields.judge.truth import Nuclei, labels_of
from replication.fields.show import figures as field_figures
from replication.fields.show import truth_layer
from replication.measures import shares
from replication.runs.directory import RunDirectory
from tfds_pap import files
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError
from tfds_pap.taxonomy import STAGE2_CLASSES

RADIUS = 32.0

LABELS = labels_of(Classes.known(STAGE2_CLASSES))


def places(of):
    return np.stack([of.x, of.y], axis=1)


def one_field(rng, name, *, nuclei=25, size=(640, 480), threshold=0.5, scale=1.0):
    """A field in which most nuclei are near a detection, and some detections near no nucleus."""
    x, y = rng.random((2, nuclei)) * np.array(size)[:, None] * scale
    labels = rng.choice(LABELS, nuclei, p=[0.4, 0.15, 0.15, 0.1, 0.1, 0.1])
    near = rng.random(nuclei) < 0.8
    at = np.stack([x, y])[:, near] + rng.normal(0, 10 * scale, (2, near.sum()))
    stray = rng.random((2, 15)) * np.array(size)[:, None] * scale
    at = np.concatenate([at, stray], axis=1)
    # Few digits, so that scores of one field and of several are equal.
    scores = np.round(np.concatenate([rng.beta(4, 2, near.sum()), rng.beta(2, 3, 15)]), 2)
    detections = Detections(*at, scores)
    kept = detections.at(threshold)
    probabilities = rng.dirichlet(np.ones(4), len(kept))
    cells = Cells(
        kept.x,
        kept.y,
        kept.scores,
        probabilities,
        hsil_plus=probabilities[:, 2:].sum(axis=1),
        abstain=np.zeros(len(kept), bool),
    )
    lattice = Lattice(*size)
    return AnnotatedField(name, detections, Nuclei.of(x, y, labels), lattice, scale, cells)


@pytest.fixture(scope="module")
def fields():
    rng = np.random.default_rng(1)
    return [one_field(rng, f"field {n}", nuclei=10 + 5 * n) for n in range(5)]


@pytest.fixture(scope="module")
def evaluation(fields):
    return evaluate(fields, threshold=0.5, complete=True, resamples=200)


def outcomes(field):
    """For each nucleus of a field: its label, and the class that it was named or 'not found'."""
    pairs = matching.match(places(field.cells), places(field.nuclei), RADIUS)
    named = dict(zip(pairs.nuclei.tolist(), pairs.detections.tolist(), strict=True))
    return [
        (label, field.cells.labels[named[n]] if n in named else NOT_FOUND)
        for n, label in enumerate(field.nuclei.labels.tolist())
    ]


def naive(fields):
    """The figures at the threshold, one nucleus after the other; fields may be there twice."""
    pairs = [pair for field in fields for pair in outcomes(field)]
    kept = sum(len(field.cells) for field in fields)
    found = [label for label, named in pairs if named != NOT_FOUND]
    reachable = sum(near_a_roi(field).sum() for field in fields)
    area = sum(field.lattice.width * field.lattice.height / 1e6 for field in fields)

    def share(of, among):
        return of / among if among else math.nan

    figures = {
        "recall": share(len(found), len(pairs)),
        "recall_reachable": share(len(found), reachable),
        "precision": share(len(found), kept),
        "f1": share(2 * len(found), len(pairs) + kept),
        "false_positives_per_field": (kept - len(found)) / len(fields),
        "false_positives_per_megapixel": (kept - len(found)) / area,
    }
    for label in LABELS:
        among = [named for true, named in pairs if true == label]
        figures[f"found {label}"] = share(sum(n != NOT_FOUND for n in among), len(among))
        if label in STAGE2_CLASSES:
            figures[f"sensitivity {label}"] = share(among.count(label), len(among))
    severe = [named in ("HSIL", "SCC") for true, named in pairs if true in ("HSIL", "SCC")]
    figures["sensitivity HSIL+"] = share(sum(severe), len(severe))
    mild = [n for true, n in pairs if true in ("NILM", "LSIL") and n != NOT_FOUND]
    figures["specificity HSIL+"] = share(sum(n in ("NILM", "LSIL") for n in mild), len(mild))
    return figures


def near_a_roi(field):
    """Whether some ROI of the lattice has its middle within the radius, looked up for each."""
    lattice = field.lattice
    rows, columns = np.indices((lattice.rows, lattice.columns)).reshape(2, -1)
    x, y = (axis[:, None] * field.scale for axis in lattice.centres(rows, columns))
    return (np.hypot(x - field.nuclei.x, y - field.nuclei.y) <= RADIUS * field.scale).any(axis=0)


def test_the_viewers_layer_of_truth_is_the_matching_of_the_figures(fields, tmp_path):
    for field in fields:
        truth_layer.write(tmp_path, field, 0.5, None)
        text = (tmp_path / truth_layer.NAME).read_text()
        name, data = json.loads("[" + text.removeprefix("annotated(").removesuffix(");\n") + "]")
        assert name == tmp_path.name
        read = [
            (LABELS[label], NOT_FOUND if cell < 0 else field.cells.labels[cell])
            for label, cell in zip(data["label"], data["cell"], strict=True)
        ]
        assert read == outcomes(field)
        hits = [cell for cell in data["cell"] if cell >= 0]
        counts = field_counts.field_counts(field, 0.5, None)
        assert len(hits) == len(set(hits)) == counts.found.sum() < len(read)
        assert sum(data["reachable"]) == counts.reachable.sum()
        assert np.allclose(data["x"], field.nuclei.x, atol=0.06)


def test_figures_are_what_a_loop_over_nuclei_finds(fields, evaluation):
    for name, value in naive(fields).items():
        assert evaluation.figure(name).value == pytest.approx(value), name


def test_shares_get_the_interval_of_their_counts_by_field(fields, evaluation):
    recall, f1 = evaluation.figure("recall"), evaluation.figure("f1")
    hits = np.array([naive([field])["recall"] * len(field.nuclei) for field in fields])
    among = np.array([len(field.nuclei) for field in fields], float)
    expected = shares.share_by_unit(hits, among)
    assert (recall.low, recall.high) == pytest.approx((expected.low, expected.high))
    assert "design effect of fields" in recall.method
    assert f1.method == "resampling of 5 fields (as good as 4 of equal size), 200 times"
    assert f1.low < f1.value < f1.high
    assert math.isnan(evaluation.figure("average_precision").low)


def test_the_confusion_matrix_is_that_of_scikit_learn(fields, evaluation):
    true, named = zip(*(pair for field in fields for pair in outcomes(field)), strict=True)
    names = [*LABELS, NOT_FOUND]
    expected = metrics.confusion_matrix(true, named, labels=names)
    columns = [names.index(column) for column in evaluation.columns]
    assert evaluation.rows == LABELS
    assert evaluation.confusion == expected[: len(LABELS), columns].tolist()
    assert evaluation.annotated == {label: true.count(label) for label in LABELS}


def pooled(fields):
    hits = [field_counts.hits_by_score(field, None) for field in fields]
    scores = [field.detections.scores for field in fields]
    return scores, hits, [len(field.nuclei) for field in fields]


def test_average_precision_is_that_of_scikit_learn_where_all_is_found(fields, evaluation):
    scores, hits, nuclei = pooled(fields)
    found = np.concatenate(hits)
    expected = metrics.average_precision_score(found, np.concatenate(scores))
    every = Curves.of(scores, hits, [int(hit.sum()) for hit in hits])
    once = np.ones((1, len(fields)))
    assert every.average_precision(once)[0] == pytest.approx(expected)
    # A nucleus that is never found is never reached.
    assert found.sum() < sum(nuclei)
    figure = evaluation.figure("average_precision")
    assert figure.value == pytest.approx(expected * found.sum() / sum(nuclei))


def test_curves_of_drawn_fields_are_those_of_the_fields_drawn(fields):
    scores, hits, nuclei = pooled(fields)
    curves = Curves.of(scores, hits, nuclei)
    rng = np.random.default_rng(3)
    weights = rng.multinomial(5, np.full(5, 0.2), size=30).astype(float)
    rates = (0.2, 1, 2, 3.4, 8, 1000)
    areas, recalls = curves.average_precision(weights), curves.recall_at(weights, rates)
    for times, area, recall in zip(weights.astype(int), areas, recalls, strict=True):
        rows = np.repeat(np.arange(5), times)
        score = np.concatenate([scores[row] for row in rows])
        hit = np.concatenate([hits[row] for row in rows])
        count = sum(nuclei[row] for row in rows)
        share = hit.sum() / count
        assert area == pytest.approx(metrics.average_precision_score(hit, score) * share)
        for rate, value in zip(rates, recall, strict=True):
            at = [score >= t for t in np.unique(score)]
            within = [hit[a].sum() / count for a in at if (~hit[a]).sum() / len(rows) <= rate]
            assert value == pytest.approx(max(within, default=0))


def test_few_thresholds_tell_nearly_the_same(fields):
    rng = np.random.default_rng(0)
    scores = [rng.random(4000) for _ in range(3)]
    hits = [rng.random(4000) < score for score in scores]
    exact = Curves.of(scores, hits, [3000] * 3, points=None)
    thin = Curves.of(scores, hits, [3000] * 3)
    once = np.ones((1, 3))
    assert len(exact.thresholds) == 12_000 > len(thin.thresholds)
    assert thin.thresholds[-1] == exact.thresholds[-1]
    assert thin.average_precision(once) == pytest.approx(exact.average_precision(once), abs=1e-3)
    assert thin.recall_at(once, [50, 500]) == pytest.approx(
        exact.recall_at(once, [50, 500]), abs=2e-3
    )


def test_recall_at_rates_and_their_mean(fields, evaluation):
    scores, hits, nuclei = pooled(fields)
    score, hit = np.concatenate(scores), np.concatenate(hits)
    found = []
    for rate in field_evaluation.RATES:
        within = [t for t in np.unique(score) if (~hit[score >= t]).sum() / len(fields) <= rate]
        found.append(hit[score >= min(within)].sum() / sum(nuclei))
        assert evaluation.figure(f"recall_at_{rate}").value == pytest.approx(found[-1])
    assert evaluation.figure("mean_recall").value == pytest.approx(np.mean(found))


def test_the_curve_ends_at_its_lowest_threshold(fields, evaluation):
    scores, hits, nuclei = pooled(fields)
    hit, curve = np.concatenate(hits), evaluation.curve
    assert curve.recall[-1] == pytest.approx(hit.sum() / sum(nuclei), abs=1e-6)
    assert curve.false_positives[-1] == pytest.approx((~hit).sum() / len(fields), abs=1e-6)
    assert curve.precision[-1] == pytest.approx(hit.mean(), abs=1e-6)
    assert curve.thresholds == sorted(set(np.concatenate(scores).tolist()), reverse=True)
    assert max(curve.band_false_positives) <= curve.false_positives[-1]
    for low, high in zip(curve.band_low, curve.band_high, strict=True):
        assert 0 <= low <= high <= 1


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_nuclei_at_the_edge_cannot_be_reached(scale):
    rng = np.random.default_rng(0)
    field = one_field(rng, "a", nuclei=400, scale=scale)
    expected = near_a_roi(field)
    np.testing.assert_array_equal(field_counts.reachable(field, RADIUS * scale), expected)
    assert 50 < expected.sum() < 350


def test_a_rescaled_field_counts_as_the_field_that_was_read():
    plain, scaled = (one_field(np.random.default_rng(4), "a", scale=s) for s in (1.0, 2.0))
    one, other = (field_counts.field_counts(field, 0.5, None) for field in (plain, scaled))
    np.testing.assert_array_equal(one.named, other.named)
    np.testing.assert_array_equal(one.reachable, other.reachable)
    assert (one.covered, 4 * one.megapixels) == (other.covered, pytest.approx(other.megapixels))
    given = field_counts.field_counts(scaled, 0.5, RADIUS)
    assert given.found.sum() < other.found.sum()


def test_chance_is_the_area_near_a_kept_roi():
    lattice, nothing = Lattice(1000, 800), Nuclei.of([400.0], [100.0], ["NILM"])
    far = Detections(np.array([300.0, 700.0]), np.array([400.0, 400.0]), np.ones(2))
    counts = field_counts.field_counts(AnnotatedField("a", far, nothing, lattice), 0.5, 100)
    assert counts.covered == pytest.approx(2 * math.pi * 100**2 / 800_000, rel=0.01)
    none = AnnotatedField("a", far.at(2), nothing, lattice)
    assert field_counts.field_counts(none, 0.5, 100).covered == 0


def test_without_stage_2_there_is_no_end_to_end(fields):
    plain = [dataclasses.replace(field, cells=None) for field in fields]
    found = evaluate(plain, threshold=0.5, complete=True, resamples=50)
    whole = evaluate(fields, threshold=0.5, complete=True, resamples=50)
    assert found.confusion is None
    names = {figure.name for figure in found.figures}
    assert {figure.name for figure in whole.figures} - names == {
        *(f"sensitivity {name}" for name in (*STAGE2_CLASSES, "HSIL+")),
        "specificity HSIL+",
    }
    for figure in found.figures:
        assert figure == whole.figure(figure.name)
    assert set(field_figures.pictures(found)) == {"froc", "fields_precision_recall"}


def test_a_low_threshold_serves_all_above_it():
    rng = np.random.default_rng(0)
    scores, lattice = rng.random((20, 30)).astype(np.float32), Lattice(875, 625)
    low = Detections.of_scores(scores, lattice, threshold=0.1, radius=60, scale=2)
    assert (lattice.rows, lattice.columns) == scores.shape
    for threshold in (0.1, 0.5, float(scores[3, 3]), 0.9):
        kept = suppression.keep(scores, threshold, 60, 25)
        high = low.at(threshold)
        expected = [((25 * c + 75) * 2, (25 * r + 75) * 2) for r, c in kept.tolist()]
        assert list(zip(high.x.tolist(), high.y.tolist(), strict=True)) == expected
        np.testing.assert_array_equal(high.scores, scores[tuple(kept.T)].astype(float))


def test_incomplete_truth_marks_what_counts_false_positives(fields):
    found = evaluate(fields, threshold=0.5, complete=False, resamples=50)
    unreliable = {figure.name for figure in found.figures if not figure.reliable}
    assert unreliable == {
        "precision",
        "f1",
        "false_positives_per_field",
        "false_positives_per_megapixel",
        "average_precision",
        "mean_recall",
        *(f"recall_at_{rate}" for rate in field_evaluation.RATES),
    }
    reason = "an unannotated cell counts as a false positive"
    assert {found.figure(name).note for name in unreliable} == {reason}
    text = " ".join(found.lines())
    assert text.count(f"Not reliable: {reason}.") == 3
    complete = evaluate(fields, threshold=0.5, complete=True, resamples=50)
    assert all(figure.reliable for figure in complete.figures)
    assert "eliable" not in " ".join(complete.lines())


def test_one_field_has_no_interval(fields):
    found = evaluate(fields[:1], threshold=0.5, complete=True)
    assert all(math.isnan(figure.low) and math.isnan(figure.high) for figure in found.figures)
    assert found.lines()[-1] == "One field alone gives no interval."
    assert "no interval" in str(found.figure("recall"))
    for picture in field_figures.pictures(found).values():
        ElementTree.fromstring(picture)


def empty(name="empty", nuclei=None):
    nothing = Detections(*np.zeros((3, 0)))
    nuclei = Nuclei.of([], [], []) if nuclei is None else nuclei
    return AnnotatedField(name, nothing, nuclei, Lattice(640, 480), 1.0, Cells.empty())


def unannotated():
    field = one_field(np.random.default_rng(0), "a", threshold=0)
    return dataclasses.replace(field, nuclei=Nuclei.of([], [], []))


ONE = Nuclei.of([200], [200], ["SCC"])


@pytest.mark.parametrize(
    ("given", "recall", "precision"),
    [
        ([empty(), empty()], math.nan, math.nan),
        ([empty(nuclei=ONE), empty(nuclei=ONE)], 0.0, math.nan),
        ([unannotated(), unannotated()], math.nan, 0.0),
    ],
    ids=["nothing", "nothing found", "nothing annotated"],
)
def test_borders(given, recall, precision):
    found = evaluate(given, threshold=0.5, complete=True, resamples=50)
    for name, value in (("recall", recall), ("precision", precision)):
        assert found.figure(name).value == pytest.approx(value, nan_ok=True)
    for figure in found.figures:
        assert math.isfinite(figure.value) or figure.note
    text = json.dumps(found.json(), allow_nan=False)
    assert "nan" not in " ".join(json.loads(text)["lines"])
    for picture in field_figures.pictures(found).values():
        ElementTree.fromstring(picture)


def test_what_is_found_and_named_right_throughout():
    nuclei = Nuclei.of([200, 300, 400, 500], [200] * 4, STAGE2_CLASSES)
    cells = Cells(nuclei.x, nuclei.y, np.ones(4), np.eye(4), np.eye(4)[2], np.zeros(4, bool))
    detections = Detections(nuclei.x, nuclei.y, np.ones(4))
    field = AnnotatedField("a", detections, nuclei, Lattice(640, 480), 1.0, cells)
    found = evaluate([field, field], threshold=0.5, complete=True, resamples=50)
    shares = [f for f in found.figures if f.unit == "share" and f.name != "recall_by_chance"]
    defined = [figure for figure in shares if "ASC" not in figure.name]
    assert {figure.value for figure in defined} == {1.0}
    assert found.figure("false_positives_per_field").value == 0
    np.testing.assert_array_equal(np.array(found.confusion)[:4], np.eye(4, 5) * 2)


def test_a_nucleus_outside_its_field_is_refused():
    with pytest.raises(PapError, match=r"a: a nucleus .* \(900, 20\), outside its 640 x 480"):
        empty("a", Nuclei.of([5, 900], [10, 20], ["NILM", "NILM"]))


@pytest.mark.parametrize(
    ("count", "radius", "message"),
    [(0, None, "expected annotated fields"), (1, 0.0, "match radius 0"), (1, math.nan, "nan")],
)
def test_what_cannot_be_evaluated(fields, count, radius, message):
    with pytest.raises(PapError, match=message):
        evaluate(fields[:count], threshold=0.5, complete=True, match_radius=radius)


def test_sentences(fields, evaluation):
    lines = evaluation.lines()
    atypical = [evaluation.annotated[name] for name in ("ASC-US", "ASC-H")]
    assert lines[0] == (
        f"5 fields, 1.5 megapixels, {evaluation.nuclei} annotated nuclei; {atypical[0]} ASC-US and "
        f"{atypical[1]} ASC-H count in detection only, as no class of stage 2."
    )
    assert "within 32 px of it (pixels of the field as read)" in lines[1]
    assert f"finds {evaluation.figure('recall')} of the nuclei" in lines[2]
    assert f"HSIL+ {evaluation.figure('sensitivity HSIL+')} of " in lines[-1]
    assert f"NILM and LSIL nuclei found: {evaluation.figure('specificity HSIL+')}." in lines[-1]
    given = evaluate(fields, threshold=0.5, complete=True, match_radius=20.5, resamples=50)
    assert "within 20.5 px of it (pixels of the file)" in given.lines()[1]


@pytest.mark.parametrize("form", ["svg", "png"])
def test_figures_are_the_same_bytes_each_time(evaluation, form):
    first = field_figures.pictures(evaluation, form)
    assert list(first) == list(field_figures.NAMES)
    assert first == field_figures.pictures(evaluation, form)
    for picture in first.values():
        assert picture.startswith(b"\x89PNG" if form == "png" else b"<?xml")


@pytest.fixture
def scan_directory(tmp_path, fields):
    """A scan of three fields, of which the last has no truth."""
    rng = np.random.default_rng(0)
    run = RunDirectory(tmp_path / "scan")
    rows = ["field,x,y,label"]
    for number, field in enumerate(fields[:3]):
        lattice, folder = field.lattice, run.path / "fields" / f"id{number}"
        scores = rng.random((lattice.rows, lattice.columns)).astype(np.float32)
        kept = Detections.of_scores(scores, lattice, threshold=0.7, radius=50)
        named = rng.dirichlet(np.ones(4), len(kept))
        Cells(
            kept.x, kept.y, kept.scores, named, named[:, 3], np.zeros(len(kept), bool)
        ).sorted().write(folder / "cells.csv")
        np.save(folder / "scores.npy", scores)
        info = {
            "id": f"id{number}",
            "name": f"{number}.jpg",
            "scale": 1.0,
            "lattice": dataclasses.asdict(lattice),
            "truth": str(tmp_path / "nuclei.csv") if number < 2 else None,
        }
        files.write_json(folder / "field.json", info)
        nuclei = field.nuclei
        rows += [
            f"{number}.jpg,{x},{y},{label}"
            for x, y, label in zip(nuclei.x, nuclei.y, nuclei.labels, strict=True)
        ]
    (tmp_path / "nuclei.csv").write_text("\n".join(rows))
    settings = {"threshold": 0.7, "radius": 50.0, "stride": 25}
    manifest = {"fields": ["id0", "id1", "id2"], "settings": settings}
    files.write_json(run.manifest_path, manifest)
    return run


def test_a_scan_is_measured_from_its_files(scan_directory, fields):
    found = scan_evaluation.evaluate_scan(scan_directory, complete=True)
    written = files.read_json(scan_directory.path / "evaluation.json")
    assert written == found.json()
    assert (written["fields"], written["threshold"]) == (2, 0.7)
    assert sum(written["annotated"].values()) == len(fields[0].nuclei) + len(fields[1].nuclei)
    kept = [
        len(Cells.read(scan_directory.path / "fields" / name / "cells.csv"))
        for name in ("id0", "id1")
    ]
    assert written["detections"] == sum(kept)
    # All scores are there for the curve, not only those of kept cells.
    assert min(written["curve"]["thresholds"]) < 0.7
    for name in field_figures.NAMES:
        ElementTree.fromstring((scan_directory.path / f"{name}.svg").read_bytes())


def test_a_scan_without_truth_has_no_evaluation(scan_directory):
    scan_evaluation.evaluate_scan(scan_directory, complete=True)
    truth = scan_directory.path.parent / "nuclei.csv"
    truth.write_text("field,x,y,label\nother.jpg,1,2,NILM\n")
    assert scan_evaluation.evaluate_scan(scan_directory, complete=True) is None
    assert sorted(path.name for path in scan_directory.path.iterdir()) == [
        "fields",
        "manifest.json",
    ]


def test_broken_truth_of_a_scan_is_named(scan_directory):
    truth = scan_directory.path.parent / "nuclei.csv"
    truth.write_text("field,x,y,label\n0.jpg,1,2,CIN3\n")
    with pytest.raises(PapError, match=r"nuclei\.csv, line 2: expected one of the labels"):
        scan_evaluation.evaluate_scan(scan_directory, complete=True)
