"""Figures as they stand in the report's tables, and pictures as they stand in its page."""

import base64
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from replication.measures.intervals import Estimate

#: Longer side of a thumbnail in pixels.
_THUMBNAIL = 128

#: Below this size single pixels are shown, as smoothing would draw what the model never saw.
COARSE = 64

NO_IMAGE = "not defined: no test image"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A figure as it stands in a table.

    Attributes:
        value: For example '97.3 %', or why there is none.
        interval: For example '[95.9, 98.2]'; '' where there is none to show.
    """

    value: str
    interval: str = ""


def shown(
    value: float, low: float, high: float, *, percent: bool = True, missing: str = NO_IMAGE
) -> Shown:
    """Rounds a figure and its interval.

    Args:
        value: NaN = undefined.
        low: Lower end; NaN = no interval.
        high: Upper end; NaN = no interval.
        percent: Whether the figure is a share, and shown in percent.
        missing: What is shown where it is undefined.
    """
    if not math.isfinite(value):
        return Shown(missing)
    unit = "\u00a0%" if percent else ""
    return Shown(number(value, percent) + unit, interval(low, high, percent))


def estimate(figure: Estimate, *, percent: bool = True, missing: str = NO_IMAGE) -> Shown:
    """Rounds an estimate, as `shown`."""
    return shown(figure.value, figure.low, figure.high, percent=percent, missing=missing)


def number(value: float, percent: bool) -> str:
    """Returns one decimal of a percentage, without its sign, or three of another figure."""
    return f"{100 * value:.1f}" if percent else f"{value:.3f}"


def interval(low: float, high: float, percent: bool) -> str:
    """Returns for example '[95.9, 98.2]'."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return f"[{number(low, percent)}, {number(high, percent)}]"


def points(value: float) -> str:
    """A difference of shares in percentage points, for example '+21.1'."""
    return f"{100 * value:+.1f}".replace("-", "−") if math.isfinite(value) else "not defined"


def points_interval(low: float, high: float) -> str:
    """Its interval, for example '[12.0, 30.2]'."""
    return interval(low, high, percent=True).replace("-", "−")


def plural(count: int, noun: str) -> str:
    """Returns for example '1 image' or '4,000 images'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def extent(images: int, groups: int, unit: str) -> str:
    """How much was scored, for example '478 images (31 slides)'; 0 groups = unknown."""
    within = f" ({plural(groups, unit)})" if groups else ""
    return plural(images, "image") + within


def ends(low: float, high: float) -> str:
    """Returns for example '0.9587 to 0.9818', for the terminal."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return f"{low:.4f} to {high:.4f}"


def methods(by_name: Mapping[str, str]) -> dict[str, str]:
    """Gathers the distinct ways in which intervals were made.

    Args:
        by_name: The method of each figure.

    Returns:
        The figures that each method is for.
    """
    names: dict[str, list[str]] = {}
    for name, method in by_name.items():
        names.setdefault(method, []).append(name)
    return {method: "; ".join(which) for method, which in names.items()}


def confusion_words(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Writes a confusion matrix, rows true, for readers who do not see it."""
    return "; ".join(
        f"{name}: " + ", ".join(f"{n} as {other}" for other, n in zip(names, row, strict=True))
        for name, row in zip(names, matrix, strict=True)
    )


def thumbnail(image: np.ndarray, *, longest: int = _THUMBNAIL) -> str:
    """Makes a picture small enough for the page.

    Args:
        image: uint8 RGB ``[height, width, 3]``.
        longest: Longer side at most, pixels.

    Returns:
        A data URI.

    Raises:
        ValueError: It is no such image.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"picture: expected uint8 [height, width, 3], got {image.dtype} {list(image.shape)}"
        )
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # A picture of few pixels is drawn large, where JPEG's own errors would show.
    coarse = max(picture.size) < COARSE
    quality = {"quality": 95, "subsampling": 0} if coarse else {"quality": 85}
    picture.save(buffer, "JPEG", **quality)
    return _uri("image/jpeg", buffer.getvalue())


def svg(content: bytes) -> str:
    """Returns a data URI of an SVG picture."""
    return _uri("image/svg+xml", content)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
