"""Whose images a run is about: what its user declared, and the sentence that says so.

Nothing in a picture proves whose it is, so that it is declared and never guessed. A declaration is
refused where it contradicts what the authors published of their images.
"""

from collections.abc import Mapping

import tensorflow_datasets.public_api as tfds

from replication.measures import published
from tfds_pap import preparing, published_facts
from tfds_pap.errors import PapError

_PHANTOM = (
    "Synthetic images, drawn by this package. No figure below says anything about real smears or "
    "may be called a replication of a published one."
)
_NO_REPLICATION = "No figure below may be called a replication of a published one."
_STAND_IN = f"These are not the papers' images (--images=stand-in). {_NO_REPLICATION}"
_UNDECLARED = (
    "Whose images these are was not declared (--images=original or --images=stand-in), so that "
    f"they are not taken for the papers' own. {_NO_REPLICATION}"
)
_ORIGINAL = (
    "The papers' own images, as the user of this command declares (--images=original). Names, "
    "format, size and counts agree with what is published; no checksum is published that could "
    "prove it."
)

_FOLDERS = (
    "Not the papers' images: a tree of class folders. No figure below may be called a replication "
    "of a published one."
)

#: What stands at the top of every page, by source.
SENTENCES: Mapping[published.Source, str] = {
    "original": _ORIGINAL,
    "phantom": _PHANTOM,
    "stand-in": _STAND_IN,
    "undeclared": _UNDECLARED,
}


def source(
    builders: Mapping[int, tfds.core.DatasetBuilder],
    declared: published.Source | None,
) -> tuple[published.Source, str]:
    """Tells whose images these are, and the sentence that announces it.

    Args:
        builders: Prepared builder of each stage.
        declared: "original", "stand-in" or None, the word of whoever gave the images.

    Raises:
        PapError: If images that are declared to be the authors' own cannot be.
    """
    if any(builder.builder_config.phantom_counts for builder in builders.values()):
        return "phantom", SENTENCES["phantom"]
    if any(builder.name in preparing.FOLDER_SETS.values() for builder in builders.values()):
        return "stand-in", _FOLDERS
    if declared == "original":
        contradictions = [
            f"in {builder.TREE} {phrase}"
            for builder in builders.values()
            for phrase in published_facts.contradictions(builder)
        ]
        if contradictions:
            raise PapError(
                "--images=original: these cannot be the papers' images: "
                f"{'; '.join(contradictions)}; give --images=stand-in for images of others"
            )
    name: published.Source = declared or "undeclared"
    return name, SENTENCES[name]
