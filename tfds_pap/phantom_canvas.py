"""A canvas of optical density, and the shapes and textures that are painted on it.

What any drawing of a stained slide needs, and nothing about cells: stains and light of a slide,
random streams, noise, contours and their fill. The same seed gives the same pixels in every process
and on every platform: only uniform and integer draws are used, shapes are filled and blurred in
fixed point, and the one transcendental function that touches intensities sits in a quantised table.
"""

import dataclasses
import enum
import functools
from collections.abc import Mapping

import cv2
import numpy as np

OD = 256  # Fixed point: one unit of absorbance.

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

_SHIFT = 4  # Fixed point: sub-pixel bits of a contour.
_TILE = 768  # Pixels; side of the stored noise that textures are cut from.
_ANGLES = np.arange(48) * (2 * np.pi / 48)


class Stream(enum.IntEnum):
    """First part of a seed, so that no two uses of one number share their draws.

    The values are part of every picture: add at the end, renumber nothing.
    """

    SLIDE = 0
    CELL = 1
    ROI = 2
    FIELD = 3
    EXAMPLE = 4
    TILE = 5


@dataclasses.dataclass(frozen=True)
class Look:
    """A slide's stain, lamp, focus and cleanliness."""

    stains: Mapping[str, np.ndarray]  # int32 [3], 1/256 absorbance for one unit of stain.
    white: np.ndarray  # float64 [3], 0..255.
    falloff: float  # Share of the light lost in the corner of a field.
    lamp: tuple[float, float]  # Brightest point, as a share of a field's width and height.
    focus: float  # Standard deviation of the blur, pixels.
    noise: int  # Amplitude of the sensor noise, grey levels.
    dirt: float  # How much lies between the cells; 1 is usual.


def generator(stream: Stream, *key: int) -> np.random.Generator:
    """A generator of its own for each stream and key of non-negative integers."""
    seed = [int(k) for k in (stream, *key)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


@functools.lru_cache(maxsize=64)
def slide_look(slide: int) -> Look:
    """The look of a slide, drawn from its number."""
    rng = generator(Stream.SLIDE, slide)
    strength = rng.uniform(0.92, 1.08)
    stains = {}
    for name, colour in _STAINS.items():
        jitter = rng.uniform(0.94, 1.06, 3) * strength
        stains[name] = np.rint(np.array(colour) * jitter * OD).astype(np.int32)
    return Look(
        stains=stains,
        white=np.array(_WHITE) * rng.uniform(0.93, 1.05) * rng.uniform(0.97, 1.03, 3),
        falloff=rng.uniform(0.03, 0.15),
        lamp=(rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65)),
        focus=rng.uniform(0.45, 0.80),
        noise=int(rng.integers(4, 10)),
        dirt=rng.uniform(0.4, 1.5),
    )


def enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """A square picture or mask, resized to `size` px a side."""
    # The bit-exact kind of bilinear.
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)


@functools.lru_cache(maxsize=8)
def _tile(grain: int) -> np.ndarray:
    """Smooth noise, int32 [_TILE, _TILE] in -128..127, whose spots are about `grain` px wide."""
    coarse = -(-_TILE // grain) + 1
    noise = generator(Stream.TILE, grain).integers(0, 256, (coarse, coarse), dtype=np.uint8)
    noise = enlarge(noise, coarse * grain)
    noise = cv2.GaussianBlur(noise, (0, 0), 0.4 * grain)[:_TILE, :_TILE].astype(np.int32)
    low, high = int(noise.min()), int(noise.max())
    return np.clip((noise - (low + high) // 2) * 300 // max(high - low, 1), -128, 127)


def texture(rng: np.random.Generator, shape: tuple[int, int], grain: int) -> np.ndarray:
    """A random cut of smooth noise, int32 [*shape] in -128..127, with spots of `grain` px."""
    rows, columns = (int(rng.integers(0, max(_TILE - side, 1))) for side in shape)
    return _tile(grain)[rows : rows + shape[0], columns : columns + shape[1]]


def turn(points: np.ndarray, angle: float) -> np.ndarray:
    """Points, float64 [..., 2], turned about the origin by `angle` radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def smooth(points: np.ndarray, closed: bool) -> np.ndarray:
    """Rounds the corners of a path by cutting them twice (Chaikin), the first time sparingly."""
    for cut in (0.18, 0.25):
        start, end = (points, np.roll(points, -1, axis=0)) if closed else (points[:-1], points[1:])
        step = cut * (end - start)
        points = np.stack([start + step, end - step], axis=1).reshape(-1, 2)
    return points


def blob(
    rng: np.random.Generator, radius: float, rough: float, stretch: float = 1.0, angle: float = 0.0
) -> np.ndarray:
    """A closed contour around the origin, float64 [48, 2] in pixels."""
    length = np.ones_like(_ANGLES)
    for k in range(2, 7):
        a, b = rng.uniform(-1.0, 1.0, 2) * rough * (2.0 / k)
        length = length + a * np.cos(k * _ANGLES) + b * np.sin(k * _ANGLES)
    points = np.stack([length * np.cos(_ANGLES), length * np.sin(_ANGLES)], axis=1) * radius
    return turn(points * [stretch**0.5, stretch**-0.5], angle)


def polygon(
    rng: np.random.Generator, radius: float, corners: int, stretch: float, angle: float
) -> np.ndarray:
    """A polygon with rounded corners around the origin, float64 [4 * corners, 2] in pixels."""
    angles = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * (2 * np.pi / corners)
    length = radius * rng.uniform(0.84, 1.24, corners)
    points = np.stack([length * np.cos(angles), length * np.sin(angles)], axis=1)
    return turn(smooth(points, closed=True) * [stretch**0.5, stretch**-0.5], angle)


class Canvas:
    """Optical density that painting adds to; turned into light by `develop`.

    Adding absorbance commutes, so what overlaps is translucent and order does not matter.
    """

    def __init__(self, width: int, height: int, look: Look) -> None:
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
        light = _transmittance()[np.minimum(self.od, 6 * OD - 1)] * shade[..., None] >> 12
        light = light * np.rint(look.white * 16).astype(np.int32) >> 16
        image = cv2.GaussianBlur(np.clip(light, 0, 255).astype(np.uint8), (0, 0), look.focus)
        grain = rng.integers(0, 256, (2, *image.shape), dtype=np.uint8).astype(np.int16)
        grain = ((grain[0] + grain[1] - 255) * look.noise) >> 8
        return np.clip(image + grain, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=1)
def _transmittance() -> np.ndarray:
    """exp(-absorbance) for 0..6, int32 in 1/4096; rounded twice so that a last bit cannot move."""
    return np.rint(np.round(np.exp(-np.arange(6 * OD) / OD), 9) * 4096).astype(np.int32)


def cover(
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


def rim(mask: np.ndarray, width: float) -> np.ndarray:
    """How near the inner edge of a mask is, int32 0..about 128."""
    return cv2.subtract(mask, cv2.GaussianBlur(mask, (0, 0), width)).astype(np.int32)
