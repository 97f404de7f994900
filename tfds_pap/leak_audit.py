"""What a leak audit finds: twins, groups on both sides of a split, contradicting labels."""

import collections
import dataclasses
import functools
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets.public_api as tfds

from tfds_pap import (
    affine_fit,
    alignment,
    blocks,
    content,
    files,
    keypoints,
    name_stems,
    near_duplicates,
    pipeline,
    preparing,
    twin_blocks,
    twin_candidates,
    twin_cluster,
)
from tfds_pap.errors import PapError
from tfds_pap.splits import TEST, TRAIN, VALIDATION

if TYPE_CHECKING:
    import distributed

#: What a pair may be, and from which overlap on two crops are one picture.
KINDS = ("identical pixels", "near-duplicate", "overlapping crops")
IDENTICAL, NEAR_DUPLICATE, OVERLAPPING = KINDS
_SAME_PICTURE = 0.8

#: How hard may be looked; off looks at no picture.
EFFORTS = (*near_duplicates.EFFORTS, "off")

#: Bytes of decoded pictures that are kept in memory; above it they lie in a file.
_BUDGET_BYTES = 1024**3

_RATES = (
    "Of planted twins that share half of their picture, and there more than empty ground (turned, "
    "mirrored, stretched, recompressed, zoomed, brighter, cut, mixed; windows of LBC and CRIC "
    "fields, phantoms), it found {lowest} to 100 % of each kind; false alarms in {pairs} pairs: at "
    "most {alarms}"
)
#: What an audit finds, and what not: the lowest row of each in results/audit_recall.csv.
BLIND = {
    "full": _RATES.format(lowest="96.4", alarms=0, pairs="18,336"),
    "fast": _RATES.format(lowest="96.4", alarms=0, pairs="18,336"),
    "off": "no picture was compared, so copies of one on both sides cannot be seen",
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two images that show the same thing.

    Attributes:
        first: Id of one.
        second: Id of the other.
        kind: One of `KINDS`.
        matrix: Lays the second on the first, see `alignment.Alignment`.
        similarity: Correlation where they overlap, 0..1.
        overlap: Share of the first image that is in both.
        splits: Published split of each.
        labels: Class of each.
        groups: Group of each; "" where unknown.
    """

    first: str
    second: str
    kind: str
    matrix: tuple[float, ...]
    similarity: float
    overlap: float
    splits: tuple[str, str]
    labels: tuple[str, str]
    groups: tuple[str, str]

    @property
    def alignment(self) -> alignment.Alignment:
        """How the second lies on the first."""
        return alignment.Alignment(self.matrix)

    @property
    def harm(self) -> tuple[bool, ...]:
        """Sorts pairs: those that flatter a figure, or contradict one another, come first."""
        return (
            not (self.across and self.contradicts),
            not self.across,
            not (self.contradicts and self.same_picture),
            not self.between_groups,
            not self.contradicts,
        )

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
        effort: One of `EFFORTS`.
    """

    dataset: str
    ids: dict[str, tuple[str, ...]]
    labels: dict[str, str]
    groups: dict[str, tuple[str, ...]]
    pairs: tuple[Pair, ...]
    effort: str = "full"

    @functools.cached_property
    def blocks(self) -> dict[str, str]:
        """What a cut must keep together, by id: groups, joined where images of two are twins.

        Where no group is known, images and their twins.
        """
        return blocks.join(
            {image: "" for image in self.labels}
            | {image: group for group, images in self.groups.items() for image in images},
            [(pair.first, pair.second) for pair in self.pairs],
        )

    def joined(self) -> str:
        """Says what `blocks` keeps together beside groups; "" for nothing."""
        if self.groups:
            count = sum(pair.between_groups for pair in self.pairs)
            what = "whose groups differ"
        else:
            count, what = len(self.pairs), "(no group is known)"
        if not count:
            return ""
        return f"cuts of {self.dataset} keep {count} pairs of twins {what} together"

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
        suspects = set()
        for pair in self.pairs:
            if (pair.first in tested) != (pair.second in tested):
                suspects |= {pair.first, pair.second} & tested
        for images in self.groups.values():
            if not tested.issuperset(images):
                suspects |= tested.intersection(images)
        return suspects

    @property
    def held_out(self) -> list[str]:
        """Names of the splits that are held out of a train split; none without one."""
        return [name for name in (VALIDATION, TEST) if name in self.ids and TRAIN in self.ids]

    @property
    def twins(self) -> set[str]:
        """Held-out images that show the same thing as an image of the train split."""
        trained = set(self.ids.get(TRAIN, ()))
        pairs = [{pair.first, pair.second} for pair in self.pairs if pair.across]
        return set().union(*(pair for pair in pairs if pair & trained)) - trained

    def one_line(self) -> str:
        """Says what was found, for the line beside an accuracy."""
        total, known = len(self.labels), sum(map(len, self.groups.values()))
        if self.effort == "off":
            return f"audit of {self.dataset}: off; {BLIND['off']}"
        contradicting = sum(pair.contradicts for pair in self.pairs if pair.same_picture)
        notes = []
        if contradicting:
            notes.append(f"pairs of the same picture under different labels: {contradicting}")
        if not known:
            notes.append("no group is known, so a slide on both sides cannot be seen")
        elif known < total:
            notes.append(f"the group of {total - known} images is unknown")
        variants = name_stems.variants(
            {image: split for split, images in self.ids.items() for image in images}
        )
        if variants:
            notes.append(
                f"{variants} file names are those of a variant of an image"
                f"{' of another split' if len(self.ids) > 1 else ''} (a hint, no proof)"
            )
        if self.held_out:
            line = " and ".join(
                f"{len(self.twins.intersection(self.ids[name]))} of {len(self.ids[name])} {name} "
                "images"
                for name in self.held_out
            )
            line += " have a twin in train"
            if known:
                shared = len(self.shared_groups)
                line += f"; {shared or 'no'} group{'s' if shared > 1 else ''} on both sides"
        else:
            line = f"pairs among {total} images that show the same thing: {len(self.pairs)}"
            if known:
                line += f", across groups: {sum(p.between_groups for p in self.pairs)}"
        return "; ".join([f"audit of {self.dataset} ({self.effort}): {line}", *notes])

    def blindness(self) -> str:
        """Says in one line what this audit finds, at which rate, and what it cannot see."""
        rates = BLIND[self.effort]
        patients = "It sees pictures, not patients: two cells of one slide are no twins"
        return f"{patients}. {rates}" if rates else patients

    def summary(self) -> dict[str, Any]:
        """Returns what goes into a manifest: the line and counts."""
        suspects = {
            split: collections.Counter(self.labels[image] for image in sorted(self.suspects(ids)))
            for split, ids in self.ids.items()
            if len(self.ids) > 1
        }
        return {
            "line": f"{self.one_line()}. {self.blindness()}",
            "effort": self.effort,
            "images": {split: len(ids) for split, ids in self.ids.items()},
            "pairs": {
                kind: {
                    "all": sum(pair.kind == kind for pair in self.pairs),
                    "across splits": sum(p.kind == kind and p.across for p in self.pairs),
                    "different labels": sum(p.kind == kind and p.contradicts for p in self.pairs),
                    # Where no group is known, none can be said to be crossed.
                    "across groups": sum(p.kind == kind and p.between_groups for p in self.pairs)
                    if self.groups
                    else None,
                }
                for kind in KINDS
            },
            "groups on both sides": len(self.shared_groups) if self.groups else None,
            "suspect images": suspects,
        }


def audit(
    dataset: str,
    index: pipeline.Index,
    pixels: np.ndarray,
    *,
    features: np.ndarray | None = None,
    effort: str = "full",
) -> Audit:
    """Audits decoded images.

    Args:
        dataset: Its name, for texts.
        index: Of the images.
        pixels: uint8 RGB `[n, 128, 128, 3]`, in the order of the index.
        features: float32 `[n, d]` of a frozen backbone, for nearest neighbours; None goes without.
        effort: One of `near_duplicates.EFFORTS`.
    """
    matches = near_duplicates.find(pixels, features, sides=index.splits, effort=effort)
    return _of_matches(dataset, index, matches, effort)


def _of_matches(
    dataset: str, index: pipeline.Index, matches: Iterable[near_duplicates.Match], effort: str
) -> Audit:
    ids, splits, groups = index.ids.tolist(), index.splits.tolist(), index.groups.tolist()
    labels = [index.class_names[label] for label in index.labels]

    def both(values: Sequence[str], match: near_duplicates.Match) -> tuple[str, str]:
        return values[match.first], values[match.second]

    pairs = tuple(
        Pair(
            *both(ids, match),
            kind=_kind(match),
            matrix=match.alignment.matrix,
            similarity=round(match.similarity, 4),
            overlap=round(match.overlap, 4),
            splits=both(splits, match),
            labels=both(labels, match),
            groups=both(groups, match),
        )
        for match in matches
    )
    return _of_index(dataset, index, pairs, effort)


def _of_index(dataset: str, index: pipeline.Index, pairs: tuple[Pair, ...], effort: str) -> Audit:
    ids = index.ids.tolist()

    def images_by(keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
        ids_of_key = collections.defaultdict(list)
        for key, image in sorted(zip(keys, ids, strict=True)):
            if key:
                ids_of_key[key].append(image)
        return {key: tuple(images) for key, images in ids_of_key.items()}

    return Audit(
        dataset=dataset,
        ids=images_by(index.splits.tolist()),
        labels={
            image: index.class_names[label] for image, label in zip(ids, index.labels, strict=True)
        },
        groups=images_by(index.groups.tolist()),
        pairs=pairs,
        effort=effort,
    )


def _kind(match: near_duplicates.Match) -> str:
    if match.identical:
        return IDENTICAL
    # Nearly all of one in the other is not enough: a cell cut out of a field is not that field.
    mutual = min(match.overlap, match.reversed().overlap)
    return NEAR_DUPLICATE if mutual >= _SAME_PICTURE else OVERLAPPING


def audit_builder(
    builder: tfds.core.DatasetBuilder,
    *,
    features: np.ndarray | None = None,
    effort: str = "full",
    client: "distributed.Client | None" = None,
) -> Audit:
    """Audits a prepared builder; without features the result is kept beside its data.

    Args:
        builder: From `preparing.prepare` or `preparing.prepare_folders`.
        features: See `audit`; in the order of `pipeline.read_index`.
        effort: One of `EFFORTS`; "off" compares no picture and says so.
        client: From `cluster.connected`: its workers compute, block by block, and find the same.
            They see the builder's files under the same path. None computes here.

    Raises:
        PapError: If a worker does not see the same images, or the cluster is lost.
    """
    index = pipeline.read_index(builder)
    if effort == "off":
        return _of_index(builder.name, index, (), effort)
    code = hashlib.sha256()
    for module in (
        affine_fit, alignment, content, keypoints, near_duplicates, twin_blocks, twin_candidates,
        sys.modules[__name__],
    ):  # fmt: skip
        code.update(Path(str(module.__file__)).read_bytes())
    about = (preparing.identity(builder), index.order, effort, code.hexdigest())
    key = hashlib.sha256(" ".join(about).encode())
    path = Path(builder.data_dir) / f"leak-audit-{key.hexdigest()[:16]}.json"

    def found() -> Audit:
        if client is not None:
            return _on_cluster(client, builder, index, features, effort, path.with_suffix(""))
        store = pipeline.load_images(
            builder, near_duplicates.SIZE, "area", budget_bytes=_BUDGET_BYTES
        )
        pixels = np.asarray(store.pixels)
        return audit(builder.name, store.index, pixels, features=features, effort=effort)

    if features is not None:
        return found()
    return _kept(path, builder.name, index, effort, found)


def _kept(
    path: Path, dataset: str, index: pipeline.Index, effort: str, found: Callable[[], Audit]
) -> Audit:
    """Reads an audit where it is kept, and keeps it there where it is not."""
    if path.exists():
        try:
            return _of_index(dataset, index, _stored_pairs(path), effort)
        except (PapError, KeyError, TypeError) as error:
            print(f"Note: {path} is damaged ({str(error).splitlines()[0]}); comparing again")
    result = found()
    stored = [dataclasses.asdict(pair) for pair in result.pairs]
    files.write_json(path, {"pairs": stored, "digest": _digest(stored)})
    return result


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """The images of a builder, as workers read them."""

    data_dir: str

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        builder = preparing.open_prepared(self.data_dir)
        return pipeline.load_part(builder, start, stop, near_duplicates.SIZE, "area")

    def __str__(self) -> str:
        return self.data_dir


def _on_cluster(
    client: "distributed.Client",
    builder: tfds.core.DatasetBuilder,
    index: pipeline.Index,
    features: np.ndarray | None,
    effort: str,
    folder: Path,
) -> Audit:
    """Audits by the workers of a cluster, whose blocks lie in a folder until all are done."""
    if features is not None:
        digest = hashlib.sha256(features.tobytes()).hexdigest()
        folder = folder.with_name(f"{folder.name}-{digest[:16]}")
    folder = folder.absolute().with_name(f"{folder.name}.blocks")
    folder.mkdir(exist_ok=True)
    with files.locked(folder):
        # Another process that held the lock may have removed it.
        folder.mkdir(exist_ok=True)
        matches = twin_cluster.find(
            client,
            _Prepared(str(Path(builder.data_dir).absolute())),
            index.ids,
            index.splits,
            folder,
            features=features,
            effort=effort,
        )
        shutil.rmtree(folder)
    return _of_matches(builder.name, index, matches, effort)


def _digest(stored: list[dict[str, Any]]) -> str:
    # As it reads back: tuples become lists.
    return hashlib.sha256(json.dumps(stored).encode()).hexdigest()


def _stored_pairs(path: Path) -> tuple[Pair, ...]:
    """Reads what `audit_builder` keeps; errors of many kinds where it is damaged."""
    kept = files.read_json(path)
    if kept["digest"] != _digest(kept["pairs"]):
        raise PapError("its digest differs")
    return tuple(_stored_pair(values) for values in kept["pairs"])


def _stored_pair(values: dict[str, Any]) -> Pair:
    # JSON has lists for tuples.
    of_tuples: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return Pair(**of_tuples)
