"""What the evaluation of whole fields says: figures, curves, a confusion matrix and sentences."""

import dataclasses
import math
from typing import Any

from replication.drawing import shown
from replication.measures.predictions import jsonable
from tfds_pap.classes import Classes

#: Last column of the confusion matrix.
NOT_FOUND = "not found"

#: Why a figure that counts false positives says little where not every cell is annotated.
UNANNOTATED = "an unannotated cell counts as a false positive"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure, as a table shows it.

    Attributes:
        name: For programs.
        words: For readers.
        unit: 'share', or what it is counted per.
        value: NaN where it is undefined.
        low: Lower end of the 95 % interval; NaN where there is none.
        high: Upper end of the interval; NaN where there is none.
        count: What it is a share of, or a number per; 0 where that is no count.
        reliable: Whether truth of this kind can tell it.
        note: Why not, or why it is undefined; else ''.
        method: How the interval was made, in words.
    """

    name: str
    words: str
    unit: str
    value: float
    low: float
    high: float
    count: int
    reliable: bool
    note: str
    method: str

    def __str__(self) -> str:
        """The figure as readers see it, such as '80.1 % [75.0, 84.9]'."""
        if not math.isfinite(self.value):
            return f"not defined ({self.note})"
        if self.unit == "share":
            parts = shown.shown(self.value, self.low, self.high)
            return f"{parts.value} {parts.interval}"
        ends = "no interval"
        if math.isfinite(self.low):
            ends = f"[{self.low:.1f}, {self.high:.1f}]"
        return f"{self.value:.1f} {ends}"


@dataclasses.dataclass(frozen=True)
class Curve:
    """Recall over the thresholds, the highest threshold first.

    Attributes:
        thresholds: Stage-1 scores.
        false_positives: Per field, at each.
        recall: At each.
        precision: At each.
        band_false_positives: Per field, where an interval of recall is given.
        band_low: Its lower end there; NaN where there is none.
        band_high: Its upper end.
    """

    thresholds: list[float]
    false_positives: list[float]
    recall: list[float]
    precision: list[float]
    band_false_positives: list[float]
    band_low: list[float]
    band_high: list[float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What annotated fields say about the method.

    Attributes:
        complete: Whether every cell is annotated.
        threshold: Stage-1 score of a detection at least.
        match_radius: Of a match at most, pixels.
        match_radius_of: Pixels of what: 'the file' or 'the field as read'.
        fields: How many.
        megapixels: Of them all.
        detections: Kept ROIs at the threshold.
        annotated: Nuclei of each label.
        figures: All figures.
        rows: Labels of the confusion matrix; those of no class of stage 2 come last.
        columns: The classes, then 'not found'.
        confusion: Nuclei, rows true; None without stage 2.
        curve: Over all thresholds; None where there is no nucleus.
        classes: Of stage 2.
    """

    complete: bool
    threshold: float
    match_radius: float
    match_radius_of: str
    fields: int
    megapixels: float
    detections: int
    annotated: dict[str, int]
    figures: tuple[Figure, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    confusion: list[list[int]] | None
    curve: Curve | None
    classes: Classes

    @property
    def nuclei(self) -> int:
        """All annotated nuclei."""
        return sum(self.annotated.values())

    def figure(self, name: str) -> Figure:
        """Returns a figure by its name.

        Args:
            name: Such as 'recall' or 'sensitivity HSIL+'; a figure's `name`.

        Raises:
            KeyError: If there is none of this name.
        """
        return {figure.name: figure for figure in self.figures}[name]

    @property
    def looked_for(self) -> str | None:
        """What is looked for, such as 'HSIL+'; None where nobody said."""
        return self.classes.positive_name if self.classes.severe else None

    def json(self) -> dict[str, Any]:
        """Returns what evaluation.json holds: all of this, and the sentences under "lines"."""
        return jsonable(self) | {"lines": self.lines()}

    def lines(self) -> list[str]:
        """Returns the result in plain sentences."""
        lines = [self._subject(), self._rule(), self._found()]
        for name in ("precision", "false_positives_per_field", "average_precision"):
            figure = self.figure(name)
            caveat = "" if figure.reliable else f". Not reliable: {UNANNOTATED}"
            lines.append(f"{figure.words}: {figure}{caveat}.")
        if self.confusion is not None:
            named = [one for one in self.figures if one.name.startswith("sensitivity ")]
            readings = [
                f"{figure.name.removeprefix('sensitivity ')} {figure} of {figure.count:,}"
                for figure in named
                if figure.count
            ]
            if readings:
                sentence = f"Found and named right: {'; '.join(readings)}."
                if (positive := self.looked_for) is not None:
                    specificity = self.figure(f"specificity {positive}")
                    others = [n for n in self.classes.names if n not in self.classes.positive]
                    sentence += (
                        f" {positive} specificity, among the {specificity.count:,} "
                        f"{' and '.join(others)} nuclei found: {specificity}."
                    )
                lines.append(sentence)
        if self.fields == 1:
            lines.append("One field alone gives no interval.")
        return lines

    def _subject(self) -> str:
        others = [name for name in self.rows if name not in self.columns]
        atypical = [f"{self.annotated[name]} {name}" for name in others if self.annotated[name]]
        line = (
            f"{plural(self.fields, 'field')}, {self.megapixels:.1f} megapixels, "
            f"{plural(self.nuclei, 'annotated nucleus', 'annotated nuclei')}"
        )
        if not atypical:
            return f"{line}."
        return f"{line}; {' and '.join(atypical)} count in detection only, as no class of stage 2."

    def _rule(self) -> str:
        return (
            f"A nucleus is found if a kept ROI has its middle within {self.match_radius:g} px of "
            f"it (pixels of {self.match_radius_of}), one ROI for one nucleus."
        )

    def _found(self) -> str:
        reachable = self.figure("recall_reachable")
        return (
            f"Stage 1 at a threshold of {self.threshold:g} keeps "
            f"{plural(self.detections, 'ROI')} and finds {self.figure('recall')} of the nuclei; "
            f"{reachable} of the {reachable.count:,} that an ROI can be centred on. Nuclei "
            f"scattered anywhere would be found by chance: {self.figure('recall_by_chance')}."
        )


def plural(count: int, one: str, many: str = "") -> str:
    """Returns a count with its noun.

    Args:
        count: How many.
        one: The noun.
        many: Its plural; '' appends an s.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
