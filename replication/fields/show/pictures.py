"""What is seen of one scanned field: overlay, heat map, tiles, single cells, GeoJSON."""

import dataclasses
import json
import unicodedata
from pathlib import Path

import cv2
import numpy as np

from replication.drawing import palette
from replication.fields.find.cells import Cells
from replication.fields.find.lattice import Lattice
from replication.fields.read.field import Field
from replication.fields.show import geojson, pyramid
from tfds_pap import files
from tfds_pap.classes import Classes

#: Longer side of the overlay and the heat map, pixels.
_LONGEST = 2048

#: Cells with a picture of their own, the most suspicious first, and its side in pixels.
THUMBNAILS, _THUMBNAIL = 200, 150

#: Lengths of scale bars, micrometres.
_BARS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

#: Half of a box below which cells are points, pixels of a picture of up to 1280 px; more in larger.
_POINT = 5

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 88]
_INK, _HALO = (40, 40, 40), (255, 255, 255)


def write_pictures(
    folder: Path,
    field: Field,
    lattice: Lattice,
    scores: np.ndarray,
    cells: Cells,
    *,
    threshold: float,
) -> None:
    """Writes everything that a field's folder shows.

    Args:
        folder: Gets overlay.jpg, heat_map.png, heat_layer.png, tiles.dzi with its tiles,
            thumbnails/, cells.geojson and cells.js.
        field: The field.
        lattice: Its ROIs.
        scores: float32 `[rows, columns]`.
        cells: What was found, the most suspicious first.
        threshold: Score of a detection at least; marked in the heat map.
    """
    folder.mkdir(parents=True, exist_ok=True)
    largest = pyramid.write(folder, field)
    shrink = min(1.0, _LONGEST / max(field.width, field.height))
    size = (max(1, round(field.width * shrink)), max(1, round(field.height * shrink)))
    small = cv2.resize(largest, size, interpolation=cv2.INTER_AREA)
    _write(folder / "overlay.jpg", overlay(small, field, lattice.roi, cells))
    _write(folder / "heat_map.png", heat_map(small, lattice, scores, threshold))
    _write(
        folder / "heat_layer.png", _heat(scores) if scores.size else np.zeros((1, 1, 4), np.uint8)
    )
    geojson.write(folder / "cells.geojson", cells, lattice.roi * field.scale, field.name)
    _write_thumbnails(folder / "thumbnails", field, lattice.roi, cells)
    _write_data(folder / "cells.js", folder.name, field, lattice, cells, largest)


def overlay(picture: np.ndarray, field: Field, roi: int, cells: Cells) -> np.ndarray:
    """Draws the cells over a field.

    Args:
        picture: The whole field at any size, uint8 RGB.
        field: Its true size, and its pixel size.
        roi: Side of the ROI, pixels as read.
        cells: Drawn as boxes, dashed where the model abstained; or as points, hollow where it
            abstained, if boxes would be too small to be told apart.

    Returns:
        uint8 RGB, with a legend below the field.
    """
    drawn, shrink = picture.copy(), picture.shape[1] / field.width
    unit = max(picture.shape[:2]) / 1280
    # Boxes of half the ROI: whole ones would hide each other.
    half = shrink * roi / 4
    small = half < _POINT * max(1, unit)
    draw = _point if small else _box
    marks = [Mark.of(number, cells.classes) for number in range(len(cells.classes.names))]
    class_ids = cells.class_ids.tolist()
    # The most suspicious last, so that nothing covers them.
    for number in range(len(cells) - 1, -1, -1):
        middle = tuple(shrink * axis[number] / field.scale for axis in (cells.x, cells.y))
        mark, dashed = marks[class_ids[number]], bool(cells.abstain[number])
        draw(drawn, middle, half, unit, mark, abstain=dashed)
    if field.mpp is not None:
        _scale_bar(drawn, field.mpp / shrink, unit)
    counts = np.bincount(cells.class_ids, minlength=len(marks))
    texts = [
        (f"{_ascii(name)} ({mark.letter}) {count}", mark.colour)
        for name, mark, count in zip(cells.classes.shown, marks, counts, strict=True)
    ]
    if cells.abstain.any():
        look = "hollow" if small else "dashed"
        texts.append((f"{look}: abstained {cells.abstain.sum()}", _INK))
    return np.vstack([drawn, _legend(drawn.shape[1], texts, unit)])


@dataclasses.dataclass(frozen=True)
class Mark:
    """How the cells of a class are drawn.

    Attributes:
        colour: RGB.
        letter: Stands above a box; of the least severe class none does.
        light: Whether the letter is dark, as its ground is light.
        plain: Whether it is the least severe class, which does not stand out.
    """

    colour: tuple[int, int, int]
    letter: str
    light: bool
    plain: bool

    @classmethod
    def of(cls, class_id: int, classes: Classes) -> "Mark":
        """Returns the mark of a class.

        Args:
            class_id: Position among the classes.
            classes: What is known of them.
        """
        plain = classes.severity is not None and classes.severity[0] == class_id
        return cls(
            palette.colour(class_id, classes),
            palette.letters(classes)[class_id],
            palette.is_light(class_id, classes),
            plain,
        )


def _ascii(text: str) -> str:
    """OpenCV draws no other letters."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return plain or "class"


_SQUARE = ((-1, -1), (1, -1), (1, 1), (-1, 1))


def _box(
    picture: np.ndarray, middle: tuple, half: float, unit: float, mark: Mark, *, abstain: bool
) -> None:
    width = max(1, round(1.6 * unit))
    corners = np.array(middle) + half * np.array(_SQUARE)
    lines = [corners.round().astype(np.int32)]
    if abstain:
        sides = np.linspace(corners, np.roll(corners, -1, axis=0), 8, axis=1)
        # The first of each two of the seven parts of a side.
        lines = list(sides.reshape(-1, 2, 2).round().astype(np.int32))
    colour = mark.colour
    if not mark.plain:
        # What is not NILM stands out by a light rim: stained cells have colours of their own.
        cv2.polylines(picture, lines, not abstain, _HALO, 3 * width, cv2.LINE_AA)
    cv2.polylines(picture, lines, not abstain, colour, width, cv2.LINE_AA)
    if not mark.plain:
        left, bottom = map(int, lines[0][0])
        text, size, edge = mark.letter, 0.45 * unit, 2 * width
        (wide, high), _ = cv2.getTextSize(text, _FONT, size, width)
        cv2.rectangle(
            picture, (left, bottom - high - 2 * edge), (left + wide + 2 * edge, bottom), colour, -1
        )
        ink = _INK if mark.light else _HALO
        cv2.putText(
            picture, text, (left + edge, bottom - edge), _FONT, size, ink, width, cv2.LINE_AA
        )


def _point(
    picture: np.ndarray, middle: tuple, half: float, unit: float, mark: Mark, *, abstain: bool
) -> None:
    radius = max(2, round(max(2.5 * unit, half)))
    place = tuple(map(round, middle))
    if abstain:
        cv2.circle(picture, place, radius, _HALO, -1, cv2.LINE_AA)
    width = max(1, round(unit)) if abstain else -1
    cv2.circle(picture, place, radius, mark.colour, width, cv2.LINE_AA)


def _legend(width: int, texts: list[tuple[str, tuple]], unit: float) -> np.ndarray:
    size, margin = 0.55 * unit, round(12 * unit)
    lines: list[list[tuple[int, str, tuple]]] = [[]]
    x = margin
    for text, colour in texts:
        wide = cv2.getTextSize(text, _FONT, size, 1)[0][0] + round(34 * unit)
        if x + wide > width and lines[-1]:
            lines.append([])
            x = margin
        lines[-1].append((x, text, colour))
        x += wide
    step = round(28 * unit)
    legend = np.full((step * len(lines) + margin, width, 3), 255, np.uint8)
    for row, line in enumerate(lines):
        base = row * step + round(24 * unit)
        for x, text, colour in line:
            side = round(12 * unit)
            cv2.rectangle(legend, (x, base - side), (x + side, base), colour, -1)
            place = (x + round(18 * unit), base)
            cv2.putText(legend, text, place, _FONT, size, _INK, max(1, round(unit)), cv2.LINE_AA)
    return legend


def _scale_bar(picture: np.ndarray, mpp: float, unit: float) -> None:
    """Draws the longest round length that takes at most a fifth of the width."""
    fitting = [length for length in _BARS if length / mpp <= picture.shape[1] / 5]
    if not fitting:
        return
    length, margin = fitting[-1], round(16 * unit)
    end = (picture.shape[1] - margin, picture.shape[0] - margin)
    start = (round(end[0] - length / mpp), end[1])
    text = f"{length} um" if length < 1000 else f"{length / 1000:g} mm"
    for colour, width in (((255, 255, 255), round(7 * unit)), (_INK, max(2, round(4 * unit)))):
        cv2.line(picture, start, end, colour, max(width, 1))
        place = (start[0], start[1] - round(9 * unit))
        cv2.putText(
            picture, text, place, _FONT, 0.6 * unit, colour, max(1, width // 2), cv2.LINE_AA
        )


def heat_map(
    picture: np.ndarray, lattice: Lattice, scores: np.ndarray, threshold: float
) -> np.ndarray:
    """Lays the scores of stage 1 over the faded field.

    Args:
        picture: The whole field at any size, uint8 RGB.
        lattice: Its ROIs.
        scores: float32 `[rows, columns]`.
        threshold: Marked on the colour bar.

    Returns:
        uint8 RGB, with a colour bar below the field.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    faded = (0.5 * cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB) + 127).astype(np.uint8)
    unit = max(picture.shape[:2]) / 1280
    if scores.size:
        shrink = picture.shape[1] / lattice.width
        heat, first = _heat(scores), (lattice.roi - lattice.stride) / 2
        # Each score is drawn around the middle of its ROI, a stride wide.
        matrix = np.array(
            [
                [lattice.stride * shrink, 0, first * shrink],
                [0, lattice.stride * shrink, first * shrink],
            ]
        )
        # Pixels of both pictures are squares, not points.
        matrix[:, 2] += (matrix[:, :2].sum(axis=1) - 1) / 2
        laid = cv2.warpAffine(heat, matrix, picture.shape[1::-1], flags=cv2.INTER_NEAREST)
        faded = _laid(faded, laid)
    return np.vstack([faded, _colour_bar(picture.shape[1], threshold, unit)])


def _heat(scores: np.ndarray) -> np.ndarray:
    """uint8 RGBA of each ROI: the colour of its score, and the more opaque the higher."""
    levels = (scores * 255).round().astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    opacity = (40 + 0.45 * levels.astype(np.float32)).astype(np.uint8)
    return np.dstack([colours, opacity])


def _laid(ground: np.ndarray, heat: np.ndarray) -> np.ndarray:
    alpha = heat[..., 3:].astype(np.float32) / 255
    return (ground * (1 - alpha) + heat[..., :3] * alpha).astype(np.uint8)


def _colour_bar(width: int, threshold: float, unit: float) -> np.ndarray:
    bar = np.full((round(58 * unit), width, 3), 255, np.uint8)
    left, right = round(20 * unit), min(width - round(20 * unit), round(420 * unit))
    if right - left < 2:
        return bar
    ramp = np.linspace(0, 255, right - left).round().astype(np.uint8)[None]
    heat = _heat(ramp / np.float32(255))
    top, bottom = round(8 * unit), round(24 * unit)
    # As opaque as in the picture, whose ground is faded to about this grey.
    ground = np.full((bottom - top, right - left, 3), 215, np.uint8)
    bar[top:bottom, left:right] = _laid(ground, heat)
    mark = round(left + threshold * (right - left))
    cv2.line(
        bar,
        (mark, top - round(4 * unit)),
        (mark, bottom + round(4 * unit)),
        _INK,
        max(1, round(unit)),
    )
    for value, text in ((0, "0"), (1, "1"), (threshold, f"threshold {threshold:g}")):
        wide = cv2.getTextSize(text, _FONT, 0.45 * unit, 1)[0][0]
        place = (max(0, round(left + value * (right - left) - wide / 2)), round(46 * unit))
        cv2.putText(bar, text, place, _FONT, 0.45 * unit, _INK, max(1, round(unit)), cv2.LINE_AA)
    words = "probability of a cell, stage 1"
    place = (right + round(24 * unit), bottom)
    cv2.putText(bar, words, place, _FONT, 0.5 * unit, _INK, max(1, round(unit)), cv2.LINE_AA)
    return bar


def _write_thumbnails(folder: Path, field: Field, roi: int, cells: Cells) -> None:
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    for number in range(min(len(cells), THUMBNAILS)):
        left, top = (round(axis[number] / field.scale - roi / 2) for axis in (cells.x, cells.y))
        pixels = field.read(left, top, roi, roi)
        small = cv2.resize(pixels, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
        _write(folder / f"{number}.jpg", small)


def _write_data(
    path: Path, name: str, field: Field, lattice: Lattice, cells: Cells, largest: np.ndarray
) -> None:
    """Writes what the viewer shows: a script, since a page on a disk may not fetch."""

    def thousandths(values: np.ndarray) -> list:
        return (values * 1000).round().astype(int).tolist()

    data = {
        "width": field.width,
        "height": field.height,
        "scale": field.scale,
        "mpp": field.mpp,
        "tiles": {"width": largest.shape[1], "height": largest.shape[0], "tile": pyramid.TILE},
        "roi": lattice.roi,
        "stride": lattice.stride,
        "rows": lattice.rows,
        "columns": lattice.columns,
        "thumbnails": min(len(cells), THUMBNAILS),
        "x": (cells.x / field.scale).round(1).tolist(),
        "y": (cells.y / field.scale).round(1).tolist(),
        "score": thousandths(cells.scores),
        "probabilities": thousandths(cells.probabilities),
        # Nothing where nobody said which classes are looked for.
        "hsil": thousandths(cells.hsil_plus) if cells.classes.severe else None,
        "abstain": cells.abstain.astype(int).tolist(),
    }
    # The name is that of a folder that was made safe; the rest is numbers.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    files.write_atomically(path, f"scanned({json.dumps(name)}, {text});\n")


def _write(path: Path, picture: np.ndarray) -> None:
    code = cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR
    quality = _QUALITY if path.suffix == ".jpg" else []
    files.write_atomically(
        path, cv2.imencode(path.suffix, cv2.cvtColor(picture, code), quality)[1].tobytes()
    )
