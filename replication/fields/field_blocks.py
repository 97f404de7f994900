"""The steps of a field's scan on a cluster; each runs in a worker and leaves a file.

fields/<id>/blocks/   plan.json   scores_<row>_<column>.npy   kept.npy   named_<first>.npy
"""

import dataclasses
import functools
import io
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from replication.fields import scan_directory
from replication.fields.find import scanner, suppression, tissue
from replication.fields.find.lattice import Lattice
from replication.fields.find.stages import Stages
from replication.fields.read import reader
from replication.fields.read.field import Field
from replication.fields.scan_directory import Settings
from replication.fields.show import pictures
from replication.runs import device
from tfds_pap import files, urls
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    from replication.fields.whole_fields import Models


@dataclasses.dataclass(frozen=True)
class Work:
    """What all blocks of a scan share.

    Attributes:
        directory: Of the scan.
        models: Which models.
        settings: Of the scan.
        digests: SHA-256 of the models of stage 1 and 2.
    """

    directory: Path
    models: "Models"
    settings: Settings
    digests: tuple[str, ...]

    def folder(self, path: str) -> Path:
        """Returns where the results of a field lie."""
        return self.directory / "fields" / scan_directory.field_id(path)


def plan(work: Work, path: str) -> tuple[int, list[tuple[int, int, int, int]]]:
    """Says which blocks are to be scored, all of them or those with stain.

    What another file left there is removed.

    Returns:
        How many blocks there are, and for each that has no file yet: first row, behind the last
        one, first column, behind the last one.

    Raises:
        FieldError: If the file cannot be read.
    """
    folder = work.folder(path) / "blocks"
    state = _state(path)
    stored = files.read_json(folder / "plan.json") if (folder / "plan.json").exists() else None
    if stored is None or stored["file"] != state:
        shutil.rmtree(folder, ignore_errors=True)
        field = _opened(work, path)
        lattice = _lattice(work, field)
        wanted = tissue.rois(field, lattice) if work.settings.skip_glass else None
        places = scanner.blocks(lattice, wanted=wanted)
        blocks = [(r.start, r.stop, c.start, c.stop) for r, c in places]
        stored = {"file": state, "blocks": blocks}
        files.write_json(folder / "plan.json", stored)
    blocks = [tuple(block) for block in stored["blocks"]]
    missing = [block for block in blocks if not _scored(folder, block).exists()]
    return len(blocks), missing


def score(work: Work, path: str, top: int, bottom: int, left: int, right: int) -> float:
    """Runs stage 1 over one block; returns its seconds."""
    start = time.perf_counter()
    field, stages = _opened(work, path), _stages(work)
    place = slice(top, bottom), slice(left, right)
    pixels = field.read(*scanner.covered(_lattice(work, field), *place))
    folder = work.folder(path) / "blocks"
    _save(_scored(folder, (top, bottom, left, right)), stages.stage1.scores(pixels))
    return time.perf_counter() - start


def keep(work: Work, path: str, part: int) -> tuple[int, list[int]]:
    """Puts the scores together, and suppresses.

    Returns:
        How many ROIs are kept, and the first of each part that has no names yet.
    """
    folder = work.folder(path) / "blocks"
    lattice = _lattice(work, _opened(work, path))
    scores = np.zeros((lattice.rows, lattice.columns), np.float32)
    for top, bottom, left, right in files.read_json(folder / "plan.json")["blocks"]:
        scores[top:bottom, left:right] = np.load(_scored(folder, (top, bottom, left, right)))
    settings = work.settings
    kept = suppression.keep(scores, settings.threshold, settings.radius, settings.stride)
    _save(folder / "scores.npy", scores)
    _save(folder / "kept.npy", kept)
    starts = range(0, len(kept), part)
    return len(kept), [start for start in starts if not _named(folder, start).exists()]


def name(work: Work, path: str, start: int, stop: int) -> None:
    """Runs stage 2 over some of the kept ROIs."""
    folder = work.folder(path) / "blocks"
    tops, lefts = np.load(folder / "kept.npy")[start:stop].T * work.settings.stride
    probabilities = _stages(work).stage2.probabilities(_opened(work, path), tops, lefts)
    _save(_named(folder, start), probabilities)


def finish(work: Work, path: str, called: str, part: int, truth: str | None) -> int:
    """Writes what a scan in one process writes, and removes the blocks; returns the cells.

    Args:
        work: The scan.
        path: Of the field.
        called: Its path as the command has it.
        part: Kept ROIs that `name` was called with.
        truth: From `scan_directory.truth_file`.
    """
    start = time.perf_counter()
    folder, stages, field = work.folder(path), _stages(work), _opened(work, path)
    kept = np.load(folder / "blocks" / "kept.npy")
    parts = [np.load(_named(folder / "blocks", first)) for first in range(0, len(kept), part)]
    none = np.zeros((0, len(stages.stage2.decision.labels)))
    found = scanner.collect(
        field,
        stages,
        np.load(folder / "blocks" / "scores.npy"),
        work.settings.threshold,
        kept,
        np.concatenate([none, *parts]),
        {},
    )
    blocks = files.read_json(folder / "blocks" / "plan.json")["blocks"]
    read = sum(scanner.rois((slice(*block[:2]), slice(*block[2:]))) for block in blocks)
    found = dataclasses.replace(found, skipped=found.lattice.rois - read)
    threshold = work.settings.threshold
    pictures.write_pictures(
        folder, field, found.lattice, found.scores, found.cells, threshold=threshold
    )
    seconds = {"pictures": time.perf_counter() - start}
    state = scan_directory.file_state(path)
    scan_directory.write_field(folder, called, field, found, seconds, truth, state=state)
    shutil.rmtree(folder / "blocks")
    return len(found.cells)


def _scored(folder: Path, block: tuple[int, ...]) -> Path:
    return folder / f"scores_{block[0]:05d}_{block[2]:05d}.npy"


def _named(folder: Path, start: int) -> Path:
    return folder / f"named_{start:07d}.npy"


def _save(path: Path, values: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    files.write_atomically(path, buffer.getvalue())


def _lattice(work: Work, field: Field) -> Lattice:
    return Lattice(field.width, field.height, work.settings.roi, work.settings.stride)


def _opened(work: Work, path: str) -> Field:
    # Asked of the URL each time: that keeps its copy on this machine in use.
    where = str(reader.local(path))
    return _field(where, work.settings.mpp, work.settings.file_mpp, tuple(_state(where).values()))


def _state(path: str) -> dict[str, int | str]:
    """What tells a file from another one; of none nothing, as opening it will say so."""
    is_there = urls.is_url(path) or Path(path).exists()
    return scan_directory.file_state(path) if is_there else {}


# A worker outlives commands: a file that changed is opened again, models that did are loaded again.
@functools.lru_cache(maxsize=4)
def _field(path: str, mpp: float | None, file_mpp: float | None, state: tuple) -> Field:
    return reader.open_field(path, mpp=mpp, file_mpp=file_mpp)


@functools.lru_cache(maxsize=1)
def _stages(work: Work) -> Stages:
    """Loads both networks once a process."""
    device.configure(precision="float32")
    stages = work.models.load(work.settings)
    if tuple(about["sha256"] for _, about in sorted(stages.about.items())) != work.digests:
        raise PapError(f"{work.models.stage1}: a worker sees other models there than this process")
    return stages
