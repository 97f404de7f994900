"""Flags that say which models read fields, and what their truth is."""

from pathlib import Path
from typing import Any

from absl import app, flags

from replication.flags import shared
from tfds_pap import path_flags

_STAGE1 = path_flags.define(
    "stage1", None, "Run whose stage 1 finds cells.", path_flags.RUN, required=True
)
_STAGE2 = path_flags.define(
    "stage2", None, "Run whose stage 2 names them (default: that of --stage1).", path_flags.RUN
)
_PROTOCOL, _SEED = shared.trained("the runs'")
_TRUTH = path_flags.define(
    "truth",
    None,
    "CSV of annotated nuclei, field,x,y,label in pixels (default: nuclei.csv beside a field).",
    path_flags.FILE,
)
_COMPLETE_TRUTH = flags.DEFINE_bool(
    "complete_truth",
    False,
    "Every cell is annotated, so that false positives and precision can be told (default: off; on "
    "for phantoms).",
)
_MATCH_RADIUS = flags.DEFINE_float(
    "match_radius",
    None,
    "Farthest that a kept ROI's middle lies from the nucleus that it found, pixels of the file "
    "(default: 32 px as read).",
)


def models() -> dict[str, Any]:
    """Returns the arguments of `whole_fields.Models`."""
    return {
        "stage1": Path(_STAGE1.value),
        "stage2": Path(_STAGE2.value or _STAGE1.value),
        "protocol": _PROTOCOL.value,
        "seed": _SEED.value,
    }


def truth() -> Path | None:
    """Returns the file of annotated nuclei, where one is given."""
    return Path(_TRUTH.value) if _TRUTH.value else None


def complete_truth() -> bool:
    """Returns whether every cell is said to be annotated."""
    return _COMPLETE_TRUTH.value


def match_radius() -> float | None:
    """Returns the farthest of a match in pixels of the file, where it is given.

    Raises:
        app.UsageError: If it is not above 0.
    """
    check_positive(_MATCH_RADIUS)
    return _MATCH_RADIUS.value


def check_positive(flag: flags.FlagHolder) -> None:
    """Refuses a number that is not above 0.

    Args:
        flag: Of a number; None is accepted.

    Raises:
        app.UsageError: If it is 0, below, or not a number.
    """
    if flag.value is not None and not flag.value > 0:
        raise app.UsageError(f"--{flag.name}={flag.value}: expected a number above 0")
