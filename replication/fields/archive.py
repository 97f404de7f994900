"""Reads fields on a cluster: by block and not by field, so that a slide has all workers.

Each block leaves a file below `fields/<id>/blocks`; a field's last step puts them together with the
functions of a scan in one process, and removes them. What is found is the same, byte for byte.
`archive.csv` has a row a field: state, attempts, seconds, cells and error.
"""

import contextlib
import dataclasses
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import tqdm

from replication.fields import field_blocks, scan_directory
from replication.fields.find.stages import Stages
from replication.fields.scan_directory import Settings
from replication.runs.directory import RunDirectory
from tfds_pap import cluster, files, redaction, urls
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import distributed

    from replication.fields.whole_fields import Models

TABLE = "archive.csv"

#: Fields that are begun at the same time: of one the last blocks would leave workers idle.
_AT_ONCE = 3

#: Kept ROIs that a block of stage 2 names; a multiple of `stages.BATCH`.
_NAMED = 256

#: Columns of the table.
_COLUMNS = ("field", "state", "attempts", "seconds", "cells", "blocks", "error")


@dataclasses.dataclass
class _Open:
    """A field that is under way."""

    path: str
    began: float
    left: int = 0
    kept: int = 0


def scan(
    run: RunDirectory,
    paths: Sequence[str],
    models: "Models",
    stages: Stages,
    settings: Settings,
    client: "distributed.Client",
    *,
    truth: Path | None = None,
) -> None:
    """Scans every field that is not finished yet; see `scan_directory.scan`.

    Args:
        run: Made with `scan_directory.identity`; workers see it under the same path.
        paths: Of the fields; workers see them under the same paths.
        models: Which models workers load.
        stages: The same, as this process loaded them.
        settings: Those of the identity.
        client: From `cluster.connected`.
        truth: See `scan_directory.scan`.

    Raises:
        PapError: If workers see other models, or the cluster is lost.
    """
    _Archive(run, list(dict.fromkeys(paths)), models, stages, settings, client, truth).scan()


class _Archive:
    def __init__(
        self,
        run: RunDirectory,
        paths: list[str],
        models: "Models",
        stages: Stages,
        settings: Settings,
        client: "distributed.Client",
        truth: Path | None,
    ) -> None:
        self._run, self._paths, self._truth = run, paths, truth
        digests = tuple(about["sha256"] for _, about in sorted(stages.about.items()))
        place = dataclasses.replace(
            models, stage1=models.stage1.absolute(), stage2=models.stage2.absolute()
        )
        self._work = field_blocks.Work(run.path.absolute(), place, settings, digests)
        self._queue = cluster.Queue(client)
        self._open: dict[str, _Open] = {}
        self._rows = _read(run.path / TABLE)

    def scan(self) -> None:
        """Begins fields one after another, and follows each from step to step."""
        waiting = [
            path
            for path in self._paths
            if not scan_directory.is_finished(self._run.path, path, self._truth)
        ]
        for path in self._paths:
            self._tell(path, state="waiting" if path in waiting else "finished")
        self._bar = tqdm.tqdm(desc="Fields", total=len(self._paths), unit="field")
        self._bar.update(len(self._paths) - len(waiting))
        with self._bar, contextlib.closing(self._queue.outcomes()) as outcomes:
            self._begin(waiting)
            for (path, step), outcome in outcomes:
                if path in self._open:
                    self._follow(path, step, outcome)
                self._begin(waiting)
        unreadable = [
            {"path": row["field"], "reason": row["error"]}
            for row in map(self._row, self._paths)
            if row["state"] == "failed"
        ]
        bad = {entry["path"] for entry in unreadable}
        ids = [
            scan_directory.field_id(path)
            for path in self._paths
            if self._row(path)["field"] not in bad
        ]
        self._run.update_manifest(fields=ids, unreadable=unreadable)

    def _begin(self, waiting: list[str]) -> None:
        while waiting and len(self._open) < _AT_ONCE:
            path = waiting.pop(0)
            self._open[path] = _Open(path, time.perf_counter())
            attempts = int(self._row(path)["attempts"] or 0) + 1
            self._tell(path, state="reading", attempts=attempts, error="")
            self._put(path, "plan", field_blocks.plan)

    def _put(self, path: str, step: str, function: Any, *arguments: Any) -> None:
        where = path if urls.is_url(path) else str(Path(path).absolute())
        self._queue.put((path, step), function, self._work, where, *arguments)

    def _follow(self, path: str, step: str, outcome: Any) -> None:
        field = self._open[path]
        if isinstance(outcome, PapError):
            self._end(path, state="failed", error=str(outcome))
            return
        if step == "plan":
            blocks, missing = outcome
            self._tell(path, blocks=blocks)
            self._several(path, "score", field_blocks.score, missing, "keep", field_blocks.keep)
        elif step == "keep":
            field.kept, missing = outcome
            parts = [(start, start + _NAMED) for start in missing]
            self._several(path, "name", field_blocks.name, parts, "finish", field_blocks.finish)
        elif step in ("score", "name"):
            field.left -= 1
            if not field.left and step == "score":
                self._put(path, "keep", field_blocks.keep, _NAMED)
            elif not field.left:
                self._put(path, "finish", field_blocks.finish, *self._last(path))
        else:
            self._end(path, state="finished", cells=outcome)

    def _several(
        self, path: str, step: str, function: Any, parts: list, then: str, after: Any
    ) -> None:
        """Puts the blocks of a step; where none is left, what follows it."""
        self._open[path].left = len(parts)
        for part in parts:
            self._put(path, step, function, *part)
        if not parts:
            last = self._last(path) if then == "finish" else (_NAMED,)
            self._put(path, then, after, *last)

    def _last(self, path: str) -> tuple[str, int, str | None]:
        """What `finish` needs; a worker may be in a folder where paths mean something else."""
        return path, _NAMED, scan_directory.truth_file(path, self._truth)

    def _end(self, path: str, **told: Any) -> None:
        seconds = time.perf_counter() - self._open.pop(path).began
        self._tell(path, seconds=round(seconds, 2), **told)
        self._bar.update()

    def _tell(self, path: str, **told: Any) -> None:
        self._row(path).update(told)
        table = pd.DataFrame([self._row(each) for each in self._paths])
        files.write_atomically(self._run.path / TABLE, table.to_csv(index=False))

    def _row(self, path: str) -> dict[str, Any]:
        """The row of a field, whose name tells no secret."""
        name = redaction.redacted(path)
        return self._rows.setdefault(name, {**dict.fromkeys(_COLUMNS, ""), "field": name})


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The table of the command before; damaged or missing, it begins anew."""
    if not path.exists():
        return {}
    try:
        table = pd.read_csv(io.BytesIO(path.read_bytes()), dtype=str, keep_default_na=False)
        rows = table[list(_COLUMNS)].to_numpy().tolist()
        return {row[0]: dict(zip(_COLUMNS, row, strict=True)) for row in rows}
    except (ValueError, KeyError):
        print(f"Note: {path} is damaged; attempts are counted anew")
        return {}
