"""Flags that name a place: `~` is the home directory, and what must be there is looked for at once.

It is looked for while flags are parsed, before anything slow is imported.
"""

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from absl import flags

from tfds_pap import files, redaction, urls

flags.disclaim_key_flags()

#: What a place may have to be: a folder, a file, the directory of a run or search; a RESULT is that
#: of any command, or holds the versions of a model; ANYTHING is not looked at. Only a FOLDER_OR_URL
#: may be a URL: of a folder, which is looked for when it is read, see `copies.folder`.
FOLDER, FOLDER_OR_URL, FILE, RUN = "folder", "folder or URL", "file", "run"
RESULT, ANYTHING = "result", ""

#: What a place that is written may have to be: a folder or file that is there or can be made.
#: A STORE may also be there and closed for writing, since what is needed may lie in it already.
NEW_FOLDER, NEW_FILE, STORE = "new folder", "new file", "store"

#: Where TFDS keeps prepared data if nothing else is said.
PREPARED = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")


def _is_result(path: Path) -> bool:
    names = ("manifest.json", "saved_model.pb", "*/saved_model.pb")
    return path.is_dir() and any(True for name in names for _ in path.glob(name))


#: Said where a URL is given to a flag that takes none.
_NO_URL = (
    "expected a path, not a URL: those are taken for --manual_dir, --folders, --backgrounds and "
    "--annotated_fields, for slides in --slides, and for images to name and fields to scan"
)

_FAULTS: Mapping[str, Callable[[Path], str]] = {
    FOLDER: lambda path: "" if path.is_dir() else "no such folder",
    FOLDER_OR_URL: lambda path: "" if path.is_dir() else "no such folder",
    FILE: lambda path: "" if path.is_file() else "no such file",
    RUN: lambda path: (
        "" if (path / "manifest.json").exists() else "not a run directory (no manifest.json)"
    ),
    RESULT: lambda path: (
        ""
        if _is_result(path)
        else "not a directory of results (no manifest.json, no saved_model.pb)"
    ),
    ANYTHING: lambda path: "",
}


class _PathParser(flags.ArgumentParser):
    def __init__(self, must_be: str) -> None:
        # Places that are written are looked at when all flags are known: the default of one that
        # is not used must not keep a module from being imported.
        self._fault = _FAULTS.get(must_be, _FAULTS[ANYTHING])
        self._may_be_url = must_be == FOLDER_OR_URL

    def parse(self, argument: str) -> str:
        if urls.is_url(argument):
            if not self._may_be_url:
                raise ValueError(_NO_URL)
            try:
                urls.check(argument)
            except urls.UrlError as error:
                raise ValueError(
                    str(error).removeprefix(f"{redaction.redacted(argument)}: ")
                ) from None
            return argument
        path = Path(argument).expanduser()
        if fault := self._fault(path):
            raise ValueError(fault)
        return str(path)

    def flag_type(self) -> str:
        return "path or URL" if self._may_be_url else "path"


class _WordOrPathParser(flags.ArgumentParser):
    def __init__(self, words: Collection[str], fault: str) -> None:
        self._words, self._fault = words, fault

    def parse(self, argument: str) -> str:
        if urls.is_url(argument):
            raise ValueError(_NO_URL)
        if not is_word_or_path(argument, self._words):
            raise ValueError(self._fault)
        return argument

    def flag_type(self) -> str:
        return "word or path"


def is_word_or_path(value: str, words: Collection[str]) -> bool:
    """Tells whether a value is one of `words`, or a file or folder that is there."""
    return value in words or Path(value).expanduser().exists()


def define_word_or_path(
    name: str, default: str | None, help_text: str, words: Collection[str], fault: str
) -> flags.FlagHolder[str]:
    """Defines a flag whose value is one of a few words, or the path of what is there.

    Args:
        name: Of the flag.
        default: Its value where it is not given; None leaves that to the command.
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
    otherwise: str = "",
) -> flags.FlagHolder:
    """Defines a flag whose value is a path, with `~` resolved.

    Args:
        name: Of the flag.
        default: Its value where it is not given; of a flag that must be something, None.
        help_text: States the default.
        must_be: `FOLDER`, `FOLDER_OR_URL`, `FILE`, `RUN`, `RESULT`, `ANYTHING`, `NEW_FOLDER`,
            `NEW_FILE` or `STORE`.
        required: Whether it must be given.
        otherwise: Where is written if the flag is not given and has no default.
    """
    holder = flags.DEFINE(_PathParser(must_be), name, default, help_text, required=required)
    if must_be in (NEW_FOLDER, NEW_FILE, STORE):

        def check(value: str | None) -> bool:
            place = value or otherwise
            path = Path(place).expanduser()
            is_open = not place or (must_be == STORE and path.is_dir())
            if fault := "" if is_open else files.why_unwritable(path, is_file=must_be == NEW_FILE):
                raise flags.ValidationError(fault if value else f"{place} by default: {fault}")
            return True

        flags.register_validator(holder, check)
    return holder
