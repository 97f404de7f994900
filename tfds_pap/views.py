"""The eight flips and quarter-turns of a square; a smear has no "up"."""

import numpy as np

VIEWS = 8


def turned(picture: np.ndarray, view: int) -> np.ndarray:
    """Returns one of the eight views of a picture `[size, size, ...]`; view 0 is the picture.

    Args:
        picture: Square.
        view: 0..7: 1 mirrors left and right, 2 mirrors top and bottom, 4 transposes afterwards;
            they add up.
    """
    picture = picture[:, ::-1] if view % 2 else picture
    picture = picture[::-1] if view // 2 % 2 else picture
    return np.swapaxes(picture, 0, 1) if view // 4 else picture
