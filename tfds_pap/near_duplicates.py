"""Finds pictures of the same thing: copies, turned, zoomed, mirrored, stretched or cut otherwise.

Candidates first, verification second. Candidates come from keypoints that agree on a turn and a
zoom (`twin_candidates`), from a perceptual hash over the eight flips and quarter-turns (for
pictures with little structure), and, where a caller has them, from nearest neighbours among the
features of a frozen backbone. A candidate counts only if one picture, laid on the other by an
affine map, agrees with it pixel by pixel.

Pixels are compared after local contrast normalisation. Without it one dark nucleus, or one speck of
dust in each of two empty ROIs, decides the correlation alone; with it every part of the overlap
counts alike, the lamp's brightness does not count, and the grain of an empty ROI does not repeat in
another.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import threadpoolctl
import tqdm

from tfds_pap import alignment, keypoints, twin_candidates
from tfds_pap.alignment import SIZE, Alignment

__all__ = ["EFFORTS", "SIZE", "Match", "find"]

#: How hard may be looked. Fast looks at fewer candidates.
EFFORTS = {
    "full": twin_candidates.Effort(
        detected=128, indexed=80, neighbours=5, kept=8, least_votes=2, closure=True
    ),
    "fast": twin_candidates.Effort(
        detected=128, indexed=80, neighbours=3, kept=3, least_votes=2, closure=False
    ),
}

#: Bits of 64 by which the hashes of a candidate may differ, and candidates a picture and side.
_HASH_BITS = 10
_HASH_CANDIDATES = 5

#: Neighbours a picture and side among given features.
_FEATURE_NEIGHBOURS = 5

#: Partners of one picture that are compared with one another.
_CLOSURE_PARTNERS = 12
#: How often pairs that were found lead to further ones.
CLOSURE_ROUNDS = 2

#: With fewer pictures than this nothing is shown while they are compared, nor in a log.
_SHOWN_FROM = 500


@dataclasses.dataclass(frozen=True)
class Match:
    """Two pictures that show the same thing, wholly or where they overlap.

    Attributes:
        first: Position of one, the lower.
        second: Position of the other.
        alignment: Lays the second on the first.
        similarity: Correlation where they agree, 0..1; 1 for identical pixels.
        overlap: Share of the first picture that is in both.
    """

    first: int
    second: int
    alignment: Alignment
    similarity: float
    overlap: float

    @property
    def identical(self) -> bool:
        """Whether every compared pixel is the same."""
        return self.similarity == 1

    def reversed(self) -> "Match":
        """The same match, seen from the other picture."""
        back = self.alignment.inverse()
        return Match(self.second, self.first, back, self.similarity, back.overlap)


def find(
    pixels: np.ndarray,
    features: np.ndarray | None = None,
    sides: np.ndarray | None = None,
    *,
    effort: str = "full",
) -> list[Match]:
    """Finds pairs that show the same thing, in a time nearly linear in the number of pictures.

    Of many equal pictures each is paired with the first on every side, not with all the others.

    Args:
        pixels: uint8 RGB `[n, 128, 128, 3]`.
        features: float32 `[n, d]` of a frozen backbone; None goes without that look.
        sides: Split of each picture, `[n]`. Each picture looks for its like in every split, so
            that copies in its own cannot hide one in another; None takes all for one split.
        effort: One of `EFFORTS`.

    Returns:
        At most one match a pair, the most similar first.
    """
    if sides is None:
        sides = np.zeros(len(pixels), int)
    if len(pixels) < 2:
        return []
    how = EFFORTS[effort]
    # What has equals is compared once for each side.
    equals = same_pixels(map(digest, pixels), sides)
    rows = distinct(equals)
    shown = _progress(len(rows))
    grey = np.stack([cv2.cvtColor(np.asarray(pixels[row]), cv2.COLOR_RGB2GRAY) for row in rows])
    by_side = [np.flatnonzero(sides[rows] == side) for side in np.unique(sides)]
    edges = np.searchsorted(rows, range(0, len(pixels), twin_candidates.blocks(len(pixels))))[1:]
    parts = [np.split(members, np.searchsorted(members, edges)) for members in by_side]
    points = keypoints.detect(grey, how.detected, shown("audit: keypoints", len(rows)))
    comparison = alignment.Comparison(grey, points)
    hashes = hashes_of(grey)
    work: set[Candidate] = {
        (a, b, mirrored, None)
        for a, b, mirrored in twin_candidates.by_keypoints(points, parts, how)
    }
    work.update(_by_hash(hashes, by_side))
    if features is not None:
        work.update(by_features(np.asarray(features, np.float32)[rows], by_side))
    by_pair = compare(comparison, sorted(work, key=_order), shown)
    if how.closure:
        close(by_pair, lambda more: compare(comparison, more, shown))
    return ranked((_exact(m, rows, pixels) for m in by_pair.values()), equals)


def close(
    by_pair: dict[tuple[int, int], Match],
    compare: Callable[[list["Candidate"]], dict[tuple[int, int], Match]],
) -> None:
    """Compares pairs both of which match a third picture, and adds what matches.

    Args:
        by_pair: The match of each pair that is one, in ascending order of pairs.
        compare: Returns the best match of each pair that is one, likewise.
    """
    for _ in range(CLOSURE_ROUNDS):
        by_pair.update(compare(_implied(by_pair)))


def ranked(matches: Iterable[Match], equals: list[list[list[int]]]) -> list[Match]:
    """Adds what follows for pictures that equal one that was compared; the most similar first.

    Args:
        matches: Of positions among all pictures.
        equals: From `same_pixels`.
    """
    by_pair = {(match.first, match.second): match for match in matches}
    for match in _inherited(tuple(by_pair.values()), equals):
        by_pair.setdefault((match.first, match.second), match)
    return sorted(by_pair.values(), key=lambda m: (-m.similarity, m.first, m.second))


#: First, second (below it), whether one is mirrored, and the view of the second where known.
Candidate = tuple[int, int, bool, int | None]


def _order(candidate: Candidate) -> tuple:
    return (*candidate[:3], -1 if candidate[3] is None else candidate[3])


def _progress(count: int) -> Callable[[str, int], Callable[[Iterable], Iterable]]:
    def shown(words: str, total: int) -> Callable[[Iterable], Iterable]:
        return lambda items: tqdm.tqdm(
            items,
            words,
            total,
            unit="",
            leave=False,
            disable=True if count < _SHOWN_FROM else None,
        )

    return shown


def unseen(words: str, total: int) -> Callable[[Iterable], Iterable]:
    """Shows no progress; see `compare`."""
    return iter


def compare(
    comparison: "alignment.Comparison",
    work: list[Candidate],
    shown: Callable[[str, int], Callable[[Iterable], Iterable]],
) -> dict[tuple[int, int], Match]:
    """Returns the best match of each pair that is one, in the order of the candidates."""

    def one(item: tuple) -> Match | None:
        a, b, *_ = item
        verified = comparison.verify(*item)
        return verified and Match(a, b, *verified)

    by_pair: dict[tuple[int, int], Match] = {}
    # One thread a pair: those of the linear algebra would only wait for one another.
    with threadpoolctl.threadpool_limits(1):
        for match in shown("audit: comparing", len(work))(keypoints.in_order(one, work)):
            if match:
                keep_better(by_pair, match)
    return by_pair


def keep_better(by_pair: dict[tuple[int, int], Match], match: Match) -> None:
    """Keeps the more similar of two matches of a pair, the first where they are alike."""
    known = by_pair.get((match.first, match.second))
    if known is None or match.similarity > known.similarity:
        by_pair[match.first, match.second] = match


def _implied(
    by_pair: dict[tuple[int, int], Match],
) -> list[Candidate]:
    """Pairs that were not found, both of which match a third picture so that they overlap."""
    partners: dict[int, list[Match]] = {}
    for match in sorted(by_pair.values(), key=lambda m: -m.overlap):
        for seen in (match, match.reversed()):
            if len(here := partners.setdefault(seen.first, [])) < _CLOSURE_PARTNERS:
                here.append(seen)
    implied: dict[tuple[int, int], bool] = {}
    for matches in partners.values():
        for number, one in enumerate(matches):
            for other in matches[:number]:
                low, high = (one, other) if one.second < other.second else (other, one)
                pair = (low.second, high.second)
                if pair in by_pair or pair in implied:
                    continue
                # From the higher picture to the common one, and on to the lower.
                lay = low.alignment.inverse().after(high.alignment)
                if lay.overlap >= alignment.LEAST_SHARE:
                    # Composed of two maps, each a little off: the keypoints say it better.
                    implied[pair] = lay.mirrored
    return [(a, b, mirrored, None) for (a, b), mirrored in sorted(implied.items())]


def _exact(match: Match, rows: np.ndarray, pixels: np.ndarray) -> Match:
    """The match of positions among all pictures."""
    first, second = int(rows[match.first]), int(rows[match.second])
    match = dataclasses.replace(match, first=first, second=second)
    return exact(match, equal=same_in_view(match, pixels[first], pixels[second]))


def same_in_view(match: Match, first: np.ndarray, second: np.ndarray) -> bool:
    """Returns whether one picture is a view of the other, pixel by pixel."""
    view = match.alignment.view
    return view is not None and np.array_equal(first, alignment.turned(second, view))


def exact(match: Match, *, equal: bool) -> Match:
    """Returns the match with similarity 1 where pixels are equal (`same_in_view`), and else not."""
    view = match.alignment.view
    if equal and view is not None:
        return Match(match.first, match.second, Alignment.of_view(view), 1.0, 1.0)
    return dataclasses.replace(match, similarity=min(match.similarity, 1 - 1e-6))


def digest(picture: np.ndarray) -> bytes:
    """Returns the SHA-256 of the pixels."""
    return hashlib.sha256(picture.tobytes()).digest()


def same_pixels(digests: Iterable[bytes], sides: np.ndarray) -> list[list[list[int]]]:
    """For each distinct picture returns the positions that hold it, a list for each side."""
    by_digest: dict[bytes, dict[int, list[int]]] = {}
    for number, one in enumerate(digests):
        by_digest.setdefault(one, {}).setdefault(sides[number], []).append(number)
    return [list(same.values()) for same in by_digest.values()]


def distinct(equals: list[list[list[int]]]) -> np.ndarray:
    """Returns the positions that are compared, ascending: the first of equals of each side."""
    return np.array(sorted(members[0] for same in equals for members in same), int)


def _inherited(matches: Iterable[Match], equals: list[list[list[int]]]) -> Iterator[Match]:
    """What follows for pictures that equal one that was compared."""
    further = {members[0]: members[1:] for same in equals for members in same}
    for match in matches:
        for other in further[match.first]:
            yield _ordered(dataclasses.replace(match, first=other))
        for other in further[match.second]:
            yield _ordered(dataclasses.replace(match, second=other))
    for same in equals:
        firsts = [members[0] for members in same]
        for number in sorted(number for members in same for number in members):
            for first in firsts:
                if first != number:
                    yield _ordered(Match(first, number, Alignment.of_view(0), 1.0, 1.0))


def _ordered(match: Match) -> Match:
    """The same match, seen from the lower of its positions."""
    return match if match.first < match.second else match.reversed()


def hashes_of(grey: np.ndarray) -> np.ndarray:
    """Returns the perceptual hash of every view, uint64 `[n, 8]`; view 0 is the picture itself.

    The rule of imagehash's `phash`: the low 8 x 8 coefficients of the cosine transform of 32 x 32
    pixels against their median. A flip changes signs of coefficients, a transposition swaps them.
    """
    hashes = np.empty((len(grey), alignment.VIEWS), np.uint64)
    signs = np.where(np.arange(8) % 2, -1, 1).astype(np.float32)
    for number, picture in enumerate(grey):
        small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
        low = cv2.dct(small)[:8, :8]
        for view in range(alignment.VIEWS):
            seen = low * signs if view % 2 else low
            seen = seen * signs[:, None] if view // 2 % 2 else seen
            seen = seen.T if view // 4 else seen
            hashes[number, view] = np.packbits(seen > np.median(seen)).view(">u8")[0]
    return hashes


def _by_hash(hashes: np.ndarray, by_side: list[np.ndarray]) -> Iterator[Candidate]:
    """Pairs whose hashes differ by few bits in some view."""
    pictures = np.arange(len(hashes))
    for members in by_side:
        yield from near_hashes(
            twin_candidates.hash_index(hashes[members, 0]), members, hashes, pictures
        )


def near_hashes(
    index: Any, members: np.ndarray, hashes: np.ndarray, pictures: np.ndarray
) -> Iterator[Candidate]:
    """Yields pairs whose hashes differ by few bits in some view.

    Args:
        index: Of one side, from `twin_candidates.hash_index`.
        members: Whose hashes it holds.
        hashes: uint64 `[n, 8]` of those that ask.
        pictures: Which ones these are, `[n]`.
    """
    near, bits, view = twin_candidates.nearest_hashes(index, hashes, _HASH_CANDIDATES)
    for row, column in zip(*np.nonzero((bits <= _HASH_BITS) & (near >= 0)), strict=True):
        asker, other = int(pictures[row]), int(members[near[row, column]])
        if other != asker:
            seen = int(view[row, column])
            # It turns the one that asks: it leads back to the first where that one asks.
            back = alignment.BACK[seen] if asker < other else seen
            low, high = min(asker, other), max(asker, other)
            yield low, high, alignment.mirrors(back), back


def by_features(features: np.ndarray, by_side: list[np.ndarray]) -> Iterator[Candidate]:
    """Yields nearest neighbours by cosine; nothing is known of how they lie."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    for members in by_side:
        near = twin_candidates.nearest(unit, members, _FEATURE_NEIGHBOURS + 1)
        for row, columns in enumerate(near):
            for other in members[columns[columns >= 0]].tolist():
                if other != row:
                    for mirrored in (False, True):
                        yield min(row, other), max(row, other), mirrored, None
