"""Effects and choices are tested against known truths and independent computations."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.formula.api import ols

from finetune.report.effects import marginal_effects
from finetune.report.selection import (
    beside_the_paper,
    cost_of_the_defect,
    differences,
    selection_optimism,
)
from finetune.search.trials import Answers, Search, Trial
from tfds_pap.classes import Classes

POINT = {"head": "64", "dropout": 0.2, "rate": 0.01, "batch": 16}


def trial(order, values, score, status="completed", **fields):
    given = {"metrics": {}, "best_epoch": 1, "epochs": 30, "order": order, **fields}
    return Trial(f"{order:03}", values, status, score, **given)


def searched(trials, **fields):
    given = {"objective": "val_accuracy", "direction": "max", "tuner": "grid", "space": "paper"}
    given |= {"protocol": "clean", "backbone": "resnet152", "weights": "imagenet"}
    return Search(trials, **{**given, "resamples": 200, **fields})


def points():
    levels = (("16", "32", "64", "16-8"), (0.2, 0.5, 0.8), (0.01, 0.1, 1.0), (16, 32))
    return [dict(zip(POINT, point, strict=True)) for point in itertools.product(*levels)]


def additive(values):
    """Batch does nothing."""
    head = {"16": 0.0, "32": 0.02, "64": 0.03, "16-8": -0.01}[values["head"]]
    return 0.8 + head - 0.2 * values["dropout"] ** 2 - 0.1 * (values["rate"] == 1)


def by_name(effects):
    return {effect.name: effect for effect in effects.effects}


@pytest.fixture(scope="module")
def factorial():
    rng = np.random.default_rng(0)
    return [trial(i, v, additive(v) + rng.normal(0, 0.01)) for i, v in enumerate(points())]


def frame(trials):
    return pd.DataFrame([{**t.values, "score": t.score} for t in trials])


def test_a_full_grid_gives_plain_means_and_the_classical_sums_of_squares(factorial):
    found = marginal_effects(factorial, "max")
    table = frame(factorial)
    model = ols("score ~ C(head) + C(dropout) + C(rate) + C(batch)", table).fit()
    squares = sm.stats.anova_lm(model, typ=2)["sum_sq"]
    total = ((table["score"] - table["score"].mean()) ** 2).sum()
    assert found.balanced and len(found.trials) == 72
    for name, effect in by_name(found).items():
        assert effect.importance == pytest.approx(squares[f"C({name})"] / total, rel=1e-9)
        means = table.groupby(table[name].map("{:}".format))["score"].agg(["mean", "max", "size"])
        for level in effect.levels:
            row = means.loc[level.label if level.label != "1" else "1.0"]
            assert (level.mean, level.best, level.count) == pytest.approx(tuple(row))
            assert level.low < level.mean < level.high
    assert found.unexplained == pytest.approx(squares["Residual"] / total)
    shares = [effect.importance for effect in found.effects]
    assert sum(shares) + found.unexplained == pytest.approx(1)
    assert shares == sorted(shares, reverse=True) and found.effects[-1].name == "batch"


def test_levels_are_in_their_order_and_know_their_kind(factorial):
    effects = by_name(marginal_effects(factorial, "max"))
    assert {name: effect.kind for name, effect in effects.items()} == {
        "head": "choice",
        "dropout": "number",
        "rate": "log number",
        "batch": "number",
    }
    assert [level.label for level in effects["head"].levels] == ["16", "32", "64", "16-8"]
    assert [level.label for level in effects["rate"].levels] == ["0.01", "0.1", "1"]
    assert effects["head"].level_of("64") == 2 and effects["head"].level_of("128") is None
    assert effects["head"].level_of(None) is None


def test_a_lopsided_search_is_adjusted_to_the_truth():
    """Good heads were tried with bad rates: raw means turn the order of the heads round."""
    rng = np.random.default_rng(1)
    kept = [v for v in points() if (v["head"] == "64") == (v["rate"] == 1.0) or rng.random() < 0.2]
    trials = [trial(i, v, additive(v) + rng.normal(0, 0.002)) for i, v in enumerate(kept)]
    raw = frame(trials).groupby("head")["score"].mean()
    assert raw["64"] < raw["16"]
    found = marginal_effects(trials, "max")
    assert not found.balanced and set(found.adjusted_for) == set(POINT)
    heads = {level.label: level.mean for level in by_name(found)["head"].levels}
    assert heads["64"] - heads["16"] == pytest.approx(0.03, abs=0.004)
    assert heads["32"] - heads["16-8"] == pytest.approx(0.03, abs=0.004)
    # The same as the marginal means of an independent least-squares fit.
    model = ols("score ~ C(head) + C(dropout) + C(rate) + C(batch)", frame(trials)).fit()
    for label, mean in heads.items():
        assert mean == pytest.approx(model.predict(frame(trials).assign(head=label)).mean())
    assert by_name(found)["batch"].importance < 0.01


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    rng, inside = np.random.default_rng(2), []
    truth = {rate: np.mean([additive(v) for v in points() if v["rate"] == rate]) for rate in (1.0,)}
    for _ in range(60):
        trials = [trial(i, v, additive(v) + rng.normal(0, 0.05)) for i, v in enumerate(points())]
        level = by_name(marginal_effects(trials, "max"))["rate"].levels[2]
        inside.append(level.low <= truth[1.0] <= level.high)
    assert 0.87 <= np.mean(inside) <= 1


def test_intervals_of_few_random_trials_hold_what_other_draws_would_score():
    """Student's over adjusted scores alone held 81 %, these 97 %."""
    rng, inside, table = (
        np.random.default_rng(4),
        [],
        0.02 * np.random.default_rng(5).normal(size=9),
    )
    for _ in range(60):
        picks = rng.integers(3, size=(10, 3))
        drawn = [
            trial(i, dict(zip("abc", map(str, pick), strict=True)), score)
            for i, (pick, score) in enumerate(
                zip(picks.tolist(), table[np.array([0, 3, 6]) + picks].sum(axis=1), strict=True)
            )
        ]
        drawn = [dataclasses.replace(t, score=t.score + rng.normal(0, 0.01)) for t in drawn]
        for name, effect in by_name(marginal_effects(drawn, "max")).items():
            own = 3 * "abc".index(name)
            rest = table.reshape(3, 3).mean(axis=1).sum() - table[own : own + 3].mean()
            inside += [
                level.low <= table[own + int(level.label)] + rest <= level.high
                for level in effect.levels
                if level.count > 1
            ]
        # Where scores chose the trials, none holds.
        bayesian = marginal_effects(drawn, "max", at_random=False).effects
        assert all(math.isnan(level.low) for effect in bayesian for level in effect.levels)
    assert np.mean(inside) >= 0.9


def test_numbers_with_many_values_are_binned():
    rng = np.random.default_rng(3)
    trials = []
    for i in range(80):
        values = {"rate": float(10 ** rng.uniform(-5, -1)), "units": int(rng.integers(1, 40))}
        score = 0.9 - 0.05 * abs(math.log10(values["rate"]) + 3) + rng.normal(0, 0.005)
        trials.append(trial(i, values, score))
    found = by_name(marginal_effects(trials, "max"))
    rate, units = found["rate"], found["units"]
    assert (rate.kind, rate.binned, len(rate.levels)) == ("log number", True, 4)
    assert [level.count for level in rate.levels] == [20] * 4
    ends = [(level.start, level.end) for level in rate.levels]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))
    for number, members in enumerate(rate.members):
        assert {rate.level_of(t.values["rate"]) for t in members} == {number}
    assert rate.level_of(1e-9) is None and rate.level_of("0.1") is None
    # A peak in the middle, and nothing of the units.
    means = [level.mean for level in rate.levels]
    assert max(means[0], means[3]) < min(means[1], means[2])
    assert rate.importance > 0.6 and units.importance < 0.03


def test_equal_numbers_share_a_bin():
    trials = [trial(i, {"x": [1, 1, 1, 1, 1, 1, 7, 9, 10, 11][i]}, 0.1 * i) for i in range(10)]
    (effect,) = marginal_effects(trials, "max").effects
    assert [level.label for level in effect.levels] == ["1", "7 to 11"]
    assert [level.count for level in effect.levels] == [6, 4]


def test_conditional_hyperparameters_are_compared_where_they_are_active():
    rng, trials = np.random.default_rng(4), []
    for i in range(120):
        values = {"optimizer": ["sgd", "adam"][i % 2]}
        score = 0.5 if values["optimizer"] == "adam" else 0.7
        if values["optimizer"] == "sgd":
            values["momentum"] = float(rng.choice([0.0, 0.9]))
            score += 0.1 if values["momentum"] else -0.1
        trials.append(trial(i, values, score + rng.normal(0, 0.01)))
    found = by_name(marginal_effects(trials, "max"))
    momentum = found["momentum"]
    assert momentum.active == 60
    assert [level.mean for level in momentum.levels] == pytest.approx([0.6, 0.8], abs=0.01)
    # Half of the trials vary by 0.1 around their mean, all by 0.1 with the optimizer.
    assert found["optimizer"].importance == pytest.approx(2 / 3, abs=0.03)
    assert momentum.importance == pytest.approx(1 / 3, abs=0.03)
    sgd = found["optimizer"].levels[[x.label for x in found["optimizer"].levels].index("sgd")]
    assert sgd.mean == pytest.approx(0.7, abs=0.01)


def test_with_few_trials_only_the_strongest_are_adjusted_for():
    rng = np.random.default_rng(5)
    values = [{f"h{k}": str(rng.integers(3)) for k in range(9)} for _ in range(20)]
    trials = [
        trial(i, v, float(v["h4"] == "1") + rng.normal(0, 0.05)) for i, v in enumerate(values)
    ]
    found = marginal_effects(trials, "max")
    assert "h4" in found.adjusted_for and len(found.adjusted_for) < 9
    assert found.effects[0].name == "h4"
    assert found.effects[0].importance > 5 * found.effects[1].importance


def test_diverged_trials_count_like_the_worst_and_failed_ones_not_at_all(factorial):
    trials = [
        trial(t.order, t.values, -math.inf, "diverged") if t.order == 3 else t for t in factorial
    ]
    found = marginal_effects(trials, "max")
    worst = min(t.score for t in factorial if t.order != 3)
    assert found.scores["003"] == worst and found.diverged == 1 and found.balanced
    assert sum(level.diverged for level in found.effects[0].levels) == 1
    highest = max(t.score for t in factorial if t.order != 3)
    assert marginal_effects(trials, "min").scores["003"] == highest
    trials[3] = trial(3, factorial[3].values, math.nan, "failed")
    found = marginal_effects(trials, "max")
    assert not found.balanced and len(found.trials) == 71


def test_hyperband_compares_what_was_not_yet_promoted():
    """Promotion adds to the score; level b is promoted, level a is as good."""
    trials = []
    for bracket, epochs, base in ((1, 3, 0.4), (0, 9, 0.6)):
        for i in range(8):
            order, level = len(trials), "ab"[i % 2]
            fields = {"epochs": epochs, "bracket": bracket, "round": 0}
            trials.append(trial(order, {"x": level}, base + 0.01 * (i // 2), **fields))
    for parent in [t for t in trials if t.bracket == 1 and t.values["x"] == "b"]:
        fields = {"epochs": 9, "bracket": 1, "round": 1, "inherited": parent.trial_id}
        trials.append(trial(len(trials), parent.values, 0.9, **fields))
    found = marginal_effects(trials, "max")
    assert found.brackets and len(found.trials) == 16
    (effect,) = found.effects
    assert [level.mean for level in effect.levels] == pytest.approx([0.515, 0.515])
    # The brackets' gap of 0.2 is no spread of a level.
    assert all(level.high - level.low < 0.04 for level in effect.levels)


def test_few_or_equal_trials():
    for count in range(4):
        found = marginal_effects([trial(i, {"x": i}, 0.5) for i in range(count)], "max")
        assert found.effects == () and math.isnan(found.unexplained)
    same = marginal_effects([trial(i, {"x": i % 2, "y": 1}, 0.5) for i in range(8)], "max")
    assert [effect.name for effect in same.effects] == ["x"]
    assert same.effects[0].importance == 0 and math.isnan(same.unexplained)
    lost = [trial(i, {"x": i % 2}, 0.0, "diverged") for i in range(8)]
    assert marginal_effects(lost, "max").effects[0].importance == 0
    alone = marginal_effects([trial(i, {"x": "aaab"[i]}, 0.1 * i) for i in range(4)], "max")
    assert math.isnan(alone.effects[0].levels[1].low)


# What the choice is worth.


def answered(right, groups=None, epochs=None):
    """Answers of K trials to n images of two classes, from bool [K, n]."""
    right = np.asarray(right)
    count = right.shape[1]
    labels = np.arange(count) % 2
    predicted = np.where(right, labels, 1 - labels)
    given = epochs or [30] * len(right)
    trials = tuple(
        trial(i, {"x": i}, float(row.mean()), epochs=given[i]) for i, row in enumerate(right)
    )
    names = Classes.known(("background", "cell"))
    losses = np.where(right, 0.1, 2.0)
    return Answers(trials, labels, groups or ("",) * count, names, predicted, losses)


def flips(configurations, images, chance, seed):
    return np.random.default_rng(seed).random((configurations, images)) < chance


def expected_maximum(configurations, images, chance):
    """Mean of the best of so many binomial accuracies, minus what all of them are worth."""
    k = np.arange(images + 1)
    below = stats.binom.cdf(k, images, chance) ** configurations
    return (k * np.diff(below, prepend=0)).sum() / images - chance


@pytest.mark.parametrize(("configurations", "images"), [(2, 200), (40, 300)])
def test_optimism_of_choosing_among_equals_is_what_theory_says(configurations, images):
    measured = []
    for seed in range(40):
        answers = answered(flips(configurations, images, 0.8, seed))
        best = answers.trials[0]
        measured.append(selection_optimism(answers, best, "accuracy", resamples=100).expected)
    theory = expected_maximum(configurations, images, 0.8)
    assert np.mean(measured) == pytest.approx(theory, rel=0.12)


def test_optimism_is_near_zero_where_one_is_clearly_best():
    right = flips(20, 400, 0.5, 1)
    right[7] = flips(1, 400, 0.95, 2)[0]
    answers = answered(right)
    found = selection_optimism(answers, answers.trials[7], "accuracy")
    assert abs(found.expected) < 0.003
    assert (found.again, found.chosen) == (1, 1)
    assert found.method == "2000 draws of 400 images, each scored on what it left out"


def test_optimism_of_a_loss_is_positive_too():
    right = flips(30, 200, 0.7, 3)
    answers = answered(right)
    best = answers.trials[int(right.sum(axis=1).argmax())]
    by_loss = selection_optimism(answers, best, "loss", "min", resamples=300)
    by_accuracy = selection_optimism(answers, best, "accuracy", resamples=300)
    # A wrong answer costs 1.9 more than a right one; of equals, rounding chooses by loss.
    assert by_loss.expected == pytest.approx(1.9 * by_accuracy.expected, rel=0.1)


def test_optimism_draws_groups_whole():
    """Within a group all answers are alike: 20 groups are worth 20 images."""
    small = flips(10, 20, 0.7, 4)
    groups = tuple(f"slide {i // 15:02}" for i in range(300))
    grouped = answered(np.repeat(small, 15, axis=1), groups)
    single = answered(np.repeat(small, 15, axis=1))
    by_group = selection_optimism(grouped, grouped.trials[0], "accuracy", resamples=400)
    by_image = selection_optimism(single, single.trials[0], "accuracy", resamples=400)
    assert by_group.expected > 0.02 > 4 * abs(by_image.expected)
    assert "20 groups" in by_group.method


def test_optimism_breaks_ties_like_the_ranking():
    same = np.repeat(flips(1, 100, 0.7, 5), 3, axis=0)
    answers = answered(same, epochs=[30, 10, 10])
    assert selection_optimism(answers, answers.trials[1], "accuracy", resamples=50).again == 1
    assert selection_optimism(answers, answers.trials[0], "accuracy", resamples=50).again == 0


def test_no_optimism_without_a_choice_or_a_draw():
    one, two = answered(flips(1, 50, 0.7, 6)), flips(2, 50, 0.7, 6)
    assert selection_optimism(one, one.trials[0], "accuracy") is None
    slide = answered(two, ("the only slide",) * 50)
    assert selection_optimism(slide, slide.trials[0], "accuracy") is None


def test_differences_hold_for_all_configurations_at_once():
    answers = answered(flips(30, 120, 0.7, 7))
    right = answers.predicted == answers.labels
    found = differences(answers, answers.trials[1], "accuracy", resamples=500)
    assert len(found) == 29 and "001" not in found
    alone = differences(answers.only([1, 2]), answers.trials[1], "accuracy", resamples=500)["002"]
    for number in (0, 2, 29):
        estimate = found[f"{number:03}"]
        assert estimate.value == pytest.approx(right[1].mean() - right[number].mean())
        assert "30 configurations at once" in estimate.method
        # Among many, more of a difference is chance.
        assert estimate.high - estimate.low > 1.2 * (alone.high - alone.low)
    assert differences(answers.only([0]), answers.trials[0], "accuracy") == {}
    assert differences(answers.only([0, 2]), answers.trials[1], "accuracy") == {}


def equal_search(rng, count=123, images=223, fields=20):
    """Configurations of equal true accuracy, whose errors share the field and the image."""
    sizes = rng.multinomial(images - fields, rng.dirichlet(np.full(fields, 2.0))) + 1
    field = np.repeat(np.arange(fields), sizes)
    hard = rng.normal(0, 0.7, fields)[field] + rng.normal(0, 1.0, images)
    own = rng.normal(0, 0.5, (count, fields))[:, field] + rng.normal(0, 0.8, (count, images))
    return answered(1 + hard + own > 0, tuple(f"field {number}" for number in field))


def test_equal_configurations_are_not_told_apart_by_the_images_that_chose():
    """123 configurations of equal true accuracy, 223 images of 20 fields; nominal is 5 %."""
    rng = np.random.default_rng(0)
    any_told, others_told = [], []
    for _ in range(20):
        answers = equal_search(rng)
        scores = answers.figures("accuracy", np.ones((1, 223)))[0]
        best = answers.trials[int(scores.argmax())]
        found = differences(answers, best, "accuracy", resamples=200)
        told = [difference.told_from_zero for difference in found.values()]
        any_told.append(any(told))
        others_told.append(np.mean(told))
    assert np.mean(any_told) <= 0.05
    assert np.mean(others_told) <= 0.05


def test_a_configuration_that_is_worse_is_still_told_apart():
    answers = equal_search(np.random.default_rng(1), count=10)
    bad = answered(np.zeros((1, 223), bool), answers.groups)
    both = dataclasses.replace(
        answers,
        trials=(*answers.trials, dataclasses.replace(bad.trials[0], trial_id="bad")),
        predicted=np.concatenate([answers.predicted, bad.predicted]),
        losses=np.concatenate([answers.losses, bad.losses]),
    )
    found = differences(both, both.trials[0], "accuracy", resamples=200)
    assert [name for name, one in found.items() if one.told_from_zero] == ["bad"]


def test_the_paper_beside_the_best():
    right = flips(4, 300, 0.8, 9)
    right[2] = flips(1, 300, 0.97, 10)[0]
    answers = answered(right)
    search = searched(answers.trials, paper_values={"x": 0})
    found = beside_the_paper(search, answers)
    ordered = sorted(answers.trials, key=lambda t: -t.score)
    assert found.paper is answers.trials[0] and found.scored == 4
    assert found.place == ordered.index(found.paper) + 1
    gap = found.differences["accuracy"]
    assert gap.value == pytest.approx(right[2].mean() - right[0].mean())
    assert gap.low > 0 and found.told_apart and set(found.differences) == {"accuracy", "macro_f1"}
    assert beside_the_paper(search, None).differences == {}
    assert not beside_the_paper(search, None).told_apart
    best = searched(answers.trials, paper_values={"x": 2})
    assert beside_the_paper(best, answers).place == 1
    assert beside_the_paper(best, answers).differences == {}
    for values in (None, {"x": 9}):
        assert beside_the_paper(searched(answers.trials, paper_values=values), answers) is None
    diverged = searched([trial(0, {"x": 0}, 0.0, "diverged")], paper_values={"x": 0})
    assert beside_the_paper(diverged, None) is None


def test_a_difference_without_an_interval_tells_nothing_apart():
    answers = answered([[True] * 9 + [False], [False] * 10], ("one slide",) * 10)
    (gap,) = differences(answers, answers.trials[0], "accuracy").values()
    assert gap.value == 0.9 and math.isnan(gap.low) and not gap.told_from_zero


def paper_protocol(fold, held_out):
    return searched(
        [
            trial(i, {"x": i}, a, metrics={"val_accuracy": a, "held_out_accuracy": b})
            for i, (a, b) in enumerate(zip(fold, held_out, strict=True))
        ],
        protocol="paper",
    )


def test_the_cost_of_scoring_on_trained_rows():
    fold, held_out = answered(flips(5, 200, 0.99, 11)), answered(flips(5, 150, 0.8, 12))
    shares = [(a.predicted == a.labels).mean(axis=1) for a in (fold, held_out)]
    search = paper_protocol(*shares)
    cost = cost_of_the_defect(search, fold, held_out)
    best, honest = int(np.argmax(shares[0])), int(np.argmax(shares[1]))
    assert cost.chosen.order == best and cost.honest.order == honest
    assert (cost.fold, cost.held_out) == (shares[0][best], shares[1][best])
    assert cost.optimism.value == pytest.approx(shares[0][best] - shares[1][best])
    # The interval of a difference of independent shares, within what a bootstrap resolves.
    error = math.sqrt(sum(p * (1 - p) / n for p, n in ((cost.fold, 200), (cost.held_out, 150))))
    assert cost.optimism.low == pytest.approx(cost.optimism.value - 1.96 * error, abs=0.02)
    assert cost.optimism.high == pytest.approx(cost.optimism.value + 1.96 * error, abs=0.02)
    assert cost.correlation == pytest.approx(stats.spearmanr(*shares).statistic)
    assert cost.saturated == (shares[0] >= 0.995).sum() and cost.count == 5
    assert cost.honest_held_out == shares[1].max() > cost.honest_expected


def test_the_cost_without_predictions_and_of_few_trials():
    cost = cost_of_the_defect(paper_protocol([1.0, 1.0, 0.9], [0.7, 0.8, 0.8]))
    assert cost.chosen.order == 0 and cost.honest.order == 1 and cost.saturated == 2
    assert math.isnan(cost.optimism.low) and math.isnan(cost.honest_expected)
    assert cost.correlation == pytest.approx(-0.5)
    assert math.isnan(cost_of_the_defect(paper_protocol([1.0], [0.7])).correlation)
    assert math.isnan(cost_of_the_defect(paper_protocol([1.0] * 3, [0.7, 0.8, 0.9])).correlation)
    assert cost_of_the_defect(searched([trial(0, {}, 0.5)], protocol="paper")) is None
