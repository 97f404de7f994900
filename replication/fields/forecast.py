"""What a scan would do and cost: `replication.scan --dry_run`; only temporary files are written."""

import contextlib
import tempfile
import time
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

import numpy as np

from replication.fields import scan_directory
from replication.fields.find import scanner
from replication.fields.find.stages import Stages
from replication.fields.read import reader
from replication.fields.read.field import ArrayField, Field, FieldError
from replication.fields.scan_directory import Settings
from replication.fields.show import pictures
from replication.fields.whole_fields import Models
from replication.runs import dry_run
from tfds_pap import phantom_set

#: Fields at most that are opened to learn their size.
_OPENED = 30
#: Longest side of the part of a field whose scan is measured, pixels as read.
_MEASURED = 1500


def forecast(
    path: Path,
    models: Models,
    arguments: Sequence[str],
    *,
    settings: Settings,
    phantoms: int,
    workers: int,
    truth: Path | None = None,
) -> None:
    """Prints fields, minutes and disk.

    Args:
        path: The scan directory, which is not made.
        models: The networks.
        arguments: Files and folders of fields, and URLs of these.
        settings: Of the scan.
        phantoms: Above 0: so many drawn fields instead.
        workers: Threads.
        truth: File of annotated nuclei; None takes the `nuclei.csv` beside a field.

    Raises:
        PapError: If models cannot be used, or no field that was opened can be read.
        folders.TreeError: If there is no field.
    """
    both = models.load(settings)
    with contextlib.ExitStack() as stack:
        if phantoms:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            phantom_set.write_fields(folder, 1)
            waiting = [str(next(folder.glob("*.jpg")))]
            count = phantoms
        else:
            paths = reader.expand_fields(arguments)
            waiting = [each for each in paths if not scan_directory.is_finished(path, each, truth)]
            count = len(waiting)
            print(f"{len(paths) - count} of {len(paths)} fields finished before")
        if not waiting:
            dry_run.report(path, ["Plan: nothing is left to scan"], {})
            return
        chosen = waiting[:: -(-len(waiting) // _OPENED)]
        pixels, part, errors = [], None, []
        for each in chosen:
            try:
                with reader.open_field(each, mpp=settings.mpp, file_mpp=settings.file_mpp) as field:
                    pixels.append(field.width * field.height)
                    part = part if part is not None else _part(field)
            except FieldError as error:
                errors.append(error)
        if part is None:
            raise errors[0]
        seconds, written = _measure(part, both, settings, workers)
    share = float(np.mean(pixels)) * count / (part.shape[0] * part.shape[1])
    mebi = float(np.mean(pixels)) / 1e6
    lines = [
        f"Plan: {dry_run.count(count, 'field')} of {mebi:.1f} megapixels in the mean, about "
        f"{dry_run.about(share * seconds)} with {dry_run.count(workers, 'thread')} (measured: "
        f"{part.shape[1]} x {part.shape[0]} px in {seconds:.1f} s)",
        *(f"Cannot be read: {error}" for error in errors),
    ]
    dry_run.report(path, lines, {"tables and pictures": share * written})


def _part(field: Field) -> np.ndarray:
    """The middle of a field."""
    width, height = min(field.width, _MEASURED), min(field.height, _MEASURED)
    left, top = (field.width - width) // 2, (field.height - height) // 2
    return field.read(left, top, width, height)


def _measure(
    pixels: np.ndarray, both: Stages, settings: Settings, workers: int
) -> tuple[float, float]:
    """Seconds, and bytes of what is kept, of the second scan; the first one traces."""
    with (
        ArrayField("measured", pixels) as field,
        futures.ThreadPoolExecutor(workers) as pool,
        tempfile.TemporaryDirectory() as folder,
    ):
        for _ in range(2):
            start = time.perf_counter()
            scan = scanner.scan(
                field,
                both,
                threshold=settings.threshold,
                radius=settings.radius,
                pool=pool,
                skip_glass=settings.skip_glass,
            )
            pictures.write_pictures(
                Path(folder),
                field,
                scan.lattice,
                scan.scores,
                scan.cells,
                threshold=settings.threshold,
            )
            seconds = time.perf_counter() - start
        kept = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return seconds, float(kept + scan.scores.nbytes)
