"""Matching against every assignment there is, and by score against the loop that defines it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse import csgraph

from replication.fields.judge import matching

#: Many, the same each time.
FEW, MANY = (
    settings(max_examples=count, deadline=None, derandomize=True, database=None)
    for count in (40, 250)
)

seeds = st.integers(0, 2**32 - 1)


def points(rng, count, side, grid):
    places = rng.random((count, 2)) * side
    # On a grid, many distances are equal, and some are 0.
    return places // 12 * 12 if grid else places


def distances(detections, nuclei):
    return np.hypot(*(detections[:, None] - nuclei[None]).transpose(2, 0, 1))


def best(allowed, row=0, taken=frozenset()):
    """Most pairs and then the least distance, over all assignments."""
    if row == len(allowed):
        return 0, 0.0
    found = [best(allowed, row + 1, taken)]
    for column in np.flatnonzero(np.isfinite(allowed[row])).tolist():
        if column not in taken:
            pairs, total = best(allowed, row + 1, taken | {column})
            found.append((pairs + 1, total + allowed[row, column]))
    return min(found, key=lambda one: (-one[0], one[1]))


def check(pairs, detections, nuclei, radius):
    """It is a matching, and says its distances."""
    assert len(set(pairs.detections.tolist())) == len(set(pairs.nuclei.tolist())) == len(pairs)
    found = distances(detections, nuclei)[pairs.detections, pairs.nuclei]
    np.testing.assert_allclose(pairs.distances, found)
    assert (found <= radius).all()


@given(seeds, st.integers(0, 6), st.integers(0, 6), st.sampled_from([20, 60, 150]), st.booleans())
@MANY
def test_it_is_the_best_of_all_assignments(seed, count, others, side, grid):
    rng = np.random.default_rng(seed)
    detections, nuclei = points(rng, count, side, grid), points(rng, others, side, grid)
    apart = distances(detections, nuclei)
    allowed = np.where(apart <= 32, apart, np.inf)
    expected = best(allowed)
    # A radius may be a whole number, and still no distance be cut to one.
    for radius in (32, 32.0):
        pairs = matching.match(detections, nuclei, radius)
        check(pairs, detections, nuclei, radius)
        assert (len(pairs), pairs.distances.sum()) == pytest.approx(expected)
        assert (np.diff(pairs.nuclei) > 0).all()


@given(seeds, st.integers(1, 40), st.integers(1, 40), st.booleans())
@FEW
def test_crowds_are_solved_alike_in_both_ways(seed, count, others, grid):
    rng = np.random.default_rng(seed)
    detections, nuclei = points(rng, count, 150, grid), points(rng, others, 150, grid)
    dense = matching.match(detections, nuclei, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_DENSE_ENTRIES", 0)
        thin = matching.match(detections, nuclei, 32)
    check(thin, detections, nuclei, 32)
    assert len(thin) == len(dense)
    assert thin.distances.sum() == pytest.approx(dense.distances.sum())


def test_a_pair_more_is_worth_any_distance():
    nuclei = np.array([[0.0, 0.0], [30.0, 0.0], [60.0, 0.0]])
    detections = np.array([[30.0, 0.0], [60.0, 0.0], [90.0, 0.0]])
    pairs = matching.match(detections, nuclei, 31)
    assert pairs.distances.tolist() == [30, 30, 30]


def test_a_chain_of_any_length_is_moved_up_by_one():
    nuclei = np.stack([np.arange(500) * 30.0, np.zeros(500)], axis=1)
    pairs = matching.match(nuclei + np.array([30.0, 0.0]), nuclei, 31)
    assert len(pairs) == 500


def test_the_radius_itself_matches():
    detections, nuclei = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])
    assert len(matching.match(detections, nuclei, 5)) == 1
    assert len(matching.match(detections, nuclei, np.nextafter(5, 0))) == 0


def test_a_slide_needs_no_dense_matrix(monkeypatch):
    crowds = []

    def assign(near, radius, solve=matching._assign):
        crowds.append(len(np.unique(near.detections)) * len(np.unique(near.nuclei)))
        return solve(near, radius)

    monkeypatch.setattr(matching, "_assign", assign)
    rng = np.random.default_rng(0)
    detections, nuclei = rng.random((2, 40_000, 2)) * 12_000
    pairs = matching.match(detections, nuclei, 32)
    near = matching.candidates(detections, nuclei, 32)
    edges = sparse.csr_array((np.ones(len(near)), (near.detections, near.nuclei)))
    most = csgraph.maximum_bipartite_matching(edges, perm_type="column")
    assert len(pairs) == (most >= 0).sum() > 10_000
    assert sum(crowds) < 2_000_000
    assert len(set(pairs.detections.tolist())) == len(pairs)


def one_by_one(detections, scores, nuclei, radius, threshold):
    """Hits at a threshold, by the definition: scores must differ."""
    apart, free, hits = distances(detections, nuclei), set(range(len(nuclei))), []
    for number in np.argsort(-scores):
        near = [(apart[number, k], k) for k in free if apart[number, k] <= radius]
        if scores[number] >= threshold and near:
            hits.append(int(number))
            free.remove(min(near)[1])
    return hits


@given(seeds, st.integers(0, 30), st.integers(0, 30))
@FEW
def test_matches_by_score_hold_at_every_threshold(seed, count, others):
    rng = np.random.default_rng(seed)
    detections, nuclei = points(rng, count, 150, False), points(rng, others, 150, False)
    scores = rng.permutation(count) / max(count, 1)
    pairs = matching.match_by_score(detections, scores, nuclei, 32)
    check(pairs, detections, nuclei, 32)
    for threshold in (0.0, 0.3, 0.7, 0.95):
        expected = one_by_one(detections, scores, nuclei, 32, threshold)
        assert [d for d in pairs.detections.tolist() if scores[d] >= threshold] == expected


def test_equal_scores_let_the_nearest_pair_go_first():
    detections, nuclei = np.array([[20.0, 0.0], [8.0, 0.0]]), np.array([[0.0, 0.0], [29.0, 0.0]])
    pairs = matching.match_by_score(detections, np.array([1.0, 1.0]), nuclei, 32)
    assert list(zip(pairs.detections, pairs.nuclei, strict=True)) == [(1, 0), (0, 1)]


@given(seeds, st.integers(0, 30), st.integers(0, 30))
@FEW
def test_the_best_matching_finds_at_least_as_many(seed, count, others):
    rng = np.random.default_rng(seed)
    detections, nuclei = points(rng, count, 120, False), points(rng, others, 120, False)
    by_score = matching.match_by_score(detections, rng.random(count), nuclei, 32)
    most = matching.match(detections, nuclei, 32)
    # What cannot be extended holds half of the most pairs, as any such matching does.
    assert len(most) / 2 <= len(by_score) <= len(most)
