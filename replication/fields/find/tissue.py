"""Where on a slide there is anything but glass, from a small picture of it.

Otsu's threshold (IEEE Transactions on Systems, Man, and Cybernetics 9, 1979) on the saturation of
the picture parts stain from glass, as in TIAToolbox and HistomicsTK; the picture is that which the
file's own pyramid holds, where it holds one.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from replication.fields.find import scanner
from replication.fields.find.lattice import Lattice
from replication.fields.read.field import Field

#: Pixels of the field a pixel of the picture, at most: a nucleus is some 40 px wide.
REDUCTION = 16

#: Saturation, 0 to 255, that is stain in any case: Otsu parts even what is all tissue.
_CERTAIN = 40

#: And that is glass in any case: it parts even what is all glass.
_LEAST = 12


def mask(field: Field, reduction: int = REDUCTION) -> np.ndarray:
    """Finds what is no glass.

    Args:
        field: The field.
        reduction: Pixels of the field a pixel of the mask.

    Returns:
        bool `[height, width]` of the whole field, grown by a pixel all around.
    """
    longest = max(1, max(field.width, field.height) // reduction)
    small = cv2.cvtColor(field.overview(longest), cv2.COLOR_RGB2HSV)[..., 1]
    otsu, _ = cv2.threshold(small, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    stained = (small > np.clip(otsu, _LEAST, _CERTAIN)).astype(np.uint8)
    return cv2.dilate(stained, np.ones((3, 3), np.uint8)) > 0


def with_tissue(
    field: Field, lattice: Lattice, blocks: Sequence[tuple[slice, slice]], stained: np.ndarray
) -> list[tuple[slice, slice]]:
    """Returns the blocks in which there is anything but glass.

    Args:
        field: The field.
        lattice: Its lattice.
        blocks: From `scanner.blocks`.
        stained: From `mask`.
    """
    down, across = stained.shape[0] / field.height, stained.shape[1] / field.width

    def is_stained(rows: slice, columns: slice) -> bool:
        left, top, width, height = scanner.covered(lattice, rows, columns)
        y0, y1 = int(top * down), int(np.ceil((top + height) * down))
        x0, x1 = int(left * across), int(np.ceil((left + width) * across))
        return bool(stained[y0:y1, x0:x1].any())

    return [block for block in blocks if is_stained(*block)]
