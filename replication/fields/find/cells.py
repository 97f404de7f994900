"""The cells that were found in a field, as a table."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tfds_pap import files
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError
from tfds_pap.taxonomy import STAGE2_CLASSES

#: Columns before the probabilities, which have the names of their classes, and after them.
_BEFORE = ("x", "y", "score", "class")
_AFTER = ("hsil_plus", "abstain")

#: Attributes with an entry for each cell.
ARRAYS = ("x", "y", "scores", "probabilities", "hsil_plus", "abstain")


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """The kept ROIs of one field, the most suspicious first.

    Attributes:
        x: Middle of the ROI, pixels of the file from its left edge, float64 `[n]`.
        y: The same from its top edge, float64 `[n]`.
        scores: Probability of a cell (stage 1), float64 `[n]`.
        probabilities: Of the classes of stage 2 (the network's own), float64 `[n, k]`.
        hsil_plus: Calibrated probability of HSIL or SCC, or of what the classes declare to be
            positive, float64 `[n]`; NaN where nobody said.
        abstain: Whether the calibrated confidence is below the model's threshold, bool `[n]`; all
            False where it has none.
        classes: What is known of the classes.
    """

    x: np.ndarray
    y: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray
    hsil_plus: np.ndarray
    abstain: np.ndarray
    classes: Classes = dataclasses.field(default_factory=lambda: Classes.known(STAGE2_CLASSES))

    def __len__(self) -> int:
        return len(self.x)

    @property
    def class_ids(self) -> np.ndarray:
        """Positions among the classes, int64 `[n]`."""
        return self.probabilities.argmax(axis=1)

    @property
    def labels(self) -> list[str]:
        """The named class of each cell."""
        return [self.classes.names[number] for number in self.class_ids]

    def select(self, rows: np.ndarray | slice) -> "Cells":
        """Returns some of the cells.

        Args:
            rows: Positions, int `[k]`; a mask, bool `[n]`; or a slice.
        """
        return Cells(**{name: getattr(self, name)[rows] for name in ARRAYS}, classes=self.classes)

    def sorted(self) -> "Cells":
        """Returns them the most suspicious first: by HSIL+ where known, then score, then place."""
        suspicion = np.nan_to_num(self.hsil_plus)
        return self.select(np.lexsort((self.x, self.y, -self.scores, -suspicion)))

    @classmethod
    def empty(cls) -> "Cells":
        """Returns no cells."""
        none = np.zeros(0)
        return cls(none, none, none, np.zeros((0, len(STAGE2_CLASSES))), none, none.astype(bool))

    def table(self) -> pd.DataFrame:
        """Returns x, y, score, class, the probability of each class, hsil_plus and abstain."""
        named = dict(zip(self.classes.names, self.probabilities.T, strict=True))
        before = dict(zip(_BEFORE, (self.x, self.y, self.scores, self.labels), strict=True))
        return pd.DataFrame(
            {**before, **named, "hsil_plus": self.hsil_plus, "abstain": self.abstain.astype(int)}
        )

    def write(self, path: Path) -> None:
        """Writes the table as CSV, whole or not at all.

        Args:
            path: The file.
        """
        files.write_atomically(path, self.table().to_csv(index=False, float_format="%.6g"))

    @classmethod
    def read(cls, path: Path, classes: Classes | None = None) -> "Cells":
        """Reads what `write` wrote; the class column is not needed, as it follows from the rest.

        Args:
            path: The file.
            classes: What is known of the classes; None takes those of the papers.

        Raises:
            PapError: If it is no such table.
        """
        files.verify(path)
        try:
            return cls.of_table(pd.read_csv(io.BytesIO(path.read_bytes())), classes)
        except (OSError, ValueError) as error:
            raise PapError(
                f"{path}: expected a table of cells ({str(error).splitlines()[0]})"
            ) from None

    @classmethod
    def of_table(cls, table: pd.DataFrame, classes: Classes | None = None) -> "Cells":
        """Returns the cells of a table such as that of `table`, the class column left out.

        Args:
            table: A row a cell.
            classes: What is known of the classes; None takes those of the papers.

        Raises:
            ValueError: If a column is missing or is not of numbers.
        """
        classes = classes or Classes.known(STAGE2_CLASSES)
        columns: Sequence[str] = (*_BEFORE, *classes.names, *_AFTER)
        missing = [name for name in columns if name not in table]
        if missing:
            raise ValueError(f"no column {missing[0]}")
        return cls(
            x=table["x"].to_numpy(float),
            y=table["y"].to_numpy(float),
            scores=table["score"].to_numpy(float),
            probabilities=table[list(classes.names)].to_numpy(float),
            hsil_plus=table["hsil_plus"].to_numpy(float),
            abstain=table["abstain"].to_numpy(float) > 0,
            classes=classes,
        )
