"""What `pap scan --skip_glass` saves and loses, on drawn slides with truth and on real fields.

    python benchmarks/tissue.py --csv=results/tissue.csv
    python benchmarks/tissue.py --nuclei=DIR/nuclei.csv --csv=results/tissue.csv

`tfds_pap.drawn_slide` repeats a field full of cells and has no glass, so slides are drawn here: a
round spot of fields with 160 or 40 cells, and around it glass with a speck here and there; one in
six fields of glass has three stray cells, each class as often as any other. A spot of 20 mm, as of
ThinPrep, in a scanned square of 22 mm leaves 0.35 of glass, in the whole of a slide's 25 x 50 mm
0.75. A nucleus counts once, however often its field lies on the slide, and is lost if the ROI that
it is nearest to the middle of is not read at one of these places.
"""

import csv
import functools
import resource
import sys
import tempfile
from concurrent import futures
from pathlib import Path

import numpy as np
from absl import app, flags

# Run as a script, Python puts this folder on the path; as a module, its parent.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine

from tfds_pap import commands, drawn_slide, phantom

_SLIDES = flags.DEFINE_integer("slides", 3, "Slides, each of another stain (default: 3).")
_FIELDS = flags.DEFINE_integer("fields", 10, "Fields of 2048 px along a slide (default: 10).")
_GLASS = flags.DEFINE_list("glass", ["0.35", "0.75"], "Shares of glass (default: 0.35,0.75).")
_REDUCTIONS = flags.DEFINE_list(
    "reductions", ["8", "12", "16"], "Pixels of the slide a pixel of the mask (default: 8,12,16)."
)
_NUCLEI = flags.DEFINE_string(
    "nuclei", None, "CSV of real fields' annotated nuclei, field,x,y (default: drawn slides)."
)
_CSV = flags.DEFINE_string("csv", None, "A CSV that rows are added to (default: none).")

#: How many fields of each kind are drawn for a slide, cells of each, and litter beside the usual.
_KINDS = {
    "full": (3, 160, 1.0),
    "thin": (2, 40, 1.0),
    "bare": (2, 0, 0.005),
    "stray": (8, 3, 0.005),
}
_EQUAL = dict.fromkeys(("NILM", "LSIL", "HSIL", "SCC"), 1.0)


def main(argv: list[str]) -> None:
    """Draws slides or opens fields, masks them, prints and writes."""
    del argv
    commands.prepare_tensorflow()
    print(machine.describe())
    rows = _of_real_fields(Path(_NUCLEI.value)) if _NUCLEI.value else _of_drawn_slides()
    for row in rows:
        print(*(f"{name} {value}" for name, value in row.items() if value != ""), sep=", ")
    machine.add_rows(_CSV.value, rows)


def _row(**values: object) -> dict[str, object]:
    columns = ("images", "share_of_glass", "pixels_a_mask_pixel", "megapixels", "share_read",
               "nuclei", "lost", "stray_nuclei", "stray_lost", "seconds_all", "seconds_skipping",
               "seconds_of_mask", "ratio", "ratio_without_pyramid")  # fmt: skip
    return {name: values.get(name, "") for name in columns}


def _of_drawn_slides() -> list[dict[str, object]]:
    from replication.fields.find import scanner, tissue
    from replication.fields.find.lattice import Lattice
    from replication.fields.read import reader

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        for glass in map(float, _GLASS.value):
            sums: dict[int, np.ndarray] = {}
            for slide in range(_SLIDES.value):
                fields, cells, places, is_stray = _drawn(slide, glass)
                drawn_slide.write_mosaic(path, fields, places, mpp=0.25)
                with reader.open_field(path) as field:
                    lattice = Lattice(field.width, field.height)
                    for reduction in map(int, _REDUCTIONS.value):
                        wanted = tissue.rois(field, lattice, reduction)
                        blocks = list(scanner.blocks(lattice, wanted=wanted))
                        lost = _lost(cells, places, _read(lattice, blocks))
                        counts = np.array([len(lost), lost.sum(), 0, 0, 0])
                        stray = np.repeat(is_stray, [len(some) for some in cells])
                        counts[2:4] = stray.sum(), lost[stray].sum()
                        counts[4] = sum(map(scanner.rois, blocks))
                        sums[reduction] = sums.get(reduction, 0) + counts
                if slide == 0:
                    timed = _timed(path, fields, places)
            for reduction, (nuclei, lost, strays, stray_lost, read) in sums.items():
                rows.append(
                    _row(
                        images=f"{_SLIDES.value} drawn slides",
                        share_of_glass=glass,
                        pixels_a_mask_pixel=reduction,
                        megapixels=round(field.width * field.height / 1e6),
                        share_read=round(read / (lattice.rois * _SLIDES.value), 4),
                        nuclei=nuclei,
                        lost=lost,
                        stray_nuclei=strays,
                        stray_lost=stray_lost,
                        **(timed if reduction == tissue.REDUCTION else {}),
                    )
                )
    return rows


def _drawn(slide: int, glass: float) -> tuple[list, list, np.ndarray, np.ndarray]:
    """Fields, the cells of each, which lies where, and which of them hold stray cells."""
    fields, cells, kinds = _fields(slide)
    count = _FIELDS.value
    y, x = np.mgrid[:count, :count] - (count - 1) / 2
    order = np.argsort(np.hypot(y, x), axis=None, kind="stable")
    rng = np.random.default_rng(slide)
    names = np.array(kinds)
    spot, bare, stray = (
        np.flatnonzero(np.isin(names, some)) for some in (("full", "thin"), "bare", "stray")
    )
    places = np.empty(count * count, int)
    inside, outside = np.split(order, [round((1 - glass) * count * count)])
    places[inside] = np.resize(spot, len(inside))
    places[outside] = np.where(
        np.arange(len(outside)) % 6 == 0,
        np.resize(stray, -(-len(outside) // 6)).repeat(6)[: len(outside)],
        rng.choice(bare, len(outside)),
    )
    return fields, cells, places.reshape(count, count), names == "stray"


@functools.cache
def _fields(slide: int) -> tuple[list, list, list]:
    """Fields of a slide, the cells of each, and its kind."""
    fields, cells, kinds = [], [], []
    for kind, (count, number, litter) in _KINDS.items():
        for _ in range(count):
            pixels, truth = phantom.draw_field(
                100 * slide + len(fields), slide=slide, width=drawn_slide.FIELD,
                height=drawn_slide.FIELD, cells=number, litter=litter,
                mix=_EQUAL if kind == "stray" else None,
            )  # fmt: skip
            fields.append(pixels)
            cells.append(truth)
            kinds.append(kind)
    return fields, cells, kinds


def _read(lattice, blocks) -> np.ndarray:
    """Which ROIs lie in one of the blocks."""
    read = np.zeros((lattice.rows, lattice.columns), bool)
    for block in blocks:
        read[block] = True
    return read


def _nearest(read: np.ndarray, x: float, y: float) -> bool:
    """Whether the ROI whose middle is nearest to a place is read."""
    row, column = (
        int(np.clip(round((place - 75) / 25), 0, most - 1))
        for place, most in zip((y, x), read.shape, strict=True)
    )
    return bool(read[row, column])


def _lost(cells: list, places: np.ndarray, read: np.ndarray) -> np.ndarray:
    """Of each drawn nucleus, field by field, whether it is lost somewhere."""
    lost = [np.zeros(len(some), bool) for some in cells]
    for (row, column), kind in np.ndenumerate(places):
        for number, cell in enumerate(cells[kind]):
            x, y = column * drawn_slide.FIELD + cell.x, row * drawn_slide.FIELD + cell.y
            lost[kind][number] |= not _nearest(read, x, y)
    return np.concatenate(lost)


def _timed(path: Path, fields: list, places: np.ndarray) -> dict[str, object]:
    """Processor seconds of reading and stage 1 with and without glass."""
    flat = path.with_name("flat.tif")
    side = places.shape[0] * drawn_slide.FIELD
    drawn_slide.write_mosaic(flat, fields, places, mpp=0.25, reductions=(1,))
    every, _ = _seconds(path, False)
    skipping, mask = _seconds(path, True)
    without, _ = _seconds(flat, True)
    print(f"{side} px: {every:.1f} s, skipping glass {skipping:.1f}, no pyramid {without:.1f}")
    return {
        "seconds_all": round(every, 1),
        "seconds_skipping": round(skipping, 1),
        "seconds_of_mask": round(mask, 2),
        "ratio": round(skipping / every, 3),
        "ratio_without_pyramid": round(without / every, 3),
    }


def _seconds(path: Path, skip: bool) -> tuple[float, float]:
    """Processor seconds of both, and of the mask alone; the first blocks trace before."""
    from replication.fields.find import scanner, tissue
    from replication.fields.find.lattice import Lattice
    from replication.fields.read import reader

    stages = _stages()
    with reader.open_field(path) as field, futures.ThreadPoolExecutor(2) as pool:
        lattice = Lattice(field.width, field.height)
        scanner.score_map(field, stages, list(scanner.blocks(lattice))[:2], pool=pool)
        start = _processor()
        wanted = tissue.rois(field, lattice) if skip else None
        mask = _processor() - start
        places = list(scanner.blocks(lattice, wanted=wanted))
        scanner.score_map(field, stages, places, pool=pool)
        return _processor() - start, mask


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _stages():
    """Untrained: time does not depend on weights, and of stage 1 alone it is taken."""
    from replication.fields.find.dense import Stage1
    from replication.fields.find.stages import Stages
    from replication.learning import models

    return Stages(Stage1(models.stage1_cnn(), "nearest"), None, {})


def _of_real_fields(path: Path) -> list[dict[str, object]]:
    """Fields beside a table of nuclei; their cells lie everywhere, so that little is saved."""
    from replication.fields.find import tissue
    from replication.fields.find.lattice import Lattice
    from replication.fields.read import reader

    with path.open(newline="") as file:
        nuclei = list(csv.DictReader(file))
    rows = []
    for reduction in map(int, _REDUCTIONS.value):
        lost, read, rois, pixels = 0, 0, 0, 0
        for name in dict.fromkeys(row["field"] for row in nuclei):
            with reader.open_field(path.parent / name) as field:
                lattice = Lattice(field.width, field.height)
                wanted = tissue.rois(field, lattice, reduction)
            read, rois = read + int(wanted.sum()), rois + lattice.rois
            pixels += field.width * field.height
            here = [row for row in nuclei if row["field"] == name]
            lost += sum(not _nearest(wanted, float(row["x"]), float(row["y"])) for row in here)
        count = len({row["field"] for row in nuclei})
        rows.append(
            _row(
                images=f"{count} real fields",
                pixels_a_mask_pixel=reduction,
                megapixels=round(pixels / 1e6),
                share_read=round(read / rois, 4),
                nuclei=len(nuclei),
                lost=lost,
            )
        )
    return rows


if __name__ == "__main__":
    app.run(main)
