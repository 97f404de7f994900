import dataclasses
import math

import numpy as np
import pytest

from replication.measures.evaluation import Predictions, evaluate, wilson
from replication.measures.published import PUBLISHED, published, verdict
from tfds_pap.taxonomy import STAGE2_CLASSES

P6 = published("P6.accuracy")

#: P6 on DB_4/validation, as its authors print it in order of their folder digits (HSIL, LSIL, NILM,
#: SCC), here in order of severity: rows true, columns predicted.
P6_CONFUSION = [[199, 1, 0, 0], [0, 197, 2, 1], [0, 1, 191, 8], [0, 4, 5, 191]]


def as_predictions(matrix, names):
    cells = [
        (true, said)
        for true, row in enumerate(matrix)
        for said, count in enumerate(row)
        for _ in range(count)
    ]
    return Predictions(
        ids=tuple(map(str, range(len(cells)))),
        groups=("",) * len(cells),
        splits=("test",) * len(cells),
        labels=np.array([true for true, _ in cells]),
        probabilities=np.eye(len(names))[[said for _, said in cells]],
        class_names=tuple(names),
    )


def test_every_part_is_there_with_a_source():
    assert {figure.part for figure in PUBLISHED} == {"P1", "P2", "P3", "P4", "P5", "P6"}
    keys = [figure.key for figure in PUBLISHED]
    assert len(keys) == len(set(keys))
    for figure in PUBLISHED:
        assert figure.key.startswith(figure.part + ".")
        assert figure.stage == (1 if figure.part == "P1" else 2)
        assert figure.source
        assert figure.what
        assert figure.note
        if figure.interval:
            ends = figure.value if isinstance(figure.value, tuple) else (figure.value,) * 2
            assert figure.interval[0] <= ends[0] <= ends[1] <= figure.interval[1]
            assert figure.test_count


@pytest.mark.parametrize(
    ("key", "successes", "total"),
    [
        ("P1.accuracy", 397, 400),
        ("P2.accuracy", 623, 800),
        ("P2.validation_accuracy", 635, 800),
        ("P6.accuracy", 778, 800),
    ],
)
def test_intervals_come_from_whole_images(key, successes, total):
    figure = published(key)
    assert successes / total == pytest.approx(figure.value, abs=6e-4)
    assert figure.interval == wilson(successes, total)
    assert figure.test_count == total


def test_the_range_read_off_a_curve():
    figure = published("P3.validation_accuracy")
    assert figure.value == (0.91, 0.925)
    assert figure.text == "0.91 to 0.925"
    assert figure.interval == (wilson(728, 800)[0], wilson(740, 800)[1])
    assert "curve" in figure.source


def test_what_is_not_published_stays_empty():
    figure = published("P4.accuracy")
    assert (figure.value, figure.interval, figure.text) == (None, None, "not published")
    assert "ResNet152" in figure.note
    best = {f.metric: f.value for f in PUBLISHED if f.part == "P5"}
    assert best["units"] == 64
    assert (best["hidden_layers"], best["dropout"], best["learning_rate"]) == (1, 0.2, 0.01)
    with pytest.raises(ValueError, match=r"expected one of P1\.accuracy"):
        published("P7.accuracy")


def test_the_published_matrix_gives_the_published_figures():
    results = evaluate(as_predictions(P6_CONFUSION, STAGE2_CLASSES), resamples=100)
    assert results["confusion_matrix"] == P6_CONFUSION
    assert results["accuracy"].value == P6.value == 0.9725
    assert (results["accuracy"].low, results["accuracy"].high) == P6.interval
    macro = {name: figure.value for name, figure in results["macro"].items()}
    assert macro["sensitivity"] == pytest.approx(published("P6.recall").value, abs=1e-12)
    precision = macro["precision"]
    assert f"the published matrix that is {precision:.4f}" in published("P6.precision").note
    by_class = {
        name: [of[key].value for key in ("sensitivity", "specificity")]
        for name, of in results["per_class"].items()
    }
    assert by_class == {
        "NILM": pytest.approx([0.995, 1]),
        "LSIL": pytest.approx([0.985, 0.99]),
        "HSIL": pytest.approx([0.955, 593 / 600]),
        "SCC": pytest.approx([0.955, 0.985]),
    }
    assert results["hsil_plus_sensitivity"].value == (191 + 8 + 5 + 191) / 400
    # The published 0.9908 is a batch average over one-hot cells. With 200 images of every class the
    # mean over classes and the pooled cells coincide, 2378 / 2400, and both round to 0.9908. It is
    # no class's own specificity: these run from 0.985 (SCC) to 1 (NILM).
    assert macro["specificity"] == pytest.approx((3 * 800 - 22) / (3 * 800), abs=1e-12)
    assert round(macro["specificity"], 4) == published("P6.specificity").value == 0.9908
    assert 0.9908 not in [round(specificity, 4) for _, specificity in by_class.values()]


def test_verdicts_compare_intervals():
    low, high = P6.interval
    # The measured point 0.955 is lower, but the intervals overlap.
    assert verdict(P6, 0.94, 0.965, source="original") == "agrees (intervals overlap)"
    assert verdict(P6, 0.9, low, source="original").startswith("agrees")
    assert verdict(P6, high, 1, source="original").startswith("agrees")
    assert verdict(P6, 0.9, low - 1e-9, source="original").startswith("lower (measured 0.9000 to")
    assert verdict(P6, high + 1e-9, 1, source="original").startswith("higher (")
    assert "published 0.9587 to 0.9818" in verdict(P6, 0.1, 0.2, source="original")


@pytest.mark.parametrize("figure", PUBLISHED, ids=lambda figure: figure.key)
@pytest.mark.parametrize("interval", [(0, 1), (0, 0.1), (1, 1), (math.nan, math.nan)])
def test_nothing_on_other_images_is_a_replication(figure, interval):
    for source, words in (
        ("phantom", "phantom data"),
        ("stand-in", "other images"),
        ("undeclared", "whose images is not declared"),
    ):
        said = verdict(figure, *interval, source=source)
        assert said.startswith(f"not comparable: {words}")
        assert not any(word in said for word in ("agrees", "lower", "higher", "overlap"))


def test_no_interval_no_verdict():
    assert verdict(P6, math.nan, math.nan, source="original").startswith("no verdict")
    loss = published("P6.loss")
    said = verdict(loss, 0.05, 0.2, source="original")
    assert said == "no verdict (measured 0.0500 to 0.2000, published no interval)"
    said = verdict(published("P4.accuracy"), 0.9, 0.95, source="original")
    assert said == "no verdict (measured 0.9000 to 0.9500, published no figure)"


def test_verdict_refuses_bad_input():
    with pytest.raises(
        ValueError, match="original, phantom, stand-in or undeclared, got 'folders'"
    ):
        verdict(P6, 0.9, 0.95, source="folders")
    with pytest.raises(ValueError, match="low <= high"):
        verdict(P6, 0.95, 0.9, source="original")


def test_figures_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        P6.value = 1.0
