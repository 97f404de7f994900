"""What the leak audit finds of planted twins, how often it raises a false alarm, and how it grows.

    python benchmarks/audit_recall.py                               # drawn cells and ground
    python benchmarks/audit_recall.py --pictures=DIR                # whole pictures, DIR/groups.csv
    python benchmarks/audit_recall.py --fields=DIR --window=256     # windows of fields below DIR
    python benchmarks/audit_recall.py --growth=1000,10000,50000     # seconds, memory; drawn crops

Every picture gets one twin; one kind of change is looked for at a time. A pair of pictures that
show different things and is reported is a false alarm: these are the innocent look-alikes, cells
and empty ground of the same slide and stain.
"""

import csv
import resource
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine
import planted_twins as planted

_PICTURES = flags.DEFINE_string("pictures", None, "Tree with groups.csv, whole pictures are used.")
_FIELDS = flags.DEFINE_string("fields", None, "Folder of field images, windows are cut out of it.")
_WINDOW = flags.DEFINE_integer("window", 256, "Window in pixels of a field (default: 256).")
_COUNT = flags.DEFINE_integer("count", 300, "Pictures that get twins (default: 300).")
_EFFORTS = flags.DEFINE_list("efforts", ["full", "fast"], "Which audits (default: full,fast).")
_GROWTH = flags.DEFINE_list("growth", [], "Numbers of images to time instead (default: none).")
_CSV = flags.DEFINE_string("csv", None, "A CSV that rows are added to (default: none).")


def measure(
    originals: list[planted.Original], effort: str, kinds: tuple[str, ...] = planted.KINDS
) -> dict[str, tuple[float, int, float]]:
    """Audits the originals with the twins of one kind at a time.

    Returns:
        For each kind the share of twins found, the number of false alarms, and seconds.
    """
    from tfds_pap import near_duplicates

    def small(picture: np.ndarray) -> np.ndarray:
        size = (near_duplicates.SIZE,) * 2
        return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)

    before = [small(original.picture) for original in originals]
    found = {}
    for kind in kinds:
        rng = np.random.default_rng(1)
        twins = [small(planted.twin(original.picture, kind, rng).picture) for original in originals]
        start = time.perf_counter()
        matches = near_duplicates.find(np.stack(before + twins), effort=effort)
        seconds = time.perf_counter() - start
        pairs = {(match.first, match.second) for match in matches}
        found[kind] = (*planted.score(originals, pairs), seconds)
    return found


def drawn(count: int) -> list[planted.Original]:
    """Returns drawn cells of all classes and drawn ground, each of its own."""
    from tfds_pap import phantom, taxonomy

    classes = (*taxonomy.STAGE2_CLASSES, None)
    pictures = (
        phantom.draw_roi("background", n) if (c := classes[n % 5]) is None else
        phantom.draw_cell(c, n)
        for n in range(count)
    )  # fmt: skip
    return [planted.Original(picture, str(n), "") for n, picture in enumerate(pictures)]


def growth(counts: list[int], effort: str) -> list[dict[str, object]]:
    """Times audits of drawn crops, half of them twins of the other half, of mixed changes."""
    from tfds_pap import near_duplicates

    size = near_duplicates.SIZE
    pixels = np.empty((max(counts), size, size, 3), np.uint8)
    rng, rows = np.random.default_rng(0), []
    for number, original in enumerate(drawn(max(counts) // 2)):
        for place, picture in (
            (2 * number, original.picture),
            (2 * number + 1, planted.twin(original.picture, "mixed", rng).picture),
        ):
            cv2.resize(picture, (size, size), pixels[place], interpolation=cv2.INTER_AREA)
    for count in counts:
        before = time.process_time()
        start = time.perf_counter()
        matches = near_duplicates.find(pixels[:count], effort=effort)
        seconds = time.perf_counter() - start
        twins = sum(m.first % 2 == 0 and m.second == m.first + 1 for m in matches)
        rows.append(
            {
                "effort": effort,
                "images": count,
                "seconds": round(seconds, 1),
                "processor_seconds": round(time.process_time() - before, 1),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "found": round(twins / (count // 2), 4),
                "other_pairs": len(matches) - twins,
            }
        )
        print(*(f"{name} {value}" for name, value in rows[-1].items()), sep=", ", flush=True)
    return rows


def main(argv: list[str]) -> None:
    """Plants, audits, prints and writes."""
    del argv
    print(machine.describe())
    if _GROWTH.value:
        counts = sorted(int(count) for count in _GROWTH.value)
        rows = [row for effort in _EFFORTS.value for row in growth(counts, effort)]
        _write(rows)
        return
    if _PICTURES.value:
        originals, name = planted.whole_pictures(Path(_PICTURES.value), _COUNT.value), "pictures"
    elif _FIELDS.value:
        originals = planted.windows(Path(_FIELDS.value), _WINDOW.value, _COUNT.value)
        name = f"windows of {_WINDOW.value} px"
    else:
        originals, name = drawn(_COUNT.value), "drawn"
    source = Path(_PICTURES.value or _FIELDS.value or "drawn").name
    pairs = planted.innocent_pairs(originals)
    print(f"{len(originals)} {name} of {source}, {pairs:,} innocent pairs for each kind of twin")
    rows = []
    for effort in _EFFORTS.value:
        for kind, (share, alarms, seconds) in measure(originals, effort).items():
            rows.append(
                {"source": source, "pictures": name, "count": len(originals), "effort": effort,
                 "kind": kind, "found": round(share, 4), "false_alarms": alarms,
                 "innocent_pairs": pairs, "seconds": round(seconds, 1)}
            )  # fmt: skip
            print(f"{effort:6s}{kind:24s}{100 * share:6.1f} %{alarms:6d} false{seconds:8.1f} s")
    _write(rows)


def _write(rows: list[dict[str, object]]) -> None:
    if not _CSV.value:
        return
    path = Path(_CSV.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "machine"], lineterminator="\n")
        if not known:
            writer.writeheader()
        writer.writerows({**row, "machine": machine.describe()} for row in rows)


if __name__ == "__main__":
    app.run(main)
