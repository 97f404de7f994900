"""What a scan directory holds, read back.

A scan directory:

    manifest.json             identity (models and settings), environment, fields, unreadable
    fields/<id>/              cells.csv  scores.npy  pictures  field.json (written last: finished)
    cells.csv  fields.csv  slides.csv  evaluation.json  report.html
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from replication.fields.find.cells import Cells
from replication.measures import one_class
from replication.runs.directory import RunDirectory
from tfds_pap import files
from tfds_pap.taxonomy import STAGE2_CLASSES

#: Of a run of `replication.run`: where its scan lies, followed by "_" and the protocol.
FOLDER = "scan"

#: What annotated fields say, beside the report.
EVALUATION = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class ScannedField:
    """One finished field of a scan directory.

    Attributes:
        folder: Where its files lie.
        info: `field.json`.
    """

    folder: Path
    info: dict[str, Any]

    @property
    def cells(self) -> Cells:
        """The kept ROIs, named, the most suspicious first."""
        return Cells.read(self.folder / "cells.csv")

    @property
    def scores(self) -> np.ndarray:
        """The score of each ROI, float32 `[rows, columns]`."""
        return np.load(self.folder / "scores.npy")


def scanned_fields(run: RunDirectory) -> list[ScannedField]:
    """Returns the fields of the last scan, in the order that its command named them.

    Args:
        run: A scan directory.
    """
    folders = [run.path / "fields" / name for name in run.manifest().get("fields", ())]
    return [ScannedField(folder, files.read_json(folder / "field.json")) for folder in folders]


def remarks(run: RunDirectory) -> list[str]:
    """Returns a sentence where stage 2 gives one class to nearly every cell of the last scan.

    Args:
        run: A scan directory.
    """
    fields = [one.info["counts"] for one in scanned_fields(run)]
    counts = [sum(field[name] for field in fields) for name in STAGE2_CLASSES]
    named = np.repeat(np.arange(len(STAGE2_CLASSES)), counts)
    remark = one_class.remark(named, STAGE2_CLASSES, noun="cells")
    return [remark] if remark else []
