"""The flag that says whose images lie in --manual_dir; every command that gives verdicts has it."""

from typing import Literal

from absl import app, flags

_IMAGES = flags.DEFINE_enum(
    "images",
    None,
    ["original", "stand-in"],
    "Whose images lie in --manual_dir: the papers' own (original; refused where names, size, "
    "format or counts contradict what is published), or others in their layout (stand-in). "
    "Only original gets verdicts against the papers (default: not declared, no verdicts).",
)


def declared(manual_dir: str | None) -> Literal["original", "stand-in"] | None:
    """Returns what --images declares: "original", "stand-in", or None where it is not given.

    Args:
        manual_dir: Of the same command.

    Raises:
        app.UsageError: If no folder is given whose images it could be about.
    """
    if _IMAGES.value and manual_dir is None:
        raise app.UsageError(
            f"--images={_IMAGES.value} says whose images lie in --manual_dir, which is not given"
        )
    return _IMAGES.value
