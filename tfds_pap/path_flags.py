"""Flags that name a place: `~` is the home directory, and what must be there is looked for at once.

It is looked for while flags are parsed, before anything slow is imported.
"""

from collections.abc import Callable, Collection, Mapping
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


class _WordOrPathParser(flags.ArgumentParser):
    def __init__(self, words: Collection[str], fault: str) -> None:
        self._words, self._fault = words, fault

    def parse(self, argument: str) -> str:
        if not is_word_or_path(argument, self._words):
            raise ValueError(self._fault)
        return argument

    def flag_type(self) -> str:
        return "word or path"


def is_word_or_path(value: str, words: Collection[str]) -> bool:
    """Tells whether a value is one of `words`, or a file or folder that is there."""
    return value in words or Path(value).expanduser().exists()


def define_word_or_path(
    name: str, default: str, help_text: str, words: Collection[str], fault: str
) -> flags.FlagHolder[str]:
    """Defines a flag whose value is one of a few words, or the path of what is there.

    Args:
        name: Of the flag.
        default: Its value where it is not given.
        help_text: States the default.
        words: Of which it may be one.
        fault: What is said where it is neither.
    """
    return flags.DEFINE(_WordOrPathParser(words, fault), name, default, help_text)


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
