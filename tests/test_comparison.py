"""Every statistic is set beside an independent computation, or beside a truth that was planted."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from replication.comparison import leaks, pairs, ranking
from replication.comparison.candidates import Candidate, Cost
from replication.comparison.pairs import Pair
from replication.comparison.ranking import Comparison
from replication.measures.evaluation import summarise_seeds
from replication.measures.intervals import Estimate
from replication.measures.predictions import Predictions
from tfds_pap.taxonomy import STAGE2_CLASSES

COST = Cost(1_000_000, 0.5, 20.0, 4.0)
FEW = {"resamples": 200}


def predictions(labels, named, groups=None, names=STAGE2_CLASSES, split="test"):
    """A model that is quite sure of each class it names."""
    count, classes = len(labels), len(names)
    probabilities = np.full((count, classes), 0.1 / (classes - 1))
    probabilities[np.arange(count), named] = 0.9
    ids = [f"{i:04}.jpg" for i in range(count)]
    groups = [""] * count if groups is None else [f"slide {g}" for g in groups]
    return Predictions(ids, groups, [split] * count, labels, probabilities, names)


def candidate(name, *runs, weights="imagenet", cost=COST):
    return Candidate(name, weights, runs, cost)


def guesses(rng, labels, right, classes=4):
    """Named rightly with a probability of about ``right``."""
    other = (labels + rng.integers(1, classes, len(labels))) % classes
    return np.where(rng.random(len(labels)) < right, labels, other)


def noisy(name, right, seeds=3, count=120, groups=12, seed=0):
    rng = np.random.default_rng(0)
    labels, slides = rng.integers(4, size=count), rng.integers(groups, size=count)
    rng = np.random.default_rng([seed, *name.encode()])
    runs = [predictions(labels, guesses(rng, labels, right), slides) for _ in range(seeds)]
    return candidate(name, *runs)


def discordant(only_first, only_second, both=30):
    """Two candidates of one seed with so many images that one of them alone named rightly."""
    first = np.repeat([0, 0, 1], [both, only_first, only_second])
    second = np.repeat([0, 1, 0], [both, only_first, only_second])
    truth = np.zeros(len(first), int)
    return candidate("a", predictions(truth, first)), candidate("b", predictions(truth, second))


def test_identical_candidates_do_not_differ():
    one = noisy("b", 0.7)
    same = dataclasses.replace(one, name="a")
    (pair,) = pairs.pairwise([one, same], **FEW)
    assert pair.accuracy.value == 0
    # Equal answers on these images are no proof that they are equal on others.
    for estimate in (pair.accuracy, pair.macro_f1):
        assert estimate.low < -0.01 and estimate.high > 0.01
    assert (pair.p, pair.p_holm, pair.told_apart) == (1, 1, False)
    ranked = ranking.rank([one, same], **FEW)
    assert [entry.candidate.name for entry in ranked] == ["a", "b"]
    assert pairs.indistinguishable(["a", "b"], [pair]) == [("a", "b")]


def test_a_clearly_better_candidate_is_told_apart():
    good, poor = noisy("good", 0.95), noisy("poor", 0.5)
    ranked = ranking.rank([poor, good], **FEW)
    assert [entry.candidate.name for entry in ranked] == ["good", "poor"]
    (pair,) = pairs.pairwise([good, poor], **FEW)
    assert pair.told_apart and pair.accuracy.low > 0.2 and pair.p_holm < 1e-6
    (other,) = pairs.pairwise([poor, good], **FEW)
    assert other.told_apart and other.accuracy.value == -pair.accuracy.value
    assert pairs.indistinguishable(["good", "poor"], [pair]) == []


def test_ranking_holds_the_summaries_of_the_seeds():
    candidates = [noisy("a", 0.6), noisy("b", 0.9), noisy("c", 0.75)]
    ranked = ranking.rank(candidates, **FEW)
    assert [entry.rank for entry in ranked] == [1, 2, 3]
    for entry in ranked:
        assert entry.summary == summarise_seeds(entry.candidate.runs, **FEW)
    means = [entry.summary["accuracy"].mean for entry in ranked]
    assert means == sorted(means, reverse=True)


def test_equal_accuracies_are_ranked_by_macro_f1():
    labels = np.repeat([0, 1], [8, 4])
    names = ("background", "cell")
    # Both have two errors of twelve; the rare class suffers more under 'a'.
    rare = predictions(labels, np.repeat([0, 0, 1], [8, 2, 2]), names=names)
    frequent = predictions(labels, np.repeat([1, 0, 1], [2, 6, 4]), names=names)
    ranked = ranking.rank([candidate("a", rare), candidate("b", frequent)], **FEW)
    assert [entry.candidate.name for entry in ranked] == ["b", "a"]
    assert "hsil_plus_sensitivity" not in ranked[0].summary


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (9, 2), (24, 0), (3, 3)])
def test_few_discordant_images_get_the_exact_test(b, c):
    (pair,) = pairs.pairwise(discordant(b, c), **FEW)
    assert (pair.only_first, pair.only_second) == (b, c)
    expected = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert pair.p == pytest.approx(expected)
    assert "exact" in pair.method


@pytest.mark.parametrize(("b", "c"), [(25, 0), (20, 5), (40, 20)])
def test_many_discordant_images_get_the_corrected_chi_squared_test(b, c):
    (pair,) = pairs.pairwise(discordant(b, c), **FEW)
    assert pair.p == pytest.approx(scipy.stats.chi2.sf((abs(b - c) - 1) ** 2 / (b + c), 1))
    assert "chi-squared" in pair.method


def test_mcnemar_of_several_seeds_is_that_of_their_mean_probabilities():
    labels = np.zeros(6, int)
    sure = np.array([[0.9, 0.1]] * 6)
    torn = np.array([[0.3, 0.7]] * 3 + [[0.45, 0.55]] * 3)

    def run(probabilities):
        named = predictions(labels, labels, names=("n", "y"))
        return dataclasses.replace(named, probabilities=probabilities)

    # Seed by seed 'b' is right once in two; the means of its probabilities are right in all.
    a, b = candidate("a", run(sure), run(sure)), candidate("b", run(sure), run(torn))
    (pair,) = pairs.pairwise([a, b], **FEW)
    assert (pair.only_first, pair.only_second, pair.accuracy.value) == (0, 0, 0.5)
    assert "mean probabilities of 2 seeds" in pair.method and not pair.told_apart


def test_holm_by_hand():
    rates = (0.9, 0.85, 0.8, 0.6)
    candidates = [noisy(name, right) for name, right in zip("abcd", rates, strict=True)]
    compared = pairs.pairwise(candidates, **FEW)
    assert [(pair.first, pair.second) for pair in compared] == list(
        itertools.combinations("abcd", 2)
    )
    ordered = sorted(compared, key=lambda pair: pair.p)
    highest = 0.0
    for place, pair in enumerate(ordered):
        highest = max(highest, min(1.0, (len(compared) - place) * pair.p))
        assert pair.p_holm == pytest.approx(highest)
    assert any(pair.p_holm > pair.p for pair in compared)


def test_differences_are_means_over_the_seeds_and_other_seeds_widen_them():
    a, b = (
        noisy("a", 0.8, seeds=2, count=40, groups=8),
        noisy("b", 0.7, seeds=2, count=40, groups=8),
    )
    (pair,) = pairs.pairwise([a, b], resamples=60)
    for metric, estimate in (("accuracy", pair.accuracy), ("macro_f1", pair.macro_f1)):
        points = [score(metric, *runs) for runs in zip(a.runs, b.runs, strict=True)]
        assert estimate.value == pytest.approx(np.mean(points))
        # Student's over two seeds alone: 12.706 standard errors.
        half = 12.706 * np.std(points, ddof=1) / np.sqrt(2)
        assert min(estimate.high - estimate.value, estimate.value - estimate.low) > 0.999 * half
        assert "Student's over 2 seeds" in estimate.method
    one, other = (dataclasses.replace(c, runs=c.runs[:1]) for c in (a, b))
    assert "of one seed" in pairs.pairwise([one, other], resamples=60)[0].accuracy.method


def score(metric, first, second):
    values = [
        accuracy_score(run.labels, run.predicted)
        if metric == "accuracy"
        else f1_score(run.labels, run.predicted, average="macro", labels=range(4), zero_division=0)
        for run in (first, second)
    ]
    return values[0] - values[1]


def test_order_of_the_rows_changes_nothing():
    a, b = noisy("a", 0.8), noisy("b", 0.7)
    shuffle = np.random.default_rng(1).permutation(len(a.runs[0]))
    mixed = dataclasses.replace(b, runs=tuple(run.take(list(shuffle)) for run in b.runs))
    assert pairs.pairwise([a, mixed], **FEW) == pairs.pairwise([a, b], **FEW)


def test_one_slide_decides_nothing_however_many_images():
    """Where all discordant images lie on one of few slides, only the interval notices."""
    labels, slides = np.zeros(90, int), np.repeat(np.arange(9), 10)
    right, wrong = labels, np.where(slides == 0, 1, 0)
    by_slide = [
        candidate(name, predictions(labels, named, slides))
        for name, named in (("a", right), ("b", wrong))
    ]
    by_image = [candidate(c.name, predictions(labels, c.runs[0].predicted)) for c in by_slide]
    (pair,) = pairs.pairwise(by_slide, **FEW)
    assert pair.p_holm < 0.01 and pair.accuracy.low < 0 and not pair.told_apart
    (pair,) = pairs.pairwise(by_image, **FEW)
    assert pair.p_holm < 0.01 and pair.accuracy.low > 0 and pair.told_apart


def test_no_interval_from_a_single_group_tells_nothing_apart():
    labels, slides = np.zeros(60, int), np.zeros(60, int)
    a = candidate("a", predictions(labels, labels, slides))
    b = candidate("b", predictions(labels, labels + 1, slides))
    (pair,) = pairs.pairwise([a, b], **FEW)
    assert pair.p_holm < 1e-6 and np.isnan(pair.accuracy.low) and not pair.told_apart


def test_confidence_is_the_level_of_the_test():
    pair = discordant(9, 1)
    (usual,) = pairs.pairwise(pair, **FEW)
    (strict,) = pairs.pairwise(pair, confidence=0.99, **FEW)
    assert usual.p == strict.p and usual.told_apart and not strict.told_apart


def pairs_apart(names, apart):
    nothing = Estimate(0, 0, 0, 0, "")
    return [
        Pair(a, b, 0, 0, 1, 1, nothing, nothing, (a, b) in apart, "")
        for a, b in itertools.combinations(names, 2)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_sets_are_the_longest_undecided_stretches(seed):
    names = "abcdefg"
    rng = np.random.default_rng(seed)
    apart = {pair for pair in itertools.combinations(names, 2) if rng.random() < 0.3}
    stretches = {names[i:j] for i in range(7) for j in range(i + 2, 8)}
    undecided = {s for s in stretches if not apart & set(itertools.combinations(s, 2))}
    longest = {s for s in undecided if not any(s in t and s != t for t in undecided)}
    found = pairs.indistinguishable(names, pairs_apart(names, apart))
    assert {"".join(one) for one in found} == longest and len(found) == len(longest)


def test_sentences():
    assert ranking.sentence(("a", "b"), 1, 1, "slide") == (
        "a and b cannot be told apart on 1 image (1 slide)."
    )
    assert ranking.sentence(("a", "b", "c"), 1600) == (
        "a, b and c cannot be told apart on 1,600 images."
    )


def result(*candidates, **others):
    given = {"winner": candidates[0].name, "winner_note": "", "design": "", "unit": "slide"}
    return Comparison("t", candidates, **{**given, **FEW, **others})


def test_comparison_puts_the_parts_together():
    good, also, poor = noisy("good", 0.9), noisy("also", 0.88), noisy("poor", 0.4)
    found = result(poor, good, also)
    assert (found.images, found.groups) == (120, 12)
    order = [entry.candidate.name for entry in found.ranked]
    assert order[2] == "poor" and [pair.first for pair in found.pairs] == [*order[:1] * 2, order[1]]
    assert found.sentences == [
        f"{order[0]} and {order[1]} cannot be told apart on 120 images (12 slides)."
    ]
    assert result(good, poor).sentences == [
        "Each backbone is told apart from its neighbours in the ranking on 120 images (12 slides)."
    ]
    assert "nothing to compare" in result(good).sentences[0]
    assert result(good).pairs == result(good).leaks == []


def test_pareto_front_equals_brute_force():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        # Few distinct values, so that ties are frequent.
        value = dict(enumerate(rng.integers(5, size=9).tolist()))
        cost = dict(enumerate(rng.integers(5, size=9).tolist()))
        front = [
            n
            for n in value
            if all(
                value[m] < value[n]
                or cost[m] > cost[n]
                or (value[m], cost[m]) == (value[n], cost[n])
                for m in value
            )
        ]
        found = ranking.pareto(value, cost)
        assert sorted(found) == front and [cost[n] for n in found] == sorted(cost[n] for n in front)


def test_untrained_backbones_stand_on_no_front_unless_all_are():
    cheap = dataclasses.replace(COST, gflops=0.1)
    trained = noisy("trained", 0.9)
    untrained = dataclasses.replace(noisy("random", 0.5), weights="untrained", cost=cheap)
    assert result(trained, untrained).front("gflops") == ["trained"]
    assert result(untrained).front("gflops") == ["random"]
    assert COST.milliseconds == 50


def test_leak_finds_planted_memory_of_the_slides():
    """Features that encode the slide alone: perfect by image, chance by slide."""
    rng = np.random.default_rng(0)
    slides = np.repeat(np.arange(100), 4)
    labels = rng.permutation(np.arange(100) % 4)[slides]
    features = rng.normal(size=(100, 16))[slides] + 1e-3 * rng.normal(size=(400, 16))

    def scored(folds, groups):
        nearest = KNeighborsClassifier(1)
        named = [
            cross_val_predict(
                nearest,
                features,
                labels,
                groups=groups,
                cv=folds(5, shuffle=True, random_state=seed),
            )
            for seed in range(2)
        ]
        return candidate("memory", *(predictions(labels, one, slides) for one in named))

    by_image = scored(StratifiedKFold, None)
    by_group = scored(StratifiedGroupKFold, slides)
    found = leaks.leak(by_image, by_group, **FEW)
    assert (found.images, found.groups) == (400, 100)
    assert found.by_image["accuracy"].mean == 1
    # What is guessed is the slide: chance is that of 100 draws, not of 400.
    chance = scipy.stats.binom(100, 0.25).interval(0.99)
    assert chance[0] <= 100 * found.by_group["accuracy"].mean <= chance[1]
    for metric in ("accuracy", "balanced_accuracy", "macro_f1"):
        gap = found.difference[metric]
        assert gap.value == pytest.approx(found.by_image[metric].mean - found.by_group[metric].mean)
        assert 0.4 < gap.low < gap.value < gap.high < 1
    whole = result(by_group, by_image=(by_image,))
    assert whole.leaks[0].difference == found.difference


def test_leak_refuses_what_it_cannot_compare():
    a, b = noisy("a", 0.9), noisy("b", 0.9)
    with pytest.raises(ValueError, match="expected one backbone under both cuts, got a"):
        leaks.leak(a, b)
    shorter = dataclasses.replace(a, runs=tuple(run.take(range(1, 120)) for run in a.runs))
    with pytest.raises(ValueError, match=r"a, run 0: .* id '0000.jpg' is missing"):
        leaks.leak(shorter, a)
    labels = np.zeros(4, int)
    unknown = candidate("a", predictions(labels, labels))
    with pytest.raises(ValueError, match=r"known group for every image, none for '0000.jpg'"):
        leaks.leak(unknown, unknown)


def changed(one, **fields):
    return dataclasses.replace(
        one, runs=(*one.runs[:1], dataclasses.replace(one.runs[1], **fields), *one.runs[2:])
    )


def test_different_images_are_refused_by_name():
    a, b = noisy("a", 0.9), noisy("b", 0.9)
    run = b.runs[1]
    ids = ("other.jpg", *run.ids[1:])
    labels = run.labels.copy()
    labels[7] = (labels[7] + 1) % 4
    for other, message in (
        (changed(b, ids=ids), "b, run 1: .* id '0000.jpg' is missing"),
        (changed(b, ids=("0000", *run.ids[1:])), "b, run 1: .* id '0000' is not among them"),
        (changed(b, labels=labels), "b, run 1: .* id '0007.jpg' has label"),
        (changed(b, groups=("x", *run.groups[1:])), "id '0000.jpg' has group 'x', not 'slide"),
        (changed(b, class_names=("a", "b", "c", "d")), "b, run 1: .* its classes"),
        (changed(b, splits=("tune",) * 120), "b, run 1: expected test images only, got tune"),
        (dataclasses.replace(b, runs=b.runs[:2]), "b: expected as many seeds .* got 2"),
        (dataclasses.replace(b, runs=()), "b: expected as many seeds .* got 0"),
    ):
        for function in (ranking.rank, pairs.pairwise):
            with pytest.raises(ValueError, match=message):
                function([a, other])
    with pytest.raises(ValueError, match="at least one candidate"):
        ranking.rank([])


@pytest.mark.parametrize("field", ["parameters", "gflops", "images_per_second", "mebibytes"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_costs_are_above_zero(field, value):
    with pytest.raises(ValueError, match=f"cost: expected {field} above 0, got {value}"):
        dataclasses.replace(COST, **{field: value})


def test_comparison_refuses_names_that_do_not_fit():
    a, b = noisy("a", 0.9), noisy("b", 0.8)
    with pytest.raises(ValueError, match="each name once, got a twice"):
        result(a, a)
    with pytest.raises(ValueError, match="expected one of a, b, got c"):
        result(a, b, winner="c")
    with pytest.raises(ValueError, match="expected one of a, got b"):
        result(a, by_image=(b,))
