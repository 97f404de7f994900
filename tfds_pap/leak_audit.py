"""What a leak audit finds: twins, groups on both sides of a split, contradicting labels."""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets.public_api as tfds

from tfds_pap import near_duplicates, pipeline

#: What a pair may be, and from which overlap on two crops are one picture.
KINDS = ("identical pixels", "near-duplicate", "overlapping crops")
IDENTICAL, NEAR_DUPLICATE, OVERLAPPING = KINDS
_SAME_PICTURE = 0.8


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two images that show the same thing.

    Attributes:
        first: Id of one.
        second: Id of the other.
        kind: One of `KINDS`.
        view: Flip or turn that aligns them, see `near_duplicates.Match`.
        similarity: Correlation where they overlap, 0..1.
        overlap: Share of the first image that is in both.
        hash_bits: Bits of 64 by which their perceptual hashes differ.
        splits: Published split of each.
        labels: Class of each.
        groups: Group of each; "" where unknown.
    """

    first: str
    second: str
    kind: str
    view: int
    similarity: float
    overlap: float
    hash_bits: int
    splits: tuple[str, str]
    labels: tuple[str, str]
    groups: tuple[str, str]

    @property
    def same_picture(self) -> bool:
        """Whether nearly all of one is in the other."""
        return self.kind != OVERLAPPING

    @property
    def across(self) -> bool:
        """Whether they lie in different splits."""
        return self.splits[0] != self.splits[1]

    @property
    def contradicts(self) -> bool:
        """Whether they have different labels."""
        return self.labels[0] != self.labels[1]

    @property
    def between_groups(self) -> bool:
        """Whether they have different known groups."""
        return all(self.groups) and self.groups[0] != self.groups[1]


@dataclasses.dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        dataset: Name of the data set.
        ids: Ids of its images by published split.
        labels: Class of each image, by id.
        groups: Ids of the images of each known group.
        pairs: Every suspect pair, the most similar first.
    """

    dataset: str
    ids: dict[str, tuple[str, ...]]
    labels: dict[str, str]
    groups: dict[str, tuple[str, ...]]
    pairs: tuple[Pair, ...]

    @functools.cached_property
    def shared_groups(self) -> dict[str, tuple[str, ...]]:
        """Groups with images in more than one split."""
        split = {image: name for name, images in self.ids.items() for image in images}
        return {
            group: images
            for group, images in self.groups.items()
            if len({split[image] for image in images}) > 1
        }

    def suspects(self, tested: Collection[str]) -> set[str]:
        """Returns the tested images that have a twin, or an image of their group, elsewhere.

        Args:
            tested: Ids of every image that is tested together.
        """
        tested = set(tested)
        found = set()
        for pair in self.pairs:
            if (pair.first in tested) != (pair.second in tested):
                found |= {pair.first, pair.second} & tested
        for images in self.groups.values():
            if not tested.issuperset(images):
                found |= tested.intersection(images)
        return found

    def one_line(self) -> str:
        """Says what was found, for the line beside an accuracy."""
        total, known = len(self.labels), sum(map(len, self.groups.values()))
        contradicting = sum(pair.contradicts for pair in self.pairs if pair.same_picture)
        notes = []
        if contradicting:
            notes.append(f"pairs of the same picture under different labels: {contradicting}")
        if not known:
            notes.append("no group is known, so a slide on both sides cannot be seen")
        elif known < total:
            notes.append(f"the group of {total - known} images is unknown")
        if set(self.ids) == {"train", "validation"}:
            tested = set(self.ids["validation"])
            twins = {i for p in self.pairs if p.across for i in (p.first, p.second)} & tested
            line = f"{len(twins)} of {len(tested)} validation images have a twin in train"
            if known:
                shared = len(self.shared_groups)
                line += f"; {shared or 'no'} group{'s' if shared > 1 else ''} on both sides"
        else:
            line = f"pairs among {total} images that show the same thing: {len(self.pairs)}"
            if known:
                line += f", across groups: {sum(p.between_groups for p in self.pairs)}"
        return "; ".join([f"audit of {self.dataset}: {line}", *notes])

    def summary(self) -> dict[str, Any]:
        """Returns what goes into a manifest: the line and counts."""
        suspects = {
            split: collections.Counter(self.labels[image] for image in sorted(self.suspects(ids)))
            for split, ids in self.ids.items()
            if len(self.ids) > 1
        }
        return {
            "line": self.one_line(),
            "images": {split: len(ids) for split, ids in self.ids.items()},
            "pairs": {
                kind: {
                    "all": sum(pair.kind == kind for pair in self.pairs),
                    "across splits": sum(p.kind == kind and p.across for p in self.pairs),
                    "different labels": sum(p.kind == kind and p.contradicts for p in self.pairs),
                    "across groups": sum(p.kind == kind and p.between_groups for p in self.pairs),
                }
                for kind in KINDS
            },
            "groups on both sides": len(self.shared_groups),
            "suspect images": suspects,
        }


def audit(
    dataset: str, index: pipeline.Index, pixels: np.ndarray, *, features: np.ndarray | None = None
) -> Audit:
    """Audits decoded images.

    Args:
        dataset: Its name, for texts.
        index: Of the images.
        pixels: uint8 RGB `[n, 128, 128, 3]`, in the order of the index.
        features: float32 `[n, d]` of a frozen backbone, for nearest neighbours; None goes without.
    """
    ids, splits, groups = index.ids.tolist(), index.splits.tolist(), index.groups.tolist()
    labels = [index.class_names[label] for label in index.labels]

    def both(values: Sequence[str], match: near_duplicates.Match) -> tuple[str, str]:
        return values[match.first], values[match.second]

    pairs = tuple(
        Pair(
            *both(ids, match),
            kind=_kind(match),
            view=match.view,
            similarity=round(match.similarity, 4),
            overlap=round(match.overlap, 4),
            hash_bits=match.hash_bits,
            splits=both(splits, match),
            labels=both(labels, match),
            groups=both(groups, match),
        )
        for match in near_duplicates.find(pixels, features, sides=index.splits)
    )

    def images_by(keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
        found = collections.defaultdict(list)
        for key, image in sorted(zip(keys, ids, strict=True)):
            if key:
                found[key].append(image)
        return {key: tuple(images) for key, images in found.items()}

    return Audit(
        dataset=dataset,
        ids=images_by(splits),
        labels=dict(zip(ids, labels, strict=True)),
        groups=images_by(groups),
        pairs=pairs,
    )


def _kind(match: near_duplicates.Match) -> str:
    if match.identical:
        return IDENTICAL
    return NEAR_DUPLICATE if match.overlap >= _SAME_PICTURE else OVERLAPPING


def audit_builder(
    builder: tfds.core.DatasetBuilder, *, features: np.ndarray | None = None
) -> Audit:
    """Audits a prepared builder; without features the result is kept beside its data.

    Args:
        builder: From `pipeline.prepare` or `pipeline.prepare_folders`.
        features: See `audit`; in the order of `pipeline.read_index`.
    """
    code = hashlib.sha256()
    for module in (near_duplicates, sys.modules[__name__]):
        code.update(Path(module.__file__).read_bytes())
    key = hashlib.sha256(f"{builder.info.metadata['fingerprint']} {code.hexdigest()}".encode())
    path = Path(builder.data_dir) / f"leak-audit-{key.hexdigest()[:16]}.json"
    if features is None and path.exists():
        stored = json.loads(path.read_text())
        pairs = tuple(
            Pair(**{k: tuple(v) if isinstance(v, list) else v for k, v in pair.items()})
            for pair in stored.pop("pairs")
        )
        tuples = {
            name: {key: tuple(images) for key, images in stored.pop(name).items()}
            for name in ("ids", "groups")
        }
        return Audit(**stored, **tuples, pairs=pairs)
    store = pipeline.load_images(builder, near_duplicates.SIZE, "area")
    found = audit(builder.name, store.index, np.asarray(store.pixels), features=features)
    if features is None:
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(dataclasses.asdict(found)))
        partial.replace(path)
    return found
