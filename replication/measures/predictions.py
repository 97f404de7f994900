"""One predictions file per trained model.

Every metric, interval, figure and comparison is computed from the predictions file.
"""

import csv
import dataclasses
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tfds_pap import files
from tfds_pap.classes import Classes

if TYPE_CHECKING:
    # Imports TensorFlow, which nothing here needs.
    from tfds_pap import pipeline

#: What an image was used for.
ROLES = ("train", "tune", "test")

_COLUMNS = ("id", "group", "split", "label")
_PREFIX = "probability_"

#: Of a file that somebody sent; what is computed of classes grows with the square of their number.
_MOST_COLUMNS = 1000

#: How far the probabilities of an image may add up from 1 (float32 softmax: about 1e-7).
_SUM_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said about each image. The arrays are copies, and read-only.

    Attributes:
        ids: Unique name of each image.
        groups: Patient, slide or field of each image; '' = unknown.
        splits: Role of each image: 'train', 'tune' or 'test'.
        labels: int64 ``[n]``, index into `class_names`.
        probabilities: float64 ``[n, k]``; rows sum to 1.
        class_names: In order of severity; of two classes, the positive one comes last.
        declared: What is known of the classes where their names do not tell it; None where they do.

    Raises:
        ValueError: The parts do not fit each other, or hold a value that is not allowed.

    Example:
        >>> p = Predictions(
        ...     ids=("a", "b"),
        ...     groups=("", ""),
        ...     splits=("test", "test"),
        ...     labels=np.array([0, 1]),
        ...     probabilities=np.array([[0.9, 0.1], [0.7, 0.3]]),
        ...     class_names=("background", "cell"),
        ... )
        >>> p.predicted
        array([0, 0])
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    declared: Classes | None = None

    def __post_init__(self) -> None:
        for name in ("ids", "groups", "splits", "class_names"):
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))
        for name, dtype in (("labels", np.int64), ("probabilities", np.float64)):
            array = np.array(getattr(self, name), dtype=dtype)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        count, classes = len(self.ids), len(self.class_names)
        if classes < 2 or len(set(self.class_names)) < classes or not all(self.class_names):
            raise ValueError(
                f"predictions: expected two or more distinct class names, got {self.class_names}"
            )
        shapes = {
            "groups": ((len(self.groups),), (count,)),
            "splits": ((len(self.splits),), (count,)),
            "labels": (self.labels.shape, (count,)),
            "probabilities": (self.probabilities.shape, (count, classes)),
        }
        for name, (got, expected) in shapes.items():
            if got != expected:
                raise ValueError(f"predictions: expected {name} of shape {expected}, got {got}")
        seen: set[str] = set()
        for row, (image, split, label) in enumerate(
            zip(self.ids, self.splits, self.labels, strict=True)
        ):
            problem = _problem(image, split, self.probabilities[row], self.class_names, seen)
            if not 0 <= label < classes:
                problem = f"label: expected 0..{classes - 1}, got {label}"
            if problem:
                raise ValueError(f"predictions, row {row}, {problem}")
            seen.add(image)

    @classmethod
    def of(
        cls,
        index: "pipeline.Index",
        scored: Sequence[tuple[str, np.ndarray]],
        probabilities: np.ndarray,
    ) -> Self:
        """Puts together what a model said about images of a data set.

        Args:
            index: What is known of every image.
            scored: Role, and positions in the index, one after the other.
            probabilities: ``[n, k]``, in the same order.
        """
        positions = np.concatenate([rows for _, rows in scored])
        return cls(
            ids=tuple(index.ids[positions]),
            groups=tuple(index.groups[positions]),
            splits=tuple(split for split, rows in scored for _ in rows),
            labels=index.labels[positions],
            probabilities=probabilities,
            class_names=index.class_names,
            declared=index.declared,
        )

    @property
    def classes(self) -> Classes:
        """What is known of the classes: declared, or by their names."""
        return self.declared or Classes.known(self.class_names)

    @property
    def predicted(self) -> np.ndarray:
        """The class with the highest probability, int64 ``[n]``; of equals, the first."""
        return self.probabilities.argmax(axis=1)

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, split: str) -> "Predictions":
        """Keep the images of one role.

        Args:
            split: 'train', 'tune' or 'test'.

        Returns:
            Their predictions, in the same order; perhaps none.

        Raises:
            ValueError: ``split`` is no role.
        """
        if split not in ROLES:
            raise ValueError(f"split: expected one of {', '.join(ROLES)}, got {split!r}")
        return self.take([row for row, role in enumerate(self.splits) if role == split])

    def take(self, rows: Sequence[int]) -> "Predictions":
        """Keep some rows.

        Args:
            rows: Row numbers, each once; the result has their order.

        Returns:
            Their predictions.
        """
        index = np.asarray(rows, dtype=np.int64)
        return Predictions(
            ids=tuple(self.ids[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            splits=tuple(self.splits[row] for row in rows),
            labels=self.labels[index],
            probabilities=self.probabilities[index],
            class_names=self.class_names,
            declared=self.declared,
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV file: ``id,group,split,label,probability_<class>...``.

        The label is the class's name, and every float64 reads back bit for bit. The file appears
        whole or not at all. What is declared of the classes lies beside it, see `declaration`.

        Args:
            path: Where to. An existing file is replaced.

        Raises:
            ValueError: There are no predictions to write.
        """
        if not len(self):
            raise ValueError(f"{path}: expected predictions to write, got none")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_COLUMNS, *(_PREFIX + name for name in self.class_names)])
        for row, label in enumerate(self.labels):
            writer.writerow(
                [
                    self.ids[row],
                    self.groups[row],
                    self.splits[row],
                    self.class_names[label],
                    *(repr(float(value)) for value in self.probabilities[row]),
                ]
            )
        if self.declared is None:
            declaration(Path(path)).unlink(missing_ok=True)
        else:
            files.write_json(declaration(Path(path)), self.declared.to_json())
        files.write_atomically(Path(path), text.getvalue())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `write` made, or one of the same form.

        Args:
            path: The CSV file.

        Returns:
            The predictions; the order of the probability columns is the order of the classes.

        Raises:
            ValueError: One line that names the file, the line and column, and what was expected.
            OSError: The file cannot be read.
        """
        files.verify(Path(path))
        try:
            # Spreadsheets put a byte order mark before the header.
            with Path(path).open(encoding="utf-8-sig", newline="") as file:
                predictions = cls._parse(csv.reader(file, strict=True), str(path))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected a CSV file in UTF-8: {error}") from error
        beside = declaration(Path(path))
        if not beside.exists():
            return predictions
        declared = Classes.from_json(files.read_json(beside))
        if declared.names != predictions.class_names:
            raise ValueError(
                f"{beside}: expected the classes {', '.join(predictions.class_names)} of {path}, "
                f"got {', '.join(declared.names)}"
            )
        return dataclasses.replace(predictions, declared=declared)

    @classmethod
    def _parse(cls, reader: Any, path: str) -> Self:
        try:
            header = next(reader, None)
            if header is None:
                raise ValueError(f"{path}: expected a header and predictions, the file is empty")
            if len(header) > _MOST_COLUMNS:
                raise ValueError(
                    f"{path}: expected at most {_MOST_COLUMNS} columns, got {len(header)}"
                )
            names = _header_classes(header, path)
            at = {column: header.index(column) for column in header}
            seen: set[str] = set()
            rows: list[tuple[str, str, str, int, list[float]]] = []
            for fields in reader:
                where = f"{path}, line {reader.line_num}"
                if len(fields) != len(header):
                    raise ValueError(f"{where}: expected {len(header)} fields, got {len(fields)}")
                image, group, split, label = (fields[at[column]] for column in _COLUMNS)
                if label not in names:
                    raise ValueError(
                        f"{where}, column label: expected one of {', '.join(names)}, got {label!r}"
                    )
                values = [_number(fields[at[_PREFIX + name]], name, where) for name in names]
                problem = _problem(image, split, values, names, seen)
                if problem:
                    raise ValueError(f"{where}, column {problem}")
                seen.add(image)
                rows.append((image, group, split, names.index(label), values))
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: expected CSV: {error}") from error
        if not rows:
            raise ValueError(f"{path}, line 2: expected at least one prediction, got a header only")
        ids, groups, splits, labels, probabilities = zip(*rows, strict=True)
        return cls(ids, groups, splits, np.array(labels), np.array(probabilities), names)


def declaration(path: Path) -> Path:
    """Returns where lies what is declared of the classes of a predictions file.

    Args:
        path: Of the predictions.
    """
    return path.with_suffix(".classes.json")


def _header_classes(header: list[str], path: str) -> tuple[str, ...]:
    names = tuple(c.removeprefix(_PREFIX) for c in header if c.startswith(_PREFIX))
    expected = f"expected the columns {','.join(_COLUMNS)},{_PREFIX}<class>,{_PREFIX}<class>..."
    for column in _COLUMNS:
        if column not in header:
            raise ValueError(f"{path}, line 1: column {column} is missing; {expected}")
    if len(names) < 2:
        raise ValueError(
            f"{path}, line 1: a column {_PREFIX}<class> is missing, got {len(names)}; {expected}"
        )
    for column in header:
        if header.count(column) > 1:
            raise ValueError(f"{path}, line 1: column {column} is there twice; {expected}")
        if column == _PREFIX or not (column in _COLUMNS or column.startswith(_PREFIX)):
            raise ValueError(f"{path}, line 1: column {column!r} is not known; {expected}")
    return names


def _number(text: str, name: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{where}, column {_PREFIX}{name}: expected a number, got {text!r}"
        ) from None


def _problem(
    image: str, split: str, values: Sequence[float], names: Sequence[str], seen: set[str]
) -> str:
    """What is wrong with one prediction: its column, what was expected; '' if nothing."""
    if not image:
        return "id: expected a name, got nothing"
    if image in seen:
        return f"id: expected each id once, got {image!r} again"
    if split not in ROLES:
        return f"split: expected one of {', '.join(ROLES)}, got {split!r}"
    for name, value in zip(names, values, strict=True):
        if not (math.isfinite(value) and value >= 0):
            return f"{_PREFIX}{name}: expected a number from 0 to 1, got {value}"
    if abs(sum(values) - 1) > _SUM_TOLERANCE:
        return f"{_PREFIX}{names[0]} and on: expected a sum of 1, got {sum(values):.6g}"
    return ""


def jsonable(value: Any) -> Any:
    """Plain dicts, lists and numbers for JSON, which has no NaN: NaN and infinity become None.

    Args:
        value: Results of `evaluate` or `summarise_seeds`, or any nest of dataclasses, mappings,
            sequences and numbers.

    Returns:
        The same nest, ready for ``json.dumps(..., allow_nan=False)``.

    Example:
        >>> jsonable({"accuracy": (np.float64(0.5), float("nan"))})
        {'accuracy': [0.5, None]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
