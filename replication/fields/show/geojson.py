"""Cells as GeoJSON that QuPath opens, in the pixels of the file.

The form is RFC 7946 with QuPath's properties (0.4 and newer): `objectType`, `classification` with a
name and an RGB colour, and `measurements` as an object from name to number.
"""

import json
import uuid
from pathlib import Path

from replication.drawing import palette
from replication.fields.find.cells import Cells
from tfds_pap import files

#: Of the ids of cells, so that the same cell has the same id in every scan.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "pap-two-stage/cell")


def write(path: Path, cells: Cells, side: float, name: str) -> None:
    """Writes a square for each cell.

    Args:
        path: The file.
        cells: Of one field.
        side: Of the ROI, pixels of the file.
        name: Of the field; a part of the ids.
    """
    class_ids = cells.class_ids
    features = ",\n".join(
        json.dumps(_feature(cells, number, int(class_ids[number]), side, name), allow_nan=False)
        for number in range(len(cells))
    )
    text = f'{{"type": "FeatureCollection", "features": [\n{features}\n]}}\n'
    files.write_atomically(path, text)


def _feature(cells: Cells, number: int, class_id: int, side: float, name: str) -> dict[str, object]:
    x, y, half = float(cells.x[number]), float(cells.y[number]), side / 2
    left, right, top, bottom = (round(end, 3) for end in (x - half, x + half, y - half, y + half))
    # The y axis of pictures points down: this ring is RFC 7946's right-hand one by its numbers.
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    classes = cells.classes
    label = classes.shown[class_id]
    probabilities = zip(classes.shown, cells.probabilities[number], strict=True)
    positive = {}
    if classes.severe:
        positive[classes.positive_name] = round(float(cells.hsil_plus[number]), 6)
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, f"{name} {x:.3f} {y:.3f}")),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "detection",
            "name": f"{label} {number + 1}",
            "classification": {"name": label, "color": list(palette.colour(class_id, classes))},
            "measurements": {
                "stage-1 score": round(float(cells.scores[number]), 6),
                **{f"probability {c}": round(float(value), 6) for c, value in probabilities},
                **positive,
                "abstained": int(cells.abstain[number]),
            },
        },
    }
