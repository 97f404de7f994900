"""Finds pictures of the same thing: copies, flips, turns, recompressed copies, shifted crops.

Candidates first, verification second. Candidates come from three looks, each blind to something
else: a perceptual hash over the eight flips and quarter-turns (blind to shifts), keypoints that
agree on a view and a shift (blind to pictures without structure), and, where a caller has them,
nearest neighbours among the features of a frozen backbone. A candidate counts only if both pictures
agree, pixel by pixel, over the whole of their overlap.

They are compared after local contrast normalisation. Without it one dark nucleus, or one speck of
dust in each of two empty ROIs, decides the correlation alone; with it every part of the overlap
counts alike, and the grain of an empty ROI does not repeat in another.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator

import cv2
import imagehash
import numpy as np
from PIL import Image

from tfds_pap.views import VIEWS, turned

#: Height and width in pixels at which pictures are compared; 10 of 250 px are 5 here.
SIZE = 128

#: Bits of 64 by which the hashes of a candidate may differ, and candidates a picture and side.
_HASH_BITS = 10
_HASH_CANDIDATES = 5
_HASH_BLOCK = 128

#: Keypoints a picture, and how far a matched pair may disagree with a view.
_KEYPOINTS = 20
_ANGLE_DEGREES = 15
_SIZE_RATIO = 1.35
_DESCRIPTOR_DIMENSIONS = 48
_BLOCK = 500

#: Neighbours a picture and side among given features.
_FEATURE_NEIGHBOURS = 5

#: Sigmas in pixels of the band in which pictures are compared (finer is noise, coarser is stain),
#: of the window whose contrast divides it, and the grey levels below which contrast is noise.
_BAND = (1.2, 6.0)
_CONTRAST_WINDOW = 6.0
_CONTRAST_FLOOR = 2.0

#: The same at half size, where pictures are compared first.
_HALF_BAND = (1.2, 4.0)
_HALF_CONTRAST_WINDOW = 4.0

#: Share of a picture that must be in both.
_OVERLAP = 0.2

#: Least correlation over the overlap; and where that is a smaller share of the picture, or fewer
#: pixels carry the agreement, because a speck or an edge alone agrees with another by chance. In
#: windows of CRIC fields overlaps that are rightly aligned have at least 0.86, candidates from
#: different fields at most 0.67. On drawn fields, with emptier ground, chance reaches 0.67 where
#: there is much to compare and 0.88 where there is little.
_SIMILARITY = 0.7
_SIMILARITY_OF_LITTLE = 0.9
_LITTLE_SHARE = 0.6
_LITTLE_PIXELS = 300
#: At half size what agrees at full size has at least 0.54, and 98 in 100 of the others less than
#: this: a quick look that saves most of the time.
_HALF_SIMILARITY = 0.4

#: Pixels by which a candidate's shift may be off.
_SEARCH = 3

#: Deviation that a normalised overlap must have: below it there is nothing to compare.
_LEAST_DEVIATION = 0.05


@dataclasses.dataclass(frozen=True)
class Match:
    """Two pictures that show the same thing, wholly or where they overlap.

    Attributes:
        first: Position of one, the lower.
        second: Position of the other.
        view: 0..7: flip or turn of the second that aligns it; 1 mirrors left and right, 2 top and
            bottom, 4 transposes afterwards.
        shift: Pixels of `SIZE` by which the turned second lies to the right and below.
        similarity: Correlation over the overlap, 0..1; 1 for identical pixels.
        overlap: Share of the first picture that is in both.
        hash_bits: Bits by which the perceptual hashes differ in that view.
    """

    first: int
    second: int
    view: int
    shift: tuple[int, int]
    similarity: float
    overlap: float
    hash_bits: int

    @property
    def identical(self) -> bool:
        """Whether every compared pixel is the same."""
        return self.similarity == 1


def find(
    pixels: np.ndarray, features: np.ndarray | None = None, sides: np.ndarray | None = None
) -> list[Match]:
    """Finds every pair that shows the same thing.

    Of many equal pictures each is paired with the first on every side, not with all the others.

    Args:
        pixels: uint8 RGB `[n, 128, 128, 3]`.
        features: float32 `[n, d]` of a frozen backbone; None goes without that look.
        sides: Split of each picture, `[n]`. Each picture looks for its like in every split, so
            that copies in its own cannot hide one in another; None takes all for one split.

    Returns:
        At most one match a pair, the most similar first.
    """
    if sides is None:
        sides = np.zeros(len(pixels), int)
    # What has equals is compared once for each side.
    equals = _equals(pixels, sides)
    rows = np.array(sorted(members[0] for same in equals for members in same), int)
    grey = np.stack([cv2.cvtColor(np.asarray(pixels[row]), cv2.COLOR_RGB2GRAY) for row in rows])
    by_side = [np.flatnonzero(sides[rows] == side) for side in np.unique(sides)]
    hashes = _hashes(grey)
    half = np.stack([_half(picture) for picture in grey])

    @functools.lru_cache(maxsize=2048)
    def whole(number: int) -> np.ndarray:
        return _normalised(grey[number], _BAND, _CONTRAST_WINDOW)

    candidates = {*_by_hash(hashes, by_side), *_by_keypoints(grey, by_side)}
    if features is not None:
        candidates.update(_by_features(np.asarray(features, np.float32)[rows], by_side))
    found: dict[tuple[int, int], Match] = {}
    # One picture's candidates follow one another, so that what was computed of it is at hand.
    for a, b, view, guess in sorted(candidates, key=lambda c: (*c[:3], c[3] or ())):
        shift = _promising_shift(half[a], turned(half[b], view), guess)
        if shift is None:
            continue
        similarity, shift = _climb(whole(a), turned(whole(b), view), shift)
        first, second = int(rows[a]), int(rows[b])
        if shift == (0, 0) and np.array_equal(pixels[first], turned(pixels[second], view)):
            similarity = 1.0
        elif similarity < _least_similarity(whole(a), turned(whole(b), view), shift):
            continue
        known = found.get((first, second))
        if known is None or similarity > known.similarity:
            bits = int(np.bitwise_count(hashes[a, 0] ^ hashes[b, view]))
            share = _share(shift)
            found[first, second] = Match(first, second, view, shift, similarity, share, bits)
    for match in _inherited(tuple(found.values()), equals):
        found.setdefault((match.first, match.second), match)
    return sorted(found.values(), key=lambda m: (-m.similarity, m.first, m.second))


def _equals(pixels: np.ndarray, sides: np.ndarray) -> list[list[list[int]]]:
    """For each distinct picture the positions that hold it, a list for each side."""
    found: dict[bytes, dict[int, list[int]]] = {}
    for number, picture in enumerate(pixels):
        digest = hashlib.sha256(np.ascontiguousarray(picture)).digest()
        found.setdefault(digest, {}).setdefault(sides[number], []).append(number)
    return [list(same.values()) for same in found.values()]


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
                    yield _ordered(Match(first, number, 0, (0, 0), 1.0, 1.0, 0))


def _ordered(match: Match) -> Match:
    """The same match, seen from the lower of its positions."""
    if match.first < match.second:
        return match
    view, shift = _reversed(match.view, match.shift)
    return dataclasses.replace(
        match, first=match.second, second=match.first, view=view, shift=shift
    )


def _hashes(grey: np.ndarray) -> np.ndarray:
    """Perceptual hash of every view, uint64 `[n, 8]`; view 0 is the picture itself."""
    hashes = np.empty((len(grey), VIEWS), np.uint64)
    for number, picture in enumerate(grey):
        small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
        for view in range(VIEWS):
            image = Image.fromarray(np.ascontiguousarray(turned(small, view)))
            bits = imagehash.phash(image).hash
            hashes[number, view] = np.packbits(bits).view(">u8")[0]
    return hashes


#: First, second, view, and shift where it is known; first < second.
_Candidate = tuple[int, int, int, tuple[int, int] | None]


def _by_hash(hashes: np.ndarray, by_side: list[np.ndarray]) -> Iterator[_Candidate]:
    """Pairs whose hashes differ by few bits in some view; where they overlap is not known."""
    for start in range(0, len(hashes), _HASH_BLOCK):
        block = np.arange(start, min(start + _HASH_BLOCK, len(hashes)))
        for members in by_side:
            bits = np.bitwise_count(hashes[block, 0][:, None, None] ^ hashes[members][None])
            view, bits = bits.argmin(axis=2), bits.min(axis=2)
            bits[block[:, None] == members[None]] = 65
            nearest = np.argsort(bits, axis=1, kind="stable")[:, :_HASH_CANDIDATES]
            for row, columns in enumerate(nearest):
                for column in columns[bits[row, columns] <= _HASH_BITS]:
                    yield _candidate(block[row], members[column], int(view[row, column]))


def _by_features(features: np.ndarray, by_side: list[np.ndarray]) -> Iterator[_Candidate]:
    """Nearest neighbours by cosine; neither view nor shift is known."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    for start in range(0, len(unit), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(unit)))
        for members in by_side:
            cosine = unit[block] @ unit[members].T
            cosine[block[:, None] == members[None]] = -2
            neighbours = np.argsort(-cosine, axis=1, kind="stable")[:, :_FEATURE_NEIGHBOURS]
            for row, columns in zip(block, neighbours, strict=True):
                for other in members[columns]:
                    if row != other:
                        yield from (_candidate(row, other, view) for view in range(VIEWS))


def _candidate(a: int, b: int, view: int, shift: tuple[int, int] | None = None) -> _Candidate:
    """A candidate in order of position; the view and shift turn `b` and lay it on `a`."""
    if a < b:
        return int(a), int(b), view, shift
    back, moved = _reversed(view, shift or (0, 0))
    return int(b), int(a), back, shift and moved


# Each view as a matrix on (x, y) about the centre, and whether it mirrors.
def _matrix(view: int) -> np.ndarray:
    matrix = np.diag([-1.0 if view % 2 else 1.0, -1.0 if view // 2 % 2 else 1.0])
    return matrix[::-1] if view // 4 else matrix


_MATRICES = np.stack([_matrix(view) for view in range(VIEWS)])
_MIRRORS = np.linalg.det(_MATRICES) < 0
_BACK = [int(np.abs(_MATRICES - matrix.T).sum(axis=(1, 2)).argmin()) for matrix in _MATRICES]


def _reversed(view: int, shift: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """The same alignment, seen from the other picture."""
    x, y = np.rint(-_MATRICES[_BACK[view]] @ shift).astype(int)
    return _BACK[view], (int(x), int(y))


def _by_keypoints(grey: np.ndarray, by_side: list[np.ndarray]) -> Iterator[_Candidate]:
    """Pairs with a keypoint in common that agrees on one of the eight views."""
    owner, place, angle, size, descriptors = _keypoints(grey)
    if len(np.unique(owner)) < 2:
        return
    heading = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    middle = (SIZE - 1) / 2
    for rows, columns, mirrored in _nearest(owner, descriptors, by_side):
        agreement = np.einsum("vij,nj,ni->nv", _MATRICES, heading[columns], heading[rows])
        agreement[:, mirrored != _MIRRORS] = -2
        view = agreement.argmax(axis=1)
        shift = place[rows] - middle
        shift -= np.einsum("nij,nj->ni", _MATRICES[view], place[columns] - middle)
        shift = np.rint(shift).astype(int)
        kept = agreement.max(axis=1) >= np.cos(np.deg2rad(_ANGLE_DEGREES))
        kept &= np.abs(np.log(size[rows] / size[columns])) <= np.log(_SIZE_RATIO)
        for n in np.flatnonzero(kept):
            x, y = shift[n].tolist()
            if _share((x, y)) >= _OVERLAP:
                yield _candidate(owner[rows[n]], owner[columns[n]], int(view[n]), (x, y))


def _keypoints(grey: np.ndarray) -> tuple[np.ndarray, ...]:
    """Owner, place (x, y), angle, size and RootSIFT descriptor of the strongest keypoints."""
    # Lowe 2004; Arandjelovic and Zisserman 2012 for the square root.
    sift = cv2.SIFT_create(nfeatures=_KEYPOINTS, contrastThreshold=0.01)
    owner, place, angle, size, descriptors = [], [], [], [], []
    for number, picture in enumerate(grey):
        points, described = sift.detectAndCompute(picture, None)
        for row in sorted(range(len(points)), key=lambda r: -points[r].response)[:_KEYPOINTS]:
            owner.append(number)
            place.append(points[row].pt)
            angle.append(np.deg2rad(points[row].angle))
            size.append(points[row].size)
            descriptors.append(described[row])
    table = np.array(descriptors, np.float32).reshape(-1, 128)
    table = np.sqrt(table / np.maximum(table.sum(axis=1, keepdims=True), 1e-12))
    return np.array(owner, int), np.array(place), np.array(angle), np.array(size), table


def _nearest(
    owner: np.ndarray, table: np.ndarray, by_side: list[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """For each keypoint the nearest one of another picture, on each side, as it is and mirrored."""
    mirrored = _mirrored(table)
    centre = np.concatenate([table, mirrored]).mean(axis=0)
    # Fewer dimensions hold what tells keypoints apart, at a third of the time.
    sample = table[:: max(1, len(table) // 20_000)]
    _, directions = np.linalg.eigh(np.cov(np.concatenate([sample, _mirrored(sample)]).T))
    project = directions[:, -_DESCRIPTOR_DIMENSIONS:].astype(np.float32)
    straight, across = ((values - centre) @ project for values in (table, mirrored))
    straight /= np.maximum(np.linalg.norm(straight, axis=1, keepdims=True), 1e-12)
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
    for members in by_side:
        columns = np.flatnonzero(np.isin(owner, members))
        if not len(columns):
            continue
        # Keypoints are stored picture by picture; none may be matched within its own.
        start = np.searchsorted(owner[columns], owner, "left")
        end = np.searchsorted(owner[columns], owner, "right")
        # Fresh memory for every block would take longer than the product itself.
        memory = np.empty((_BLOCK, len(columns)), np.float32)
        for others, is_mirrored in ((straight[columns], False), (across[columns], True)):
            for block in range(0, len(table), _BLOCK):
                rows = np.arange(block, min(block + _BLOCK, len(table)))
                likeness = np.matmul(straight[rows], others.T, out=memory[: len(rows)])
                for row in rows:
                    likeness[row - block, start[row] : end[row]] = -2
                nearest = likeness.argmax(axis=1)
                other = likeness[rows - block, nearest] > -2
                yield rows[other], columns[nearest[other]], is_mirrored


def _mirrored(table: np.ndarray) -> np.ndarray:
    """SIFT descriptors of the mirrored pictures: 4 x 4 cells with 8 directions each."""
    cells = table.reshape(-1, 4, 4, 8)[:, ::-1][..., -np.arange(8) % 8]
    return np.ascontiguousarray(cells.reshape(-1, 128))


def _normalised(grey: np.ndarray, band: tuple[float, float], window: float) -> np.ndarray:
    """Band-passed grey levels over their local deviation, float32."""
    pixels = grey.astype(np.float32)
    fine, coarse = (cv2.GaussianBlur(pixels, (0, 0), sigma) for sigma in band)
    detail = fine - coarse
    variance = cv2.GaussianBlur(detail * detail, (0, 0), window)
    return detail / np.sqrt(variance + _CONTRAST_FLOOR**2)


def _half(grey: np.ndarray) -> np.ndarray:
    small = cv2.resize(grey, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
    return _normalised(small, _HALF_BAND, _HALF_CONTRAST_WINDOW)


def _share(shift: tuple[int, int]) -> float:
    x, y = shift
    return max(0.0, 1 - abs(x) / SIZE) * max(0.0, 1 - abs(y) / SIZE)


def _overlap(a: np.ndarray, b: np.ndarray, shift: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What two square pictures have in common."""
    (x, y), size = shift, len(a)
    return (
        a[max(y, 0) : size + min(y, 0), max(x, 0) : size + min(x, 0)],
        b[max(-y, 0) : size + min(-y, 0), max(-x, 0) : size + min(-x, 0)],
    )


def _correlation(a: np.ndarray, b: np.ndarray, shift: tuple[int, int]) -> float:
    """Zero-normalised cross-correlation over the overlap."""
    a, b = _overlap(a, b, shift)
    a, b = (a - a.mean()).ravel(), (b - b.mean()).ravel()
    strength = float(a @ a), float(b @ b)
    if min(strength) < a.size * _LEAST_DEVIATION**2:
        return 0.0
    return float(a @ b) / math.sqrt(strength[0] * strength[1])


def _least_similarity(a: np.ndarray, b: np.ndarray, shift: tuple[int, int]) -> float:
    """How similar two normalised pictures must be over this overlap."""
    a, b = _overlap(a, b, shift)
    product = np.abs(a * b)
    # The participation ratio: n where n pixels contribute alike and the others nothing.
    pixels = float(product.sum()) ** 2 / max(float((product**2).sum()), 1e-12)
    little = _share(shift) < _LITTLE_SHARE or pixels < _LITTLE_PIXELS
    return _SIMILARITY_OF_LITTLE if little else _SIMILARITY


def _promising_shift(
    a: np.ndarray, b: np.ndarray, guess: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Where two pictures agree at half size, in whole pixels of `SIZE`; None where they do not."""
    if guess is None:
        # Where the middle of one is found in the other.
        margin = len(a) // 5
        middle = np.ascontiguousarray(a[margin:-margin, margin:-margin])
        found = cv2.matchTemplate(np.ascontiguousarray(b), middle, cv2.TM_CCOEFF_NORMED)
        _, _, _, (x, y) = cv2.minMaxLoc(found)
        guess = 2 * (margin - x), 2 * (margin - y)
    half = round(guess[0] / 2), round(guess[1] / 2)
    return guess if _correlation(a, b, half) >= _HALF_SIMILARITY else None


def _climb(a: np.ndarray, b: np.ndarray, shift: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Best similarity within some pixels of a shift, below 1, and where."""
    scores: dict[tuple[int, int], float] = {}

    def score(place: tuple[int, int]) -> float:
        if place not in scores:
            far = max(abs(place[0] - shift[0]), abs(place[1] - shift[1])) > _SEARCH
            allowed = not far and _share(place) >= _OVERLAP
            scores[place] = _correlation(a, b, place) if allowed else -1.0
        return scores[place]

    # Uphill: in this band the correlation falls off smoothly around the right place.
    best = shift
    while True:
        x, y = best
        higher = max([best, (x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)], key=score)
        if score(higher) <= score(best):
            return min(scores[best], 1 - 1e-6), best
        best = higher
