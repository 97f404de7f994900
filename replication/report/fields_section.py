"""The report's section on whole fields: what the scan at the end of a run found."""

from typing import Any

import numpy as np
from PIL import Image

from replication.drawing import shown
from replication.fields import scanned
from replication.runs.directory import RunDirectory
from tfds_pap import files

#: Longer side of an overlay on the page, pixels; the whole one lies beside the scan's own report.
_OVERLAY = 560


def section(run: RunDirectory) -> dict[str, Any] | None:
    """Returns what the template shows; None where no field was scanned.

    Args:
        run: Of `replication.run`; its scan lies in `scan_clean` or, without these models, in
            `scan_paper`.
    """
    folders = (run.path / f"{scanned.FOLDER}_{protocol}" for protocol in ("clean", "paper"))
    scans = [folder for folder in folders if (folder / "report.html").exists()]
    if not scans:
        return None
    scan = RunDirectory(scans[0])
    manifest = scan.manifest()
    evaluation, fields = scan.path / "evaluation.json", scanned.scanned_fields(scan)
    return {
        "page": f"{scan.path.name}/report.html",
        "settings": manifest["settings"],
        "models": manifest["models"],
        "remarks": scanned.remarks(scan),
        "classes": fields[0].classes.names if fields else (),
        "fields": [_field(one) for one in fields],
        "evaluation": files.read_json(evaluation) if evaluation.exists() else None,
    }


def _field(one: scanned.ScannedField) -> dict[str, Any]:
    info = one.info
    score = info["slide_score"]["value"]
    with Image.open(one.folder / "overlay.jpg") as picture:
        overlay = shown.thumbnail(np.asarray(picture.convert("RGB")), longest=_OVERLAY)
    return {
        "name": info["name"],
        "overlay": overlay,
        "rois": info["rois"],
        "cells": info["cells"],
        "counts": info["counts"],
        "most_severe": info["most_severe"] or "none",
        "score": "none" if score is None else f"{score:.3f}",
        "definition": info["slide_score"]["definition"],
        "seconds": sum(
            info["seconds"].get(name, 0) for name in ("stage1", "suppression", "stage2")
        ),
    }
