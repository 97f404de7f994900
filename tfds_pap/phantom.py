"""Draws synthetic liquid-based Papanicolaou images whose truth is known.

Nothing here is a real cell. A phantom replaces a download: every command can run on it, and where
the truth of a real picture is unknown (where is the nucleus, how accurate can a reader be at all?)
a phantom has the answer. One primitive, `_paint_cell`, draws a cell on a canvas of optical density.
An ROI is a canvas of 150 x 150 px with a cell in its middle; a field is a larger canvas with many.

What makes the class of a cell is drawn from the distributions of `phantom_latent`, where a few
cells look like those of another class, so no reader can be perfect: `--ceiling=2000` prints what a
reader scores who is told these latent parameters exactly (about 0.96). One who only sees pixels,
through another slide's stain and focus, scores less.

The same seed gives the same pixels in every process and on every platform; `phantom_canvas` tells
how. `phantom_set` makes labelled sets of these pictures.

    python -m tfds_pap.phantom --contact_sheet=sheet.png
"""

import dataclasses
from collections.abc import Mapping

import cv2
import numpy as np
from absl import app, flags
from PIL import Image

from tfds_pap import commands, path_flags, taxonomy
from tfds_pap.phantom_canvas import (
    OD,
    Canvas,
    Stream,
    blob,
    cover,
    enlarge,
    generator,
    polygon,
    rim,
    slide_look,
    smooth,
    texture,
    turn,
)
from tfds_pap.phantom_latent import Latent, ceiling, check_label, draw_latent
from tfds_pap.taxonomy import ROI_SIZE

STAGE2_SIZE = 250  # Pixels; the enlarged copy of the ROI.
CENTRE_JITTER = 6.0  # Pixels; how far a central nucleus may lie from the middle of a stage-2 ROI.
SCAN_JITTER = 14.0  # Pixels; the same in stage 1, where a sliding window rarely hits the middle.
CLEAR_RADIUS = 48.0  # Pixels; a background ROI has no nuclear centre nearer to its middle.
KINSHIP = 0.85  # Probability that a neighbour is of the same class: lesions cluster.
FIELD_SIZE = (1280, 960)  # Pixels, width and height of a field of the microscope's camera.
FIELD_MIX = {"NILM": 0.76, "LSIL": 0.12, "HSIL": 0.08, "SCC": 0.04}

# Corners of the cytoplasm in NILM, LSIL, HSIL and SCC: at least, and below.
_CORNERS = ((5, 8), (5, 9), (8, 13), (5, 9))


@dataclasses.dataclass(frozen=True)
class Cell:
    """Truth of one cell drawn in a field; the twin of a binucleate cell has no entry of its own.

    Attributes:
        x: Centre of the nucleus, pixels from the left edge.
        y: Centre of the nucleus, pixels from the top edge.
        radius: Mean nuclear radius, pixels.
        label: One of `taxonomy.STAGE2_CLASSES`.
    """

    x: float
    y: float
    radius: float
    label: str


def _paint_nucleus(
    canvas: Canvas, rng: np.random.Generator, latent: Latent, contour: np.ndarray, blur: float
) -> None:
    window = canvas.window(contour, 4)
    if window is None:
        return
    mask = cover(window, contour, blur)
    fine, coarse = texture(rng, mask.shape, 2), texture(rng, mask.shape, 4)
    contrast = int(latent.coarseness * 256)
    chromatin = 256 + ((contrast * (fine + 2 * coarse)) >> 8) + (rim(mask, 1.6) >> 1)
    weight = mask.astype(np.int32) * np.clip(chromatin, 40, 560) >> 8
    canvas.add(window, "haematoxylin", weight * int(latent.chromasia * OD) >> 8)


def _paint_cytoplasm(
    canvas: Canvas,
    rng: np.random.Generator,
    latent: Latent,
    contour: np.ndarray,
    hole: np.ndarray | None,
    blur: float,
) -> None:
    window = canvas.window(contour, 6)
    if window is None:
        return
    mask = cover(window, contour, blur)
    weight = mask.astype(np.int32)
    for grain, contrast in ((2, 5), (5, 4), (24, 1)):
        weight = weight * (256 + texture(rng, mask.shape, grain) // contrast) >> 8
    weight += rim(mask, 1.8)
    if len(contour) < 36 and cv2.countNonZero(mask) > 3000:  # Thin sheets fold and crease.
        for _ in range(int(rng.integers(0, 3))):
            first = int(rng.integers(0, len(contour)))
            turned = np.roll(contour, -first, axis=0)[: max(len(contour) // 4, 3)]
            weight += cover(window, turned, 1.0).astype(np.int32) * int(rng.integers(60, 200)) >> 8
        for _ in range(int(rng.integers(0, 4))):
            ends = contour[rng.integers(0, len(contour), 3)] * [[0.8], [0.5], [0.3]]
            crease = smooth(ends + contour.mean(axis=0) * [[0.2], [0.5], [0.7]], closed=False)
            line = cover(window, crease, 1.2, width=1).astype(np.int32)
            weight += line * mask * int(rng.integers(60, 220)) >> 16
    if hole is not None:
        hole = cover(window, hole, 1.5)
        outside = cv2.subtract(cv2.GaussianBlur(hole, (0, 0), 3.0), hole).astype(np.int32)
        weight = weight * (256 - (hole.astype(np.int32) * int(rng.integers(140, 235)) >> 8)) >> 8
        weight += outside * mask >> 7
    hues = ((latent.keratin, "orange"), (latent.pink, "pink"), (latent.basophilic, "violet"))
    stain = next((hue for has, hue in hues if has), "cyan")
    canvas.add(window, stain, weight * int(latent.density * OD) >> 8)


def _paint_cell(
    canvas: Canvas, rng: np.random.Generator, label: str, latent: Latent, x: float, y: float
) -> np.ndarray:
    """Paints one cell with its nucleus at (x, y), even across the edge of the canvas.

    Args:
        canvas: What to paint on.
        rng: The cell's own draws.
        label: Class; decides only how angular the cytoplasm is.
        latent: Parameters of the cell.
        x: Centre of the nucleus, pixels from the left edge.
        y: Centre of the nucleus, pixels from the top edge.

    Returns:
        Contour of the nucleus, float64 [48, 2], pixels.
    """
    centre, angle = np.array([x, y]), rng.uniform(0.0, np.pi)
    blur = 0.6 + 1.4 * rng.random() ** 3  # Some cells lie out of focus.
    rough, long = latent.irregularity, latent.elongation
    nucleus = centre + blob(rng, latent.radius, rough, long, angle)
    reach = min(latent.radius / latent.ratio, 78.0)
    drift = turn(np.array([rng.uniform(0.0, 0.3) * (reach - latent.radius), 0.0]), angle)
    corners = int(rng.integers(*_CORNERS[taxonomy.STAGE2_CLASSES.index(label)]))
    stretch = min(0.35 + 0.65 * long, 2.2) * rng.uniform(1.0, 1.3)
    cytoplasm = centre + drift + polygon(rng, reach, corners, stretch, angle)
    hole = None
    if latent.halo:
        hole = centre + blob(rng, latent.radius * rng.uniform(1.5, 2.2), 0.1, long**0.5, angle)
    _paint_cytoplasm(canvas, rng, latent, cytoplasm, hole, blur)
    _paint_nucleus(canvas, rng, latent, nucleus, blur)
    if latent.binucleate:
        away = np.array([0.0, latent.radius * rng.uniform(1.5, 2.1)])
        twin = centre + turn(away, angle + rng.uniform(-0.5, 0.5))
        twin = twin + blob(rng, latent.radius * 0.92, rough, 1.2, angle)
        _paint_nucleus(canvas, rng, latent, twin, blur)
    return nucleus


def _paint_neutrophil(canvas: Canvas, rng: np.random.Generator, x: float, y: float) -> None:
    centre = np.array([x, y])
    body = centre + blob(rng, rng.uniform(5.0, 8.0), 0.12)
    window = canvas.window(body, 4)
    if window is None:
        return
    mask = cover(window, body, 1.0).astype(np.int32)
    canvas.add(window, "cyan", mask * int(rng.integers(20, 80)) >> 8)
    lobes = np.zeros(mask.shape, np.uint8)
    for _ in range(int(rng.integers(2, 5))):
        lobe = centre + rng.uniform(-3.4, 3.4, 2) + blob(rng, rng.uniform(2.0, 3.6), 0.1, 1.3)
        lobes = np.maximum(lobes, cover(window, lobe, 0.9))
    canvas.add(window, "haematoxylin", lobes.astype(np.int32) * int(rng.integers(170, 340)) >> 8)


def _paint_debris(canvas: Canvas, rng: np.random.Generator, x: float, y: float) -> None:
    """Granular material: protein, lysed blood, bacteria."""
    outline = np.array([x, y]) + blob(rng, rng.uniform(12.0, 42.0), 0.3)
    window = canvas.window(outline, 12)
    if window is None:
        return
    mask = cover(window, outline, 4.0).astype(np.int32)
    grain = texture(rng, mask.shape, 3) + 2 * texture(rng, mask.shape, 12)
    weight = mask * np.clip(grain + int(rng.integers(-40, 80)), 0, 256) >> 8
    stain = ("grime", "pink", "grime", "cyan")[int(rng.integers(0, 4))]
    canvas.add(window, stain, weight * int(rng.integers(50, 190)) >> 8)


def _paint_strand(canvas: Canvas, rng: np.random.Generator, x: float, y: float) -> None:
    """A thread of mucus, or a rod-shaped bacterium where it is short."""
    rod = rng.random() < 0.6
    steps = rng.uniform(-1.0, 1.0, (6, 2)) + rng.uniform(-1.0, 1.0, 2) * 2.0
    path = np.cumsum(steps, axis=0) * (0.9 if rod else rng.uniform(4.0, 14.0))
    path = smooth(path, closed=False) + np.array([x, y])
    window = canvas.window(path, 6)
    if window is None:
        return
    line = cover(window, path, 0.7 if rod else 1.5, width=1 if rod else 2)
    strength = int(rng.integers(90, 200) if rod else rng.integers(20, 80))
    canvas.add(window, "grime", line.astype(np.int32) * strength >> 8)


def _litter(canvas: Canvas, rng: np.random.Generator, dirt: float) -> None:
    """Scatters what is no epithelial cell; `dirt` multiplies that of the slide."""
    height, width = canvas.od.shape[:2]
    dirt *= canvas.look.dirt * width * height / ROI_SIZE**2
    for paint, share in ((_paint_neutrophil, 1.3), (_paint_debris, 0.4), (_paint_strand, 0.7)):
        for _ in range(int(2.0 * rng.random() * dirt * share + rng.random())):
            paint(canvas, rng, rng.uniform(0, width), rng.uniform(0, height))


def _pick(rng: np.random.Generator, mix: Mapping[str, float]) -> str:
    draw, total = rng.random() * sum(mix.values()), 0.0
    for label, share in mix.items():
        total += share
        if draw < total:
            return label
    return label


def _neighbours(
    canvas: Canvas, rng: np.random.Generator, count: int, clear: float, kin: str | None
) -> None:
    """Paints cells around the middle of an ROI, none with its nucleus nearer than `clear` px."""
    middle = ROI_SIZE / 2
    for _ in range(count):
        label = kin if kin and rng.random() < KINSHIP else _pick(rng, FIELD_MIX)
        latent = draw_latent(label, rng)
        away = clear + latent.radius + 62.0 * rng.random()
        x, y = turn(np.array([away, 0.0]), rng.uniform(0, 2 * np.pi)) + middle
        # A twin nucleus lies up to two radii off and would stray into the middle.
        latent = dataclasses.replace(latent, binucleate=latent.binucleate and away > clear + 40)
        _paint_cell(canvas, rng, label, latent, x, y)


def _develop_roi(canvas: Canvas, rng: np.random.Generator, size: int) -> np.ndarray:
    left, top = (int(rng.integers(0, side - ROI_SIZE)) for side in FIELD_SIZE)
    return enlarge(canvas.develop(rng, left, top, FIELD_SIZE), size)


def _central(
    rng: np.random.Generator, label: str, slide: int, size: int, jitter: float
) -> tuple[np.ndarray, np.ndarray]:
    canvas = Canvas(ROI_SIZE, ROI_SIZE, slide_look(slide))
    latent = draw_latent(label, rng)
    x, y = ROI_SIZE / 2 + rng.uniform(-jitter, jitter, 2)
    contour = _paint_cell(canvas, rng, label, latent, x, y)
    _neighbours(canvas, rng, int(rng.integers(0, 5)), latent.radius + jitter + 10.0, label)
    _litter(canvas, rng, 3.0 if latent.diathesis else 1.0)
    mask = cover((slice(0, ROI_SIZE), slice(0, ROI_SIZE)), contour)
    return _develop_roi(canvas, rng, size), enlarge(mask, size) > 127


def draw_cell_with_mask(
    label: str, seed: int, *, slide: int = 0, size: int = STAGE2_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the ROI around one nucleus, and the truth of that nucleus.

    Args:
        label: One of `taxonomy.STAGE2_CLASSES`.
        seed: Non-negative; which cell of that class.
        slide: Non-negative; which slide, and so its stain, lamp and focus.
        size: Side of the picture in pixels. The ROI is always 150 px of the field, enlarged.

    Returns:
        The picture, uint8 [size, size, 3] RGB, and the central nucleus, bool [size, size].

    Raises:
        ValueError: The label is not a class of stage 2.
    """
    check_label(label, taxonomy.STAGE2_CLASSES)
    rng = generator(Stream.CELL, taxonomy.STAGE2_CLASSES.index(label), seed)
    return _central(rng, label, slide, size, CENTRE_JITTER)


def draw_cell(label: str, seed: int, *, slide: int = 0, size: int = STAGE2_SIZE) -> np.ndarray:
    """The picture of `draw_cell_with_mask`, uint8 [size, size, 3] RGB."""
    return draw_cell_with_mask(label, seed, slide=slide, size=size)[0]


def draw_roi(label: str, seed: int, *, slide: int = 0, size: int = ROI_SIZE) -> np.ndarray:
    """Draws an ROI for stage 1.

    Args:
        label: 'cell' (a nucleus of any class near the middle) or 'background' (none within
            `CLEAR_RADIUS` px of it: empty, cytoplasm, debris, mucus, neutrophils, a cell at the
            rim).
        seed: Non-negative; which ROI of that class.
        slide: Non-negative; which slide.
        size: Side of the picture in pixels; the ROI is always 150 px of the field.

    Returns:
        uint8 [size, size, 3] RGB.

    Raises:
        ValueError: The label is not a class of stage 1.
    """
    check_label(label, taxonomy.STAGE1_CLASSES)
    rng = generator(Stream.ROI, taxonomy.STAGE1_CLASSES.index(label), seed)
    if label == "cell":
        return _central(rng, _pick(rng, FIELD_MIX), slide, size, SCAN_JITTER)[0]
    canvas = Canvas(ROI_SIZE, ROI_SIZE, slide_look(slide))
    _neighbours(canvas, rng, int(rng.integers(0, 4)), CLEAR_RADIUS, None)
    _litter(canvas, rng, 2.5 * rng.random() ** 2)
    return _develop_roi(canvas, rng, size)


def draw_field(
    seed: int,
    *,
    slide: int = 0,
    width: int = FIELD_SIZE[0],
    height: int = FIELD_SIZE[1],
    cells: int = 60,
    mix: Mapping[str, float] | None = None,
    litter: float = 1.0,
) -> tuple[np.ndarray, tuple[Cell, ...]]:
    """Draws a whole field and its truth.

    Args:
        seed: Non-negative; which field.
        slide: Non-negative; which slide.
        width: Pixels.
        height: Pixels.
        cells: How many epithelial cells; each has its nucleus inside the field.
        mix: Share of each class of `taxonomy.STAGE2_CLASSES`; need not add up to one.
            `FIELD_MIX` by default.
        litter: Times what usually lies between cells; 0 is clean glass.

    Returns:
        The picture, uint8 [height, width, 3] RGB, and its cells in the order they were drawn.

    Raises:
        ValueError: `mix` names an unknown class, or has no positive share.
    """
    mix = FIELD_MIX if mix is None else mix
    for label in mix:
        check_label(label, taxonomy.STAGE2_CLASSES)
    if min(mix.values(), default=0) < 0 or sum(mix.values()) <= 0:
        raise ValueError(f"mix needs shares of 0 or more and one above 0; got {dict(mix)}")
    rng = generator(Stream.FIELD, seed)
    canvas = Canvas(width, height, slide_look(slide))
    truth: list[Cell] = []
    for _ in range(cells):
        grouped = bool(truth) and rng.random() < 0.4  # Cells come in groups, mostly of one class.
        kin = grouped and rng.random() < KINSHIP
        label = truth[-1].label if kin else _pick(rng, mix)
        latent = draw_latent(label, rng)
        for _ in range(20):  # Nuclei should not coincide; in a crowd the last try stands.
            x, y = rng.uniform(6, width - 6), rng.uniform(6, height - 6)
            if grouped:
                x = min(max(truth[-1].x + rng.uniform(-70, 70), 6), width - 6)
                y = min(max(truth[-1].y + rng.uniform(-70, 70), 6), height - 6)
            gaps = (np.hypot(x - c.x, y - c.y) - c.radius for c in truth)
            if all(gap > latent.radius + 8 for gap in gaps):
                break
        _paint_cell(canvas, rng, label, latent, x, y)
        truth.append(Cell(round(x, 3), round(y, 3), round(latent.radius, 3), label))
    _litter(canvas, rng, litter)
    return canvas.develop(rng, 0, 0, (width, height)), tuple(truth)


def contact_sheet(columns: int = 10, seed: int = 0) -> np.ndarray:
    """One row a class (four of stage 2, two of stage 1), one slide a column; uint8 RGB."""
    rows = []
    for label in taxonomy.STAGE2_CLASSES + taxonomy.STAGE1_CLASSES:
        draw = draw_cell if label in taxonomy.STAGE2_CLASSES else draw_roi
        seeds = range(seed, seed + columns)
        rows.append(np.hstack([draw(label, i, slide=i, size=ROI_SIZE) for i in seeds]))
    return np.vstack(rows)


def main(argv: list[str]) -> None:
    """Writes a contact sheet or a field, or prints the ceiling."""
    asked = flags.FLAGS
    if len(argv) > 1 or not (asked.contact_sheet or asked.field or asked.ceiling):
        raise app.UsageError("give --contact_sheet=FILE.png, --field=FILE.png or --ceiling=CELLS")
    if asked.contact_sheet:
        Image.fromarray(contact_sheet(seed=asked.seed)).save(asked.contact_sheet)
    if asked.field:
        Image.fromarray(draw_field(asked.seed, slide=asked.seed)[0]).save(asked.field)
    if asked.ceiling:
        print(f"accuracy ceiling, latent parameters known: {ceiling(asked.ceiling):.3f}")


if __name__ == "__main__":
    # Defined here and not on import, so that importers keep these names free.
    path_flags.define(
        "contact_sheet",
        None,
        "PNG file to write a contact sheet to (default: none is written).",
        path_flags.NEW_FILE,
    )
    path_flags.define(
        "field",
        None,
        "PNG file to write one whole field to (default: none is written).",
        path_flags.NEW_FILE,
    )
    flags.DEFINE_integer(
        "ceiling",
        0,
        "Cells per class to compute the accuracy ceiling on (default: 0, not computed).",
    )
    flags.DEFINE_integer("seed", 0, "Seed, and number of the first slide (default: 0).")
    commands.run(main, commands.STARTS_AGAIN)
