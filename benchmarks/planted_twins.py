"""Plants twins: what augmenters and people do to images, one change at a time and mixed.

What is planted is of one of three kinds: windows of fields, whole pictures, drawn cells.
"""

import csv
import dataclasses
from pathlib import Path

import cv2
import numpy as np

#: Ranges: zooms and stretches as factors, shifts as shares of the width.
ZOOM = (0.7, 1.4)
STRETCH = 1.25
SHIFT = 0.35
GAIN = (0.75, 1.25)
OFFSET = 25

#: Single changes, and all of them at once.
KINDS = (
    "copy",
    "JPEG, quality 40",
    "flip or quarter-turn",
    "rotation",
    "zoom",
    "mirror",
    "stretch",
    "brightness",
    "crop",
    "mixed",
)

#: Share of the picture that both of a pair must show, seen from either.
LEAST_SHARE = 0.5

#: Deviation of grey levels, of 255, that what is shared must have; below it lies empty ground,
#: whose grain does not outlive JPEG. Such pairs are counted apart.
LEAST_STRUCTURE = 6.0

#: Changes that are drawn before a picture is given up.
_TRIES = 1_000

_BORDERS = (cv2.BORDER_REFLECT_101, cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE)


@dataclasses.dataclass
class Change:
    """What is done to one picture: an affine map about its middle, and grey levels."""

    angle: float = 0.0
    zoom: float = 1.0
    mirror: bool = False
    stretch: float = 1.0
    gain: float = 1.0
    offset: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)

    def matrix(self, size: int) -> np.ndarray:
        """From places in the picture to places in its twin, `[2, 3]`, pixels."""
        angle = np.deg2rad(self.angle)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        wide = self.zoom * self.stretch**0.5 * (-1 if self.mirror else 1)
        linear = turn @ np.diag([wide, self.zoom / self.stretch**0.5])
        middle = np.full(2, (size - 1) / 2)
        offset = middle - linear @ middle + np.array(self.shift) * size
        return np.hstack([linear, offset[:, None]])


def draw(kind: str, rng: np.random.Generator) -> Change:
    """Draws the change of one of `KINDS`; copies and JPEG change no place."""
    change = Change()
    mixed = kind == "mixed"
    if kind == "flip or quarter-turn":
        view = int(rng.integers(1, 8))
        change.angle, change.mirror = 90.0 * (view % 4), view >= 4
    if kind == "rotation" or mixed:
        change.angle = rng.uniform(0, 360)
    if kind == "zoom" or mixed:
        change.zoom = float(np.exp(rng.uniform(*np.log(ZOOM))))
    if kind == "mirror" or mixed:
        change.mirror = kind == "mirror" or bool(rng.integers(2))
    if kind == "stretch" or mixed:
        change.stretch = float(np.exp(rng.uniform(-1, 1) * np.log(STRETCH)))
    if kind == "brightness" or mixed:
        change.gain, change.offset = rng.uniform(*GAIN), rng.uniform(-OFFSET, OFFSET)
    if kind == "crop" or mixed:
        change.shift = tuple(rng.uniform(-SHIFT, SHIFT, 2))
    return change


def share(matrix: np.ndarray, size: int) -> float:
    """Share of its picture that the less fortunate of a pair has in common with the other."""
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * size
    laid = (square @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
    common, _ = cv2.intersectConvexConvex(laid, square)
    return min(common / size**2, common / (abs(np.linalg.det(matrix[:, :2])) * size**2))


@dataclasses.dataclass(frozen=True)
class Twin:
    """A twin, and what it has in common with its original.

    Attributes:
        picture: uint8 `[s, s, 3]`.
        matrix: From places in the original to places in it, `[2, 3]`, pixels.
        share: Share of its picture that the less fortunate of both has in common with the other;
            what became white or black is lost.
        structure: Deviation of the grey levels of what is shared, of 255, in the paler of both.
    """

    picture: np.ndarray
    matrix: np.ndarray
    share: float
    structure: float


def twin(picture: np.ndarray, kind: str, rng: np.random.Generator) -> Twin:
    """Returns a twin of a picture uint8 `[s, s, 3]` that shares half of it, saved as JPEG.

    Raises:
        ValueError: No change leaves half of the picture, as it is white or black.
    """
    size = len(picture)
    for _ in range(_TRIES):
        change = draw(kind, rng)
        matrix = change.matrix(size)
        if share(matrix, size) < LEAST_SHARE:
            continue
        # An augmenter fills what the picture does not reach: by reflection, with black, or streaks.
        border = _BORDERS[int(rng.integers(len(_BORDERS)))]
        flags = cv2.INTER_AREA if change.zoom < 1 else cv2.INTER_LINEAR
        made = cv2.warpAffine(picture, matrix, (size, size), flags=flags, borderMode=border)
        made = made * change.gain + change.offset
        grey = made.mean(axis=2)
        there = cv2.warpAffine(np.ones((size, size), np.uint8), matrix, (size, size)) > 0
        there &= (grey > 0) & (grey < 255)
        back = cv2.warpAffine(
            there.astype(np.uint8),
            matrix,
            (size, size),
            flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        )
        back = back > 0
        common = min(there.mean(), back.mean())
        if common < LEAST_SHARE:
            continue
        if kind == "copy":
            made = picture.copy()
        else:
            quality = 40 if kind.startswith("JPEG") else int(rng.integers(70, 95))
            made = jpeg(np.clip(made, 0, 255).astype(np.uint8), quality)
        structure = min(
            float(np.std(p.mean(axis=2)[mask])) for p, mask in ((made, there), (picture, back))
        )
        return Twin(made, matrix, float(common), structure)
    raise ValueError(f"no {kind} of {_TRIES} leaves half of the picture")


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """Returns what is left of a picture after JPEG compression."""
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


@dataclasses.dataclass(frozen=True)
class Original:
    """A picture that gets twins.

    Attributes:
        picture: uint8 `[s, s, 3]`.
        field: Which photograph it was cut from.
        slide: Photographs of one slide may overlap; "" where they are known not to.
    """

    picture: np.ndarray
    field: str
    slide: str

    def innocent(self, other: "Original") -> bool:
        """Whether both are known to show different things."""
        return self.field == other.field or not self.slide or self.slide != other.slide


def halves(paths: list[Path], half: str) -> list[Path]:
    """Returns every second field: thresholds were set on some, rates are reported of the others.

    Args:
        paths: Fields in order of their names.
        half: "setting", "reporting" or "both".
    """
    first = {"setting": 0, "reporting": 1, "both": None}[half]
    return paths if first is None else paths[first::2]


def small(picture: np.ndarray) -> np.ndarray:
    """Returns a picture as the audit looks at it."""
    from tfds_pap import near_duplicates

    size = (near_duplicates.SIZE,) * 2
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def drawn(count: int, first: int = 0) -> list[Original]:
    """Returns drawn cells of all classes and drawn ground, each of its own.

    Args:
        count: How many.
        first: Seed of the first.
    """
    from tfds_pap import phantom, taxonomy

    classes = (*taxonomy.STAGE2_CLASSES, None)
    found = []
    for seed in range(first, first + count):
        kind = classes[seed % len(classes)]
        draw = phantom.draw_cell if kind else phantom.draw_roi
        found.append(Original(draw(kind or "background", seed), str(seed), ""))
    return found


def whole_pictures(folder: Path, count: int, half: str) -> list[Original]:
    """Reads pictures of a tree with a groups.csv as they are, in an order drawn by chance.

    The halves are of slides.
    """
    with (Path(folder) / "groups.csv").open(newline="") as file:
        slides = {row["file"]: row["group"] for row in csv.DictReader(file)}
    allowed = set(halves(sorted(set(slides.values())), half))
    names = sorted(name for name, slide in slides.items() if slide in allowed)
    chosen = np.random.default_rng(0).permutation(len(names))[:count]
    return [
        Original(cv2.imread(str(Path(folder) / name)), name, slides[name])
        for name in (names[number] for number in chosen)
    ]


def windows(folder: Path, window: int, count: int, half: str) -> list[Original]:
    """Cuts windows that touch and do not overlap out of fields, in an order drawn by chance.

    Of fields in class folders those of one class may overlap; others are taken not to.
    """
    found = []
    for path in halves(sorted(Path(folder).rglob("*.jpg")), half):
        field = cv2.imread(str(path))
        slide = "" if path.parent == Path(folder) else path.parent.name
        found += [
            Original(field[y : y + window, x : x + window], path.name, slide)
            for y in range(0, field.shape[0] - window + 1, window)
            for x in range(0, field.shape[1] - window + 1, window)
        ]
    return [found[n] for n in np.random.default_rng(0).permutation(len(found))[:count]]


@dataclasses.dataclass(frozen=True)
class Score:
    """What a tool found.

    Attributes:
        found: Share of the twins with structure that were found.
        pairs: Twins with structure.
        bare: Twins without.
        bare_found: Share of those that were found; nan where there is none.
        false_alarms: Pairs of pictures of different things.
    """

    found: float
    pairs: int
    bare: int
    bare_found: float
    false_alarms: int


def score(originals: list[Original], structure: list[float], pairs: set[tuple[int, int]]) -> Score:
    """Scores what a tool reports.

    Args:
        originals: At 0..n-1; their twins follow in the same order.
        structure: Of what each shares with its twin, see `Twin`.
        pairs: What a tool reports, positions in ascending order.
    """
    count = len(originals)
    hit = np.array([(number, number + count) in pairs for number in range(count)])
    bare = np.array(structure) < LEAST_STRUCTURE
    owners = {(min(a % count, b % count), max(a % count, b % count)) for a, b in pairs}
    return Score(
        found=float(hit[~bare].mean()),
        pairs=int((~bare).sum()),
        bare=int(bare.sum()),
        bare_found=float(hit[bare].mean()) if bare.any() else float("nan"),
        false_alarms=sum(a != b and originals[a].innocent(originals[b]) for a, b in owners),
    )


def innocent_pairs(originals: list[Original]) -> int:
    """Counts the pairs of originals that are known to show different things."""
    return sum(a.innocent(b) for n, a in enumerate(originals) for b in originals[:n])
