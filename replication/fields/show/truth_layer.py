"""What the viewer lays over a field whose nuclei are known: hit, missed, extra."""

import json
from pathlib import Path

from replication.fields.judge.counts import AnnotatedField, matched, reachable
from replication.fields.judge.truth import labels_of
from tfds_pap import files

#: Beside the `cells.js` of a field.
NAME = "truth.js"


def write(folder: Path, field: AnnotatedField, threshold: float, radius: float | None) -> None:
    """Writes the nuclei of a field, and which cell found each of them, as `field_counts` matches.

    Args:
        folder: Of the field.
        field: With its cells.
        threshold: Score of a detection at least.
        radius: Of a match at most, pixels of the file; None takes `MATCH_RADIUS`.
    """
    nuclei = field.nuclei
    # As the viewer calls the classes.
    shown = dict(zip(nuclei.classes.names, nuclei.classes.shown, strict=True))
    cells = [-1] * len(nuclei)
    pairs = matched(field, threshold, radius)
    for nucleus, cell in zip(pairs.nuclei.tolist(), pairs.detections.tolist(), strict=True):
        cells[nucleus] = cell
    data = {
        "labels": [shown.get(name, name) for name in labels_of(nuclei.classes)],
        # Pixels as read, as those of the cells.
        "x": (nuclei.x / field.scale).round(1).tolist(),
        "y": (nuclei.y / field.scale).round(1).tolist(),
        "label": nuclei.label_ids.tolist(),
        # Position of the cell that is this nucleus; -1: missed.
        "cell": cells,
        "reachable": reachable(field, field.radius(radius)).astype(int).tolist(),
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    content = f"annotated({json.dumps(folder.name)}, {text});\n"
    path = folder / NAME
    # A scan that is done stays as it is.
    if not path.exists() or path.read_text("utf-8") != content:
        files.write_atomically(path, content)
