"""How one picture lies on another, and whether they agree there: affine maps, keypoints, pixels."""

import dataclasses
import functools
import math

import cv2
import numpy as np

from tfds_pap import affine_fit, content, keypoints
from tfds_pap.views import VIEWS, turned

__all__ = ["BACK", "LEAST_SHARE", "SIZE", "VIEWS", "Alignment", "Comparison", "mirrors", "turned"]

#: Height and width in pixels at which pictures are compared; 10 of 250 px are 5 here.
SIZE = 128

#: Share of the first picture that must be in both.
LEAST_SHARE = 0.2

#: Keypoints that agree on an affine map; the correlation that the whole overlap must have then,
#: the share of the picture in which both must show something that is not of one grey level, and the
#: most by which one side may be stretched. Of few keypoints the outline of one cell on overexposed
#: ground would be enough, and a map that stretches enough lays any round thing on another.
_LEAST = {
    4: (0.87, 0.35, 1.4),
    7: (0.8, 0.25, 1.4),
    9: (0.7, 0.05, 1.7),
    12: (0.6, 0.05, 1.7),
}
_LEAST_KEYPOINTS = min(_LEAST)
#: From this correlation on a map is worth to be refined on the pixels, in so many steps.
_WORTH_REFINING = 0.3
_REFINING_STEPS = 25
#: Sigmas in pixels of the band in which pictures are compared (finer is noise, coarser is stain),
#: of the window whose contrast divides it, and the grey levels below which contrast is noise.
_BAND = (1.2, 6.0)
_CONTRAST_WINDOW = 6.0
_CONTRAST_FLOOR = 2.0

#: Without keypoints: least correlation over the overlap; and where that is a smaller share of the
#: picture, or fewer pixels carry the agreement, because a speck or an edge alone agrees with
#: another by chance. Different windows of nearly empty ground reach 0.79.
_SIMILARITY = 0.82
_SIMILARITY_OF_LITTLE = 0.9
_LITTLE_SHARE = 0.6
_LITTLE_PIXELS = 300
_SIMILARITY_OF_CONTENT = 0.6
#: Pixels beside what was filled into which JPEG carries its outline.
_JPEG_BLOCK = 8

#: Pixels by which a shift that was guessed at half size may be off.
_SEARCH = 3
_HALF_SIMILARITY = 0.4
_HALF_BAND = (1.2, 4.0)
_HALF_CONTRAST_WINDOW = 4.0

#: Pictures whose hashes agree are one, too, where one may be the other saved again: grey levels by
#: which they deviate at most (root mean square) and correlate at least, in so many pixels a side,
#: after ground that is wider than this sigma is taken off. JPEG of quality 40 leaves 2.1 and 0.88
#: of windows of LBC and CRIC fields and of drawn cells; of different ones, in whatever view, none
#: that deviates so little reaches 0.72. The least share of the picture that must show something.
_SAVED_AGAIN_SIZE = 32
_SAVED_AGAIN_DEVIATION = 2.5
_SAVED_AGAIN_SIMILARITY = 0.85
_SAVED_AGAIN_GROUND = 6.0
_SAVED_AGAIN_SHARE = 0.05

#: Deviation that a normalised overlap must have: below it there is nothing to compare.
_LEAST_DEVIATION = 0.05

_MIDDLE = (SIZE - 1) / 2


def _view_matrix(view: int) -> np.ndarray:
    """A view as a matrix on (x, y) about the centre."""
    matrix = np.diag([-1.0 if view % 2 else 1.0, -1.0 if view // 2 % 2 else 1.0])
    return matrix[::-1] if view // 4 else matrix


_VIEW_MATRICES = np.stack([_view_matrix(view) for view in range(VIEWS)])
#: The view that undoes each.
BACK = tuple(int(np.abs(_VIEW_MATRICES - m.T).sum(axis=(1, 2)).argmin()) for m in _VIEW_MATRICES)


def mirrors(view: int) -> bool:
    """Returns whether a view mirrors."""
    return bool(np.linalg.det(_VIEW_MATRICES[view]) < 0)


@dataclasses.dataclass(frozen=True)
class Alignment:
    """An affine map from places in the second picture to places in the first.

    Attributes:
        matrix: Six numbers, row by row `[2, 3]`, on (x, y, 1) in pixels of `SIZE`.
    """

    matrix: tuple[float, ...]

    @classmethod
    def of(cls, matrix: np.ndarray) -> "Alignment":
        """Of an array `[2, 3]`."""
        return cls(tuple(np.asarray(matrix, float).ravel().round(6).tolist()))

    @classmethod
    def of_view(cls, view: int, shift: tuple[int, int] = (0, 0)) -> "Alignment":
        """Of one of the eight views, after which the second lies `shift` to the right and below."""
        linear = _VIEW_MATRICES[view]
        offset = np.full(2, _MIDDLE) - linear @ np.full(2, _MIDDLE) + shift
        return cls.of(np.hstack([linear, offset[:, None]]))

    @functools.cached_property
    def array(self) -> np.ndarray:
        """The matrix, float64 `[2, 3]`."""
        return np.array(self.matrix).reshape(2, 3)

    @property
    def mirrored(self) -> bool:
        """Whether it mirrors."""
        return bool(np.linalg.det(self.array[:, :2]) < 0)

    @property
    def view(self) -> int | None:
        """The one of the eight views that it is, or None."""
        for view in range(VIEWS):
            if np.allclose(self.matrix, Alignment.of_view(view).matrix, atol=1e-3):
                return view
        return None

    @functools.cached_property
    def overlap(self) -> float:
        """Share of the first picture on which the second lies."""
        square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * SIZE - 0.5
        laid = (square @ self.array[:, :2].T + self.array[:, 2]).astype(np.float32)
        area, _ = cv2.intersectConvexConvex(laid, square)
        return min(1.0, float(area) / SIZE**2)

    @property
    def stretch(self) -> float:
        """The longer side over the shorter one of what was a square."""
        values = np.linalg.svd(self.array[:, :2], compute_uv=False)
        return float(values[0] / values[1])

    def inverse(self) -> "Alignment":
        """From places in the first picture to places in the second."""
        return Alignment.of(cv2.invertAffineTransform(self.array))

    def after(self, other: "Alignment") -> "Alignment":
        """The map that does `other` first and then this one."""
        linear = self.array[:, :2]
        return Alignment.of(
            np.hstack(
                [linear @ other.array[:, :2], (linear @ other.array[:, 2:]) + self.array[:, 2:]]
            )
        )

    def words(self) -> str:
        """Says what was done to the first picture to get the second, "" for nothing."""
        linear = np.linalg.inv(self.array[:, :2])
        flip = np.diag([-1.0, 1.0]) if self.mirrored else np.eye(2)
        left, values, right = np.linalg.svd(linear @ flip)
        turn = left @ right
        angle = math.degrees(math.atan2(turn[1, 0], turn[0, 0]))
        zoom, stretch = math.sqrt(values[0] * values[1]), values[0] / values[1]
        middle = self.array[:, :2] @ np.full(2, _MIDDLE) + self.array[:, 2] - _MIDDLE
        said = [
            "mirrored" if self.mirrored else "",
            f"turned by {angle:.0f}°" if abs(angle) > 1.5 else "",
            f"zoom {zoom:.2f}" if abs(zoom - 1) > 0.03 else "",
            f"stretched by {stretch:.2f}" if stretch > 1.05 else "",
            f"shifted by {np.hypot(*middle) / SIZE:.0%}" if np.hypot(*middle) > 2 else "",
        ]
        return ", ".join(filter(None, said))

    def lay(self, picture: np.ndarray) -> np.ndarray:
        """Lays a second picture on the frame of the first, white where it does not reach.

        Args:
            picture: uint8 `[s, s, 3]`, of any size.
        """
        matrix, scale = self.array.copy(), len(picture) / SIZE
        # Places are of pixel centres: half a pixel of one size is not half a pixel of another.
        matrix[:, 2] = (matrix[:, 2] + 0.5 - matrix[:, :2] @ [0.5, 0.5]) * scale
        matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
        size = picture.shape[1::-1]
        return cv2.warpAffine(picture, matrix, size, borderValue=(255, 255, 255))


class Comparison:
    """Compares pairs of pictures, and keeps what was computed of each.

    Args:
        grey: uint8 `[n, 128, 128]`.
        points: Their keypoints.
    """

    def __init__(self, grey: np.ndarray, points: keypoints.Keypoints) -> None:
        self._grey, self._points = grey, points
        self._whole = functools.lru_cache(maxsize=1024)(
            lambda number: _normalised(grey[number], _BAND, _CONTRAST_WINDOW)
        )
        self._half = functools.lru_cache(maxsize=1024)(lambda number: _halved(grey[number]))
        self._unit = functools.lru_cache(maxsize=1024)(
            lambda number: keypoints.unit(points.descriptors[points.rows(number)])
        )
        self._content = functools.lru_cache(maxsize=4096)(
            lambda number: content.shown(grey[number])
        )

    def verify(
        self, a: int, b: int, mirrored: bool, view: int | None = None
    ) -> tuple[Alignment, float, float] | None:
        """Lays b on a and says how well they agree.

        Args:
            a: One picture.
            b: The other.
            mirrored: Whether one is mirrored.
            view: Of b, where it is known that this view, shifted, may be a.

        Returns:
            Alignment, correlation (below 1) and overlap; None where they do not agree.
        """
        if view is not None:
            return self._by_view(a, b, view)
        return self._by_keypoints(a, b, mirrored)

    def _by_keypoints(
        self, a: int, b: int, mirrored: bool
    ) -> tuple[Alignment, float, float] | None:
        ours, theirs = self._unit(a), self._unit(b)
        if min(len(ours), len(theirs)) < _LEAST_KEYPOINTS:
            return None
        rows, columns = affine_fit.matches(ours, keypoints.mirrored(theirs) if mirrored else theirs)
        start = self._points.start
        best = None
        for matrix, places in affine_fit.fit(
            self._points, start[a] + rows, start[b] + columns, mirrored, _LEAST_KEYPOINTS
        ):
            agreed = self._agreeing(a, b, Alignment.of(matrix), places)
            if agreed and (best is None or agreed[1] > best[1]):
                best = agreed
        return best

    def _agreeing(
        self, a: int, b: int, lay: Alignment, places: np.ndarray
    ) -> tuple[Alignment, float, float] | None:
        """Compares the pixels of two pictures whose keypoints lie on one another."""
        if lay.overlap < LEAST_SHARE:
            return None
        least, least_shown, stretch = _LEAST[max(n for n in _LEAST if n <= len(places))]
        similarity, shown = self._similarity(a, b, lay)
        if _WORTH_REFINING <= similarity < least:
            refined = self._refined(a, b, lay)
            better = self._similarity(a, b, refined) if refined else (0.0, 0.0)
            if refined and better[0] > similarity:
                lay, (similarity, shown) = refined, better
        if similarity < least or shown < least_shown or lay.stretch > stretch:
            return None
        return lay, similarity, lay.overlap

    def _similarity(self, a: int, b: int, lay: Alignment, rim: int = 0) -> tuple[float, float]:
        """Correlation where both show something, and the share of the picture in which they do.

        Args:
            a: One picture.
            b: The other.
            lay: Lays b on a.
            rim: Pixels beside what shows nothing that do not count.
        """
        shown = cv2.warpAffine(self._content(b), lay.array, (SIZE, SIZE))
        mask = ((shown == 255) & (self._content(a) == 255)).astype(np.uint8)
        mask = cv2.erode(mask, np.ones((2 * rim + 1,) * 2, np.uint8))
        # The rim is half ground of nothing: it is not compared.
        mask = cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=0)
        laid = cv2.warpAffine(self._grey[b], lay.array, (SIZE, SIZE))
        ours = _normalised(self._grey[a], _BAND, _CONTRAST_WINDOW, mask)
        theirs = _normalised(laid, _BAND, _CONTRAST_WINDOW, mask)
        return _correlation(ours, theirs, mask > 0), float(mask.mean())

    def _refined(self, a: int, b: int, lay: Alignment) -> Alignment | None:
        """A map near the given one with a higher correlation (enhanced correlation coefficient)."""
        back: np.ndarray = lay.inverse().array.astype(np.float32)
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _REFINING_STEPS, 1e-3)
        try:
            _, back = cv2.findTransformECC(
                self._whole(a), self._whole(b), back, cv2.MOTION_AFFINE, criteria,
                self._content(b), 1,
            )  # fmt: skip
        except cv2.error:
            # It left the picture, or there is nothing to climb.
            return None
        refined = Alignment.of(cv2.invertAffineTransform(back.astype(float)))
        keeps = affine_fit.plausible(refined.array, lay.mirrored)
        return refined if keeps and refined.overlap >= LEAST_SHARE else None

    def _by_view(self, a: int, b: int, view: int) -> tuple[Alignment, float, float] | None:
        """Where one picture is a view of the other, shifted by whole pixels."""
        if similarity := self._saved_again(a, b, view):
            return Alignment.of_view(view), similarity, 1.0
        guess = _promising_shift(self._half(a), _halved(turned(self._grey[b], view)))
        if guess is None:
            return None
        ours, theirs = self._whole(a), turned(self._whole(b), view)
        similarity, shift = _climb(ours, theirs, guess)
        ours, theirs = _overlap(ours, theirs, shift)
        lay = Alignment.of_view(view, shift)
        alike = similarity >= _least_similarity(ours, theirs, _share(shift))
        # The outline of what was filled with one colour may be all that agrees.
        if alike and self._similarity(a, b, lay, _JPEG_BLOCK)[0] >= _SIMILARITY_OF_CONTENT:
            return lay, similarity, lay.overlap
        flat = np.array_equal(self._grey[a], turned(self._grey[b], view))
        return (Alignment.of_view(view), 0.0, 1.0) if flat else None

    def _saved_again(self, a: int, b: int, view: int) -> float:
        """Correlation of pictures whose grey levels are nearly equal, unshifted; 0 of others."""
        # Saving again may make pale ground one grey level: what is filled in both says nothing.
        shown = self._content(a) | turned(self._content(b), view)
        weight = (_shrunk(shown, _SAVED_AGAIN_SIZE) == 255).astype(np.float32)
        if weight.mean() < _SAVED_AGAIN_SHARE:
            return 0.0
        detail = []
        for picture in (self._grey[a], turned(self._grey[b], view)):
            pixels = _shrunk(picture, _SAVED_AGAIN_SIZE).astype(np.float32)
            detail.append((pixels - _blurred(pixels, _SAVED_AGAIN_GROUND, weight))[weight > 0])
        if np.sqrt(np.mean((detail[0] - detail[1]) ** 2)) > _SAVED_AGAIN_DEVIATION:
            return 0.0
        similarity = _correlation(*detail)
        return similarity if similarity >= _SAVED_AGAIN_SIMILARITY else 0.0


def _halved(grey: np.ndarray) -> np.ndarray:
    """Normalised at half the size."""
    return _normalised(_shrunk(grey, SIZE // 2), _HALF_BAND, _HALF_CONTRAST_WINDOW)


def _shrunk(picture: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(np.ascontiguousarray(picture), (size, size), interpolation=cv2.INTER_AREA)


def _blurred(pixels: np.ndarray, sigma: float, weight: np.ndarray | None = None) -> np.ndarray:
    """Gaussian mean, float32; where a weight is, of what has one alone."""
    if weight is None:
        return cv2.GaussianBlur(pixels, (0, 0), sigma)
    shares = cv2.GaussianBlur(weight, (0, 0), sigma)
    return cv2.GaussianBlur(pixels * weight, (0, 0), sigma) / np.maximum(shares, 1e-3)


def _normalised(
    grey: np.ndarray,
    band: tuple[float, float],
    window: float,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Band-passed grey levels over their local deviation, float32; where a mask is, of it alone."""
    pixels = grey.astype(np.float32)
    weight = None if mask is None else mask.astype(np.float32)
    fine, coarse = (_blurred(pixels, sigma, weight) for sigma in band)
    detail = fine - coarse
    variance = _blurred(detail * detail, window, weight)
    return detail / np.sqrt(variance + _CONTRAST_FLOOR**2)


def _correlation(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Zero-normalised cross-correlation, below 1."""
    a, b = (a.ravel(), b.ravel()) if mask is None else (a[mask], b[mask])
    if not a.size:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    strength = float(a @ a), float(b @ b)
    if min(strength) < a.size * _LEAST_DEVIATION**2:
        return 0.0
    return min(1 - 1e-6, float(a @ b) / math.sqrt(strength[0] * strength[1]))


def _least_similarity(a: np.ndarray, b: np.ndarray, share: float) -> float:
    """How similar two normalised pictures must be that have this share in common."""
    little = share < _LITTLE_SHARE or _pixels(a, b) < _LITTLE_PIXELS
    return _SIMILARITY_OF_LITTLE if little else _SIMILARITY


def _pixels(a: np.ndarray, b: np.ndarray) -> float:
    """The participation ratio: n where n pixels contribute alike and the others nothing."""
    product = np.abs(a * b)
    return float(product.sum()) ** 2 / max(float((product**2).sum()), 1e-12)


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


def _promising_shift(a: np.ndarray, b: np.ndarray) -> tuple[int, int] | None:
    """Where two pictures agree at half size, in whole pixels of `SIZE`; None where they do not."""
    # Where the middle of one is found in the other.
    margin = len(a) // 5
    middle = np.ascontiguousarray(a[margin:-margin, margin:-margin])
    agreement = cv2.matchTemplate(np.ascontiguousarray(b), middle, cv2.TM_CCOEFF_NORMED)
    _, _, _, (x, y) = cv2.minMaxLoc(agreement)
    guess = margin - x, margin - y
    agrees = _correlation(*_overlap(a, b, guess)) >= _HALF_SIMILARITY
    flat = guess == (0, 0) or not np.ptp(agreement)
    return (2 * guess[0], 2 * guess[1]) if agrees else (0, 0) if flat else None


def _climb(a: np.ndarray, b: np.ndarray, shift: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Best similarity within some pixels of a shift, and where."""
    scores: dict[tuple[int, int], float] = {}

    def score(place: tuple[int, int]) -> float:
        if place not in scores:
            far = max(abs(place[0] - shift[0]), abs(place[1] - shift[1])) > _SEARCH
            allowed = not far and _share(place) >= LEAST_SHARE
            scores[place] = _correlation(*_overlap(a, b, place)) if allowed else -1.0
        return scores[place]

    # Uphill: in this band the correlation falls off smoothly around the right place.
    best = shift
    while True:
        x, y = best
        higher = max([best, (x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)], key=score)
        if score(higher) <= score(best):
            return scores[best], best
        best = higher
