"""Thresholds and what they give, against scikit-learn, naive loops and cases done by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn import metrics

from replication.measures import abstention, calibration, triage
from replication.measures.intervals import wilson
from replication.measures.positive import positive_class
from replication.measures.predictions import Predictions
from tfds_pap.taxonomy import STAGE1_CLASSES, STAGE2_CLASSES


def predictions(count=400, names=STAGE2_CLASSES, roles=("tune", "test"), groups=0, skill=1.5):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, len(names), count)
    distance = np.abs(labels[:, None] - np.arange(len(names)))
    odds = np.exp(-skill * distance + rng.gumbel(0, 1, (count, len(names))))
    return Predictions(
        [f"i{i:05d}" for i in range(count)],
        [f"g{i % groups}" if groups else "" for i in range(count)],
        [roles[i % len(roles)] for i in range(count)],
        labels,
        odds / odds.sum(axis=1, keepdims=True),
        names,
    )


def two_class(scores, truth, splits):
    scores = np.asarray(scores, float)
    return Predictions(
        [f"i{i:03d}" for i in range(len(scores))],
        [""] * len(scores),
        splits,
        truth,
        np.stack([1 - scores, scores], axis=1),
        STAGE1_CLASSES,
    )


@pytest.mark.parametrize("target", [0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_thresholds_are_the_best_that_scikit_learns_curve_has(target, ties):
    rng = np.random.default_rng(1)
    truth = rng.random(300) < 0.3
    scores = np.clip(rng.normal(0.4 + 0.25 * truth, 0.15), 0, 1)
    scores = scores.round(1) if ties else scores
    false, true, thresholds = metrics.roc_curve(truth, scores, drop_intermediate=False)
    enough = np.flatnonzero((1 - false >= target) & np.isfinite(thresholds))
    chosen = triage.choose_threshold(scores, truth, "specificity", target)
    if len(enough):
        assert chosen == thresholds[enough].min()
        assert true[enough].max() == (scores[truth] >= chosen).mean()
    else:
        assert math.isnan(chosen)
    enough = np.flatnonzero(true >= target)
    chosen = triage.choose_threshold(scores, truth, "sensitivity", target)
    assert chosen == thresholds[enough].max()


def test_threshold_by_hand_with_a_tie_across_it():
    scores = np.array([0.1, 0.2, 0.3, 0.3, 0.5, 0.3, 0.6, 0.7])
    truth = np.array([0, 0, 0, 0, 0, 1, 1, 1], bool)
    # At 0.3 two of five negatives lie below; the next score up, 0.5, has four.
    assert triage.choose_threshold(scores, truth, "specificity", 0.4) == 0.3
    assert triage.choose_threshold(scores, truth, "specificity", 0.6) == 0.5
    assert triage.choose_threshold(scores, truth, "sensitivity", 2 / 3) == 0.6
    assert triage.choose_threshold(scores, truth, "sensitivity", 0.9) == 0.3
    with pytest.raises(ValueError, match="fixed: expected 'specificity' or 'sensitivity'"):
        triage.choose_threshold(scores, truth, "ppv", 0.9)


def test_points_on_the_test_images_are_counts_at_the_frozen_threshold():
    p = predictions()
    test, found = p.select("test"), triage.operating_points(p)
    scores, truth = positive_class(test).scores, test.labels >= 2
    assert [(q.fixed, q.target) for q in found.points] == [
        ("specificity", 0.9), ("specificity", 0.95), ("sensitivity", 0.9), ("sensitivity", 0.95),
    ]  # fmt: skip
    for point in found.points:
        (tn, fp), (fn, tp) = metrics.confusion_matrix(truth, scores >= point.threshold)
        assert point.sensitivity.value == tp / (tp + fn)
        assert point.specificity.value == tn / (tn + fp)
        assert (point.sensitivity.low, point.sensitivity.high) == wilson(tp, tp + fn)
        reached = getattr(point, f"tune_{point.fixed}")
        assert reached >= point.target and point.ppv is None
    assert found.roc_auc.value == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert found.test_positive == truth.sum() and found.positive == "HSIL+"


def test_test_images_do_not_move_a_threshold():
    p = predictions()
    is_test = np.array(p.splits) == "test"
    other = dataclasses.replace(
        p,
        labels=np.where(is_test, 3 - p.labels, p.labels),
        probabilities=np.where(is_test[:, None], p.probabilities[:, ::-1], p.probabilities),
    )
    for one, two in zip(
        triage.operating_points(p).points,
        triage.operating_points(other).points,
        strict=True,
    ):
        assert one.threshold == two.threshold and one.sensitivity != two.sensitivity
    one, two = (abstention.risk_coverage(q) for q in (p, other))
    assert one.threshold == two.threshold


def test_predictive_values_at_the_share_of_the_images_are_those_counted():
    p = predictions()
    test = p.select("test")
    scores, truth = positive_class(test).scores, test.labels >= 2
    for point in triage.operating_points(p, float(truth.mean())).points:
        called = scores >= point.threshold
        assert point.ppv.value == pytest.approx(truth[called].mean())
        assert point.npv.value == pytest.approx((~truth[~called]).mean())
        assert point.ppv.low < point.ppv.value < point.ppv.high


def test_rarer_is_less_predictive_and_the_note_says_where_it_holds():
    p = predictions()
    common, rare = (triage.operating_points(p, share) for share in (0.3, 0.01))
    assert rare.points[0].ppv.value < common.points[0].ppv.value
    assert rare.points[0].npv.value > common.points[0].npv.value
    assert "at a prevalence of 1 %" in rare.prevalence_note
    nothing = triage.operating_points(p).prevalence_note
    assert "not given" in nothing and "no prevalence" in nothing
    assert f"{rare.test_positive} of 200 test images" in nothing


@pytest.mark.parametrize("prevalence", [0, 1, -0.1, 2, math.nan])
def test_impossible_prevalence(prevalence):
    with pytest.raises(ValueError, match="prevalence: expected a number between 0 and 1"):
        triage.assess(predictions(40), prevalence)


def test_perfect_test_images_give_no_certainty():
    splits = ["tune", "test"] * 20
    truth = np.repeat([0, 1], 20)
    p = two_class(np.where(truth, 0.9, 0.1), truth, splits)
    point = triage.operating_points(p, 0.01).points[0]
    assert point.ppv.value == 1 and point.ppv.low < 0.1 and point.npv.low < 1


def test_shares_are_by_group_where_groups_are_known():
    grouped, single = (triage.operating_points(predictions(groups=n)).points for n in (12, 0))
    for by_group, by_image in zip(grouped, single, strict=True):
        for name in ("sensitivity", "specificity"):
            assert getattr(by_group, name).value == getattr(by_image, name).value
            assert "design effect of groups" in getattr(by_group, name).method
            assert getattr(by_image, name).method == "Wilson"


def test_specificity_that_no_threshold_reaches():
    # The surest tune image is negative, so that every threshold calls at least one wrongly.
    p = two_class([0.9, 0.8, 0.2, 0.9, 0.1], [0, 1, 0, 1, 0], ["tune"] * 3 + ["test"] * 2)
    point = triage.operating_points(p, 0.1).points[0]
    assert math.isnan(point.threshold) and "reaches a specificity of 90 %" in point.reason
    assert math.isnan(point.sensitivity.value) and math.isnan(point.ppv.value)


def test_tune_images_of_one_kind_give_a_reason():
    p = two_class([0.9, 0.8, 0.9, 0.1], [1, 1, 1, 0], ["tune"] * 2 + ["test"] * 2)
    points = triage.operating_points(p).points
    assert {point.reason for point in points} == {"no tune image is not cell"}
    q = two_class([0.9, 0.8, 0.9, 0.1], [0, 0, 1, 0], ["tune"] * 2 + ["test"] * 2)
    assert triage.operating_points(q).points[0].reason == "no tune image is cell"


def test_test_images_of_one_kind_leave_the_other_undefined():
    p = two_class([0.9, 0.1, 0.9, 0.8], [1, 0, 1, 1], ["tune"] * 2 + ["test"] * 2)
    found = triage.operating_points(p, 0.1)
    assert math.isnan(found.roc_auc.value) and math.isnan(found.points[0].specificity.value)
    assert found.points[0].sensitivity.value == 0.5
    assert "sensitivity or specificity is" in found.points[0].ppv.method


def naive_curve(p):
    sure, wrong = p.probabilities.max(axis=1), p.predicted != p.labels
    rows = []
    for threshold in sorted(set(sure), reverse=True):
        kept = [w for s, w in zip(sure, wrong, strict=True) if s >= threshold]
        rows.append((len(kept) / len(p), sum(kept) / len(kept), threshold))
    risks = []
    for one in sure:
        kept = [w for s, w in zip(sure, wrong, strict=True) if s >= one]
        risks.append(sum(kept) / len(kept))
    return np.array(rows).T, np.mean(risks)


@pytest.mark.parametrize("digits", [1, 12])
def test_risk_and_coverage_are_those_of_a_loop(digits):
    p = predictions(160, STAGE1_CLASSES)
    p = dataclasses.replace(p, probabilities=p.probabilities.round(digits))
    test, tune = p.select("test"), p.select("tune")
    (coverage, risk, thresholds), area = naive_curve(test)
    found = abstention.risk_coverage_curve(test)
    for got, expected in zip(found, (coverage, risk, thresholds), strict=True):
        np.testing.assert_allclose(got, expected)
    frozen = abstention.risk_coverage(p)
    assert frozen.aurc.value == pytest.approx(area)
    assert math.isnan(frozen.aurc.low) and frozen.aurc.method.startswith("no interval")
    sure = tune.probabilities.max(axis=1)
    assert (sure >= frozen.threshold).mean() >= 0.9 > (sure > frozen.threshold).mean()
    kept = test.probabilities.max(axis=1) >= frozen.threshold
    wrong = test.predicted != test.labels
    assert frozen.coverage.value == kept.mean() and frozen.risk.value == wrong[kept].mean()
    assert frozen.risk.count == kept.sum() and frozen.risk_of_all.value == wrong.mean()


def test_equal_confidence_enters_together_and_tells_nothing():
    p = two_class([0.8] * 20, [1, 0] * 10, ["tune"] * 10 + ["test"] * 10)
    found = abstention.risk_coverage(p)
    assert found.tune_coverage == found.coverage.value == 1
    assert found.aurc.value == found.risk.value == found.risk_of_all.value == 0.5


def test_no_test_image_sure_enough():
    p = two_class([0.99] * 5 + [0.6] * 5, [1] * 10, ["tune"] * 5 + ["test"] * 5)
    found = abstention.risk_coverage(p)
    assert found.coverage.value == 0 and math.isnan(found.risk.value)


def test_malformed_coverage():
    with pytest.raises(ValueError, match="coverage: expected a number above 0 and up to 1, got 0"):
        abstention.risk_coverage(predictions(20), 0)


def test_assess_uses_the_scale_of_the_temperature_and_is_json():
    p = predictions(groups=15)
    found = triage.assess(p, 0.02)
    json.dumps(found, allow_nan=False)
    assert list(found) == ["calibration", "operating_points", "risk_coverage"]
    scaled = calibration.apply_temperature(p, found["calibration"]["temperature"])
    frozen = found["risk_coverage"]["threshold"]
    assert frozen in scaled.select("tune").probabilities.max(axis=1)
    scores = positive_class(scaled.select("tune")).scores
    assert all(point["threshold"] in scores for point in found["operating_points"]["points"])
    # The order of the rows moves nothing.
    assert triage.assess(p.take(range(len(p))[::-1]), 0.02) == found


def test_stage_1_gets_points_but_no_prevalence_of_hsil_plus():
    found = triage.assess(predictions(100, STAGE1_CLASSES), 0.02)["operating_points"]
    assert found["positive"] == "cell" and found["prevalence"] is None
    assert found["points"][0]["ppv"] is None and len(found["points"]) == 4


def test_without_tune_images_no_threshold():
    found = triage.assess(predictions(100, STAGE1_CLASSES, roles=("test",)))
    assert found["operating_points"]["points"] == [] and found["calibration"]["temperature"] is None
    assert "no tune images" in found["operating_points"]["note"]
    frozen = found["risk_coverage"]
    assert frozen["threshold"] is None and frozen["coverage"]["value"] is None
    assert frozen["aurc"]["value"] is not None and "no tune images" in frozen["note"]


def test_other_classes_have_no_positive_one():
    found = triage.assess(predictions(100, ("normal", "abnormal", "other")))
    assert found["operating_points"] is None and found["risk_coverage"]["threshold"] is not None
