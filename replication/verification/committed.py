"""A committed table of results/ made again by the commands that its rows name."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from replication.verification import figures, repeated
from replication.verification.figures import Checked, Rule
from tfds_pap import files
from tfds_pap.errors import PapError

#: Beside the tables: how each is made again.
RECIPES = "tables.json"

#: What a row may name: a script of the checkout, or a command of this package.
_PROGRAM = re.compile(r"benchmarks/\w+\.py|-m (replication|finetune|serving|tfds_pap)(\.\w+)+")

#: What stands in a command for a place of the machine that it ran on.
_PLACE = re.compile(r"\b(DIR|FOLDERS|WEIGHTS|RUN|FIELDS?)\b")


def recipe(path: Path) -> dict[str, Any]:
    """Returns how a table is made again, from `tables.json` beside it.

    Args:
        path: The table.

    Returns:
        `row`: columns that name a row; `times`: columns with measured times; `file`: the table's
        name in the run directory of a command, "" where the command has --csv; `minutes`: what
        its longest command takes on two cores; `refused`: why it is not made again, or "".

    Raises:
        PapError: The table stands in no such file.
    """
    recipes = files.read_json(path.parent / RECIPES)
    if path.name not in recipes:
        raise PapError(f"--csv={path}: {path.parent / RECIPES} does not say how it is made again")
    made = recipes[path.name]
    if why := made.get("refused"):
        raise PapError(f"--csv={path}: not made again: {why}")
    return made


def checks(
    path: Path,
    minutes: float,
    places: Mapping[str, str],
    scratch: Path,
    factor: float,
    *,
    only: str = "",
) -> Iterator[Checked]:
    """Makes a table again, a command at a time.

    Args:
        path: The table, in results/ of a checkout.
        minutes: That a command may take.
        places: From a flag's name, or from a word such as WEIGHTS, to the place it stands for.
        scratch: Where commands write.
        factor: By which times may be off, either way.
        only: Words that a command has to hold; of the others nothing is said.

    Yields:
        What came out of each command, or why it was not run.

    Raises:
        PapError: The table cannot be made again, or a command failed.
    """
    how = recipe(path)
    table = pd.read_csv(path)
    table = table[table["command"].str.contains(only, regex=False)]
    if table.empty:
        raise PapError(f"--only={only}: no command of {path} holds that")
    for number, (command, rows) in enumerate(table.groupby("command", sort=False)):
        place = f"{path.name}, {len(rows)} rows of `{command}`"
        typed = shlex.split(str(command))[1:]
        made = scratch / f"{number}.csv"
        try:
            _is_known(typed)
            typed = _with_places(typed, places, made)
            if not how.get("file"):
                _has_csv(typed)
            if how["minutes"] > minutes:
                raise PapError(f"takes about {how['minutes']:g} minutes; --minutes allows it")
        except PapError as error:
            yield Checked(place, notes=[f"not repeated: {error}"])
            continue
        if how.get("file"):
            typed += [
                f"--run_dir={scratch / str(number)}",
                f"--features_dir={scratch / 'features'}",
            ]
            made = scratch / str(number) / how["file"]
        print(f"repeating: python {shlex.join(typed)}", flush=True)
        repeated.start(typed, path.parent.resolve().parent)
        rule = Rule(
            factor=factor,
            by_interval=bool(how.get("file")),
            times=frozenset(how.get("times", [])),
            # Columns that were added by hand, such as whose images they are.
            ignored=repeated.ABOUT | frozenset(how.get("ignored", [])),
        )
        yield figures.tables(place, rows, pd.read_csv(made), rule, how["row"])


def _with_places(typed: list[str], places: Mapping[str, str], made: Path) -> list[str]:
    """Puts real places into a command, and its table where it is looked for."""
    if typed[:1] == ["-m"]:
        head, rest = typed[:2], typed[2:]
    else:
        head, rest = typed[:1], typed[1:]
    words = []
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag == "--csv":
            words.append(f"--csv={made}")
            continue
        for place in _PLACE.findall(value if equals else word):
            name = flag.lstrip("-") if place == "DIR" else place
            if name not in places:
                raise PapError(f"{word} stands for what is not here: give --place={name}=PATH")
            value = value.replace(place, places[name], 1)
        words.append(flag + equals + value)
    return [*head, *words]


def _is_known(typed: list[str]) -> None:
    if not any(_PROGRAM.fullmatch(" ".join(typed[:count])) for count in (1, 2)):
        raise PapError("is no script of benchmarks/ and no command of this package")


def _has_csv(typed: list[str]) -> None:
    if not any(word.startswith("--csv=") for word in typed):
        raise PapError("its command writes no table (no --csv)")
