"""Calibration against scikit-learn, naive loops and a temperature that is known."""

import dataclasses

import numpy as np
import pytest
from scipy import special
from sklearn import metrics
from sklearn.calibration import calibration_curve

from replication.measures import calibration
from replication.measures.positive import positive_class
from replication.measures.predictions import Predictions
from tfds_pap.taxonomy import STAGE1_CLASSES, STAGE2_CLASSES


def predictions(count=600, names=STAGE2_CLASSES, temperature=1.0, roles=("tune", "test"), groups=0):
    """The truth is drawn from the softmax; the model says the softmax of logits x temperature."""
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 2, (count, len(names)))
    chances = special.softmax(logits, axis=1)
    labels = (rng.random((count, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(max=len(names) - 1)
    return Predictions(
        [f"i{i:05d}" for i in range(count)],
        [f"g{i % groups}" if groups else "" for i in range(count)],
        [roles[i % len(roles)] for i in range(count)],
        labels,
        special.softmax(logits * temperature, axis=1),
        names,
    )


@pytest.mark.parametrize("truth", [0.4, 1.0, 2.5])
def test_temperature_that_was_put_on_is_found(truth):
    tune = predictions(8000, temperature=truth, roles=("tune",))
    found = calibration.fit_temperature(tune)
    assert found == pytest.approx(truth, rel=0.05)
    # The minimum of scikit-learn's own log loss: a little to either side is worse.
    losses = [
        metrics.log_loss(tune.labels, calibration.apply_temperature(tune, t).probabilities)
        for t in (0.97 * found, found, 1.03 * found)
    ]
    assert min(losses) == losses[1]


def test_temperature_keeps_the_named_class_and_one_keeps_all():
    p = predictions(temperature=3)
    softened = calibration.apply_temperature(p, 2.5)
    assert (softened.predicted == p.predicted).all()
    assert (softened.probabilities.max(axis=1) < p.probabilities.max(axis=1)).all()
    same = calibration.apply_temperature(p, 1)
    np.testing.assert_allclose(same.probabilities, p.probabilities, rtol=1e-12, atol=1e-37)


def test_certain_probabilities_stay_finite():
    certain = np.eye(4)[[0, 1, 2, 3, 0, 1]]
    tune = Predictions(
        "abcdef", [""] * 6, ["tune"] * 6, [0, 1, 2, 3, 0, 2], certain, STAGE2_CLASSES
    )
    temperature = calibration.fit_temperature(tune)
    # 5 of 6 are right, so that the softened confidence has to be 5/6.
    softened = calibration.apply_temperature(tune, temperature).probabilities
    assert np.isfinite(softened).all()
    assert softened.max() == pytest.approx(5 / 6, abs=1e-4)


def test_temperature_ends_at_a_bound_where_the_model_is_always_wrong():
    tune = Predictions(
        "ab", ["", ""], ["tune"] * 2, [0, 1], [[0.2, 0.8], [0.8, 0.2]], STAGE1_CLASSES
    )
    assert calibration.fit_temperature(tune) == pytest.approx(100, rel=1e-3)
    both = dataclasses.replace(
        tune, ids="abcd", groups=[""] * 4, splits=["tune", "tune", "test", "test"],
        labels=[0, 1, 0, 1], probabilities=np.tile(tune.probabilities, (2, 1)),
    )  # fmt: skip
    assert "end of the range" in calibration.calibrate(both).note


def test_all_tune_images_right_leave_the_probabilities_alone():
    p = predictions(40)
    sure = np.where(np.eye(4)[p.labels] > 0, 0.7, 0.1)
    found = calibration.calibrate(dataclasses.replace(p, probabilities=sure))
    assert found.temperature == 1 and "named right" in found.note
    assert found.after.brier.value == pytest.approx(found.before.brier.value)


def test_temperature_refuses_test_images_and_nothing():
    with pytest.raises(ValueError, match="tune images alone, got test images"):
        calibration.fit_temperature(predictions(20))
    with pytest.raises(ValueError, match="tune images, got none"):
        calibration.fit_temperature(predictions(20, roles=("test",)).select("tune"))
    with pytest.raises(ValueError, match="temperature: expected a number above 0"):
        calibration.apply_temperature(predictions(20), 0)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_reliability_is_that_of_scikit_learn(bins):
    p = predictions(500, temperature=1.7, roles=("test",))
    hits, sure = p.predicted == p.labels, p.probabilities.max(axis=1)
    scores = calibration.calibrate(p, bins).before
    found, ece = scores.bins, scores.ece
    accuracy, confidence = calibration_curve(hits, sure, n_bins=bins, strategy="uniform")
    np.testing.assert_allclose([b.accuracy for b in found], accuracy)
    np.testing.assert_allclose([b.confidence for b in found], confidence)
    assert sum(b.count for b in found) == 500
    assert all(b.low <= b.accuracy <= b.high and b.upper > b.lower for b in found)
    counts = np.array([b.count for b in found])
    expected = (counts * np.abs(accuracy - confidence)).sum() / 500
    assert ece.value == pytest.approx(expected) and ece.method.startswith("no interval")


def test_a_score_on_an_edge_belongs_to_the_lower_bin():
    p = Predictions("ab", ["", ""], ["test"] * 2, [0, 1], [[0.6, 0.4], [0.5, 0.5]], STAGE1_CLASSES)
    found = calibration.calibrate(p, bins=2).before.bins
    assert [(b.lower, b.upper, b.count) for b in found] == [(0, 0.5, 1), (0.5, 1, 1)]


def test_brier_score_is_the_sum_over_the_classes():
    p = predictions(200, roles=("test",))
    total = 0.0
    for label, row in zip(p.labels, p.probabilities, strict=True):
        total += sum((value - (c == label)) ** 2 for c, value in enumerate(row))
    assert calibration.calibrate(p).before.brier.value == pytest.approx(total / 200)
    two = predictions(200, STAGE1_CLASSES, roles=("test",))
    binary = metrics.brier_score_loss(two.labels, two.probabilities[:, 1])
    assert calibration.calibrate(two).before.brier.value == pytest.approx(2 * binary)


def test_hsil_plus_is_judged_as_one_probability():
    p = predictions(600, temperature=2)
    test = p.select("test")
    score, truth = positive_class(test).scores, test.labels >= 2
    np.testing.assert_allclose(score, test.probabilities[:, 2] + test.probabilities[:, 3])
    found = calibration.calibrate(p).hsil_plus_before
    assert found.brier.value == pytest.approx(metrics.brier_score_loss(truth, score))
    assert found.log_loss.value == pytest.approx(metrics.log_loss(truth, score))
    accuracy, confidence = calibration_curve(truth, score, n_bins=15)
    np.testing.assert_allclose([b.accuracy for b in found.bins], accuracy)
    np.testing.assert_allclose([b.confidence for b in found.bins], confidence)


def test_positive_class_goes_by_name_not_by_place():
    p = predictions(30)
    order = [3, 0, 2, 1]
    turned = Predictions(
        p.ids, p.groups, p.splits, np.argsort(order)[p.labels], p.probabilities[:, order],
        [STAGE2_CLASSES[c] for c in order],
    )  # fmt: skip
    one, other = positive_class(p), positive_class(turned)
    np.testing.assert_allclose(one.scores, other.scores)
    assert (one.truth == other.truth).all() and one.name == other.name == "HSIL+"
    cells = predictions(30, STAGE1_CLASSES)
    np.testing.assert_allclose(positive_class(cells).scores, cells.probabilities[:, 1])
    assert positive_class(predictions(30, ("normal", "abnormal"))) is None


def test_an_overconfident_model_gets_better():
    found = calibration.calibrate(predictions(3000, temperature=3))
    assert found.temperature == pytest.approx(3, rel=0.15)
    assert found.after.ece.value < found.before.ece.value / 2
    assert found.after.log_loss.value < found.before.log_loss.value
    assert found.after.brier.value < found.before.brier.value
    # What is left is what chance leaves.
    assert found.after.ece.value < found.after.ece_if_calibrated.high < found.before.ece.value
    assert (found.tune_images, found.test_images) == (1500, 1500)


def test_labels_of_the_test_images_do_not_move_the_temperature():
    p = predictions(300, temperature=2)
    is_test = np.array(p.splits) == "test"
    other = dataclasses.replace(p, labels=np.where(is_test, (p.labels + 1) % 4, p.labels))
    one, two = (calibration.calibrate(q) for q in (p, other))
    assert one.temperature == two.temperature and one.before != two.before


def test_without_tune_images_nothing_is_fitted():
    found = calibration.calibrate(predictions(100, STAGE1_CLASSES, roles=("test",)))
    assert found.temperature is None and found.after is None and found.hsil_plus_before is None
    assert "no tune images" in found.note and found.before.ece.count == 100
    with pytest.raises(ValueError, match="test images, got none"):
        calibration.calibrate(predictions(20, roles=("tune",)))


def test_intervals_draw_whole_groups_and_do_not_depend_on_the_order_of_rows():
    p = predictions(200, roles=("test",), groups=8)
    brier = calibration.calibrate(p).before.brier
    assert "design effect of groups" in brier.method
    assert 0 <= brier.low < brier.value < brier.high <= 2
    again = calibration.calibrate(p.take(range(len(p))[::-1])).before.brier
    assert (again.low, again.high) == pytest.approx((brier.low, brier.high))


def test_error_of_a_calibrated_model_matches_its_prediction():
    p = predictions(800, roles=("test",))
    scores = calibration.calibrate(p).before
    assert scores.ece_if_calibrated.low <= scores.ece.value <= scores.ece_if_calibrated.high


def test_malformed_bins():
    with pytest.raises(ValueError, match="bins: expected 1 or more, got 0"):
        calibration.calibrate(predictions(20, roles=("test",)), bins=0)
