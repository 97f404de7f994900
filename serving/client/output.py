"""Where the predictions of many images go, one after the other: files, a short table, a last line.

Holds no more than a screenful in memory. Files are written beside their names, as `.partial`, and
renamed when all is done.
"""

import collections
import contextlib
import csv
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import grpc

from serving.client import Prediction
from serving.client.transport import ClientError
from tfds_pap import taxonomy

#: Most images for which the terminal shows a table, and failures that it lists.
SHOWN = 20

#: Decimals that survive float32, whichever transport it came by.
_DECIMALS = 6

RESEARCH_LINE = (
    "Research software, not a medical device: not for screening, diagnosis or any decision about "
    "a patient."
)


@dataclasses.dataclass
class Summary:
    """What was seen so far.

    Attributes:
        classes: Images by class.
        abstained: Images that the model would leave to a person; None where it cannot say.
        versions: Versions that answered; None among them where the server did not tell.
        failures: Images without an answer.
        shown_failures: The first of them, with the reason.
    """

    classes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    abstained: int | None = None
    versions: set[int | None] = dataclasses.field(default_factory=set)
    failures: int = 0
    shown_failures: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    @property
    def images(self) -> int:
        """Images seen, with or without an answer."""
        return self.classes.total() + self.failures

    def line(self, model: str, seconds: float) -> str:
        """Returns the last line.

        Args:
            model: Name of the model.
            seconds: How long the requests took.
        """
        named = taxonomy.in_order_of_severity(self.classes)
        parts = [f"{self.classes.total():,} of {self.images:,} images named"]
        if named:
            parts.append(", ".join(f"{name} {self.classes[name]:,}" for name in named))
        if self.abstained is not None:
            parts.append(f"{self.abstained:,} abstained")
        known = sorted(version for version in self.versions if version is not None)
        versions = [str(version) for version in known] + ["unknown"] * (None in self.versions)
        if versions:
            noun = "version" if len(versions) == 1 else "versions"
            parts.append(f"{model} {noun} {', '.join(versions)}")
        rate = self.images / seconds if seconds > 0 else 0.0
        parts.append(f"{seconds:.1f} s, {rate:,.1f} images/s")
        return "; ".join(parts)


class Output:
    """Takes predictions in order.

    Args:
        csv_path: Table to write, one row an image; None for none.
        json_path: JSON lines to write, one object an image; None for none.

    Attributes:
        summary: What was seen so far.
        rows: The first rows, for a table.

    Raises:
        OSError: A file cannot be made.
    """

    def __init__(self, csv_path: Path | None, json_path: Path | None) -> None:
        self.summary = Summary()
        self.rows: list[dict[str, Any]] = []
        self._names: tuple[str, ...] | None = None
        self._waiting: list[dict[str, Any]] = []
        self._files: dict[Path, TextIO] = {}
        self._table: csv.DictWriter | None = None
        try:
            self._csv = self._open(csv_path)
            self._json = self._open(json_path)
        except OSError:
            self.abandon()
            raise

    def write(self, image: str, found: Prediction | str) -> None:
        """Takes the next image.

        Args:
            image: Its path.
            found: What the model says, or why it says nothing.

        Raises:
            ClientError: The prediction is of other classes than those before it.
            OSError: A file cannot be written.
        """
        if isinstance(found, str):
            self._fail(image, found)
            self._emit({"image": image, "error": found})
            return
        names = _class_names(found)
        if self._names is None:
            self._names = names
        elif names != self._names:
            raise ClientError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{image}: expected the classes {', '.join(self._names)}, as of the images before, "
                f"got {', '.join(names)}",
            )
        self._count(found)
        self._emit(
            {
                "image": image,
                "class": found.label,
                "class_id": found.class_id,
                "probabilities": {
                    name: round(probability, _DECIMALS)
                    for name, probability in zip(names, found.probabilities, strict=True)
                },
                "hsil_plus": None if found.hsil_plus is None else round(found.hsil_plus, _DECIMALS),
                "abstain": None if found.abstain is None else int(found.abstain),
                "model_version": found.model_version,
            }
        )

    def finish(self) -> None:
        """Gives the files their names."""
        self._start_table()
        for file in self._files.values():
            file.close()
        for path in self._files:
            _partial(path).replace(path)

    def abandon(self) -> list[Path]:
        """Closes the files as they are; removes those that hold nothing.

        Returns:
            Where the others lie.
        """
        kept = []
        for path, file in self._files.items():
            # The disk may be full.
            with contextlib.suppress(OSError):
                if self._waiting:
                    self._start_table()
                file.close()
            partial = _partial(path)
            if not partial.exists():
                kept.append(path)
            elif partial.stat().st_size:
                kept.append(partial)
            else:
                partial.unlink()
        return kept

    def table(self) -> Iterator[tuple[str, ...]]:
        """Yields the header and the first rows, as text."""
        columns = self._columns()
        if all(row.get("error") is None for row in self.rows):
            columns.remove("error")
        yield tuple(columns)
        for row in self.rows:
            cells = self._cells(row)
            yield tuple(_text(cells.get(column)) for column in columns)

    def _open(self, path: Path | None) -> TextIO | None:
        if path is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        # Names of files may be anything; what is no UTF-8 comes out as the bytes it was.
        file = _partial(path).open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._files[path] = file
        return file

    def _fail(self, image: str, why: str) -> None:
        self.summary.failures += 1
        if len(self.summary.shown_failures) < SHOWN:
            self.summary.shown_failures.append((image, why))

    def _count(self, found: Prediction) -> None:
        self.summary.classes[found.label] += 1
        self.summary.versions.add(found.model_version)
        if found.abstain is not None:
            self.summary.abstained = (self.summary.abstained or 0) + found.abstain

    def _emit(self, row: dict[str, Any]) -> None:
        if len(self.rows) < SHOWN:
            self.rows.append(row)
        if self._json is not None:
            self._json.write(json.dumps(row) + "\n")
        if self._csv is None:
            return
        if self._names is None:
            # The first answer tells the columns.
            self._waiting.append(row)
            return
        self._start_table()
        self._table.writerow(self._cells(row))

    def _start_table(self) -> None:
        if self._csv is None or self._table is not None:
            return
        self._table = csv.DictWriter(self._csv, self._columns(), lineterminator="\n")
        self._table.writeheader()
        self._table.writerows(map(self._cells, self._waiting))
        self._waiting.clear()

    def _columns(self) -> list[str]:
        ending = ["hsil_plus", "abstain", "model_version", "error"]
        return ["image", "class", *(self._names or ()), *ending]

    def _cells(self, row: dict[str, Any]) -> dict[str, Any]:
        cells = {**row, **row.get("probabilities", {})}
        return {name: cells[name] for name in self._columns() if name in cells}


def _class_names(found: Prediction) -> tuple[str, ...]:
    """The known classes in order of severity if these are they, else numbers."""
    for names in (taxonomy.STAGE2_CLASSES, taxonomy.STAGE1_CLASSES):
        same_place = found.label in names and names.index(found.label) == found.class_id
        if len(names) == len(found.probabilities) and same_place:
            return names
    return tuple(f"probability_{number}" for number in range(len(found.probabilities)))


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else os.fsencode(str(value)).decode(errors="replace")
