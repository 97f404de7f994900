"""A data set that was augmented first and split later: what the leak audit says of it.

    python benchmarks/audit_augmented.py --pictures=DIR     # DIR/<class>/*.jpg and DIR/groups.csv

Every field of an abnormal class becomes four variants (itself; turned, zoomed, mirrored, stretched,
cut and brighter or darker), as such sets balance their classes; NILM fields stay alone. Then a
quarter of all images is drawn for validation, blind to fields. By construction a validation image
has a twin in train where a variant of its field lies there.
"""

import sys
import time
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine
import planted_twins as planted

_PICTURES = flags.DEFINE_string(
    "pictures", None, "Tree of class folders with groups.csv (required).", required=True
)
_SOURCE = flags.DEFINE_string("source", "Mendeley LBC", "What the images are.")
_VARIANTS = flags.DEFINE_integer("variants", 4, "Of each abnormal field (default: 4).")
_SHARE = flags.DEFINE_float("validation", 0.25, "Share of validation images (default: 0.25).")
_EFFORTS = flags.DEFINE_list("efforts", ["full", "fast"], "Which audits (default: full,fast).")
_CSV = flags.DEFINE_string("csv", None, "A CSV that rows are added to (default: none).")


def main(argv: list[str]) -> None:
    """Augments, splits, audits, prints and writes."""
    del argv
    from tfds_pap import leak_audit, pipeline

    rng = np.random.default_rng(0)
    pixels, fields, classes = [], [], []
    for path in sorted(Path(_PICTURES.value).glob("*/*.jpg")):
        picture = cv2.imread(str(path))
        variants = 1 if path.parent.name == "NILM" else _VARIANTS.value
        for number in range(variants):
            made = planted.twin(picture, "mixed", rng).picture if number else picture
            pixels.append(planted.small(made)[..., ::-1])
            fields.append(str(path))
            classes.append(path.parent.name)
    names = sorted(set(classes))
    count = len(pixels)
    splits = np.full(count, "train", object)
    splits[rng.permutation(count)[: round(_SHARE.value * count)]] = "validation"
    trained = {field for field, split in zip(fields, splits, strict=True) if split == "train"}
    # Names that say nothing.
    ids = np.array([f"{number:05d}" for number in range(count)])
    index = pipeline.Index(
        ids=ids,
        groups=np.full(count, ""),
        labels=np.array([names.index(name) for name in classes]),
        splits=splits.astype(str),
        class_names=tuple(names),
    )
    truth = {
        image
        for image, field, split in zip(ids, fields, splits, strict=True)
        if split == "validation" and field in trained
    }
    tested = int((splits == "validation").sum())
    print(f"{machine.describe()}\n{_SOURCE.value}: {count} images of {len(set(fields))} fields")
    for effort in _EFFORTS.value:
        start = time.process_time()
        found = leak_audit.audit("augmented", index, np.stack(pixels), effort=effort)
        seconds = time.process_time() - start
        twins = {i for p in found.pairs if p.across for i in (p.first, p.second)}
        twins &= set(ids[splits == "validation"])
        print(f"{found.one_line()}\nby construction {len(truth)}, of which {len(twins & truth)}")
        row = {
            "source": _SOURCE.value, "images": count, "fields": len(set(fields)),
            "validation_images": tested, "twins_by_construction": len(truth), "effort": effort,
            "said_to_have_a_twin": len(twins), "of_those_by_construction": len(twins & truth),
            "found": round(len(twins & truth) / len(truth), 4),
            "processor_seconds": round(seconds, 1),
        }  # fmt: skip
        machine.add_rows(_CSV.value, [row])


if __name__ == "__main__":
    app.run(main)
