"""What the leak audit finds of planted twins, and how often it raises a false alarm.

    python benchmarks/audit_recall.py                               # drawn cells and ground
    python benchmarks/audit_recall.py --pictures=DIR                # whole pictures, DIR/groups.csv
    python benchmarks/audit_recall.py --fields=DIR --window=256     # windows of fields below DIR

Every picture gets one twin that shares half of it; one kind of change is looked for at a time. A
pair of pictures that show different things and is reported is a false alarm: these are the innocent
look-alikes, cells and empty ground of the same slide and stain. Thresholds were set on every second
field (`--half=setting`), rates are reported of the others. Twins that share nothing but empty
ground (grey levels deviate by less than `planted_twins.LEAST_STRUCTURE`) are counted apart.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine
import planted_twins as planted

_PICTURES = flags.DEFINE_string("pictures", None, "Tree with groups.csv, whole pictures are used.")
_FIELDS = flags.DEFINE_string("fields", None, "Folder of field images, windows are cut out of it.")
_WINDOW = flags.DEFINE_integer("window", 256, "Window in pixels of a field (default: 256).")
_COUNT = flags.DEFINE_integer("count", 200, "Pictures that get twins (default: 200).")
_HALF = flags.DEFINE_enum(
    "half", "reporting", ["setting", "reporting", "both"], "Which fields (default: reporting)."
)
_SOURCE = flags.DEFINE_string("source", "phantoms", "What the images are (default: phantoms).")
_EFFORTS = flags.DEFINE_list("efforts", ["full", "fast"], "Which audits (default: full,fast).")
_KINDS = flags.DEFINE_integer("kinds", len(planted.KINDS), "The first so many kinds of change.")
_CSV = flags.DEFINE_string("csv", None, "A CSV that rows are added to (default: none).")


def measure(
    originals: list[planted.Original], effort: str, kinds: tuple[str, ...] = planted.KINDS
) -> Iterator[tuple[str, planted.Score, float]]:
    """Audits the originals with the twins of one kind at a time.

    Yields:
        Each kind, what was found, and processor seconds.
    """
    from tfds_pap import near_duplicates

    before = [planted.small(original.picture) for original in originals]
    for kind in kinds:
        rng = np.random.default_rng(1)
        twins = [planted.twin(original.picture, kind, rng) for original in originals]
        pixels = np.stack(before + [planted.small(twin.picture) for twin in twins])
        start = time.process_time()
        matches = near_duplicates.find(pixels, effort=effort)
        seconds = time.process_time() - start
        pairs = {(match.first, match.second) for match in matches}
        yield kind, planted.score(originals, [t.structure for t in twins], pairs), seconds


def chosen() -> tuple[list[planted.Original], str]:
    """Returns the pictures that the flags ask for, and what they are."""
    half = _HALF.value
    if _PICTURES.value:
        return planted.whole_pictures(Path(_PICTURES.value), _COUNT.value, half), "pictures"
    if _FIELDS.value:
        originals = planted.windows(Path(_FIELDS.value), _WINDOW.value, _COUNT.value, half)
        return originals, f"windows of {_WINDOW.value} px"
    return planted.drawn(_COUNT.value, 100_000 if half == "reporting" else 0), "drawn"


def main(argv: list[str]) -> None:
    """Plants, audits, prints and writes."""
    del argv
    originals, name = chosen()
    pairs = planted.innocent_pairs(originals)
    print(machine.describe())
    print(f"{_SOURCE.value}, {_HALF.value} half: {len(originals)} {name}, {pairs:,} innocent pairs")
    for effort in _EFFORTS.value:
        for kind, score, seconds in measure(originals, effort, planted.KINDS[: _KINDS.value]):
            row = {
                "source": _SOURCE.value, "half": _HALF.value, "pictures": name, "effort": effort,
                "kind": kind, "twins": score.pairs, "found": round(score.found, 4),
                "without_structure": score.bare, "found_of_those": round(score.bare_found, 4),
                "false_alarms": score.false_alarms, "innocent_pairs": pairs,
                "processor_seconds": round(seconds, 1),
            }  # fmt: skip
            print(
                f"{effort:6s}{kind:24s}{score.found:8.1%} of {score.pairs}; without structure "
                f"{score.bare_found:6.0%} of {score.bare};{score.false_alarms:3d} false"
                f"{seconds:8.1f} s",
                flush=True,
            )
            machine.add_rows(_CSV.value, [row])


if __name__ == "__main__":
    app.run(main)
