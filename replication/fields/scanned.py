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
from tfds_pap.classes import Classes
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
    def classes(self) -> Classes:
        """What is known of the classes of stage 2."""
        declared = self.info.get("classes")
        if declared:
            return Classes.from_json(declared)
        # A scan of before says the papers' names alone.
        return Classes.known(self.info.get("counts", STAGE2_CLASSES))

    @property
    def cells(self) -> Cells:
        """The kept ROIs, named, the most suspicious first."""
        return Cells.read(self.folder / "cells.csv", self.classes)

    @property
    def scores(self) -> np.ndarray:
        """The score of each ROI, float32 `[rows, columns]`."""
        path = self.folder / "scores.npy"
        files.verify(path)
        return np.load(path)


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
    fields = scanned_fields(run)
    if not fields:
        return []
    names = fields[0].classes.names
    counts = [sum(field.info["counts"][name] for field in fields) for name in names]
    named = np.repeat(np.arange(len(names)), counts)
    remark = one_class.remark(named, names, noun="cells")
    return [remark] if remark else []
