import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.measures.intervals import (
    effective_count,
    group_weights,
    percentile_bootstrap,
    wilson,
)

pytestmark = pytest.mark.filterwarnings("error")


def wilson_by_hand(s, n, z=1.959963984540054):
    # Wilson 1927, equation as in most textbooks.
    p = s / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def test_wilson_of_the_published_778_of_800():
    assert wilson(778, 800) == pytest.approx(wilson_by_hand(778, 800), abs=1e-12)
    assert wilson(778, 800) == pytest.approx((0.958714, 0.981770), abs=5e-7)
    # 15 of 50 by hand: 0.3 with z = 1.96.
    assert wilson(15, 50) == pytest.approx((0.1910, 0.4375), abs=2e-4)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_holds_the_point_inside_0_to_1(total, share):
    successes = round(share * total)
    low, high = wilson(successes, total)
    assert 0 <= low <= successes / total <= high <= 1
    assert high > low
    assert (low, high) == pytest.approx(wilson_by_hand(successes, total), abs=1e-9)


def test_wilson_without_images_and_bad_input():
    assert all(map(math.isnan, wilson(0, 0)))
    with pytest.raises(ValueError, match="0 <= successes <= total"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence=95)


def share_of(right):
    return lambda weights: {"share": weights @ right / weights.sum(axis=1)}


def covers(rng, groups, right, truth):
    interval = percentile_bootstrap(
        share_of(right), groups, resamples=400, seed=int(rng.integers(2**31))
    )["share"]
    return interval.low <= truth <= interval.high


def test_bootstrap_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(20)
    images = [""] * 150
    hits = [covers(rng, images, rng.random(150) < 0.8, 0.8) for _ in range(400)]
    assert 0.92 <= np.mean(hits) <= 0.98


def test_only_the_group_bootstrap_covers_the_truth_on_clustered_images():
    rng = np.random.default_rng(21)
    fields = [f"field{i // 8}" for i in range(400)]
    by_group, by_image = [], []
    for _ in range(200):
        skill = np.repeat(rng.beta(2.4, 0.6, size=50), 8)
        right = rng.random(400) < skill
        by_group.append(covers(rng, fields, right, 0.8))
        by_image.append(covers(rng, [""] * 400, right, 0.8))
    assert 0.90 <= np.mean(by_group) <= 0.99
    assert np.mean(by_image) < 0.85


def test_the_bootstrap_spreads_as_far_as_students_interval():
    values = np.random.default_rng(3).normal(size=400)
    for count in (6, 12, 400):
        some = values[:count]
        found = percentile_bootstrap(share_of(some), [""] * count, resamples=20000)["share"]
        half = scipy.stats.t.ppf(0.975, count - 1) * some.std(ddof=1) / math.sqrt(count)
        # Of few numbers the percentiles of Dirichlet weights are no normal ones.
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.2 if count < 10 else 0.1)


def test_few_fields_that_hold_most_make_resamples_as_wide_as_fewer_fields_do():
    values = np.random.default_rng(3).normal(size=20)
    # 4 of 20 hold five images each, the others one: as good as 11 of equal size.
    sizes = np.array([[5] * 4 + [1] * 16, [1] * 20])
    assert effective_count(sizes[0]) == pytest.approx(36**2 / 116)
    assert effective_count(sizes) == pytest.approx(36**2 / 116)
    assert effective_count([3, 3, 0]) == 2 and effective_count([0, 0]) == 0
    found = percentile_bootstrap(share_of(values), [""] * 20, sizes=sizes, resamples=20000)["share"]
    half = scipy.stats.t.ppf(0.975, 36**2 / 116 - 1) * values.std(ddof=1) / math.sqrt(20)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    assert "20 images (as good as 11 of equal size)" in found.method
    one = percentile_bootstrap(share_of(values), [""] * 20, sizes=np.array([500] + [1] * 19))
    assert math.isnan(one["share"].low)


def test_every_resample_holds_every_unit():
    for weights in group_weights(5, 2000, 0):
        assert (weights > 0).all()
    assert not list(group_weights(4, 2000, 0))
    few = percentile_bootstrap(share_of(np.ones(4)), [""] * 4)["share"]
    assert math.isnan(few.low) and few.method == "no interval from 4 images"


def test_resamples_that_do_not_differ_are_no_certainty():
    found = percentile_bootstrap(share_of(np.ones(30)), [""] * 30)["share"]
    assert math.isnan(found.low) and "tells no spread" in found.method


def test_bootstrap_is_seeded_and_chunks_do_not_change_it(monkeypatch):
    right = np.random.default_rng(0).random(50) < 0.7
    first = percentile_bootstrap(share_of(right), [""] * 50, seed=7)
    again = percentile_bootstrap(share_of(right), [""] * 50, seed=7)["share"]
    assert (again.low, again.high) == (first["share"].low, first["share"].high)
    assert first != percentile_bootstrap(share_of(right), [""] * 50, seed=8)
    monkeypatch.setattr("replication.measures.intervals._CHUNK_ENTRIES", 50 * 7)
    again = percentile_bootstrap(share_of(right), [""] * 50, seed=7)["share"]
    # Sums of other lengths differ in their last bits.
    assert (again.low, again.high) == pytest.approx((first["share"].low, first["share"].high))


def test_bootstrap_refuses_bad_input():
    with pytest.raises(ValueError, match="at least one image"):
        percentile_bootstrap(share_of(np.ones(0)), [])
    with pytest.raises(ValueError, match="at least 1 resample"):
        percentile_bootstrap(share_of(np.ones(2)), ["", ""], resamples=0)
    with pytest.raises(ValueError, match="confidence"):
        percentile_bootstrap(share_of(np.ones(2)), ["", ""], confidence=1)
