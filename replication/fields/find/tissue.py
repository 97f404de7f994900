"""Which ROIs of a field hold anything but glass, from a small picture of it.

Stain absorbs some colours more than others, glass and the shade of a lamp all alike: what counts is
the difference between the optical densities of the darkest and the lightest channel. It is taken
relative to the slide's own glass, so that the threshold is a fixed one: Otsu's parts even an empty
slide into two, and on a full one falls between pale cytoplasm and nuclei.
"""

import cv2
import numpy as np

from replication.fields.find.lattice import Lattice
from replication.fields.read.field import Field

#: Pixels as read for a pixel of the picture: the smallest nuclei are some 16 px wide.
REDUCTION = 8

#: Longer side of the picture at most, which bounds memory; larger slides are reduced more.
_LONGEST = 8192

#: Difference of optical densities (natural logarithm) from which a pixel is stained. Clean glass
#: has 0.014 at most on drawn slides, pale cytoplasm 0.2 and more.
_STAINED = 0.1

#: Optical density of the lightest channel that is no shade of a lamp: ink, and grey pictures.
_DARK = 0.3

#: Side of the square that fits into what is no speck, pixels of the picture.
_OPENING = 2

#: Share of the picture, the brightest, whose median colour is that of glass.
_BRIGHTEST = 0.05


def rois(field: Field, lattice: Lattice, reduction: int = REDUCTION) -> np.ndarray:
    """Finds the ROIs that are worth reading.

    Args:
        field: The field; its overview comes from the pyramid of its file, where it has one.
        lattice: Its ROIs.
        reduction: Pixels as read for a pixel of the picture, in each direction.

    Returns:
        bool `[rows, columns]`: whether there is stain anywhere in the ROI.

    Raises:
        FieldError: If the field is damaged.
    """
    if not lattice.rois:
        return np.zeros((lattice.rows, lattice.columns), bool)
    longest = max(1, min(_LONGEST, max(field.width, field.height) // reduction))
    stained = mask(field.overview(longest))
    # Sums over all that lies above and to the left make any rectangle four look-ups.
    sums = cv2.integral(stained.astype(np.uint8))
    (top, bottom), (left, right) = (
        _span(count, lattice, of_field, of_mask)
        for count, of_field, of_mask in (
            (lattice.rows, field.height, stained.shape[0]),
            (lattice.columns, field.width, stained.shape[1]),
        )
    )
    held = sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)]
    return held - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)] > 0


def mask(picture: np.ndarray) -> np.ndarray:
    """Tells stain from glass.

    Args:
        picture: uint8 RGB `[height, width, 3]`, some 8 px of the field a pixel.

    Returns:
        bool `[height, width]`; specks that hold no square of 2 x 2 px are glass.

    Example:
        >>> picture = np.full((9, 9, 3), 220, np.uint8)
        >>> picture[2:5, 2:5] = (90, 80, 150)
        >>> picture[7, 7] = (90, 80, 150)
        >>> int(mask(picture).sum())
        9
    """
    white = glass(picture)
    # What is brighter than glass, such as the white of what was not scanned, absorbs nothing.
    tables = np.maximum(0.0, -np.log((np.arange(256)[:, None] + 1) / (white + 1)))
    # Of three channels one after another: their densities together would take four times the bytes.
    high = np.full(picture.shape[:2], -np.inf, np.float32)
    low = np.full(picture.shape[:2], np.inf, np.float32)
    for channel in range(3):
        density = cv2.LUT(
            np.ascontiguousarray(picture[..., channel]), tables[:, channel].astype(np.float32)
        )
        np.maximum(high, density, out=high)
        np.minimum(low, density, out=low)
    stained = ((high - low > _STAINED) | (low > _DARK)).astype(np.uint8)
    square = np.ones((_OPENING, _OPENING), np.uint8)
    # OpenCV's own opening by an even square moves the picture by a pixel.
    kept = cv2.erode(stained, square, anchor=(0, 0))
    return cv2.dilate(kept, square, anchor=(_OPENING - 1, _OPENING - 1)) > 0


def glass(picture: np.ndarray) -> np.ndarray:
    """Returns the colour of empty glass, float `[3]`: the median of the brightest pixels.

    Args:
        picture: uint8 RGB `[height, width, 3]`. Pure white was never scanned, and is left out.
    """
    pixels = picture.reshape(-1, 3)
    # A quarter of a million of them tell it as well as all.
    pixels = pixels[:: max(1, len(pixels) // 2**18)]
    scanned = pixels[(pixels < 255).any(axis=1)]
    if not len(scanned):
        return np.full(3, 255.0)
    bright = scanned.sum(axis=1, dtype=np.int64)
    return np.median(scanned[bright >= np.quantile(bright, 1 - _BRIGHTEST)], axis=0)


def _span(count: int, lattice: Lattice, of_field: int, of_mask: int) -> tuple[np.ndarray, ...]:
    """First pixel of the mask that each ROI touches, and behind the last one, in one direction."""
    starts, scale = np.arange(count) * lattice.stride, of_mask / of_field
    first = np.floor(starts * scale).astype(int)
    return first, np.minimum(np.ceil((starts + lattice.roi) * scale).astype(int), of_mask)
