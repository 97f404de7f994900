"""Recall against false positives (FROC) and against precision, over all thresholds at once."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

#: Thresholds that a curve has at most.
_POINTS = 1000

#: Entries of the largest array at a time: 2 million float64 are 16 MB.
_ENTRIES = 2_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """What each field has at each threshold; fields may then be drawn again and again.

    Attributes:
        thresholds: From the highest down, float64 `[t]`.
        hits: Matched detections at the threshold or above, float64 `[fields, t]`.
        misfits: Detections without a nucleus at the threshold or above, float64 `[fields, t]`.
        nuclei: Annotated, float64 `[fields]`.
    """

    thresholds: np.ndarray
    hits: np.ndarray
    misfits: np.ndarray
    nuclei: np.ndarray

    @classmethod
    def of(
        cls,
        scores: Sequence[np.ndarray],
        hits: Sequence[np.ndarray],
        nuclei: Sequence[int],
        *,
        points: int | None = _POINTS,
    ) -> "Curves":
        """Counts at every distinct score.

        Args:
            scores: Of each field's detections.
            hits: Whether each matches a nucleus, for each field.
            nuclei: Annotated in each field.
            points: Thresholds at most: where there are more scores, every so many is taken, the
                lowest among them; None takes all.
        """
        thresholds = np.unique(np.concatenate([np.zeros(0), *scores]))[::-1]
        if points is not None and len(thresholds) > points:
            chosen = np.linspace(0, len(thresholds) - 1, points).round().astype(int)
            thresholds = thresholds[chosen]

        def counts(wanted: bool) -> np.ndarray:
            rows = [
                _reached(np.sort(of[hit == wanted]), thresholds)
                for of, hit in zip(scores, hits, strict=True)
            ]
            return np.array(rows, float).reshape(len(scores), len(thresholds))

        return cls(thresholds, counts(True), counts(False), np.array(nuclei, float))

    def recall(self, weights: np.ndarray) -> np.ndarray:
        """Returns the recall at each threshold, float64 `[b, t]`; NaN without nuclei.

        Args:
            weights: float64 `[b, fields]`, how often each field counts.
        """
        return ratio(weights @ self.hits, (weights @ self.nuclei)[:, None])

    def false_positives(self, weights: np.ndarray) -> np.ndarray:
        """Returns false positives per field at each threshold, float64 `[b, t]`.

        Args:
            weights: float64 `[b, fields]`, how often each field counts.
        """
        return ratio(weights @ self.misfits, weights.sum(axis=1)[:, None])

    def precision(self, weights: np.ndarray) -> np.ndarray:
        """Returns the precision at each threshold, float64 `[b, t]`.

        Args:
            weights: float64 `[b, fields]`, how often each field counts.
        """
        hits = weights @ self.hits
        # At a threshold that no drawn field reaches nothing is found, and nothing is added up.
        return np.nan_to_num(ratio(hits, hits + weights @ self.misfits))

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """Returns the area under the precision-recall curve, float64 `[b]`; NaN without nuclei.

        Stepwise, without interpolation, as scikit-learn's `average_precision_score`; a nucleus that
        no detection matches is never reached, and its share of the area is 0.

        Args:
            weights: float64 `[b, fields]`, how often each field counts.
        """
        areas = np.full(len(weights), np.nan)
        for part in self._parts(len(weights)):
            steps = np.diff(self.recall(weights[part]), prepend=0.0)
            areas[part] = (steps * self.precision(weights[part])).sum(axis=1)
        areas[weights @ self.nuclei == 0] = np.nan
        return areas

    def recall_at(self, weights: np.ndarray, rates: Sequence[float] | np.ndarray) -> np.ndarray:
        """Returns the highest recall with so many false positives per field, or fewer.

        Args:
            weights: float64 `[b, fields]`, how often each field counts.
            rates: False positives per field, `[r]`. Beyond the end of the curve the recall is that
                of its end.

        Returns:
            float64 `[b, r]`; NaN without nuclei.
        """
        recalls = np.full((len(weights), len(rates)), np.nan)
        for part in self._parts(len(weights)):
            # Before the first threshold nothing is found, at no false positive.
            recall = np.pad(self.recall(weights[part]), ((0, 0), (1, 0)))
            for row, reached, values in zip(
                recalls[part], self.false_positives(weights[part]), recall, strict=True
            ):
                row[:] = values[np.searchsorted(reached, rates, side="right")]
        recalls[weights @ self.nuclei == 0] = np.nan
        return recalls

    def _parts(self, count: int) -> Iterator[slice]:
        size = max(1, _ENTRIES // max(1, len(self.thresholds)))
        return (slice(start, start + size) for start in range(0, count, size))


def _reached(ascending: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return len(ascending) - np.searchsorted(ascending, thresholds, side="left")


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns the quotient, NaN where nothing is to be divided by.

    Args:
        above: float64, of a shape that broadcasts with the other.
        below: float64.
    """
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
