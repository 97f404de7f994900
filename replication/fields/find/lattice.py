"""Where a sliding ROI stands in a field."""

import dataclasses

import numpy as np

from tfds_pap.taxonomy import ROI_SIZE


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Every place at which the whole ROI lies inside the field.

    ROI `[row, column]` covers the pixels from `(column * stride, row * stride)` on, `roi` of them
    in each direction.

    Attributes:
        width: Of the field as read, pixels.
        height: Of the field as read, pixels.
        roi: Side of the ROI, pixels.
        stride: Pixels from one ROI to the next.

    Example:
        >>> lattice = Lattice(2048, 1536, roi=150, stride=25)
        >>> lattice.rows, lattice.columns, lattice.rois
        (56, 76, 4256)
    """

    width: int
    height: int
    roi: int = ROI_SIZE
    stride: int = 25

    def __post_init__(self) -> None:
        if self.roi < 1 or self.stride < 1:
            raise ValueError(
                f"expected an ROI and a stride of 1 px or more, got {self.roi} and {self.stride}"
            )

    @property
    def rows(self) -> int:
        """ROIs from top to bottom; 0 where the field is smaller than an ROI."""
        return max(0, (self.height - self.roi) // self.stride + 1)

    @property
    def columns(self) -> int:
        """ROIs from left to right; 0 where the field is smaller than an ROI."""
        return max(0, (self.width - self.roi) // self.stride + 1)

    @property
    def rois(self) -> int:
        """How many ROIs."""
        return self.rows * self.columns

    def centres(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the middles of ROIs, `(x, y)`, float64 `[n]`, pixels as read.

        Args:
            rows: int `[n]`.
            columns: int `[n]`.
        """
        half = self.roi / 2
        return np.asarray(columns) * self.stride + half, np.asarray(rows) * self.stride + half
