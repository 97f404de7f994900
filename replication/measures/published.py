"""The figures that the papers report (P1 to P6), and the verdict of a replication against them.

The facts come from the papers' public descriptions and their authors' published scripts and
notebooks. Where it is not known which of the two holds a figure, its source says both.
"""

import dataclasses
import math
from typing import Any, Literal

from replication.measures.intervals import wilson

PAPER_2021 = "Liquid-Based Pap Test Analysis Using Two-Stage CNNs (2021)"
PAPER_2024 = (
    "Towards Accurate Cervical Cancer Detection: Leveraging Two-Stage CNNs for Pap Smear Analysis "
    "(De la Cruz Paucar, Macancela Bojorque, Reyes-Chacon, Vizcaino-Imacana and "
    "Morocho-Cayamcela, SciTePress 2024)"
)
PAPER_TUNING = (
    "Improving Accuracy of Liquid-Based Pap Test Diagnosis using Pre-trained CNN Models and "
    "Fine-Tuning Techniques"
)
_NOTEBOOKS = "description or the authors' published scripts and notebooks"

#: Where the pixels come from: the authors' trees, drawings, other images, or nobody said.
Source = Literal["original", "phantom", "stand-in", "undeclared"]


@dataclasses.dataclass(frozen=True)
class Published:
    """One reported figure.

    Attributes:
        key: Unique name, for example 'P6.accuracy'.
        part: 'P1' to 'P6'.
        stage: 1 (cell or background) or 2 (NILM to SCC).
        what: What was run, in words.
        metric: Where `replication.measures.evaluation.evaluate` keeps the nearest figure, dots
            between the levels ('macro.precision'); another name if it has none.
        value: The figure, its range where it was read off a curve, or None where none is published.
        interval: Wilson's 95 % interval from `test_count`, for proportions; it is ours, since the
            papers give none. Of a range, from its lower to its upper end.
        test_count: Images behind the figure.
        note: What a reader must know before comparing.
        source: Paper, and the place in it as far as known.
    """

    key: str
    part: str
    stage: int
    what: str
    metric: str
    value: float | tuple[float, float] | None
    interval: tuple[float, float] | None
    test_count: int | None
    note: str
    source: str

    @property
    def text(self) -> str:
        """The figure for a table: '0.9725', '0.91 to 0.925' or 'not published'."""
        if self.value is None:
            return "not published"
        ends = self.value if isinstance(self.value, tuple) else (self.value,)
        return " to ".join(f"{end:.15g}" for end in ends)


def _proportion(value: float | tuple[float, float], test_count: int, **fields: Any) -> Published:
    low, high = value if isinstance(value, tuple) else (value, value)
    # The papers round; the number of right images is the whole number nearest to the figure.
    ends = [wilson(round(end * test_count), test_count) for end in (low, high)]
    interval = (ends[0][0], ends[1][1])
    return Published(value=value, test_count=test_count, interval=interval, **fields)


def _setting(value: float, **fields: Any) -> Published:
    return Published(value=value, interval=None, test_count=None, **fields)


_P1: dict[str, Any] = {
    "part": "P1",
    "stage": 1,
    "what": "stage 1 CNN, one convolution, on DB_3/validation",
    "source": f"{PAPER_2021}; {_NOTEBOOKS}",
}
_P2: dict[str, Any] = {
    "part": "P2",
    "stage": 2,
    "what": "stage 2 'original' CNN, six convolutions",
    "source": f"{PAPER_2021}; {_NOTEBOOKS}",
}
_P3: dict[str, Any] = {
    "part": "P3",
    "stage": 2,
    "what": "frozen ResNet50 and Dense(4)",
    "source": f"{PAPER_2024}; read off the published curve of validation accuracy",
}
_P4: dict[str, Any] = {
    "part": "P4",
    "stage": 2,
    "what": "ResNet152, VGG16 (VGG19 in one readme), EfficientNetB0, EfficientNetB3 and "
    "DenseNet201, frozen, compared",
    "source": f"{PAPER_TUNING}; {_NOTEBOOKS}",
}
_P5: dict[str, Any] = {
    "part": "P5",
    "stage": 2,
    "what": "search of the head of the frozen ResNet152",
    "source": f"{PAPER_TUNING}; {_NOTEBOOKS}",
}
_P6: dict[str, Any] = {
    "part": "P6",
    "stage": 2,
    "what": "final model: frozen ResNet152, Dense(64), on DB_4/validation",
    "source": f"{PAPER_TUNING}; {_NOTEBOOKS}",
}
_LOOKED_AT = "the only held-out set, looked at many times"
_MICRO = (
    "a Keras metric over one-hot cells, which for one label an image is accuracy wherever the "
    "highest probability is above 0.5; the mean over classes is the nearest figure; "
)
_SEARCH = "chosen on rows that were trained on"

#: Every reported figure, in the order of the parts.
PUBLISHED: tuple[Published, ...] = (
    _proportion(
        0.992,
        400,
        key="P1.accuracy",
        metric="accuracy",
        note="of the 50x50 variant, 56 epochs; about 400 validation images (196 of the 200 "
        "background ROIs in one copy), so the interval is about right too",
        **_P1,
    ),
    _setting(7060, key="P1.parameters", metric="parameters", note="20x20 input", **_P1),
    _proportion(
        0.7788, 800, key="P2.accuracy", metric="accuracy", note=f"test; {_LOOKED_AT}", **_P2
    ),
    _setting(0.5675, key="P2.loss", metric="log_loss", note="test; no interval can be had", **_P2),
    _proportion(
        0.7937,
        800,
        key="P2.validation_accuracy",
        metric="accuracy",
        note="a random 20 % of DB_4/train: fields may be on both sides of the cut",
        **_P2,
    ),
    _setting(131108, key="P2.parameters", metric="parameters", note="250x250 input", **_P2),
    _proportion(
        (0.91, 0.925),
        800,
        key="P3.validation_accuracy",
        metric="accuracy",
        note="over the last 20 epochs, on a random 20 % of the 4,000 images of DB_4/train; "
        "DB_4/validation was not scored",
        **_P3,
    ),
    Published(
        key="P4.accuracy",
        metric="accuracy",
        value=None,
        interval=None,
        test_count=None,
        note="'ResNet152 was the best'; no table is published",
        **_P4,
    ),
    _setting(1, key="P5.hidden_layers", metric="hidden_layers", note=_SEARCH, **_P5),
    _setting(64, key="P5.units", metric="units", note=_SEARCH, **_P5),
    _setting(0.2, key="P5.dropout", metric="dropout", note=_SEARCH, **_P5),
    _setting(0.01, key="P5.learning_rate", metric="learning_rate", note=_SEARCH, **_P5),
    _setting(
        41,
        key="P5.seconds_per_epoch",
        metric="seconds_per_epoch",
        note="about; batch 16 on a Colab GPU",
        **_P5,
    ),
    _proportion(0.9725, 800, key="P6.accuracy", metric="accuracy", note=_LOOKED_AT, **_P6),
    _setting(0.0983, key="P6.loss", metric="log_loss", note="no interval can be had", **_P6),
    _proportion(
        0.9725,
        800,
        key="P6.recall",
        metric="macro.sensitivity",
        note=f"{_MICRO}on 200 images a class the two are the same",
        **_P6,
    ),
    _proportion(
        0.9725,
        800,
        key="P6.precision",
        metric="macro.precision",
        note=f"{_MICRO}from the published matrix that is 0.9725 as well",
        **_P6,
    ),
    Published(
        key="P6.specificity",
        metric="macro.specificity",
        value=0.9908,
        # The 2,400 cells behind it are three to an image, so they are no independent trials.
        interval=None,
        test_count=800,
        note="a batch average over clipped one-hot cells; the mean one-against-rest specificity of "
        "the published matrix is 0.99083 as well, but hides 0.985 (SCC) to 1 (NILM)",
        **_P6,
    ),
    *(
        _proportion(
            named_right / 200,
            200,
            key=f"P6.sensitivity_of_{name}",
            metric=f"per_class.{name}.sensitivity",
            note="not stated, but in the published confusion matrix of the test images (rows true, "
            "HSIL, LSIL, NILM, SCC): 191 1 0 8, 2 197 0 1, 0 1 199 0, 5 4 0 191",
            **_P6,
        )
        for name, named_right in (("NILM", 199), ("LSIL", 197), ("HSIL", 191), ("SCC", 191))
    ),
    _setting(58510532, key="P6.parameters", metric="parameters", note="all of them", **_P6),
    _setting(
        135492,
        key="P6.trainable_parameters",
        metric="trainable_parameters",
        note="the backbone is frozen",
        **_P6,
    ),
    Published(
        key="P6.seconds_per_epoch",
        metric="seconds_per_epoch",
        value=(53, 56),
        interval=None,
        test_count=None,
        note="about; the authors' machine",
        **_P6,
    ),
)


#: Key of what stands beside figures of images and classes that are in no paper.
NONE = "none"


def published(key: str) -> Published:
    """One reported figure.

    Args:
        key: For example 'P6.accuracy', or `NONE`.

    Returns:
        The figure with its source.

    Raises:
        ValueError: There is no such key.

    Example:
        >>> published("P3.validation_accuracy").text
        '0.91 to 0.925'
    """
    if key == NONE:
        what, note = "a lab's own images", "no paper reports a figure of these images"
        return Published(NONE, "", 2, what, "accuracy", None, None, None, note, "")
    for figure in PUBLISHED:
        if figure.key == key:
            return figure
    keys = ", ".join(figure.key for figure in PUBLISHED)
    raise ValueError(f"published figure: expected one of {keys}, got {key!r}")


def verdict(figure: Published, estimate_low: float, estimate_high: float, *, source: Source) -> str:
    """Compare a measured interval with the published one: intervals, never points.

    Two overlapping intervals do not prove that two models are equal, only that these data do not
    tell them apart. A figure on drawings or on other images is no replication, whatever it is.

    Args:
        figure: The reported figure.
        estimate_low: Lower end of the measured interval.
        estimate_high: Upper end of the measured interval.
        source: 'original' (the authors' images), 'phantom' (drawings), 'stand-in' (other images) or
            'undeclared'.

    Returns:
        A line that starts with 'agrees', 'lower', 'higher', 'no verdict' or 'not comparable'.

    Raises:
        ValueError: ``source`` is none of these, or the ends of the interval are swapped.

    Example:
        >>> verdict(published("P6.accuracy"), 0.90, 0.94, source="original")
        'lower (measured 0.9000 to 0.9400, published 0.9587 to 0.9818)'
        >>> verdict(published("P6.accuracy"), 0.90, 0.94, source="phantom")
        'not comparable: phantom data (measured 0.9000 to 0.9400, published 0.9587 to 0.9818)'
    """
    strange = {
        "phantom": "phantom data",
        "stand-in": "other images",
        "undeclared": "whose images is not declared",
    }
    if source != "original" and source not in strange:
        raise ValueError(
            f"source: expected original, phantom, stand-in or undeclared, got {source!r}"
        )
    if estimate_low > estimate_high:
        raise ValueError(f"verdict: expected low <= high, got {estimate_low} and {estimate_high}")
    missing = math.isnan(estimate_low) or math.isnan(estimate_high)
    measured = "no interval" if missing else f"{estimate_low:.4f} to {estimate_high:.4f}"
    reported = "no interval"
    if figure.interval is not None:
        reported = f"{figure.interval[0]:.4f} to {figure.interval[1]:.4f}"
    elif figure.value is None:
        reported = "no figure"
    both = f"(measured {measured}, published {reported})"
    if source in strange:
        return f"not comparable: {strange[source]} {both}"
    if missing or figure.interval is None:
        return f"no verdict {both}"
    low, high = figure.interval
    if estimate_high < low:
        return f"lower {both}"
    if estimate_low > high:
        return f"higher {both}"
    return "agrees (intervals overlap)"
