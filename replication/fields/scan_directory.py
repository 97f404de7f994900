"""Scans fields into a directory: field by field, resumed where it was left, and summed up."""

import dataclasses
import functools
import hashlib
import io
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tqdm

from replication.fields.find import scanner, summary
from replication.fields.find.cells import Cells
from replication.fields.find.stages import Stages
from replication.fields.read import reader
from replication.fields.read.field import Field, FieldError
from replication.fields.scanned import scanned_fields
from replication.fields.show import pictures
from replication.runs.directory import RunDirectory
from tfds_pap import copies, files, keras_settings, redaction, tables, urls
from tfds_pap.errors import PapError
from tfds_pap.taxonomy import ROI_SIZE

TRUTH = "nuclei.csv"
GROUPS = "groups.csv"
_GROUPS = ("file", "group")

#: Of a field's files, what later commands take figures from.
_READ_AGAIN = ("cells.csv", "scores.npy")

#: Fields are counted in fractions, as one slide may take longer than all the others.
_READING = 0.8  # Of the work on a field; the rest goes into its pictures.
_BAR = "Fields: {percentage:3.0f} %|{bar}| {elapsed}<{remaining}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a scan depends on beside its models.

    Attributes:
        roi: Side of the ROI, pixels as read.
        stride: Pixels as read from one ROI to the next.
        threshold: Stage-1 score of a detection at least.
        radius: Of suppression, pixels as read.
        method: One of `dense.METHODS`.
        mpp: Micrometres per pixel that fields are read at; None reads every pixel of the file.
        file_mpp: Pixel size of files that do not state theirs; None where it is not known.
        skip_glass: Whether ROIs without stain stay unread.
    """

    roi: int = ROI_SIZE
    stride: int = 25
    threshold: float = 0.5
    radius: float = 50.0
    method: str = "exact"
    mpp: float | None = None
    file_mpp: float | None = None
    skip_glass: bool = False


def identity(stages: Stages, settings: Settings) -> dict[str, Any]:
    """Returns what the results of a scan depend on.

    Args:
        stages: The networks.
        settings: The rest.
    """
    models = {stage: about["sha256"] for stage, about in stages.about.items()}
    decision = dataclasses.asdict(stages.stage2.decision)
    if decision["declared"] is None:
        # As it was before classes could be declared.
        del decision["declared"]
    return {
        "models": models,
        "decision": decision,
        **dataclasses.asdict(settings),
        # Cells that TensorFlow finds and those that JAX finds differ in their last digits.
        "engine": keras_settings.backend(),
    }


def scan(
    run: RunDirectory,
    paths: Sequence[str],
    stages: Stages,
    settings: Settings,
    *,
    workers: int,
    truth: Path | None = None,
) -> None:
    """Scans every field that is not finished yet, and says so in the manifest.

    Args:
        run: Made with `identity`.
        paths: Of the fields.
        stages: The networks.
        settings: Those that `identity` took.
        workers: Fields, and blocks of large fields, that are worked on at the same time.
        truth: File of the annotated nuclei; None takes the `nuclei.csv` beside a field.
    """
    unreadable: list[dict[str, str]] = []
    stop, lock = threading.Event(), threading.Lock()
    with (
        tqdm.tqdm(total=len(paths), bar_format=_BAR) as bar,
        futures.ThreadPoolExecutor(workers) as blocks,
        futures.ThreadPoolExecutor(workers) as fields,
    ):

        def advance(share: float) -> None:
            if stop.is_set():
                raise _StoppedError
            with lock:
                bar.update(min(share, bar.total - bar.n))

        def one(path: str) -> None:
            folder = run.path / "fields" / field_id(path)
            if _finished(folder, path, truth):
                advance(1.0)
                return
            try:
                with reader.open_field(path, mpp=settings.mpp, file_mpp=settings.file_mpp) as field:
                    field_scan = scanner.scan(
                        field,
                        stages,
                        threshold=settings.threshold,
                        radius=settings.radius,
                        pool=blocks,
                        advance=lambda share: advance(_READING * share),
                        skip_glass=settings.skip_glass,
                    )
                    start = time.perf_counter()
                    pictures.write_pictures(
                        folder,
                        field,
                        field_scan.lattice,
                        field_scan.scores,
                        field_scan.cells,
                        threshold=settings.threshold,
                    )
                    seconds = {**field_scan.seconds, "pictures": time.perf_counter() - start}
                    advance(1 - _READING)
            except FieldError as error:
                unreadable.append({"path": redaction.redacted(path), "reason": str(error)})
                return
            write_field(folder, path, field, field_scan, seconds, truth)

        waiting = [fields.submit(one, path) for path in paths]
        try:
            for done in futures.as_completed(waiting):
                done.result()
        except BaseException:
            stop.set()
            fields.shutdown(wait=False, cancel_futures=True)
            blocks.shutdown(wait=False, cancel_futures=True)
            raise
    order = {redaction.redacted(path): number for number, path in enumerate(paths)}
    unreadable.sort(key=lambda entry: order[entry["path"]])
    bad = {entry["path"] for entry in unreadable}
    ids = [field_id(path) for path in paths if redaction.redacted(path) not in bad]
    run.update_manifest(fields=list(dict.fromkeys(ids)), unreadable=unreadable)


class _StoppedError(RuntimeError):
    """Ends the threads of a scan that was interrupted."""


def field_id(path: str) -> str:
    """Returns a name for a field's folder: safe in any file system, and one for each file.

    Args:
        path: Of the field, or its URL.
    """
    where = redaction.redacted(path) if urls.is_url(path) else Path(path).resolve()
    digest = hashlib.sha256(os.fsencode(where)).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', Path(urls.name(path)).stem)[:60]}-{digest}"


def sum_up(run: RunDirectory) -> pd.DataFrame:
    """Writes the tables of `summaries`.

    Args:
        run: A scan directory.

    Returns:
        The table of fields.
    """
    made = summaries(run)
    for name, table in made.items():
        form = "%.6g" if name == "cells.csv" else None
        files.write_atomically(run.path / name, table.to_csv(index=False, float_format=form))
    return made["fields.csv"]


def summaries(run: RunDirectory) -> dict[str, pd.DataFrame]:
    """Sums up what was found in the fields of a scan.

    A field belongs to the slide that the `groups.csv` (`file,group`) beside it names.

    Args:
        run: A scan directory.

    Returns:
        By the name of its file: fields.csv; cells.csv (of all fields) where there is a field; and
        slides.csv where groups are known.
    """
    done = scanned_fields(run)
    cells = [one.cells for one in done]
    groups = functools.cache(_groups)
    rows = [
        {
            "field": one.info["path"],
            "slide": _slide(one.info["path"], groups),
            "rois": one.info["rois"],
            "detections": one.info["detections"],
            **summary.flat(one.info),
        }
        for one in done
    ]
    made = {"fields.csv": pd.DataFrame(rows)}
    if done:
        every = pd.concat(
            [
                some.table().assign(field=one.info["path"])
                for one, some in zip(done, cells, strict=True)
            ]
        )
        every.insert(0, "field", every.pop("field"))
        made["cells.csv"] = every
    slides: dict[str, list[Cells]] = {}
    for some, row in zip(cells, rows, strict=True):
        if row["slide"]:
            slides.setdefault(row["slide"], []).append(some)
    if slides:
        lines = [
            {"slide": name, "fields": len(some)}
            | summary.flat(summary.summary(summary.together(some)))
            for name, some in slides.items()
        ]
        made["slides.csv"] = pd.DataFrame(lines)
    return made


def _slide(path: str, groups: Callable[[str], list[tuple[str, str]]]) -> str:
    names = tables.Names([urls.name(path)])
    table = beside(path, GROUPS)
    return next((group for file, group in groups(table) if names.find(file)), "") if table else ""


def _groups(table: str) -> list[tuple[str, str]]:
    return [(row["file"], row["group"]) for _, row in tables.read(copies.file(table), _GROUPS)]


def beside(path: str, name: str) -> str | None:
    """Returns the path or URL of a table in the folder of a field; None where there is none.

    Args:
        path: Of the field, or its URL.
        name: Of the table.

    Raises:
        FieldError: If the storage of a URL does not answer.
    """
    if urls.is_url(path):
        try:
            return urls.beside(path, name)
        except urls.UrlError as error:
            raise FieldError(str(error)) from None
    table = Path(path).parent / name
    return str(table) if table.exists() else None


def is_finished(directory: Path, path: str, truth: Path | None) -> bool:
    """Tells whether a scan directory holds what a field's file says today.

    Args:
        directory: Of the scan; need not exist.
        path: Of the field.
        truth: As in `scan`.
    """
    return _finished(directory / "fields" / field_id(path), path, truth)


def _finished(folder: Path, path: str, truth: Path | None) -> bool:
    done = folder / "field.json"
    if not done.exists():
        return False
    try:
        info = files.read_json(done)
        for name in _READ_AGAIN:
            files.verify(folder / name)
    except PapError as error:
        note = f"Note: {str(error).partition(';')[0]}; scanning {path} again"
        tqdm.tqdm.write(redaction.redacted(note))
        return False
    try:
        return info["file"] == file_state(path) and info["truth"] == truth_file(path, truth)
    except FieldError:
        # Reading it will say what is wrong with its URL.
        return False


def file_state(path: str) -> dict[str, int | str]:
    """Returns what tells a file from another one; a slide's gigabytes are not read for it.

    Args:
        path: Of the file, or its URL.

    Raises:
        FieldError: If a URL leads nowhere.
    """
    if urls.is_url(path):
        try:
            return urls.state(path)
        except urls.UrlError as error:
            raise FieldError(str(error)) from None
    state = Path(path).stat()
    return {"bytes": state.st_size, "modified_ns": state.st_mtime_ns}


def truth_file(path: str, truth: Path | str | None) -> str | None:
    """Returns the file of a field's annotated nuclei: `truth`, or the one beside it, if any.

    Raises:
        FieldError: If the storage of a URL does not answer.
    """
    return beside(path, TRUTH) if truth is None else str(truth)


def write_field(
    folder: Path,
    path: str,
    field: Field,
    field_scan: scanner.FieldScan,
    seconds: dict[str, float],
    truth: Path | str | None,
    *,
    state: dict[str, int | str] | None = None,
) -> None:
    """Writes what was found in a field; `field.json` last, as then it is finished.

    Args:
        folder: Where its results lie.
        path: Its path as the command has it.
        field: The field.
        field_scan: What was found.
        seconds: By step.
        truth: See `scan`.
        state: From `file_state`, where this process cannot tell it by `path`.
    """
    field_scan.cells.write(folder / "cells.csv")
    scores = io.BytesIO()
    np.save(scores, field_scan.scores)
    files.write_atomically(folder / "scores.npy", scores.getvalue())
    notes = list(field.notes)
    if not field_scan.lattice.rois:
        notes.append(
            f"smaller than an ROI of {field_scan.lattice.roi} px: there was nothing to read"
        )
    if field_scan.skipped:
        notes.append(
            f"{field_scan.skipped:,} of {field_scan.lattice.rois:,} ROIs were taken for glass and "
            "not read"
        )
    info = {
        "id": folder.name,
        "name": field.name,
        "path": redaction.redacted(path),
        "file": state or file_state(path),
        "width": round(field.width * field.scale),
        "height": round(field.height * field.scale),
        "scale": field.scale,
        "mpp": None if field.mpp is None else field.mpp / field.scale,
        "lattice": dataclasses.asdict(field_scan.lattice),
        "rois": field_scan.lattice.rois,
        "detections": field_scan.detections,
        "classes": field_scan.cells.classes.to_json(),
        **summary.summary(field_scan.cells),
        "seconds": {name: round(spent, 4) for name, spent in seconds.items()},
        "truth": truth_file(path, truth),
        "notes": notes,
    }
    files.write_last(folder / "field.json", info, _READ_AGAIN)
