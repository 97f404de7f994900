"""Flags that say how hard the audit looks, and what its findings are used for."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from tfds_pap import leak_audit

_AUDIT = flags.DEFINE_enum(
    "audit",
    "fast",
    ["full", "fast", "off"],
    "How hard the audit looks for the same picture on both sides: full, fast, or off (default: "
    "fast; `python -m tfds_pap.audit` looks with full).",
)
_TWINS = flags.DEFINE_enum(
    "twins",
    "together",
    ["together", "apart"],
    "Whether folds and the roles of the clean protocol keep images together that show the same "
    "thing by the audit (default: together); apart gives the figure without that.",
)


def effort() -> str:
    """Returns how hard to look."""
    return _AUDIT.value


def blocks(audits: "Mapping[str, leak_audit.Audit]") -> dict[str, Mapping[str, str]]:
    """Returns what cuts keep together, by data set; nothing where twins may be apart.

    Args:
        audits: By data set.
    """
    if _TWINS.value == "apart":
        return {}
    return {name: audit.blocks for name, audit in audits.items() if audit.joined()}


def note(audits: "Mapping[str, leak_audit.Audit]") -> list[str]:
    """Says what cuts do with twins, and how to get the figure without it.

    Args:
        audits: By data set.
    """
    sentences = [line for audit in audits.values() if (line := audit.joined())]
    if _TWINS.value == "apart":
        return [f"--twins=apart: {line.replace(' keep ', ' could keep ')}" for line in sentences]
    return [f"{line}; --twins=apart gives the figure without that" for line in sentences]


def identity() -> dict[str, object]:
    """Returns what results depend on, for `RunDirectory.open`."""
    return {"audit": _AUDIT.value, "twins": _TWINS.value}
