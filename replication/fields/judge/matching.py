"""Which detection belongs to which nucleus.

Two ways, for two questions. At one threshold, `match` finds the best assignment there is, so that a
figure does not depend on the order in which detections come. Over all thresholds, `match_by_score`
gives the detections their turn from the highest score down, as PASCAL VOC, COCO and LUNA16 do: what
is matched at a threshold stays so below it, and one pass is exact for every threshold. The second
may pair fewer, as an early detection may take a nucleus that a later one needs more.
"""

import dataclasses

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csgraph
from scipy.spatial import KDTree

#: Entries of the cost matrix of a crowd that is solved densely (32 MB); larger ones stay sparse.
_DENSE_ENTRIES = 4_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Detections and nuclei that belong together.

    Attributes:
        detections: Positions, int64 `[n]`.
        nuclei: Positions, int64 `[n]`.
        distances: Pixels, float64 `[n]`.
    """

    detections: np.ndarray
    nuclei: np.ndarray
    distances: np.ndarray

    def __len__(self) -> int:
        return len(self.detections)

    def select(self, rows: np.ndarray | slice) -> "Pairs":
        """Returns some of the pairs.

        Args:
            rows: Positions, int `[k]`; a mask, bool `[n]`; or a slice.
        """
        return Pairs(self.detections[rows], self.nuclei[rows], self.distances[rows])


def candidates(detections: np.ndarray, nuclei: np.ndarray, radius: float) -> Pairs:
    """Returns every detection with every nucleus that lies within the radius of it.

    Args:
        detections: x and y, float64 `[n, 2]`, pixels.
        nuclei: x and y, float64 `[m, 2]`, pixels.
        radius: Pixels, itself included.
    """
    near = KDTree(detections).sparse_distance_matrix(KDTree(nuclei), radius, output_type="ndarray")
    # In one order, whatever the tree's: detection by detection, the nearest nucleus first.
    near = near[np.lexsort((near["j"], near["v"], near["i"]))]
    return Pairs(
        near["i"].astype(np.int64), near["j"].astype(np.int64), near["v"].astype(np.float64)
    )


def match(detections: np.ndarray, nuclei: np.ndarray, radius: float) -> Pairs:
    """Pairs detections with nuclei one to one: the most pairs, and of these the least distance.

    Source: H. W. Kuhn, "The Hungarian method for the assignment problem", Nav. Res. Logist. Q. 2
    (1955) 83-97, by `scipy.optimize.linear_sum_assignment`. Each crowd of detections and nuclei
    that hang together is solved by itself, and so a slide never needs a dense matrix.

    Args:
        detections: x and y, float64 `[n, 2]`, pixels.
        nuclei: x and y, float64 `[m, 2]`, pixels.
        radius: Of a pair at most, pixels.

    Returns:
        Pairs in the order of the nuclei.

    Example:
        >>> pairs = match(np.array([[0.0, 0.0], [9.0, 0.0]]), np.array([[5.0, 0.0]]), radius=6)
        >>> pairs.detections.tolist(), pairs.distances.tolist()
        ([1], [4.0])
    """
    near = candidates(detections, nuclei, radius)
    if not len(near):
        return near
    size = len(detections) + len(nuclei)
    edges = sparse.coo_array(
        (np.ones(len(near)), (near.detections, len(detections) + near.nuclei)), shape=(size, size)
    )
    crowds = csgraph.connected_components(edges, directed=False)[1][near.detections]
    order = np.argsort(crowds, kind="stable")
    near, crowds = near.select(order), crowds[order]
    ends = np.append(np.flatnonzero(np.diff(crowds)) + 1, len(near))
    starts = np.append(0, ends[:-1])
    alone = ends - starts == 1
    chosen = [starts[alone]]
    for start, end in zip(starts[~alone], ends[~alone], strict=True):
        chosen.append(start + _assign(near.select(slice(start, end)), radius))
    pairs = near.select(np.concatenate(chosen))
    return pairs.select(np.argsort(pairs.nuclei))


def _assign(near: Pairs, radius: float) -> np.ndarray:
    """Returns the positions of the chosen ones among the candidates of one crowd."""
    detections, rows = np.unique(near.detections, return_inverse=True)
    nuclei, columns = np.unique(near.nuclei, return_inverse=True)
    # One more pair is worth any rearrangement of the others.
    missed = (min(len(detections), len(nuclei)) + 1.0) * max(radius, 1.0)
    if len(detections) * len(nuclei) <= _DENSE_ENTRIES:
        costs = np.full((len(detections), len(nuclei)), missed)
        numbers = np.full(costs.shape, -1)
        costs[rows, columns] = near.distances
        numbers[rows, columns] = np.arange(len(near))
        chosen = numbers[linear_sum_assignment(costs)]
        return chosen[chosen >= 0]
    # Each nucleus gets a stand-in of its own that means "missed", so that all can be assigned.
    own = np.arange(len(nuclei))
    costs = sparse.csr_array(
        (
            # A cost of 0 would be taken for none.
            np.concatenate([near.distances, np.full(len(nuclei), missed)]) + 1,
            (np.concatenate([columns, own]), np.concatenate([rows, len(detections) + own])),
        )
    )
    assigned = np.full(len(nuclei), -1)
    which, to = csgraph.min_weight_full_bipartite_matching(costs)
    assigned[which] = to
    return np.flatnonzero(assigned[columns] == rows)


def match_by_score(
    detections: np.ndarray, scores: np.ndarray, nuclei: np.ndarray, radius: float
) -> Pairs:
    """Pairs detections with nuclei one to one, the highest score first.

    Each takes the nearest nucleus that is still free, as in COCO's evaluation (T.-Y. Lin et al.,
    "Microsoft COCO: common objects in context", 2014); of equal scores, the nearest pair goes
    first. The pairs at a threshold are those whose score reaches it.

    Args:
        detections: x and y, float64 `[n, 2]`, pixels.
        scores: float64 `[n]`.
        nuclei: x and y, float64 `[m, 2]`, pixels.
        radius: Of a pair at most, pixels.

    Returns:
        Pairs in the order in which they were made.
    """
    near = candidates(detections, nuclei, radius)
    near = near.select(np.lexsort((near.distances, -scores[near.detections])))
    free_detections, free_nuclei = [True] * len(detections), [True] * len(nuclei)
    chosen = []
    pairs = zip(near.detections.tolist(), near.nuclei.tolist(), strict=True)
    for number, (detection, nucleus) in enumerate(pairs):
        if free_detections[detection] and free_nuclei[nucleus]:
            free_detections[detection] = free_nuclei[nucleus] = False
            chosen.append(number)
    return near.select(np.array(chosen, np.int64))
