"""Flags that name a lab's own tree of class folders, and how it is to be read."""

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from tfds_pap import copies, layouts, path_flags, urls

if TYPE_CHECKING:
    import tensorflow_datasets.public_api as tfds

_FOLDERS = path_flags.define(
    "folders",
    None,
    "A tree of class folders, PATH/<class>/* or PATH/{train,val,test}/<class>/*, with optional "
    "groups.csv (file,group), splits.csv (file,split) and classes.csv (name,shown,order,positive), "
    "instead of the authors'; a URL such as s3://BUCKET/FOLDER is copied to this machine first "
    "(default: none).",
    path_flags.FOLDER_OR_URL,
)
_LAYOUT = flags.DEFINE_enum(
    "layout",
    "auto",
    list(layouts.NAMES),
    "How --folders lies: auto recognises it and says what it took it for (default: auto).",
)
_GROUPS_FROM = flags.DEFINE_string(
    "groups_from",
    None,
    "Regular expression that finds the group, such as the slide, in the names of the files of "
    "--folders: its first parenthesis, or all that matches (default: groups.csv or the layout).",
)
_IGNORE = flags.DEFINE_list(
    "ignore",
    [],
    "Patterns of files of --folders to pass over, such as *.dat,*-mask.png (default: none).",
)
_WHOLE_FIELDS = flags.DEFINE_bool(
    "whole_fields",
    False,
    "Of layouts with whole fields above cut cells, take the fields (default: off, the cells).",
)


def given() -> bool:
    """Returns whether --folders is given."""
    return _FOLDERS.value is not None


def check(manual_dir: str | None = None) -> None:
    """Refuses flags about --folders without it, or beside another tree.

    Args:
        manual_dir: Of the same command, where it names a tree instead of --folders.

    Raises:
        app.UsageError: In one line.
    """
    if given() and manual_dir:
        raise app.UsageError("--folders and --manual_dir: give one of them")
    values = {
        "groups_from": _GROUPS_FROM.value,
        "ignore": _IGNORE.value,
        "whole_fields": _WHOLE_FIELDS.value,
        "layout": _LAYOUT.value != "auto",
    }
    for name, value in values.items():
        if value and not given():
            raise app.UsageError(f"--{name} is about --folders, which is not given")
    if _GROUPS_FROM.value is not None:
        try:
            re.compile(_GROUPS_FROM.value)
        except re.error as error:
            raise app.UsageError(
                f"--groups_from={_GROUPS_FROM.value}: expected a regular expression, {error}"
            ) from None


def name() -> str:
    """Returns the tree's name, for a path."""
    value = _FOLDERS.value
    last = urls.name(value.rstrip("/")) if urls.is_url(value) else Path(value).resolve().name
    return re.sub(r"[^A-Za-z0-9_-]+", "_", last)


@functools.cache
def listing() -> layouts.Listing:
    """Reads which files the tree has, and what is known of them; decodes none.

    Raises:
        folders.TreeError: If the tree cannot be used, or may be meant in several ways.
        urls.UrlError: If it lies behind a URL, and cannot be copied from there.
    """
    return layouts.read(
        copies.folder(_FOLDERS.value),
        _LAYOUT.value,
        groups_from=_GROUPS_FROM.value,
        ignore=_IGNORE.value,
        fields=_WHOLE_FIELDS.value,
    )


def announce() -> None:
    """Prints what the tree was taken for: classes, counts, groups, splits, what was passed over."""
    if given():
        print(*listing().lines(), sep="\n", flush=True)


def prepare(data_dir: str | None) -> "tfds.core.DatasetBuilder":
    """Returns the prepared builder of the tree.

    Args:
        data_dir: Where TFDS keeps prepared data; None takes its default.

    Raises:
        folders.TreeError: If the tree cannot be used.
    """
    from tfds_pap import preparing

    return preparing.prepare_listing(listing(), data_dir)


def identity() -> dict[str, object]:
    """Returns what results depend on beside the images, for `RunDirectory.open`."""
    return {"layout": listing().layout} if given() else {}
