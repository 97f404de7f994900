"""Finds pictures of the same thing: copies, flips, turns, recompressed copies, shifted crops.

Candidates first, verification second. Candidates come from three looks, each blind to something
else: a perceptual hash over the eight flips and quarter-turns (blind to shifts), keypoints that
agree on a view and a shift (blind to pictures without structure), and, where a caller has them,
nearest neighbours among the features of a frozen backbone. A candidate counts only if both pictures
agree pixel by pixel where they overlap.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator

import cv2
import imagehash
import numpy as np
from PIL import Image

#: Height and width in pixels at which pictures are compared; 10 of 250 px are 5 here.
SIZE = 128
VIEWS = 8

#: Bits of 64 by which the hashes of a candidate may differ, and candidates a picture.
_HASH_BITS = 10
_HASH_CANDIDATES = 10

#: Keypoints a picture, and how far a matched pair may disagree with a view.
_KEYPOINTS = 20
_ANGLE_DEGREES = 15
_SIZE_RATIO = 1.35
_DESCRIPTOR_DIMENSIONS = 64
_BLOCK = 1000

_FEATURE_NEIGHBOURS = 3

#: Sigmas in pixels of the band in which pictures are compared: finer is noise, coarser is stain.
_BAND = (1.2, 6.0)

#: Share of a picture that must be in both.
_OVERLAP = 0.2

#: Correlation over the overlap, and over what is left of it without its most contrasty pixels. On
#: the CRIC cells true overlaps have at least 0.87 and 0.82; cells of different fields at most 0.95
#: (two empty ROIs with a speck of dust each) and 0.66.
_SIMILARITY = 0.85
_TRIMMED_SIMILARITY = 0.75
_TRIMMED_SHARE = 0.05

#: Pixels by which a candidate's shift may be off.
_SEARCH = 3

#: Grey levels that the band must vary by: below it there is nothing to compare.
_CONTRAST = 0.5


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


def turned(picture: np.ndarray, view: int) -> np.ndarray:
    """Returns one of the eight flips and quarter-turns of a picture `[size, size, ...]`."""
    picture = picture[:, ::-1] if view % 2 else picture
    picture = picture[::-1] if view // 2 % 2 else picture
    return np.swapaxes(picture, 0, 1) if view // 4 else picture


def find(pixels: np.ndarray, features: np.ndarray | None = None) -> list[Match]:
    """Finds every pair that shows the same thing.

    Args:
        pixels: uint8 RGB `[n, 128, 128, 3]`.
        features: float32 `[n, d]` of a frozen backbone; None goes without that look.

    Returns:
        At most one match a pair, the most similar first.
    """
    grey = np.stack([cv2.cvtColor(np.asarray(p), cv2.COLOR_RGB2GRAY) for p in pixels])
    hashes = _hashes(grey)
    found: dict[tuple[int, int], Match] = {}

    @functools.lru_cache(maxsize=4096)
    def band(number: int) -> np.ndarray:
        return _band(grey[number])

    # One picture's candidates follow one another, so that its band is at hand.
    candidates = {*_by_hash(hashes), *_by_keypoints(grey), *_by_features(features)}
    for first, second, view, shift in sorted(candidates, key=lambda c: (*c[:3], c[3] or ())):
        agreed = _verify(band(first), turned(band(second), view), shift)
        if agreed is None:
            continue
        similarity, overlap, place = agreed
        if place == (0, 0) and np.array_equal(pixels[first], turned(pixels[second], view)):
            similarity = 1.0
        known = found.get((first, second))
        if known is None or similarity > known.similarity:
            bits = int(np.bitwise_count(hashes[first, 0] ^ hashes[second, view]))
            found[first, second] = Match(first, second, view, place, similarity, overlap, bits)
    # Without any structure there is no correlation; equal pixels are a copy all the same.
    for first, second in _equal(pixels):
        if (first, second) not in found:
            found[first, second] = Match(first, second, 0, (0, 0), 1.0, 1.0, 0)
    return sorted(found.values(), key=lambda m: (-m.similarity, m.first, m.second))


def _equal(pixels: np.ndarray) -> Iterator[tuple[int, int]]:
    seen: dict[bytes, int] = {}
    for number, picture in enumerate(pixels):
        first = seen.setdefault(np.asarray(picture).tobytes(), number)
        if first != number:
            yield first, number


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


#: First, second, view, and shift where it is known.
_Candidate = tuple[int, int, int, tuple[int, int] | None]


def _by_hash(hashes: np.ndarray) -> Iterator[_Candidate]:
    """Pairs whose hashes differ by few bits in some view; where they overlap is not known."""
    count = len(hashes)
    for start in range(0, count, 256):
        rows = np.arange(start, min(start + 256, count))
        bits = np.bitwise_count(hashes[rows, 0][:, None, None] ^ hashes[None])
        # Each pair once, and no picture with itself.
        bits[np.arange(count)[None] <= rows[:, None]] = 65
        view = bits.argmin(axis=2)
        bits = bits.min(axis=2)
        nearest = np.argsort(bits, axis=1, kind="stable")[:, :_HASH_CANDIDATES]
        for row, others in zip(rows, nearest, strict=True):
            for other in others:
                if bits[row - start, other] <= _HASH_BITS:
                    yield int(row), int(other), int(view[row - start, other]), None


def _by_features(features: np.ndarray | None) -> Iterator[_Candidate]:
    """Nearest neighbours by cosine; neither view nor shift is known."""
    if features is None:
        return
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    for start in range(0, len(unit), _BLOCK):
        cosine = unit[start : start + _BLOCK] @ unit.T
        rows = np.arange(len(cosine))
        cosine[rows, rows + start] = -2
        neighbours = np.argpartition(-cosine, min(_FEATURE_NEIGHBOURS, len(unit) - 1), axis=1)
        for row, others in zip(rows + start, neighbours[:, :_FEATURE_NEIGHBOURS], strict=True):
            for other in others:
                first, second = sorted((int(row), int(other)))
                if first != second:
                    yield from ((first, second, view, None) for view in range(VIEWS))


# Each view as a matrix on (x, y) about the centre, and whether it mirrors.
def _matrix(view: int) -> np.ndarray:
    matrix = np.diag([-1.0 if view % 2 else 1.0, -1.0 if view // 2 % 2 else 1.0])
    return matrix[::-1] if view // 4 else matrix


_MATRICES = np.stack([_matrix(view) for view in range(VIEWS)])
_MIRRORS = np.linalg.det(_MATRICES) < 0


def _by_keypoints(grey: np.ndarray) -> Iterator[_Candidate]:
    """Pairs with a keypoint in common that agrees on one of the eight views."""
    owner, place, angle, size, descriptors = _keypoints(grey)
    if len(np.unique(owner)) < 2:
        return
    for row, column, mirrored in _nearest(owner, descriptors):
        heading = np.array([np.cos(angle[column]), np.sin(angle[column])])
        agreement = _MATRICES @ heading @ [np.cos(angle[row]), np.sin(angle[row])]
        agreement[mirrored != _MIRRORS] = -2
        view = int(agreement.argmax())
        if agreement[view] < np.cos(np.deg2rad(_ANGLE_DEGREES)):
            continue
        if abs(np.log(size[row] / size[column])) > np.log(_SIZE_RATIO):
            continue
        middle = (SIZE - 1) / 2
        x, y = np.rint(place[row] - middle - _MATRICES[view] @ (place[column] - middle)).astype(int)
        first, second = int(owner[row]), int(owner[column])
        if _share((x, y)) < _OVERLAP:
            continue
        if first < second:
            yield first, second, view, (int(x), int(y))
        else:
            # The same alignment seen from the other picture.
            back = int(np.abs(_MATRICES - _MATRICES[view].T).sum(axis=(1, 2)).argmin())
            x, y = np.rint(-_MATRICES[back] @ [x, y]).astype(int)
            yield second, first, back, (int(x), int(y))


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


def _nearest(owner: np.ndarray, table: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """For each keypoint the nearest one of another picture, as it is and mirrored."""
    mirrored = _mirrored(table)
    centre = np.concatenate([table, mirrored]).mean(axis=0)
    # Half of the dimensions hold what tells keypoints apart, at half of the time.
    sample = table[:: max(1, len(table) // 20_000)]
    _, directions = np.linalg.eigh(np.cov(np.concatenate([sample, _mirrored(sample)]).T))
    project = directions[:, -_DESCRIPTOR_DIMENSIONS:].astype(np.float32)
    straight, across = ((values - centre) @ project for values in (table, mirrored))
    straight /= np.maximum(np.linalg.norm(straight, axis=1, keepdims=True), 1e-12)
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
    # Keypoints are stored picture by picture.
    start, end = np.searchsorted(owner, owner, "left"), np.searchsorted(owner, owner, "right")
    for block in range(0, len(table), _BLOCK):
        rows = np.arange(block, min(block + _BLOCK, len(table)))
        for others, is_mirrored in ((straight, False), (across, True)):
            likeness = straight[rows] @ others.T
            for row in rows:
                likeness[row - block, start[row] : end[row]] = -2
            for row, column in zip(rows, likeness.argmax(axis=1), strict=True):
                yield int(row), int(column), is_mirrored


def _mirrored(table: np.ndarray) -> np.ndarray:
    """SIFT descriptors of the mirrored pictures: 4 x 4 cells with 8 directions each."""
    cells = table.reshape(-1, 4, 4, 8)[:, ::-1][..., -np.arange(8) % 8]
    return np.ascontiguousarray(cells.reshape(-1, 128))


def _band(grey: np.ndarray) -> np.ndarray:
    pixels = grey.astype(np.float32)
    fine, coarse = (cv2.GaussianBlur(pixels, (0, 0), sigma) for sigma in _BAND)
    return fine - coarse


def _share(shift: Iterable[int]) -> float:
    return float(np.prod([max(0.0, 1 - abs(value) / SIZE) for value in shift]))


def _overlap(a: np.ndarray, b: np.ndarray, shift: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    x, y = shift
    return (
        a[max(y, 0) : SIZE + min(y, 0), max(x, 0) : SIZE + min(x, 0)],
        b[max(-y, 0) : SIZE + min(-y, 0), max(-x, 0) : SIZE + min(-x, 0)],
    )


def _verify(
    a: np.ndarray, b: np.ndarray, shift: tuple[int, int] | None
) -> tuple[float, float, tuple[int, int]] | None:
    """Similarity, overlap and best shift of two bands, or None where they do not agree."""
    if shift is None:
        shift = _coarse_shift(a, b)
    best, scores = shift, {}

    def score(place: tuple[int, int]) -> float:
        if place not in scores:
            far = max(abs(place[0] - shift[0]), abs(place[1] - shift[1])) > _SEARCH
            inside = not far and _share(place) >= _OVERLAP
            scores[place] = _correlation(*_overlap(a, b, place)) if inside else -1.0
        return scores[place]

    # Uphill: in this band the correlation falls off smoothly within some pixels of the right place.
    while True:
        x, y = best
        around = [best, (x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)]
        higher = max(around, key=score)
        if score(higher) <= score(best):
            break
        best = higher
    if scores[best] < _SIMILARITY:
        return None
    first, second = _overlap(a, b, best)
    strength = np.maximum(np.abs(first), np.abs(second))
    rest = strength <= np.quantile(strength, 1 - _TRIMMED_SHARE)
    if _correlation(first[rest], second[rest]) < _TRIMMED_SIMILARITY:
        return None
    return min(scores[best], 1 - 1e-6), _share(best), best


def _coarse_shift(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """Where the middle of `a` is found in `b`."""
    margin = SIZE // 5
    middle = np.ascontiguousarray(a[margin : SIZE - margin, margin : SIZE - margin])
    found = cv2.matchTemplate(np.ascontiguousarray(b), middle, cv2.TM_CCOEFF_NORMED)
    _, _, _, (x, y) = cv2.minMaxLoc(found)
    return margin - x, margin - y


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (a - a.mean()).ravel(), (b - b.mean()).ravel()
    strength = float(a @ a), float(b @ b)
    if min(strength) < len(a) * _CONTRAST**2:
        return 0.0
    return float(a @ b) / math.sqrt(strength[0] * strength[1])
