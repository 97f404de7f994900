"""Suppression on the lattice against greedy suppression one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.fields.find import suppression


def greedy(scores, threshold, radius, stride):
    places = [(int(i), int(j)) for i, j in np.argwhere(scores >= np.float32(threshold))]
    kept = []
    for i, j in sorted(places, key=lambda place: (-scores[place], place)):
        if all(np.hypot(i - a, j - b) * stride >= radius for a, b in kept):
            kept.append((i, j))
    return sorted(kept)


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 25), st.integers(1, 25)),
    st.sampled_from([1, 2, 6]),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 24.9, 25.0, 25.1, 36.0, 50.0, 51.0, 110.0, 2000.0]),
    st.sampled_from([1, 7, 25]),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_it_is_greedy_suppression(seed, shape, decimals, threshold, radius, stride):
    # Few decimals make ties, which go to the first in reading order.
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random(shape), decimals).astype(np.float32)
    radius = radius * stride / 25
    found = suppression.keep(scores, threshold, radius, stride)
    assert [tuple(place) for place in found.tolist()] == greedy(scores, threshold, radius, stride)


def test_a_chain_is_undone_from_its_top():
    scores = np.linspace(0.6, 0.9, 40, dtype=np.float32)[None]
    found = suppression.keep(scores, 0.5, radius=26, stride=25)
    assert found[:, 1].tolist() == list(range(1, 40, 2))


def test_a_higher_threshold_keeps_a_subset():
    scores = np.random.default_rng(0).random((60, 80)).astype(np.float32)
    low = suppression.keep(scores, 0.3, 60, 25)
    for threshold in (0.5, 0.9, 0.99):
        high = suppression.keep(scores, threshold, 60, 25)
        expected = low[scores[tuple(low.T)] >= threshold]
        np.testing.assert_array_equal(high, expected)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0)])
def test_no_rois(shape):
    assert suppression.keep(np.zeros(shape, np.float32), 0.5, 50, 25).shape == (0, 2)


def test_nothing_above_the_threshold():
    assert len(suppression.keep(np.full((9, 9), 0.4, np.float32), 0.5, 50, 25)) == 0
