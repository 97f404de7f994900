import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from replication.measures.class_figures import mean_figures
from replication.measures.evaluation import (
    Estimate,
    Predictions,
    _values,
    evaluate,
    jsonable,
    summarise_seeds,
    wilson,
)
from tfds_pap import files

# A figure without images must be NaN, not a warning.
pytestmark = pytest.mark.filterwarnings("error")

FOUR = ("NILM", "LSIL", "HSIL", "SCC")
TWO = ("background", "cell")


def make(labels, probabilities, names=FOUR, groups=None):
    n = len(labels)
    return Predictions(
        ids=tuple(f"image{i:04d}" for i in range(n)),
        groups=groups or ("",) * n,
        splits=("test",) * n,
        labels=np.asarray(labels),
        probabilities=np.asarray(probabilities),
        class_names=names,
    )


def random_predictions(seed=0, n=200, names=FOUR, skill=0.4, groups=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(names), size=n)
    labels[: len(names)] = range(len(names))
    shares = rng.dirichlet(np.ones(len(names)), n) * (1 - skill)
    shares[np.arange(n), labels] += skill
    # In fiftieths and as float32: with ties and zeros, as saturated models give them.
    probabilities = (rng.multinomial(50, shares) / 50).astype(np.float32)
    return make(labels, probabilities, names, groups)


def sure(labels, named, names=FOUR, groups=None):
    return make(labels, np.eye(len(names))[named], names, groups)


def estimates(results):
    if isinstance(results, Estimate):
        yield results
    elif isinstance(results, dict):
        for value in results.values():
            yield from estimates(value)


@pytest.mark.parametrize("names", [FOUR, TWO, ("a", "b", "c")])
@pytest.mark.parametrize("seed", range(4))
def test_values_and_statistics_of_resamples_equal_scikit_learn(names, seed):
    p = random_predictions(seed, names=names, skill=0.3)
    n, k = len(p), len(names)
    rng = np.random.default_rng(seed)
    drawn = [np.arange(n), *(rng.integers(n, size=n) for _ in range(3))]
    for rows in drawn:
        # Predictions name each image once.
        some = make(p.labels[rows], p.probabilities[rows], names)
        yb, qb, sb = some.labels, some.predicted, some.probabilities
        clean = sb / sb.sum(axis=1, keepdims=True)
        expected = {
            "accuracy": metrics.accuracy_score(yb, qb),
            "balanced_accuracy": metrics.balanced_accuracy_score(yb, qb),
            "macro_precision": metrics.precision_score(yb, qb, average="macro"),
            "macro_f1": metrics.f1_score(yb, qb, average="macro"),
            "weighted_precision": metrics.precision_score(yb, qb, average="weighted"),
            "weighted_sensitivity": metrics.recall_score(yb, qb, average="weighted"),
            "weighted_f1": metrics.f1_score(yb, qb, average="weighted"),
            "quadratic_kappa": metrics.cohen_kappa_score(yb, qb, weights="quadratic"),
            "macro_specificity": np.mean(
                [metrics.recall_score(yb != c, qb != c) for c in range(k)]
            ),
        }
        matrix = metrics.confusion_matrix(yb, qb, labels=range(k)).astype(float)
        fast = mean_figures(np.ones(k, bool), range(k), list(expected))(matrix[None, None])
        values = _values(some)
        for name, value in expected.items():
            assert fast[name][0] == pytest.approx(value, abs=1e-12), name
            if name == "quadratic_kappa" and names not in (FOUR, TWO):
                # Nobody said that these classes have an order.
                assert name not in values
                continue
            assert values[name] == pytest.approx(value, abs=1e-12), name
        for c in range(k):
            of_class = {
                f"f1 {c}": metrics.f1_score(yb == c, qb == c),
                f"roc_auc {c}": metrics.roc_auc_score(yb == c, sb[:, c]),
                f"pr_auc {c}": metrics.average_precision_score(yb == c, sb[:, c]),
            }
            for key, value in of_class.items():
                assert values[key] == pytest.approx(value, abs=1e-12), key
        assert values["log_loss"] == pytest.approx(metrics.log_loss(yb, clean, labels=range(k)))
        if names == FOUR:
            recall = metrics.recall_score(yb >= 2, qb >= 2)
            assert values["hsil_plus_sensitivity"] == pytest.approx(recall)
            other = metrics.recall_score(yb < 2, qb < 2)
            assert values["hsil_plus_specificity"] == pytest.approx(other)


def test_structure_of_the_results():
    p = random_predictions(1)
    results = evaluate(p, resamples=200)
    y, q = p.labels, p.predicted
    assert results["confusion_matrix"] == metrics.confusion_matrix(y, q).tolist()
    assert results["class_names"] == list(FOUR)
    assert results["accuracy"].value == metrics.accuracy_score(y, q)
    assert (results["accuracy"].low, results["accuracy"].high) == wilson((y == q).sum(), 200)
    assert results["majority_baseline"].value == np.bincount(y).max() / 200
    assert results["hsil_plus_sensitivity"].count == (y >= 2).sum()
    assert results["hsil_plus_specificity"].value == ((y < 2) & (q < 2)).sum() / (y < 2).sum()
    for c, name in enumerate(FOUR):
        figures = results["per_class"][name]
        tp, called = ((y == c) & (q == c)).sum(), (q == c).sum()
        assert figures["support"] == (y == c).sum()
        assert figures["sensitivity"].value == tp / (y == c).sum()
        assert figures["ppv"].value == tp / called
        assert figures["ppv"].count == called
        assert figures["specificity"].count == (y != c).sum()
        assert figures["npv"].value == ((y != c) & (q != c)).sum() / (q != c).sum()
    for estimate in estimates(results):
        assert estimate.low <= estimate.value <= estimate.high or (
            math.isnan(estimate.low) and estimate.method.startswith("no interval")
        )
    assert set(results["macro"]) == {"precision", "sensitivity", "specificity", "f1"}
    assert set(results["weighted"]) == {"precision", "sensitivity", "f1"}


def test_one_role_at_a_time():
    p = random_predictions(n=10)
    mixed = dataclasses.replace(p, splits=("train", *p.splits[1:]))
    for function in (evaluate, lambda q: summarise_seeds([q])):
        with pytest.raises(ValueError, match="expected one split, got test, train"):
            function(mixed)
        with pytest.raises(ValueError, match="got none"):
            function(p.select("tune"))


def test_stage_1_has_no_hsil_plus():
    results = evaluate(random_predictions(2, names=TWO), resamples=100)
    assert not [key for key in results if key.startswith("hsil")]
    assert set(results["per_class"]) == set(TWO)


def test_textbook_quadratic_kappa():
    # Confusion [[2,1,0],[0,3,1],[1,0,2]]. Squared steps observed: 1 + 1 + 4 = 6. Expected from the
    # margins (3,4,3) and (3,4,3): (4 * 12 * 1 + 2 * 9 * 4) / 10 = 12. Kappa = 1 - 6 / 12.
    labels = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    named = [0, 0, 1, 1, 1, 1, 2, 0, 2, 2]
    results = evaluate(sure(labels, named, ("NILM", "LSIL", "HSIL")), resamples=50)
    assert results["quadratic_kappa"].value == pytest.approx(0.5, abs=1e-12)


def test_kappa_follows_severity_not_the_order_in_the_file():
    p = random_predictions(5)
    # Without ties: of two equal classes the first is named, whatever the order.
    p = dataclasses.replace(p, probabilities=np.eye(4)[p.predicted])
    # Neither its own inverse nor the reverse of that: the order read the wrong way round must show.
    order = [1, 2, 0, 3]
    shuffled = make(
        np.argsort(order)[p.labels], p.probabilities[:, order], tuple(FOUR[c] for c in order)
    )
    a, b = evaluate(p, resamples=100), evaluate(shuffled, resamples=100)
    for key in ("quadratic_kappa", "hsil_plus_sensitivity", "hsil_plus_specificity"):
        assert a[key].value == pytest.approx(b[key].value, abs=1e-12)
        assert (a[key].low, a[key].high) == pytest.approx((b[key].low, b[key].high), abs=1e-12)


def test_row_order_does_not_change_anything():
    p = random_predictions(6, groups=tuple(f"g{i % 23}" for i in range(200)))
    rows = np.random.default_rng(0).permutation(200)
    a, b = evaluate(p, resamples=200), evaluate(p.take(rows.tolist()), resamples=200)
    assert jsonable(a) == jsonable(b)


def clustered(seed=0, fields=40, size=10):
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(4, size=fields), size)
    right = rng.random(fields * size) < np.repeat(rng.beta(1.2, 0.4, fields), size)
    named = np.where(right, labels, (labels + 1) % 4)
    return labels, named, tuple(f"field{i // size}" for i in range(fields * size))


def test_intervals_by_group_are_wider_on_clustered_images():
    labels, named, groups = clustered()
    with_groups = evaluate(sure(labels, named, groups=groups), resamples=500)
    without = evaluate(sure(labels, named), resamples=500)
    for key in ("accuracy", "balanced_accuracy", "quadratic_kappa", "hsil_plus_sensitivity"):
        a, b = with_groups[key], without[key]
        assert a.value == b.value
        assert a.high - a.low > 1.5 * (b.high - b.low), key
    assert without["accuracy"].method == "Wilson"
    assert "design effect of groups" in with_groups["accuracy"].method
    assert "resampling of 40 groups" in with_groups["balanced_accuracy"].method


def test_one_unknown_group_means_images():
    labels, named, groups = clustered()
    results = evaluate(sure(labels, named, groups=("", *groups[1:])), resamples=50)
    assert results["accuracy"].method == "Wilson"
    assert "resampling of 400 images" in results["balanced_accuracy"].method


def test_what_no_method_can_tell_has_no_interval_and_says_why():
    results = evaluate(random_predictions(1), resamples=50)
    for figure in (
        results["log_loss"],
        results["pr_auc_macro"],
        results["per_class"]["SCC"]["pr_auc"],
    ):
        assert math.isfinite(figure.value)
        assert math.isnan(figure.low) and math.isnan(figure.high)
        assert figure.method.startswith("no interval: ")


def test_one_group_gives_no_interval():
    p = random_predictions(0, groups=("only",) * 200)
    results = evaluate(p, resamples=50)
    for figure in (results["accuracy"], results["balanced_accuracy"], results["macro"]["f1"]):
        assert math.isfinite(figure.value)
        assert math.isnan(figure.low) and math.isnan(figure.high)
        assert figure.method.startswith("no interval")


def test_a_class_without_images_is_nan():
    p = random_predictions(7)
    p = p.take(np.flatnonzero(p.labels != 3).tolist())
    assert (p.predicted == 3).any()
    results = evaluate(p, resamples=100)
    absent = results["per_class"]["SCC"]
    assert absent["support"] == 0
    assert all(math.isnan(e.value) and math.isnan(e.low) for e in estimates(absent))
    assert "no image of SCC" in absent["f1"].method
    present = results["per_class"]["HSIL"]
    assert all(math.isfinite(e.value) for e in estimates(present))
    expected = metrics.recall_score(p.labels, p.predicted, labels=[0, 1, 2], average="macro")
    assert results["balanced_accuracy"].value == pytest.approx(expected, abs=1e-15)
    assert "left out, having no image: SCC" in results["macro"]["f1"].method
    assert len(results["confusion_matrix"]) == 4


def test_a_class_never_named_has_no_ppv_but_counts_0_in_the_mean():
    labels, named = [0, 0, 1, 1], [0, 0, 0, 0]
    results = evaluate(sure(labels, named, TWO), resamples=100)
    assert math.isnan(results["per_class"]["cell"]["ppv"].value)
    assert results["per_class"]["cell"]["ppv"].count == 0
    assert results["per_class"]["cell"]["f1"].value == 0
    assert results["macro"]["precision"].value == 0.25


@pytest.mark.parametrize("named", [0, 1])
def test_images_of_one_class_only(named):
    results = evaluate(sure([0] * 6, [named] * 6), resamples=50)
    assert results["accuracy"].value == (named == 0)
    assert math.isnan(results["roc_auc_macro"].value)
    assert math.isnan(results["macro"]["specificity"].value)
    assert math.isnan(results["hsil_plus_sensitivity"].value)
    assert results["hsil_plus_specificity"].value == 1


def test_one_image():
    results = evaluate(sure([2], [3]), resamples=20)
    assert results["accuracy"].value == 0
    assert results["hsil_plus_sensitivity"].value == 1
    assert math.isnan(results["balanced_accuracy"].low)


def test_perfect_predictions():
    labels = np.repeat(range(4), 50)
    results = evaluate(sure(labels, labels), resamples=200)
    for estimate in estimates(results):
        if estimate is not results["majority_baseline"] and estimate is not results["log_loss"]:
            assert estimate.value == pytest.approx(1)
    assert results["log_loss"].value == pytest.approx(0, abs=1e-12)
    assert results["accuracy"].low == pytest.approx(200 / (200 + 1.96**2), abs=1e-5)
    assert results["majority_baseline"].value == 0.25
    # 50 of 50 of each class: no figure over classes is certain where the share is not.
    for figure in (results["macro"]["f1"], results["balanced_accuracy"], results["roc_auc_macro"]):
        assert figure.low < 0.99


@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.data(), n=st.integers(1, 25), k=st.integers(2, 5))
def test_any_predictions_evaluate(data, n, k):
    labels = data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n))
    named = data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n))
    groups = tuple(data.draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n)))
    names = FOUR if k == 4 else tuple("vwxyz"[:k])
    results = evaluate(sure(labels, named, names, groups), resamples=20)
    for estimate in estimates(results):
        assert math.isnan(estimate.value) or estimate.value >= -1
        assert not estimate.low > estimate.high
    matrix = np.array(results["confusion_matrix"])
    assert matrix.sum() == n
    assert results["accuracy"].value == np.trace(matrix) / n
    json.dumps(jsonable(results), allow_nan=False)


def test_json_maps_nan_to_null(tmp_path):
    p = random_predictions(7)
    results = evaluate(p.take(np.flatnonzero(p.labels != 3).tolist()), resamples=50)
    files.write_json(
        tmp_path / "metrics.json", jsonable({"test": results, "loss": np.float32("inf")})
    )
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text
    read = json.loads(text)
    assert read["loss"] is None
    assert read["test"]["per_class"]["SCC"]["f1"]["value"] is None
    assert read["test"]["accuracy"] == dataclasses.asdict(results["accuracy"])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


# --- several seeds


def seeds(count, n=200, groups=None):
    truth = random_predictions(0, n=n, groups=groups)
    return [
        dataclasses.replace(
            truth, probabilities=np.eye(4)[np.where(rng.random(n) < 0.8, truth.labels, 0)]
        )
        for rng in map(np.random.default_rng, range(count))
    ]


def test_one_seed_without_groups_is_wilson():
    (run,) = seeds(1)
    summary = summarise_seeds([run], resamples=200)
    single = evaluate(run, resamples=200)
    for name in ("accuracy", "hsil_plus_sensitivity"):
        assert (summary[name].low, summary[name].high) == pytest.approx(
            (single[name].low, single[name].high)
        )
        assert summary[name].method == "of this seed: Wilson"
        assert math.isnan(summary[name].over_seeds)
        assert summary[name].count == single[name].count
    assert summary["accuracy"].mean == single["accuracy"].value
    assert summary["macro_f1"].mean == single["macro"]["f1"].value
    assert math.isnan(summary["accuracy"].deviation)
    assert set(summary) == {
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "hsil_plus_sensitivity",
        "hsil_plus_specificity",
        "roc_auc_macro",
        "quadratic_kappa",
    }


def test_one_seed_with_groups_is_the_model_itself():
    labels, named, groups = clustered()
    run = sure(labels, named, groups=groups)
    summary, single = summarise_seeds([run]), evaluate(run)
    assert (summary["accuracy"].low, summary["accuracy"].high) == pytest.approx(
        (single["accuracy"].low, single["accuracy"].high)
    )
    perfect = summarise_seeds([sure(labels, labels, groups=groups)])
    # 40 groups that agree say as much as 40 images, and not as much as 400.
    assert perfect["accuracy"].low < wilson(40, 40)[0] < wilson(400, 400)[0]
    assert perfect["hsil_plus_sensitivity"].low < 1


def test_several_seeds():
    runs = seeds(4)
    summary = summarise_seeds(runs, resamples=500)
    accuracies = [evaluate(run, resamples=10)["accuracy"].value for run in runs]
    got = summary["accuracy"]
    assert got.mean == pytest.approx(np.mean(accuracies))
    assert got.minimum == min(accuracies)
    assert got.maximum == max(accuracies)
    assert got.deviation == pytest.approx(np.std(accuracies, ddof=1))
    assert got.seeds == 4
    # Student's, by hand: 3.182 for 3 degrees of freedom.
    assert got.over_seeds == pytest.approx(3.1824 * got.deviation / 2, rel=1e-4)
    for figure in summary.values():
        assert figure.method.startswith("of these 4 seeds: ")
    assert summarise_seeds(runs, resamples=500) == summary


def test_seeds_that_differ_say_little_about_others():
    right, wrong = [0, 1, 2, 3] * 50, [1, 1, 2, 0] * 50
    good, bad = sure([0, 1, 2, 3] * 50, right), sure([0, 1, 2, 3] * 50, wrong)
    apart = summarise_seeds([good, bad], resamples=100)["balanced_accuracy"]
    alike = summarise_seeds([bad, bad], resamples=100)["balanced_accuracy"]
    # Two seeds: 12.706 standard errors.
    assert apart.over_seeds == pytest.approx(12.706 * apart.deviation / math.sqrt(2), rel=1e-4)
    assert alike.over_seeds == 0


def test_the_mean_of_equal_seeds_is_the_seed():
    (run,) = seeds(1)
    one = summarise_seeds([run], resamples=200)["macro_f1"]
    three = summarise_seeds([run, run, run], resamples=200)["macro_f1"]
    assert three.mean == pytest.approx(one.mean)
    assert (three.low, three.high) == pytest.approx((one.low, one.high), abs=0.02)
    assert three.deviation == 0


def test_seeds_may_come_in_any_row_order_but_on_the_same_images():
    a, b = seeds(2)
    shuffled = b.take(list(reversed(range(200))))
    assert summarise_seeds([a, b], resamples=50) == summarise_seeds([a, shuffled], resamples=50)
    with pytest.raises(ValueError, match="run 1 differs from run 0: first at id 'image0000'"):
        summarise_seeds([a, b.take(range(1, 200))])
    with pytest.raises(ValueError, match="id 'other', which only run 1 has"):
        renamed = dataclasses.replace(b.take(range(199)), ids=(*b.ids[:198], "other"))
        summarise_seeds([a.take(range(198)), renamed])
    labels = b.labels.copy()
    labels[5] = (labels[5] + 1) % 4
    with pytest.raises(ValueError, match="in its labels: first at id 'image0005'"):
        summarise_seeds([a, dataclasses.replace(b, labels=labels)])
    with pytest.raises(ValueError, match="in its classes"):
        summarise_seeds([a, dataclasses.replace(b, class_names=("N", "L", "H", "S"))])
    with pytest.raises(ValueError, match="at least one run"):
        summarise_seeds([])


def test_stage_1_seeds():
    summary = summarise_seeds([random_predictions(2, names=TWO)], resamples=50)
    assert "hsil_plus_sensitivity" not in summary
    assert json.dumps(jsonable(summary), allow_nan=False)
