"""The page of a scan: its fields, each of which one can walk through, and its cells.

Pictures are files beside the page, not part of it: tiles for the viewer, a picture for each of the
most suspicious cells. The page loads nothing from elsewhere and works from a disk.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from replication.drawing import pages, palette
from replication.fields.scanned import EVALUATION, ScannedField, remarks, scanned_fields
from replication.fields.show import answer, truth_layer
from replication.fields.show.figures import NAMES
from replication.fields.show.pictures import THUMBNAILS
from replication.runs.directory import RunDirectory
from tfds_pap import files
from tfds_pap.classes import Classes
from tfds_pap.taxonomy import STAGE2_CLASSES

#: Cells of the gallery.
_GALLERY = 24

_FIGURES = {
    "froc": "Nuclei found against false positives per field, over all thresholds.",
    "fields_precision_recall": "Precision and recall of stage 1, over all thresholds.",
    "end_to_end": "Nuclei of each class that were found, and that were named right as well.",
}


def write_report(run: RunDirectory) -> Path:
    """Writes `report.html` of a scan directory, whole or not at all.

    Args:
        run: A scan directory whose fields are finished.

    Returns:
        The path of the page.

    Raises:
        PapError: If one of its files is not readable.
    """
    manifest, fields = run.manifest(), scanned_fields(run)
    measured = run.path / EVALUATION
    evaluation = files.read_json(measured) if measured.exists() else None
    classes = fields[0].classes if fields else Classes.known(STAGE2_CLASSES)
    numbers = range(len(classes.names))
    marks = palette.letters(classes)
    page = pages.template("replication.fields.show", "scan_report.html.j2").render(
        announcement=pages.announcement(manifest),
        answer=answer.of_scan(fields, evaluation),
        settings=manifest["settings"],
        models=manifest["models"],
        remarks=remarks(run),
        environment=manifest.get("environment", {}),
        fields=[_field(one) for one in fields],
        unreadable=manifest.get("unreadable", ()),
        gallery=_gallery(fields),
        classes=[
            {
                "name": classes.names[n],
                "shown": classes.shown[n],
                "letter": marks[n],
                "colour": palette.hexadecimal(n, classes),
                "light": palette.is_light(n, classes),
            }
            for n in numbers
        ],
        positive=" or ".join(classes.positive),
        positive_name=classes.positive_name,
        evaluation=evaluation,
        figures={
            name: _FIGURES[name]
            for name in NAMES
            if evaluation and (run.path / f"{name}.svg").exists()
        },
        documents=[
            name for name in ("cells.csv", "fields.csv", "slides.csv") if (run.path / name).exists()
        ],
        viewer={
            "fields": [
                {
                    "id": one.info["id"],
                    "name": one.info["name"],
                    "truth": (one.folder / truth_layer.NAME).exists(),
                }
                for one in fields
            ],
            "complete": bool(evaluation and evaluation["complete"]),
            "classes": classes.shown,
            "letters": marks,
            "colours": [palette.colour(n, classes) for n in numbers],
            "light": [palette.is_light(n, classes) for n in numbers],
            "plain": classes.severity[0] if classes.severity else -1,
            "severity": classes.severity or list(numbers),
        },
    )
    path = run.path / "report.html"
    files.write_atomically(path, page)
    return path


def _field(one: ScannedField) -> dict[str, Any]:
    info, classes = one.info, one.classes
    shown = dict(zip(classes.names, classes.shown, strict=True))
    score = info["slide_score"]["value"]
    seconds = info["seconds"]
    return {
        **info,
        "most_severe": shown.get(info["most_severe"]),
        "folder": f"fields/{quote(info['id'])}",
        "score": "none" if score is None else f"{score:.3f}",
        "definition": info["slide_score"]["definition"],
        "seconds": sum(seconds.get(name, 0) for name in ("stage1", "suppression", "stage2")),
    }


def _gallery(fields: Sequence[ScannedField]) -> list[dict[str, Any]]:
    """The most suspicious cells of all fields."""
    tiles = []
    for one in fields:
        cells = one.cells.select(slice(min(_GALLERY, THUMBNAILS)))
        for number in range(len(cells)):
            class_id = int(cells.class_ids[number])
            tiles.append(
                {
                    "field": one.info["id"],
                    "name": one.info["name"],
                    "number": number,
                    "picture": f"fields/{quote(one.info['id'])}/thumbnails/{number}.jpg",
                    "label": cells.classes.shown[class_id],
                    "class_id": class_id,
                    "abstain": bool(cells.abstain[number]),
                    "hsil_plus": float(cells.hsil_plus[number]) if cells.classes.severe else None,
                    "score": float(cells.scores[number]),
                    "probabilities": [
                        {"name": name, "percent": f"{100 * p:.1f}", "top": i == class_id}
                        for i, (name, p) in enumerate(
                            zip(cells.classes.shown, cells.probabilities[number], strict=True)
                        )
                    ],
                }
            )
    tiles.sort(key=lambda cell: (-(cell["hsil_plus"] or 0.0), -cell["score"]))
    return tiles[:_GALLERY]
