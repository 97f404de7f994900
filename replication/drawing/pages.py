"""What all pages share: how templates are loaded, whose images they are, and durations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import jinja2

from replication.measures import published

#: What a page says of what its run does not.
UNKNOWN = "unknown"

_UNKNOWN_SOURCE = (
    "It is not known whose images these are. No figure below may be called a replication of a "
    "published one."
)


def template(package: str, name: str) -> jinja2.Template:
    """Loads a template, which may build on those of this folder and of `tfds_pap`.

    Args:
        package: The package that the template lies in, beside its modules.
        name: Its file name.

    Returns:
        The template; what it prints is escaped, and an unknown name is an error.

    Raises:
        jinja2.TemplateNotFound: There is no such template.
    """
    environment = jinja2.Environment(
        # A path of ".": templates lie beside the modules.
        loader=jinja2.ChoiceLoader(
            [
                jinja2.PackageLoader(each, ".")
                for each in dict.fromkeys((package, "replication.drawing", "tfds_pap"))
            ]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def source(manifest: Mapping[str, Any]) -> published.Source:
    """Whose images a run is about; never the authors' own where the manifest does not say it.

    Args:
        manifest: What `manifest.json` of the run directory holds.
    """
    for declared in get_args(published.Source):
        if manifest.get("source") == declared:
            return declared
    drawn = mapping(manifest.get("identity")).get("source") == "phantom"
    return "phantom" if drawn else "stand-in"


def announcement(manifest: Mapping[str, Any]) -> str:
    """The sentence for the top of a page; "" for the authors' own images.

    A manifest that does not say whose images they are must not pass for a replication.

    Args:
        manifest: What `manifest.json` of the run directory holds.
    """
    unknown = "" if manifest.get("source") == "original" else _UNKNOWN_SOURCE
    return str(manifest.get("announcement") or unknown)


def mapping(value: Any) -> Mapping[str, Any]:
    """A part of a manifest; empty where it is missing or no mapping."""
    return value if isinstance(value, Mapping) else {}


def whole_number(value: Any) -> str:
    """A whole number with thousands set apart, or that it is not known."""
    return f"{value:,}" if isinstance(value, int) else UNKNOWN


def memory(value: Any) -> str:
    """Mebibytes with their unit, or that they are not known."""
    return f"{value:,.0f} MiB" if isinstance(value, int | float) else UNKNOWN


def duration(seconds: float, digits: int = 1) -> str:
    """Writes a time in the unit that suits it, for example '5.0 min'.

    Args:
        seconds: Duration, 0 or more.
        digits: Decimals of seconds and minutes; 0 for an estimate.
    """
    if seconds < 100:
        return f"{seconds:.{digits}f} s"
    return f"{seconds / 60:.{digits}f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def beside(directory: Path, name: str) -> str:
    """Returns the name of a file for a link, "" where there is none.

    Args:
        directory: Where the page lies.
        name: File name.
    """
    return name if (directory / name).is_file() else ""
