"""Flags that name a place: `~` is the home directory, and what must be there is looked for at once.

It is looked for while flags are parsed, before anything slow is imported.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from absl import flags

flags.disclaim_key_flags()

#: What a place may have to be: a folder, a file, the directory of a run or search, or the directory
#: that holds the versions of a model; ANYTHING is not looked at, since the command may make it.
FOLDER, FILE, RUN, ANYTHING = "folder", "file", "run", ""

_FAULTS: Mapping[str, Callable[[Path], str]] = {
    FOLDER: lambda path: "" if path.is_dir() else "no such folder",
    FILE: lambda path: "" if path.is_file() else "no such file",
    RUN: lambda path: (
        "" if (path / "manifest.json").exists() else "not a run directory (no manifest.json)"
    ),
    ANYTHING: lambda path: "",
}


class _PathParser(flags.ArgumentParser):
    def __init__(self, must_be: str) -> None:
        self._fault = _FAULTS[must_be]

    def parse(self, argument: str) -> str:
        path = Path(argument).expanduser()
        if fault := self._fault(path):
            raise ValueError(fault)
        return str(path)

    def flag_type(self) -> str:
        return "path"


def define(
    name: str,
    default: str | None,
    help_text: str,
    must_be: str = ANYTHING,
    *,
    required: bool = False,
) -> flags.FlagHolder:
    """Defines a flag whose value is a path, with `~` resolved.

    Args:
        name: Of the flag.
        default: Its value where it is not given; of a flag that must be something, None.
        help_text: States the default.
        must_be: `FOLDER`, `FILE`, `RUN` or `ANYTHING`.
        required: Whether it must be given.
    """
    return flags.DEFINE(_PathParser(must_be), name, default, help_text, required=required)
