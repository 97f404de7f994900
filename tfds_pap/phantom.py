"""Draws synthetic liquid-based Papanicolaou images whose truth is known.

Nothing here is a real cell. A phantom replaces a download: every command can run on it, and where
the truth of a real picture is unknown (where is the nucleus, how accurate can a reader be at all?)
a phantom has the answer. One primitive, `_paint_cell`, draws a cell on a canvas of optical density.
An ROI is a canvas of 150 x 150 px with a cell in its middle; a field is a larger canvas with many.

What makes the class of a cell is drawn from the overlapping distributions of `_TRAITS` and
`_CHANCES`, so no reader can be perfect: `--ceiling=2000` prints what a reader scores who is told
these latent parameters exactly (about 0.96). One who only sees pixels, through another slide's
stain and focus, scores less.

The same seed gives the same pixels in every process and on every platform: only uniform and integer
draws are used, shapes are filled and blurred in fixed point, and the one transcendental function
that touches intensities sits in a quantised table.

    python -m tfds_pap.phantom --contact_sheet=sheet.png
"""

import csv
import dataclasses
import functools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags
from PIL import Image

from tfds_pap import taxonomy

ROI_SIZE = 150  # Pixels of the field; both stages look at this window.
STAGE2_SIZE = 250  # Pixels; the enlarged copy of the ROI.
JPEG_QUALITY = 95
CENTRE_JITTER = 6.0  # Pixels; how far a central nucleus may lie from the middle of a stage-2 ROI.
SCAN_JITTER = 14.0  # Pixels; the same in stage 1, where a sliding window rarely hits the middle.
CLEAR_RADIUS = 48.0  # Pixels; a background ROI has no nuclear centre nearer to its middle.
KINSHIP = 0.85  # Probability that a neighbour is of the same class: lesions cluster.
FIELD_SIZE = (1280, 960)  # Pixels, width and height of a field of the microscope's camera.
FIELD_MIX = {"NILM": 0.76, "LSIL": 0.12, "HSIL": 0.08, "SCC": 0.04}

# Latent parameters of a cell: the bounds a draw is clipped to, then mean and standard deviation of
# its bell-shaped distribution in NILM, LSIL, HSIL and SCC.
_TRAITS = {
    # Mean nuclear radius, pixels of the field.
    "radius": ((5.0, 30.0), (9.6, 1.7), (15.0, 2.7), (13.4, 2.6), (16.0, 3.9)),
    # Nuclear radius / cytoplasmic radius (the nucleus-to-cytoplasm ratio).
    "ratio": ((0.09, 0.88), (0.16, 0.06), (0.26, 0.08), (0.55, 0.12), (0.48, 0.15)),
    # Absorbance of the nucleus (natural logarithm).
    "chromasia": ((0.35, 2.80), (0.82, 0.17), (0.98, 0.21), (1.34, 0.27), (1.82, 0.36)),
    # Contrast of the chromatin, relative to chromasia.
    "coarseness": ((0.03, 0.95), (0.18, 0.09), (0.30, 0.13), (0.46, 0.16), (0.54, 0.19)),
    # Amplitude of the nuclear contour, relative to its radius.
    "irregularity": ((0.005, 0.40), (0.035, 0.025), (0.065, 0.035), (0.115, 0.05), (0.18, 0.07)),
    # Long axis / short axis of the nucleus.
    "elongation": ((1.0, 3.6), (1.16, 0.12), (1.24, 0.16), (1.30, 0.20), (1.80, 0.50)),
    # Absorbance of the cytoplasm.
    "density": ((0.10, 0.90), (0.34, 0.10), (0.38, 0.11), (0.52, 0.12), (0.58, 0.14)),
}
# The same for what a cell has or has not: probability in NILM, LSIL, HSIL and SCC.
_CHANCES = {
    "halo": (0.06, 0.55, 0.05, 0.04),  # Perinuclear clearing, as in a koilocyte.
    "binucleate": (0.04, 0.30, 0.06, 0.10),
    "keratin": (0.02, 0.03, 0.05, 0.55),  # Orange cytoplasm.
    "pink": (0.45, 0.20, 0.05, 0.10),  # Eosinophilic cytoplasm, unless keratinised.
    "basophilic": (0.06, 0.12, 0.60, 0.25),  # Violet-blue cytoplasm, unless one of the above.
    "diathesis": (0.05, 0.06, 0.12, 0.55),  # Tumour debris around it.
}
# Corners of the cytoplasm in the same order: at least, and below.
_CORNERS = ((5, 8), (5, 9), (8, 13), (5, 9))

# Absorbance of red, green and blue light by one unit of each stain, before a slide's jitter.
_STAINS = {
    "haematoxylin": (1.00, 1.03, 0.58),
    "cyan": (1.00, 0.50, 0.30),
    "pink": (0.16, 0.95, 0.46),
    "violet": (1.00, 0.86, 0.34),
    "orange": (0.20, 0.95, 1.05),
    "grime": (0.85, 1.00, 0.60),
}
_WHITE = (214, 220, 226)  # The light of an empty slide.

_OD = 256  # Fixed point: one unit of absorbance.
_SHIFT = 4  # Fixed point: sub-pixel bits of a contour.
_TILE = 768  # Pixels; side of the stored noise that textures are cut from.
_ANGLES = np.arange(48) * (2 * np.pi / 48)
_STREAM_SLIDE, _STREAM_CELL, _STREAM_ROI, _STREAM_FIELD, _STREAM_EXAMPLE, _STREAM_TILE = range(6)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Truth of one cell drawn in a field; the twin of a binucleate cell has no entry of its own.

    Attributes:
        x: Centre of the nucleus, pixels from the left edge.
        y: Centre of the nucleus, pixels from the top edge.
        radius: Mean nuclear radius, pixels.
        label: One of `taxonomy.STAGE2_CLASSES`.
    """

    x: float
    y: float
    radius: float
    label: str


@dataclasses.dataclass(frozen=True)
class Latent:
    """What a cell is drawn from; `_TRAITS` and `_CHANCES` tell the units and the distributions."""

    radius: float
    ratio: float
    chromasia: float
    coarseness: float
    irregularity: float
    elongation: float
    density: float
    halo: bool
    binucleate: bool
    keratin: bool
    pink: bool
    basophilic: bool
    diathesis: bool


@dataclasses.dataclass(frozen=True)
class _Look:
    """A slide's stain, lamp, focus and cleanliness."""

    stains: Mapping[str, np.ndarray]  # int32 [3], 1/256 absorbance for one unit of stain.
    white: np.ndarray  # float64 [3], 0..255.
    falloff: float  # Share of the light lost in the corner of a field.
    lamp: tuple[float, float]  # Brightest point, as a share of a field's width and height.
    focus: float  # Standard deviation of the blur, pixels.
    noise: int  # Amplitude of the sensor noise, grey levels.
    dirt: float  # How much lies between the cells; 1 is usual.


def _rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(k) for k in key])))


def _bell(rng: np.random.Generator, mean: float, deviation: float) -> float:
    # A sum of four uniforms has variance 1/3: bell-shaped without logarithms.
    return mean + deviation * 1.7320508 * (float(rng.random(4).sum()) - 2.0)


def _check(label: str, allowed: tuple[str, ...]) -> None:
    if label not in allowed:
        raise ValueError(f"label must be one of {', '.join(allowed)}; got {label!r}")


def draw_latent(label: str, rng: np.random.Generator) -> Latent:
    """Draws the latent parameters of one cell of a class."""
    _check(label, taxonomy.STAGE2_CLASSES)
    column, values = taxonomy.STAGE2_CLASSES.index(label), {}
    for name, ((low, high), *classes) in _TRAITS.items():
        values[name] = min(max(_bell(rng, *classes[column]), low), high)
    for name, classes in _CHANCES.items():
        values[name] = float(rng.random()) < classes[column]
    return Latent(**values)


@functools.lru_cache(maxsize=64)
def _look(slide: int) -> _Look:
    rng = _rng(_STREAM_SLIDE, slide)
    strength = rng.uniform(0.92, 1.08)
    stains = {}
    for name, colour in _STAINS.items():
        jitter = rng.uniform(0.94, 1.06, 3) * strength
        stains[name] = np.rint(np.array(colour) * jitter * _OD).astype(np.int32)
    return _Look(
        stains=stains,
        white=np.array(_WHITE) * rng.uniform(0.93, 1.05) * rng.uniform(0.97, 1.03, 3),
        falloff=rng.uniform(0.03, 0.15),
        lamp=(rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65)),
        focus=rng.uniform(0.45, 0.80),
        noise=int(rng.integers(4, 10)),
        dirt=rng.uniform(0.4, 1.5),
    )


def _enlarge(image: np.ndarray, size: int) -> np.ndarray:
    # The bit-exact kind of bilinear.
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)


@functools.lru_cache(maxsize=8)
def _tile(grain: int) -> np.ndarray:
    """Smooth noise, int32 [_TILE, _TILE] in -128..127, whose spots are about `grain` px wide."""
    coarse = -(-_TILE // grain) + 1
    noise = _rng(_STREAM_TILE, grain).integers(0, 256, (coarse, coarse), dtype=np.uint8)
    noise = _enlarge(noise, coarse * grain)
    noise = cv2.GaussianBlur(noise, (0, 0), 0.4 * grain)[:_TILE, :_TILE].astype(np.int32)
    low, high = int(noise.min()), int(noise.max())
    return np.clip((noise - (low + high) // 2) * 300 // max(high - low, 1), -128, 127)


def _texture(rng: np.random.Generator, shape: tuple[int, int], grain: int) -> np.ndarray:
    rows, columns = (int(rng.integers(0, max(_TILE - side, 1))) for side in shape)
    return _tile(grain)[rows : rows + shape[0], columns : columns + shape[1]]


def _turn(points: np.ndarray, angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def _smooth(points: np.ndarray, closed: bool) -> np.ndarray:
    """Rounds the corners of a path by cutting them twice (Chaikin), the first time sparingly."""
    for cut in (0.18, 0.25):
        start, end = (points, np.roll(points, -1, axis=0)) if closed else (points[:-1], points[1:])
        step = cut * (end - start)
        points = np.stack([start + step, end - step], axis=1).reshape(-1, 2)
    return points


def _blob(
    rng: np.random.Generator, radius: float, rough: float, stretch: float = 1.0, angle: float = 0.0
) -> np.ndarray:
    """A closed contour around the origin, float64 [48, 2] in pixels."""
    length = np.ones_like(_ANGLES)
    for k in range(2, 7):
        a, b = rng.uniform(-1.0, 1.0, 2) * rough * (2.0 / k)
        length = length + a * np.cos(k * _ANGLES) + b * np.sin(k * _ANGLES)
    points = np.stack([length * np.cos(_ANGLES), length * np.sin(_ANGLES)], axis=1) * radius
    return _turn(points * [stretch**0.5, stretch**-0.5], angle)


def _polygon(
    rng: np.random.Generator, radius: float, corners: int, stretch: float, angle: float
) -> np.ndarray:
    """A polygon with rounded corners around the origin, float64 [4 * corners, 2] in pixels."""
    angles = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * (2 * np.pi / corners)
    length = radius * rng.uniform(0.84, 1.24, corners)
    points = np.stack([length * np.cos(angles), length * np.sin(angles)], axis=1)
    return _turn(_smooth(points, closed=True) * [stretch**0.5, stretch**-0.5], angle)


class _Canvas:
    """Optical density that painting adds to; turned into light by `develop`.

    Adding absorbance commutes, so what overlaps is translucent and order does not matter.
    """

    def __init__(self, width: int, height: int, look: _Look) -> None:
        self.od = np.zeros((height, width, 3), np.int32)
        self.look = look

    def window(self, contour: np.ndarray, pad: int) -> tuple[slice, slice] | None:
        """Rows and columns that hold a contour, or None where it lies outside."""
        height, width = self.od.shape[:2]
        left, top = np.floor(contour.min(axis=0)).astype(int) - pad
        right, bottom = np.ceil(contour.max(axis=0)).astype(int) + pad + 1
        rows = slice(max(top, 0), min(bottom, height))
        columns = slice(max(left, 0), min(right, width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return None
        return rows, columns

    def add(self, window: tuple[slice, slice], stain: str, absorbance: np.ndarray) -> None:
        """Adds int32 `absorbance` (1/256 units) of a stain inside a window."""
        self.od[window] += (absorbance[..., None] * self.look.stains[stain]) >> 8

    def develop(self, rng: np.random.Generator, left: int, top: int, frame: tuple) -> np.ndarray:
        """The picture, uint8 [height, width, 3], at (left, top) of a field sized `frame`."""
        height, width = self.od.shape[:2]
        look = self.look
        x = (np.arange(width) + left) / frame[0] - look.lamp[0]
        y = (np.arange(height) + top) / frame[1] - look.lamp[1]
        shade = 1.0 - 2.0 * look.falloff * (x[None, :] ** 2 + y[:, None] ** 2)
        shade = np.rint(shade * 4096).astype(np.int32)  # 12 bits, then 12 more of the table.
        light = _transmittance()[np.minimum(self.od, 6 * _OD - 1)] * shade[..., None] >> 12
        light = light * np.rint(look.white * 16).astype(np.int32) >> 16
        image = cv2.GaussianBlur(np.clip(light, 0, 255).astype(np.uint8), (0, 0), look.focus)
        grain = rng.integers(0, 256, (2, *image.shape), dtype=np.uint8).astype(np.int16)
        grain = ((grain[0] + grain[1] - 255) * look.noise) >> 8
        return np.clip(image + grain, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def _transmittance() -> np.ndarray:
    """exp(-absorbance) for 0..6, int32 in 1/4096; rounded twice so that a last bit cannot move."""
    return np.rint(np.round(np.exp(-np.arange(6 * _OD) / _OD), 9) * 4096).astype(np.int32)


def _cover(
    window: tuple[slice, slice], points: np.ndarray, blur: float = 0.0, width: int = 0
) -> np.ndarray:
    """Coverage inside a window by a closed contour, or by an open path of `width` px: uint8."""
    rows, columns = window
    mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
    fixed = np.rint((points - [columns.start, rows.start]) * (1 << _SHIFT)).astype(np.int32)
    if width:
        cv2.polylines(mask, [fixed], False, 255, width, cv2.LINE_AA, _SHIFT)
    else:
        cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, _SHIFT)
    return cv2.GaussianBlur(mask, (0, 0), blur) if blur else mask


def _rim(mask: np.ndarray, width: float) -> np.ndarray:
    """How near the inner edge of a mask is, int32 0..about 128."""
    return cv2.subtract(mask, cv2.GaussianBlur(mask, (0, 0), width)).astype(np.int32)


def _paint_nucleus(
    canvas: _Canvas, rng: np.random.Generator, latent: Latent, contour: np.ndarray, blur: float
) -> None:
    window = canvas.window(contour, 4)
    if window is None:
        return
    mask = _cover(window, contour, blur)
    fine, coarse = _texture(rng, mask.shape, 2), _texture(rng, mask.shape, 4)
    contrast = int(latent.coarseness * 256)
    chromatin = 256 + ((contrast * (fine + 2 * coarse)) >> 8) + (_rim(mask, 1.6) >> 1)
    weight = mask.astype(np.int32) * np.clip(chromatin, 40, 560) >> 8
    canvas.add(window, "haematoxylin", weight * int(latent.chromasia * _OD) >> 8)


def _paint_cytoplasm(
    canvas: _Canvas,
    rng: np.random.Generator,
    latent: Latent,
    contour: np.ndarray,
    hole: np.ndarray | None,
    blur: float,
) -> None:
    window = canvas.window(contour, 6)
    if window is None:
        return
    mask = _cover(window, contour, blur)
    weight = mask.astype(np.int32)
    for grain, contrast in ((2, 5), (5, 4), (24, 1)):
        weight = weight * (256 + _texture(rng, mask.shape, grain) // contrast) >> 8
    weight += _rim(mask, 1.8)
    if len(contour) < 36 and cv2.countNonZero(mask) > 3000:  # Thin sheets fold and crease.
        for _ in range(int(rng.integers(0, 3))):
            first = int(rng.integers(0, len(contour)))
            turned = np.roll(contour, -first, axis=0)[: max(len(contour) // 4, 3)]
            weight += _cover(window, turned, 1.0).astype(np.int32) * int(rng.integers(60, 200)) >> 8
        for _ in range(int(rng.integers(0, 4))):
            ends = contour[rng.integers(0, len(contour), 3)] * [[0.8], [0.5], [0.3]]
            crease = _smooth(ends + contour.mean(axis=0) * [[0.2], [0.5], [0.7]], closed=False)
            line = _cover(window, crease, 1.2, width=1).astype(np.int32)
            weight += line * mask * int(rng.integers(60, 220)) >> 16
    if hole is not None:
        hole = _cover(window, hole, 1.5)
        outside = cv2.subtract(cv2.GaussianBlur(hole, (0, 0), 3.0), hole).astype(np.int32)
        weight = weight * (256 - (hole.astype(np.int32) * int(rng.integers(140, 235)) >> 8)) >> 8
        weight += outside * mask >> 7
    hues = ((latent.keratin, "orange"), (latent.pink, "pink"), (latent.basophilic, "violet"))
    stain = next((hue for has, hue in hues if has), "cyan")
    canvas.add(window, stain, weight * int(latent.density * _OD) >> 8)


def _paint_cell(
    canvas: _Canvas, rng: np.random.Generator, label: str, latent: Latent, x: float, y: float
) -> np.ndarray:
    """Paints one cell with its nucleus at (x, y), even across the edge of the canvas.

    Args:
        canvas: What to paint on.
        rng: The cell's own draws.
        label: Class; decides only how angular the cytoplasm is.
        latent: Parameters of the cell.
        x: Centre of the nucleus, pixels from the left edge.
        y: Centre of the nucleus, pixels from the top edge.

    Returns:
        Contour of the nucleus, float64 [48, 2], pixels.
    """
    centre, angle = np.array([x, y]), rng.uniform(0.0, np.pi)
    blur = 0.6 + 1.4 * rng.random() ** 3  # Some cells lie out of focus.
    rough, long = latent.irregularity, latent.elongation
    nucleus = centre + _blob(rng, latent.radius, rough, long, angle)
    reach = min(latent.radius / latent.ratio, 78.0)
    drift = _turn(np.array([rng.uniform(0.0, 0.3) * (reach - latent.radius), 0.0]), angle)
    corners = int(rng.integers(*_CORNERS[taxonomy.STAGE2_CLASSES.index(label)]))
    stretch = min(0.35 + 0.65 * long, 2.2) * rng.uniform(1.0, 1.3)
    cytoplasm = centre + drift + _polygon(rng, reach, corners, stretch, angle)
    hole = None
    if latent.halo:
        hole = centre + _blob(rng, latent.radius * rng.uniform(1.5, 2.2), 0.1, long**0.5, angle)
    _paint_cytoplasm(canvas, rng, latent, cytoplasm, hole, blur)
    _paint_nucleus(canvas, rng, latent, nucleus, blur)
    if latent.binucleate:
        away = np.array([0.0, latent.radius * rng.uniform(1.5, 2.1)])
        twin = centre + _turn(away, angle + rng.uniform(-0.5, 0.5))
        twin = twin + _blob(rng, latent.radius * 0.92, rough, 1.2, angle)
        _paint_nucleus(canvas, rng, latent, twin, blur)
    return nucleus


def _paint_neutrophil(canvas: _Canvas, rng: np.random.Generator, x: float, y: float) -> None:
    centre = np.array([x, y])
    body = centre + _blob(rng, rng.uniform(5.0, 8.0), 0.12)
    window = canvas.window(body, 4)
    if window is None:
        return
    mask = _cover(window, body, 1.0).astype(np.int32)
    canvas.add(window, "cyan", mask * int(rng.integers(20, 80)) >> 8)
    lobes = np.zeros(mask.shape, np.uint8)
    for _ in range(int(rng.integers(2, 5))):
        lobe = centre + rng.uniform(-3.4, 3.4, 2) + _blob(rng, rng.uniform(2.0, 3.6), 0.1, 1.3)
        lobes = np.maximum(lobes, _cover(window, lobe, 0.9))
    canvas.add(window, "haematoxylin", lobes.astype(np.int32) * int(rng.integers(170, 340)) >> 8)


def _paint_debris(canvas: _Canvas, rng: np.random.Generator, x: float, y: float) -> None:
    """Granular material: protein, lysed blood, bacteria."""
    outline = np.array([x, y]) + _blob(rng, rng.uniform(12.0, 42.0), 0.3)
    window = canvas.window(outline, 12)
    if window is None:
        return
    mask = _cover(window, outline, 4.0).astype(np.int32)
    grain = _texture(rng, mask.shape, 3) + 2 * _texture(rng, mask.shape, 12)
    weight = mask * np.clip(grain + int(rng.integers(-40, 80)), 0, 256) >> 8
    stain = ("grime", "pink", "grime", "cyan")[int(rng.integers(0, 4))]
    canvas.add(window, stain, weight * int(rng.integers(50, 190)) >> 8)


def _paint_strand(canvas: _Canvas, rng: np.random.Generator, x: float, y: float) -> None:
    """A thread of mucus, or a rod-shaped bacterium where it is short."""
    rod = rng.random() < 0.6
    steps = rng.uniform(-1.0, 1.0, (6, 2)) + rng.uniform(-1.0, 1.0, 2) * 2.0
    path = np.cumsum(steps, axis=0) * (0.9 if rod else rng.uniform(4.0, 14.0))
    path = _smooth(path, closed=False) + np.array([x, y])
    window = canvas.window(path, 6)
    if window is None:
        return
    line = _cover(window, path, 0.7 if rod else 1.5, width=1 if rod else 2)
    strength = int(rng.integers(90, 200) if rod else rng.integers(20, 80))
    canvas.add(window, "grime", line.astype(np.int32) * strength >> 8)


def _litter(canvas: _Canvas, rng: np.random.Generator, dirt: float) -> None:
    """Scatters what is no epithelial cell; `dirt` multiplies that of the slide."""
    height, width = canvas.od.shape[:2]
    dirt *= canvas.look.dirt * width * height / ROI_SIZE**2
    for paint, share in ((_paint_neutrophil, 1.3), (_paint_debris, 0.4), (_paint_strand, 0.7)):
        for _ in range(int(2.0 * rng.random() * dirt * share + rng.random())):
            paint(canvas, rng, rng.uniform(0, width), rng.uniform(0, height))


def _pick(rng: np.random.Generator, mix: Mapping[str, float]) -> str:
    draw, total = rng.random() * sum(mix.values()), 0.0
    for label, share in mix.items():
        total += share
        if draw < total:
            return label
    return next(reversed(mix))


def _neighbours(
    canvas: _Canvas, rng: np.random.Generator, count: int, clear: float, kin: str | None
) -> None:
    """Paints cells around the middle of an ROI, none with its nucleus nearer than `clear` px."""
    middle = ROI_SIZE / 2
    for _ in range(count):
        label = kin if kin and rng.random() < KINSHIP else _pick(rng, FIELD_MIX)
        latent = draw_latent(label, rng)
        away = clear + latent.radius + 62.0 * rng.random()
        x, y = _turn(np.array([away, 0.0]), rng.uniform(0, 2 * np.pi)) + middle
        # A twin nucleus lies up to two radii off and would stray into the middle.
        latent = dataclasses.replace(latent, binucleate=latent.binucleate and away > clear + 40)
        _paint_cell(canvas, rng, label, latent, x, y)


def _develop_roi(canvas: _Canvas, rng: np.random.Generator, size: int) -> np.ndarray:
    left, top = (int(rng.integers(0, side - ROI_SIZE)) for side in FIELD_SIZE)
    return _enlarge(canvas.develop(rng, left, top, FIELD_SIZE), size)


def _central(
    rng: np.random.Generator, label: str, slide: int, size: int, jitter: float
) -> tuple[np.ndarray, np.ndarray]:
    canvas = _Canvas(ROI_SIZE, ROI_SIZE, _look(slide))
    latent = draw_latent(label, rng)
    x, y = ROI_SIZE / 2 + rng.uniform(-jitter, jitter, 2)
    contour = _paint_cell(canvas, rng, label, latent, x, y)
    _neighbours(canvas, rng, int(rng.integers(0, 5)), latent.radius + jitter + 10.0, label)
    _litter(canvas, rng, 3.0 if latent.diathesis else 1.0)
    mask = _cover((slice(0, ROI_SIZE), slice(0, ROI_SIZE)), contour)
    return _develop_roi(canvas, rng, size), _enlarge(mask, size) > 127


def draw_cell_with_mask(
    label: str, seed: int, *, slide: int = 0, size: int = STAGE2_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the ROI around one nucleus, and the truth of that nucleus.

    Args:
        label: One of `taxonomy.STAGE2_CLASSES`.
        seed: Non-negative; which cell of that class.
        slide: Non-negative; which slide, and so its stain, lamp and focus.
        size: Side of the picture in pixels. The ROI is always 150 px of the field, enlarged.

    Returns:
        The picture, uint8 [size, size, 3] RGB, and the central nucleus, bool [size, size].

    Raises:
        ValueError: The label is not a class of stage 2.
    """
    _check(label, taxonomy.STAGE2_CLASSES)
    rng = _rng(_STREAM_CELL, taxonomy.STAGE2_CLASSES.index(label), seed)
    return _central(rng, label, slide, size, CENTRE_JITTER)


def draw_cell(label: str, seed: int, *, slide: int = 0, size: int = STAGE2_SIZE) -> np.ndarray:
    """The picture of `draw_cell_with_mask`, uint8 [size, size, 3] RGB."""
    return draw_cell_with_mask(label, seed, slide=slide, size=size)[0]


def draw_roi(label: str, seed: int, *, slide: int = 0, size: int = ROI_SIZE) -> np.ndarray:
    """Draws an ROI for stage 1.

    Args:
        label: 'cell' (a nucleus of any class near the middle) or 'background' (none within
            `CLEAR_RADIUS` px of it: empty, cytoplasm, debris, mucus, neutrophils, a cell at the
            rim).
        seed: Non-negative; which ROI of that class.
        slide: Non-negative; which slide.
        size: Side of the picture in pixels; the ROI is always 150 px of the field.

    Returns:
        uint8 [size, size, 3] RGB.

    Raises:
        ValueError: The label is not a class of stage 1.
    """
    _check(label, taxonomy.STAGE1_CLASSES)
    rng = _rng(_STREAM_ROI, taxonomy.STAGE1_CLASSES.index(label), seed)
    if label == "cell":
        return _central(rng, _pick(rng, FIELD_MIX), slide, size, SCAN_JITTER)[0]
    canvas = _Canvas(ROI_SIZE, ROI_SIZE, _look(slide))
    _neighbours(canvas, rng, int(rng.integers(0, 4)), CLEAR_RADIUS, None)
    _litter(canvas, rng, 2.5 * rng.random() ** 2)
    return _develop_roi(canvas, rng, size)


def draw_field(
    seed: int,
    *,
    slide: int = 0,
    width: int = FIELD_SIZE[0],
    height: int = FIELD_SIZE[1],
    cells: int = 60,
    mix: Mapping[str, float] | None = None,
) -> tuple[np.ndarray, tuple[Cell, ...]]:
    """Draws a whole field and its truth.

    Args:
        seed: Non-negative; which field.
        slide: Non-negative; which slide.
        width: Pixels.
        height: Pixels.
        cells: How many epithelial cells; each has its nucleus inside the field.
        mix: Share of each class of `taxonomy.STAGE2_CLASSES`; need not add up to one.
            `FIELD_MIX` by default.

    Returns:
        The picture, uint8 [height, width, 3] RGB, and its cells in the order they were drawn.

    Raises:
        ValueError: `mix` names an unknown class, or has no positive share.
    """
    mix = FIELD_MIX if mix is None else mix
    for label in mix:
        _check(label, taxonomy.STAGE2_CLASSES)
    if min(mix.values(), default=0) < 0 or sum(mix.values()) <= 0:
        raise ValueError(f"mix needs shares of 0 or more and one above 0; got {dict(mix)}")
    rng = _rng(_STREAM_FIELD, seed)
    canvas = _Canvas(width, height, _look(slide))
    truth: list[Cell] = []
    for _ in range(cells):
        grouped = bool(truth) and rng.random() < 0.4  # Cells come in groups, mostly of one class.
        kin = grouped and rng.random() < KINSHIP
        label = truth[-1].label if kin else _pick(rng, mix)
        latent = draw_latent(label, rng)
        for _ in range(20):  # Nuclei should not coincide; in a crowd the last try stands.
            x, y = rng.uniform(6, width - 6), rng.uniform(6, height - 6)
            if grouped:
                x = min(max(truth[-1].x + rng.uniform(-70, 70), 6), width - 6)
                y = min(max(truth[-1].y + rng.uniform(-70, 70), 6), height - 6)
            gaps = (np.hypot(x - c.x, y - c.y) - c.radius for c in truth)
            if all(gap > latent.radius + 8 for gap in gaps):
                break
        _paint_cell(canvas, rng, label, latent, x, y)
        truth.append(Cell(round(x, 3), round(y, 3), round(latent.radius, 3), label))
    _litter(canvas, rng, 1.0)
    return canvas.develop(rng, 0, 0, (width, height)), tuple(truth)


def encode(image: np.ndarray) -> bytes:
    """JPEG bytes (quality 95) of a uint8 [height, width, 3] RGB picture."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def examples(
    stage: int, split: str, *, per_class: int, seed: int = 0, slides: int = 20
) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Yields the examples of one split in a stable order.

    A picture depends on the stage, the split, its class, its index, `seed` and `slides`, never on
    `per_class`: asking for more adds pictures and changes none.

    Args:
        stage: 1 (150 px ROIs, cell or background) or 2 (250 px, four classes).
        split: 'train' or 'validation'.
        per_class: How many pictures of each class.
        seed: Non-negative; another seed is another data set.
        slides: How many slides both splits have together, at least 2. A fifth of them (the last)
            belongs to validation and no other split.

    Yields:
        Path such as 'train/1/train_1_0.jpg' (relative to DB_3 or DB_4), class, group such as
        'slide_07', and the uint8 RGB picture.

    Raises:
        ValueError: The stage or split is unknown, or there are too few slides.
    """
    splits = ("train", "validation")
    if stage not in (1, 2):
        raise ValueError(f"stage must be 1 or 2; got {stage!r}")
    if split not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)}; got {split!r}")
    if slides < 2:
        raise ValueError(f"slides must be at least 2, one for each split; got {slides}")
    held_out = max(slides // 5, 1)
    first, last = (0, slides - held_out) if split == "train" else (slides - held_out, slides)
    folders = taxonomy.DB3_FOLDERS if stage == 1 else taxonomy.DB4_FOLDERS
    draw = draw_roi if stage == 1 else draw_cell
    for digit, label in folders.items():
        for index in range(per_class):
            key = (stage, splits.index(split), int(digit), index)
            rng = _rng(_STREAM_EXAMPLE, seed, *key)
            number, image_seed = int(rng.integers(first, last)), int(rng.integers(0, 2**62))
            slide = int(_rng(_STREAM_SLIDE, seed, number).integers(0, 2**62))
            name = f"{split}/{digit}/{split}_{digit}_{index}.jpg"
            yield name, label, f"slide_{number:02d}", draw(label, image_seed, slide=slide)


def write_tree(
    root: Path, *, db3: Mapping[str, int], db4: Mapping[str, int], seed: int = 0, slides: int = 20
) -> None:
    """Writes phantoms in the layout of the authors' trees.

    Args:
        root: Folder that gets `DB_3` and `DB_4`, each with a `groups.csv`.
        db3: Pictures per class for each split, for instance `{'train': 100, 'validation': 25}`;
            a tree without counts is not written.
        db4: The same for stage 2.
        seed: As in `examples`.
        slides: As in `examples`.

    Raises:
        FileExistsError: `root` already has a tree that is asked for.
        ValueError: As in `examples`.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    trees = [(s, n, c) for s, n, c in ((1, "DB_3", db3), (2, "DB_4", db4)) if c]
    for _, name, _ in trees:
        if (root / name).exists():
            raise FileExistsError(f"{root / name} is already there; phantoms need a free place")
    # Drawn beside and then renamed: an interrupted run leaves no half tree under the final name.
    with tempfile.TemporaryDirectory(dir=root, prefix=".phantom_") as scratch:
        for stage, name, counts in trees:
            Path(scratch, name).mkdir()
            rows = [("file", "group")]
            for split, count in counts.items():
                drawn = examples(stage, split, per_class=count, seed=seed, slides=slides)
                for file, _, group, image in drawn:
                    path = Path(scratch, name, file)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(encode(image))
                    rows.append((file, group))
            with Path(scratch, name, "groups.csv").open("w", newline="") as table:
                csv.writer(table, lineterminator="\n").writerows(rows)
        for _, name, _ in trees:
            Path(scratch, name).rename(root / name)


def contact_sheet(columns: int = 10, seed: int = 0) -> np.ndarray:
    """One row a class (four of stage 2, two of stage 1), one slide a column; uint8 RGB."""
    rows = []
    for label in taxonomy.STAGE2_CLASSES + taxonomy.STAGE1_CLASSES:
        draw = draw_cell if label in taxonomy.STAGE2_CLASSES else draw_roi
        seeds = range(seed, seed + columns)
        rows.append(np.hstack([draw(label, i, slide=i, size=ROI_SIZE) for i in seeds]))
    return np.vstack(rows)


def ceiling(per_class: int = 2000, seed: int = 0) -> float:
    """Accuracy of the Bayes rule for a reader who is told the latent parameters of each cell.

    Given the class the parameters are independent, so the rule adds up their log likelihoods; the
    bell-shaped draws are taken for normal.
    """
    moments = np.array([classes for _, *classes in _TRAITS.values()])
    chances = np.array(list(_CHANCES.values()))
    right = 0
    for truth, label in enumerate(taxonomy.STAGE2_CLASSES):
        rng = _rng(_STREAM_CELL, len(taxonomy.STAGE2_CLASSES), seed, truth)
        for _ in range(per_class):
            latent = np.array(dataclasses.astuple(draw_latent(label, rng)), np.float64)
            values, signs = np.split(latent, [len(moments)])
            z = (values[:, None] - moments[..., 0]) / moments[..., 1]
            score = -(z**2 / 2 + np.log(moments[..., 1])).sum(axis=0)
            score += np.log(np.where(signs[:, None] > 0, chances, 1 - chances)).sum(axis=0)
            right += int(score.argmax() == truth)
    return right / (per_class * len(taxonomy.STAGE2_CLASSES))


def main(argv: list[str]) -> None:
    """Writes a contact sheet or a field, or prints the ceiling."""
    asked = flags.FLAGS
    if len(argv) > 1 or not (asked.contact_sheet or asked.field or asked.ceiling):
        raise app.UsageError("give --contact_sheet=FILE.png, --field=FILE.png or --ceiling=CELLS")
    if asked.contact_sheet:
        Image.fromarray(contact_sheet(seed=asked.seed)).save(asked.contact_sheet)
    if asked.field:
        Image.fromarray(draw_field(asked.seed, slide=asked.seed)[0]).save(asked.field)
    if asked.ceiling:
        print(f"accuracy ceiling, latent parameters known: {ceiling(asked.ceiling):.3f}")


if __name__ == "__main__":
    # Defined here and not on import, so that importers keep these names free.
    flags.DEFINE_string("contact_sheet", None, "PNG file to write a contact sheet to.")
    flags.DEFINE_string("field", None, "PNG file to write one whole field to.")
    flags.DEFINE_integer("ceiling", 0, "Cells per class to compute the accuracy ceiling on.")
    flags.DEFINE_integer("seed", 0, "Seed, and number of the first slide.")
    app.run(main)
