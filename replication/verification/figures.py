"""Two sets of figures compared: same to the bit, same within what is allowed, or different."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from replication.measures.predictions import Predictions

#: How far a figure may be off that is computed from the same numbers: sums in another order.
TOLERANCE = 1e-6

#: Different figures of one place that are listed; of more the number is told.
_LISTED = 8

#: What has to be equal however a run was trained.
_COUNTS = frozenset({"count", "images", "seeds", "folds", "groups"})


@dataclasses.dataclass(frozen=True)
class Rule:
    """What counts as the same.

    Attributes:
        tolerance: Largest difference of two numbers, absolute and relative.
        by_interval: For two trainings that nothing makes identical: a figure with an interval is
            the same where it lies within the interval that is stated, counts of images have to be
            equal, and nothing else is judged.
        factor: By which a measured time may be off, either way.
        times: Names of columns with measured times.
        ignored: Names that say when, where and by whom something was made.
    """

    tolerance: float = TOLERANCE
    by_interval: bool = False
    factor: float = 4.0
    times: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()

    def allows(self, then: float, now: float) -> bool:
        """Whether two times are within the factor of each other."""
        return 0 < max(then, now) <= self.factor * min(then, now)

    @property
    def words(self) -> str:
        """The rule in words."""
        parts = [f"numbers within {self.tolerance:g}"]
        if self.by_interval:
            parts.append("figures with an interval within the interval stated")
        if self.times:
            parts.append(f"times within a factor of {self.factor:g}")
        return ", ".join(parts)


@dataclasses.dataclass
class Checked:
    """What came out of one place, such as a file.

    Attributes:
        place: Its name.
        figures: Number of values that were compared.
        same: How many of them were equal to the bit.
        largest: Of numbers that were not, the largest difference among those within the tolerance.
        within: Of figures that differ by more, how many are within their interval or factor.
        unjudged: Of figures that differ, how many have no interval to be judged by.
        different: What is different, in words: name, what is stated, what it is.
        notes: What was not compared, and why.
        beside: What was read for it outside the directory, which whoever made that chose.
    """

    place: str
    figures: int = 0
    same: int = 0
    largest: float = 0.0
    within: int = 0
    unjudged: int = 0
    different: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    beside: str = ""

    def lines(self) -> Iterator[str]:
        """What came out, in words, the place first."""
        by = f" (read: {self.beside})" if self.beside else ""
        if self.different:
            of = f"{len(self.different)} of {self.figures} figures" if self.figures else "all of it"
            yield f"{self.place}{by}: DIFFERENT: {of}"
            yield from (f"  {line}" for line in self.different[:_LISTED])
            if len(self.different) > _LISTED:
                yield f"  and {len(self.different) - _LISTED} more"
        elif self.figures:
            noun = "figure" if self.figures == 1 else "figures"
            yield f"{self.place}{by}: {self.figures} {noun}, {self._verdict()}"
        yield from (f"{self.place}: {note}" for note in self.notes)

    def _verdict(self) -> str:
        if self.same == self.figures:
            return "same to the bit"
        rest = self.figures - self.same - self.within - self.unjudged
        parts = [f"{self.same} same to the bit"] if self.same else []
        parts += [f"{rest} same within {self.largest:.1g}"] if rest else []
        parts += [f"{self.within} within the interval or factor allowed"] if self.within else []
        parts += [f"{self.unjudged} differ and have no interval"] if self.unjudged else []
        return ", ".join(parts)

    def compare(self, name: str, then: Any, now: Any, rule: Rule) -> None:
        """Compares two values, mappings or sequences of them.

        Args:
            name: Of the value, for `different`.
            then: As it is stated.
            now: As it came out.
            rule: What counts as the same.
        """
        if isinstance(then, Mapping) and isinstance(now, Mapping):
            self._compare_mappings(name, then, now, rule)
        elif _is_list(then) and _is_list(now) and len(then) == len(now):
            for number, (one, other) in enumerate(zip(then, now, strict=True)):
                self.compare(f"{name}[{number}]", one, other, rule)
        else:
            self._compare_values(name, then, now, rule)

    def _compare_mappings(
        self, name: str, then: Mapping[str, Any], now: Mapping[str, Any], rule: Rule
    ) -> None:
        judged = {*then, *now} - rule.ignored
        for value in {"value", "mean"} & judged:
            ends = [then.get("low"), then.get("high")]
            if rule.by_interval and all(_is_number(each) for each in (*ends, now.get(value))):
                self._compare_with_interval(
                    f"{name}.{value}", then[value], now[value], ends, rule.tolerance
                )
                judged -= {value, "low", "high"}
        for key in [*then, *(key for key in now if key not in then)]:
            if key in judged:
                inner = f"{name}.{key}" if name else key
                if key not in then or key not in now:
                    self.figures += 1
                    lack = "is not stated" if key not in then else "is stated and did not come out"
                    self.different.append(f"{inner} {lack}")
                else:
                    self.compare(inner, then[key], now[key], rule)

    def _compare_with_interval(
        self, name: str, then: float, now: float, ends: Sequence[Any], tolerance: float
    ) -> None:
        """Compares two figures of which the first has an interval."""
        self.figures += 1
        if then == now:
            self.same += 1
        elif ends[0] - tolerance <= now <= ends[1] + tolerance:
            self.within += 1
        else:
            self.different.append(
                f"{name}: {then!r} [{ends[0]:.6g}, {ends[1]:.6g}] is stated, it is {now!r}"
            )

    def _compare_values(self, name: str, then: Any, now: Any, rule: Rule) -> None:
        self.figures += 1
        column = name.rpartition(".")[2]
        numbers = _is_number(then) and _is_number(now)
        gap = abs(then - now) if numbers else math.inf
        if then == now or (_is_nan(then) and _is_nan(now)):
            self.same += 1
        elif numbers and gap <= rule.tolerance * max(1.0, abs(then), abs(now)):
            self.largest = max(self.largest, gap)
        elif numbers and column in rule.times and rule.allows(then, now):
            self.within += 1
        elif rule.by_interval and column not in _COUNTS:
            self.unjudged += 1
        else:
            self.different.append(f"{name}: {then!r} is stated, it is {now!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def tables(
    place: str, then: pd.DataFrame, now: pd.DataFrame, rule: Rule, keys: Sequence[str] = ()
) -> Checked:
    """Compares two tables.

    Args:
        place: Name of the table.
        then: As it is stated.
        now: As it came out.
        rule: What counts as the same; columns NAME_low and NAME_high are ends of NAME's interval,
            and `low` and `high` of `mean`.
        keys: Columns that name a row; none takes rows by their order.
    """
    checked = Checked(place)
    rows = [_by_key(table, keys) for table in (then, now)]
    for key in [*rows[0], *(key for key in rows[1] if key not in rows[0])]:
        if key not in rows[0] or key not in rows[1]:
            lack = "is not stated" if key not in rows[0] else "is stated and did not come out"
            checked.figures += 1
            checked.different.append(f"row {_words(key)} {lack}")
    for key, row in rows[0].items():
        if key in rows[1]:
            checked.compare(
                f"row {_words(key)}", _with_intervals(row), _with_intervals(rows[1][key]), rule
            )
    return checked


def _by_key(table: pd.DataFrame, keys: Sequence[str]) -> dict[Any, dict[str, Any]]:
    rows: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(table.to_dict("records"), start=1):
        values = {str(name): _plain(value) for name, value in row.items()}
        rows[tuple(str(values[key]) for key in keys) or number] = values
    return rows


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _words(key: Any) -> str:
    return ", ".join(key) if isinstance(key, tuple) else str(key)


def _with_intervals(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with each figure that has an interval as a mapping of value, low and high."""
    nested: dict[str, Any] = {}
    for name, value in row.items():
        if f"{name}_low" in row:
            nested[name] = {"value": value, "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
        elif not any(
            name.removesuffix(end) in row for end in ("_low", "_high") if name.endswith(end)
        ):
            nested[name] = value
    return nested


def predictions(place: str, then: Path, now: Path, rule: Rule) -> Checked:
    """Compares two predictions files; where trainings may differ, only what was scored.

    Args:
        place: Name of the file.
        then: As it is stated.
        now: As it came out.
        rule: What counts as the same.

    Raises:
        ValueError: One is no predictions file; see `Predictions.read`.
    """
    one, other = Predictions.read(then), Predictions.read(now)
    checked = Checked(place)
    for name in ("class_names", "ids", "groups", "splits"):
        checked.compare(name, [*getattr(one, name)], [*getattr(other, name)], rule)
    checked.compare("labels", one.labels.tolist(), other.labels.tolist(), rule)
    if checked.different:
        return checked
    changed = int((one.predicted != other.predicted).sum())
    if rule.by_interval:
        gap = abs(one.probabilities - other.probabilities).max()
        checked.notes.append(
            f"{changed} of {len(one)} images got another class, probabilities differ by up to "
            f"{gap:.2g}; judged by the figures made of them"
        )
    else:
        for row, image in enumerate(one.ids):
            checked.compare(
                f"probabilities of {image}",
                one.probabilities[row].tolist(),
                other.probabilities[row].tolist(),
                rule,
            )
    return checked


def say(checks: Iterable[Checked]) -> bool:
    """Prints what came out of each place as it comes; returns whether nothing is different."""
    good = True
    for checked in checks:
        print(*checked.lines(), sep="\n", flush=True)
        good = good and not checked.different
    return good
