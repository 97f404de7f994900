"""The confusion matrix as a figure: of two classes to many, with short names or long ones."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replication.drawing import figures, palette
from replication.drawing.palette import GRID, INK, ON_COLOUR

#: Classes from which on a confusion matrix numbers them, as names above its columns would not fit.
MANY = 9


def confusion_matrix(
    matrix: Sequence[Sequence[int]], class_names: Sequence[str], form: str = "svg"
) -> bytes:
    """Draws a confusion matrix: counts, and percentages of each true class.

    Of `MANY` classes and more only the counts fit; each row then has the number and the name of its
    class, each column the number, and what is 0 stays empty.

    Args:
        matrix: Counts, rows true, columns named.
        class_names: Names of its rows and columns.
        form: "svg" or "png".

    Returns:
        The picture in that form.
    """
    many = len(class_names) >= MANY
    broken = [_broken(name, 34 if many else _NAME) for name in class_names]
    lines = max(name.count("\n") + 1 for name in broken)
    beside = _BESIDE
    side = max(_CELL, (figures.WIDTH - _BESIDE) / len(class_names))
    if many:
        widest = max(len(line) for name in broken for line in name.split("\n"))
        side, beside = max(_NUMBERED, 0.15 * lines), 0.9 + _LETTER * (widest + 4)
    matrix_side = side * len(class_names)
    draw = _numbered_matrix if many else _confusion_matrix
    return figures.drawn(
        max(figures.HEIGHT, (0.7 if many else beside) + matrix_side),
        lambda figure: draw(figure, np.asarray(matrix), broken, side),
        form,
        width=beside + matrix_side,
    )


#: Inches: the least side of a cell of a confusion matrix, and of one with numbered classes, what
#: stands beside the cells, and the width of a letter.
_CELL, _NUMBERED, _BESIDE, _LETTER = 0.46, 0.33, 1.3, 0.068

#: Letters after which a class name is broken into lines.
_NAME = 18


def _broken(name: str, letters: int) -> str:
    """Breaks a name into lines, a long word too."""
    return textwrap.fill(name.replace("_", " "), letters)


def _cells(figure: Figure, counts: np.ndarray) -> tuple[Axes, np.ndarray]:
    """Draws the cells; returns the axes and the share that each is of its row."""
    axes = figure.subplots()
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    axes.pcolormesh(shares, cmap=palette.DEPTH, vmin=0, vmax=1, edgecolor=GRID, linewidth=0.6)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("named class")
    axes.set_ylabel("true class")
    return axes, shares


def _numbered_matrix(figure: Figure, counts: np.ndarray, names: Sequence[str], side: float) -> None:
    axes, shares = _cells(figure, counts)
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = ON_COLOUR if shares[row, column] > _DEEP else INK
        text = f"{counts[row, column]:,}"
        # Five letters and more do not fit at full size.
        size = min(8.0, 72 * 0.92 * side / (0.62 * len(text)))
        at = (column + 0.5, row + 0.5)
        axes.annotate(text, at, ha="center", va="center", color=colour, fontsize=size)
    ticks = np.arange(len(names)) + 0.5
    numbers = [str(number) for number in range(1, len(names) + 1)]
    axes.set_xticks(ticks, numbers)
    axes.xaxis.set_ticks_position("top")
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.set_yticks(ticks, [f"{name}  {n}" for name, n in zip(names, numbers, strict=True)])


#: Share of a row from which on its cell is so strong that text on it is light.
_DEEP = 0.8


def _confusion_matrix(
    figure: Figure, counts: np.ndarray, names: Sequence[str], side: float
) -> None:
    axes, shares = _cells(figure, counts)
    large = side > 0.6
    for row, column in np.ndindex(counts.shape):
        colour = ON_COLOUR if shares[row, column] > _DEEP else INK
        share = f"{100 * shares[row, column]:.1f} %" if counts[row].any() else "no image"
        for text, points, size, weight in (
            (f"{counts[row, column]:,}", 5.5, 10 if large else 8, "bold"),
            (share, -6.5, 7.5 if large else 6, "normal"),
        ):
            axes.annotate(
                text,
                (column + 0.5, row + 0.5),
                (0, points),
                textcoords="offset points",
                ha="center",
                va="center",
                color=colour,
                fontsize=size,
                weight=weight,
            )
    ticks = np.arange(len(names)) + 0.5
    if max(map(len, names)) * _LETTER <= side:
        axes.set_xticks(ticks, names)
        axes.set_yticks(ticks, names, rotation=90, va="center")
    else:
        axes.set_xticks(ticks, names, rotation=45, ha="right", va="top", rotation_mode="anchor")
        axes.set_yticks(ticks, names, va="center")
