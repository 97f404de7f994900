"""How the time and memory of the leak audit grow with the number of images.

    python benchmarks/audit_growth.py --counts=1000,10000,50000 --efforts=fast

Drawn crops, half of them twins of the other half by mixed changes, in one data set.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine
import planted_crops

_COUNTS = flags.DEFINE_list(
    "counts", ["1000", "10000", "50000"], "Numbers of images (default: 1000,10000,50000)."
)
_EFFORTS = flags.DEFINE_list("efforts", ["fast", "full"], "Which audits (default: fast,full).")
_CSV = flags.DEFINE_string("csv", None, "A CSV that rows are added to (default: none).")


def main(argv: list[str]) -> None:
    """Draws, audits, prints and writes."""
    del argv
    from tfds_pap import near_duplicates

    print(machine.describe())
    counts = sorted(int(count) for count in _COUNTS.value)
    folder = tempfile.TemporaryDirectory()
    pixels, structured = planted_crops.crops(counts[-1], Path(folder.name) / "crops.npy")
    rows = []
    for effort in _EFFORTS.value:
        for count in counts:
            processor, start = time.process_time(), time.perf_counter()
            matches = near_duplicates.find(pixels[:count], effort=effort)
            seconds, processor = time.perf_counter() - start, time.process_time() - processor
            hit = np.zeros(count // 2, bool)
            others = 0
            for match in matches:
                if match.first % 2 == 0 and match.second == match.first + 1:
                    hit[match.first // 2] = True
                else:
                    others += 1
            rows.append(
                {"effort": effort, "images": count, "seconds": round(seconds, 1),
                 "processor_seconds": round(processor, 1),
                 "processor_milliseconds_an_image": round(1000 * processor / count, 1),
                 "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                 "found": round(float(hit[structured[: count // 2]].mean()), 4),
                 "other_pairs": others}
            )  # fmt: skip
            print(*(f"{name} {value}" for name, value in rows[-1].items()), sep=", ", flush=True)
            machine.add_rows(_CSV.value, rows[-1:])


if __name__ == "__main__":
    app.run(main)
