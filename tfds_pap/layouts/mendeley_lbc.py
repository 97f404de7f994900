"""Mendeley LBC: class folders of fields named `SLIDE (N).jpg`, as `HSIL_1 (12).jpg`.

Hussain 2019, doi 10.17632/zddtpgzv63.4: 962 fields of 61 slides in four classes.
"""

import collections
import dataclasses
import re

from tfds_pap.layouts.listing import ListedFile, Walk

_NAME = re.compile(r"(?P<slide>(?:HSIL|LSIL|NILM|NL|SCC)_\d+)_? ?\((?P<number>\d+)\)", re.I)

#: What the set calls its folders, and the Bethesda class.
_FOLDERS = {
    "high squamous intra-epithelial lesion": "HSIL",
    "low squamous intra-epithelial lesion": "LSIL",
    "negative for intraepithelial malignancy": "NILM",
    "squamous cell carcinoma": "SCC",
}


def matches(files: list[ListedFile]) -> bool:
    """Whether nine of ten pictures are named by slide and number."""
    named = sum(bool(_NAME.search(file.path.name)) for file in files)
    return bool(files) and named >= 0.9 * len(files)


def read(walk: Walk, files: list[ListedFile]) -> tuple[list[ListedFile], list[str]]:
    """Names slides and classes, and keeps one of each image's variants.

    Args:
        walk: Over the tree.
        files: Of the class folders.
    """
    variants: dict[tuple[str, str, int], list[ListedFile]] = collections.defaultdict(list)
    for file in files:
        label = _FOLDERS.get(file.label.lower(), file.label)
        name = _NAME.search(file.path.name)
        if name is None:
            walk.offenders.setdefault(
                file.id, "expected a name such as HSIL_1 (12).jpg, a slide and a number"
            )
            continue
        slide = name["slide"].upper()
        known = dataclasses.replace(file, label=label, group=slide)
        variants[label, slide, int(name["number"])].append(known)
    kept = []
    for same in variants.values():
        # The name alone, without what a program put before or behind it, comes first.
        first, *others = sorted(
            same, key=lambda file: (not _NAME.fullmatch(file.path.stem), file.id)
        )
        kept.append(first)
        for other in others:
            walk.pass_over(other.path, f"augmented copy of {first.id}")
    notes = [f"{len({file.group for file in kept})} slides, from the names, are groups"]
    if left := len(files) - len(kept):
        notes.append(
            f"{left} files are variants of others by their stem, and passed over; an image counts "
            "once"
        )
    return kept, notes
