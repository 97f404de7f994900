"""Where a picture shows something: not where it was filled with one colour, or is overexposed."""

import cv2
import numpy as np

#: Grey levels within 5 x 5 pixels of what is filled with one colour; least share of the picture.
_FLAT = 2
_LEAST_FILL = 0.01


def shown(grey: np.ndarray) -> np.ndarray:
    """Returns where a picture shows something, uint8 0 or 255, in its shape.

    What an augmenter filled with one colour, or overexposed ground, reaches the edge and has one
    grey level. Its outline is like that of others and says nothing of what is shown.

    Args:
        grey: uint8 `[h, w]`.
    """
    kernel = np.ones((5, 5), np.uint8)
    flat = (cv2.dilate(grey, kernel) - cv2.erode(grey, kernel) <= _FLAT).astype(np.uint8)
    if not flat.any():
        return np.full(grey.shape, 255, np.uint8)
    _, parts, boxes, _ = cv2.connectedComponentsWithStats(flat, connectivity=4)
    height, width = grey.shape
    edge = (
        (boxes[:, 0] == 0) | (boxes[:, 1] == 0)
        | (boxes[:, 0] + boxes[:, 2] == width) | (boxes[:, 1] + boxes[:, 3] == height)
    )  # fmt: skip
    filled = edge & (boxes[:, 4] >= _LEAST_FILL * grey.size)
    filled[0] = False
    fill = cv2.dilate(filled[parts].astype(np.uint8), kernel)
    return np.where(fill > 0, 0, 255).astype(np.uint8)
