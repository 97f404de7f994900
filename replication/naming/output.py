"""Where the predictions of many images go, one after the other: files, a table, a last line.

Holds no more in memory than the table shows. Files are written beside their names, as `.partial`,
and renamed when all is done.
"""

import collections
import contextlib
import csv
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from replication.naming.prediction import Prediction
from tfds_pap import redaction, taxonomy
from tfds_pap.classes import in_order_of_severity
from tfds_pap.errors import PapError

#: Most images for which the terminal shows a table, and failures that it lists.
SHOWN = 20

#: Decimals that survive float32, whichever transport it came by.
_DECIMALS = 6
#: Classes whose probabilities the table on the terminal has room for.
_MOST_COLUMNS = 6

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
        versions: Versions of a served model that answered; None among them where the server did
            not tell.
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
        named = in_order_of_severity(self.classes)
        parts = [f"{self.classes.total():,} of {self.images:,} images named"]
        if named:
            parts.append(", ".join(f"{name} {self.classes[name]:,}" for name in named))
        if self.abstained is not None:
            parts.append(f"{self.abstained:,} abstained")
        numbers = sorted(version for version in self.versions if version is not None)
        versions = [str(version) for version in numbers] + ["unknown"] * (None in self.versions)
        if versions:
            noun = "version" if len(versions) == 1 else "versions"
            parts.append(f"{model} {noun} {', '.join(versions)}")
        rate = self.images / seconds if seconds > 0 else 0.0
        parts.append(f"{seconds:.1f} s, {rate:,.1f} images/s")
        return "; ".join(parts)


class Output:
    """Takes predictions in order. Used as a context, at whose end files get their names.

    Args:
        csv_path: Table to write, one row an image; None for none.
        json_path: JSON lines to write, one object an image; None for none.
        before: Further columns, between the image and what the model says.
        served: Whether a version of a served model answers.
        shown: Rows that are kept for a table; None keeps all.

    Attributes:
        summary: What was seen so far.
        rows: The first rows, for a table.

    Raises:
        OSError: A file cannot be made.
    """

    def __init__(
        self,
        csv_path: Path | None,
        json_path: Path | None,
        *,
        before: Sequence[str] = (),
        served: bool = True,
        shown: int | None = SHOWN,
    ) -> None:
        self._before, self._served, self._shown = before, served, shown
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
            self._abandon()
            raise

    def write(self, image: str, answer: Prediction | str, **beside: Any) -> None:
        """Takes the next image.

        Args:
            image: Its path, or its URL, of which no secret is written.
            answer: What the model says, or why it says nothing.
            **beside: Values of the columns `before`.

        Raises:
            PapError: The prediction is of other classes than those before it.
            OSError: A file cannot be written.
        """
        image = redaction.redacted(image)
        if isinstance(answer, str):
            self._fail(image, answer)
            self._emit({"image": image, "error": answer})
            return
        names = _class_names(answer)
        if self._names is None:
            self._names = names
        elif names != self._names:
            raise PapError(
                f"{image}: expected the classes {', '.join(self._names)}, as of the images before, "
                f"got {', '.join(names)}"
            )
        self._count(answer)
        self._emit(
            {
                "image": image,
                **beside,
                "class": answer.label,
                "class_id": answer.class_id,
                "probabilities": {
                    name: round(probability, _DECIMALS)
                    for name, probability in zip(names, answer.probabilities, strict=True)
                },
                "hsil_plus": _rounded(answer.hsil_plus),
                "abstain": None if answer.abstain is None else int(answer.abstain),
                **({"model_version": answer.model_version} if self._served else {}),
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Gives the files their names; after an error, says where the answers until then lie.

        Raises:
            PapError: In one line, what went wrong.
            KeyboardInterrupt: If that was it.
        """
        if error is None:
            try:
                self._finish()
                return
            except OSError as full:
                error = full
        kept = ", ".join(map(str, self._abandon()))
        until_then = f"answers until then: {kept}" if kept else ""
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(until_then) from error
        if isinstance(error, PapError | OSError):
            raise PapError("; ".join(filter(None, [str(error), until_then]))) from error

    def _finish(self) -> None:
        self._start_table()
        for file in self._files.values():
            file.close()
        for path in self._files:
            _partial(path).replace(path)

    def _abandon(self) -> list[Path]:
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
        if len(self._names or ()) > _MOST_COLUMNS:
            # They would leave no room; files hold them all.
            columns = [name for name in columns if name not in (self._names or ())]
        yield tuple(columns)
        for row in self.rows:
            cells = self._cells(row)
            yield tuple(_text(cells.get(column)) for column in columns)

    def print_table(self) -> None:
        """Prints the header and the first rows; nothing where there is no row."""
        from replication.drawing import terminal

        if not self.rows:
            return
        header, *rows = self.table()
        terminal.console().print(terminal.table(header, rows, fold=("image", "error")))

    def failed(self, what: str) -> PapError:
        """Returns the error that a command ends with where images have no answer.

        Args:
            what: Of them, such as "could not be read".
        """
        summary = self.summary
        lines = [f"{summary.failures:,} of {summary.images:,} images {what}:"]
        for image, why in summary.shown_failures:
            lines.append(f"  {image.encode(errors='replace').decode()}: {why}")
        if more := summary.failures - len(summary.shown_failures):
            lines.append(f"  ... and {more:,} more")
        return PapError("\n".join(lines))

    def _open(self, path: Path | None) -> TextIO | None:
        if path is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        if _partial(path).is_symlink():
            # Not written through it into another file.
            _partial(path).unlink()
        # Names of files may be anything; what is no UTF-8 comes out as the bytes it was.
        file = _partial(path).open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._files[path] = file
        return file

    def _fail(self, image: str, why: str) -> None:
        self.summary.failures += 1
        if len(self.summary.shown_failures) < SHOWN:
            self.summary.shown_failures.append((image, why))

    def _count(self, answer: Prediction) -> None:
        self.summary.classes[answer.label] += 1
        if self._served:
            self.summary.versions.add(answer.model_version)
        if answer.abstain is not None:
            self.summary.abstained = (self.summary.abstained or 0) + answer.abstain

    def _emit(self, row: dict[str, Any]) -> None:
        if self._shown is None or len(self.rows) < self._shown:
            self.rows.append(row)
        if self._json is not None:
            self._json.write(json.dumps(row) + "\n")
        if self._csv is None:
            return
        self._waiting.append(row)
        # The first answer tells the columns.
        if self._names is not None:
            self._start_table()

    def _start_table(self) -> None:
        """Writes the rows that wait, and before the first of them the columns."""
        if self._csv is None:
            return
        if self._table is None:
            self._table = csv.DictWriter(self._csv, self._columns(), lineterminator="\n")
            self._table.writeheader()
        self._table.writerows(map(self._cells, self._waiting))
        self._waiting.clear()

    def _columns(self) -> list[str]:
        ending = ["hsil_plus", "abstain", *(["model_version"] if self._served else []), "error"]
        return ["image", *self._before, "class", *(self._names or ()), *ending]

    def _cells(self, row: dict[str, Any]) -> dict[str, Any]:
        cells = {**row, **row.get("probabilities", {})}
        return {name: cells[name] for name in self._columns() if name in cells}


def _rounded(probability: float | None) -> float | None:
    return None if probability is None else round(probability, _DECIMALS)


def _class_names(prediction: Prediction) -> tuple[str, ...]:
    """The names that came with it; else the papers' classes if these are they, else numbers."""
    if prediction.names:
        return prediction.names
    for names in (taxonomy.STAGE2_CLASSES, taxonomy.STAGE1_CLASSES):
        same_place = (
            prediction.label in names and names.index(prediction.label) == prediction.class_id
        )
        if len(names) == len(prediction.probabilities) and same_place:
            return names
    return tuple(f"probability_{number}" for number in range(len(prediction.probabilities)))


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else os.fsencode(str(value)).decode(errors="replace")
