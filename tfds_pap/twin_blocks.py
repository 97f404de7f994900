"""The steps of a leak audit on a cluster; each runs in a worker and leaves a file.

    pictures_<b>.npy     pixels, keypoints, hashes and digest of a block of pictures
    plan.npz             which pictures are compared, on which side; the projection
    lists_<s>.faiss      empty inverted lists of a side with many keypoints
    hashes_<s>.faiss     hashes of a side
    vectors_<b>.npy      projected keypoints of a block, as they are and mirrored
    scattered_<b>.npz    whither each of them goes: the list where it lies, those where it asks
    few_<s>.npy          the keypoints of a side that has few
    met_<s>_<p>.npz      what each keypoint met in one part of the lists
    candidates_<b>.npz   pairs that a block asks for, by the block of the first
    matches_<b>.npy      which of them are twins

The caller (`twin_cluster`) makes the plan and the hashes. From `scattered` to `met` is the shuffle:
a list is a bucket, all that lies or asks there meets in one task, and nothing else is compared.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import cv2
import faiss
import numpy as np
import threadpoolctl

from tfds_pap import alignment, files, keypoints, near_duplicates, twin_candidates
from tfds_pap.alignment import SIZE
from tfds_pap.near_duplicates import Candidate, Match
from tfds_pap.twin_candidates import Described

#: Pairs that are compared with their pictures in memory at one time.
_PAIRS = 1_000

#: A number that tells keypoints apart: picture times this, plus its place among those of it.
_OF_A_PICTURE = 128

_MEMBER = np.dtype(
    [("key", "<i8"), ("list", "<i8"), ("angle", "<f4"), ("size", "<f4"), ("vector", "<f4", (64,))]
)
_ASK = np.dtype([("query", "<i4"), ("slot", "<i4"), ("list", "<i8"), ("nearness", "<f4")])
_NEAR = np.dtype([("key", "<i8"), ("score", "<f4"), ("angle", "<f4"), ("size", "<f4")])


class Images(Protocol):
    """Pictures that every worker can read; it can be pickled."""

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids `[n]`, and pixels, uint8 RGB `[n, 128, 128, 3]`, of some of them."""
        ...


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """Pictures that lie in one `.npy`, uint8 RGB `[n, 128, 128, 3]`; their ids are their places.

    Attributes:
        path: That all workers see.
    """

    path: Path

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and pixels of some of them."""
        return np.arange(start, stop), np.load(self.path, mmap_mode="r")[start:stop]


@dataclasses.dataclass(frozen=True)
class Work:
    """What all blocks of an audit share.

    Attributes:
        folder: Where the files lie; all workers see it under this path.
        images: The pictures.
        count: How many there are.
        effort: One of `near_duplicates.EFFORTS`.
        block: Pictures a block.
    """

    folder: Path
    images: Images
    count: int
    effort: str
    block: int

    @property
    def blocks(self) -> range:
        """Numbers of the blocks."""
        return range(-(-self.count // self.block))

    @property
    def how(self) -> twin_candidates.Effort:
        """How hard is looked."""
        return near_duplicates.EFFORTS[self.effort]

    def record(self) -> np.dtype:
        """Returns what is kept of each picture."""
        count = self.how.detected
        return np.dtype(
            [("pixels", "u1", (SIZE, SIZE, 3)), ("digest", "u1", 32),
             ("hashes", "<u8", alignment.VIEWS), ("count", "<i4"), ("place", "<f4", (count, 2)),
             ("angle", "<f4", count), ("size", "<f4", count), ("descriptors", "u1", (count, 128))]
        )  # fmt: skip

    def pictures(self, block: int) -> np.ndarray:
        """Opens what is kept of the pictures of a block."""
        return np.load(self.folder / f"pictures_{block:05d}.npy", mmap_mode="r")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which pictures are compared, and by which lists.

    Attributes:
        side: Number of the side of each picture, int16; -1 of one that equals another there.
        parts: For each side, how many tasks its lists are dealt to; 0 where all are compared.
        project: Of descriptors; None where there are not two keypoints.
    """

    side: np.ndarray
    parts: tuple[int, ...]
    project: twin_candidates.Projection | None


def alone(step: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a step to the threads of its worker; products of matrices to one, as everywhere."""

    @functools.wraps(step)
    def limited(*arguments: Any) -> Any:
        threads = keypoints.threads()
        cv2.setNumThreads(threads)
        # faiss counts the threads of OpenMP for each thread that calls it.
        faiss.omp_set_num_threads(threads)
        with threadpoolctl.threadpool_limits(1, "blas"):
            return step(*arguments)

    return limited


@alone
def describe(work: Work, block: int) -> np.ndarray:
    """Reads the pictures of a block, finds keypoints and hashes; returns the ids."""
    start = block * work.block
    ids, pixels = work.images.read(start, min(start + work.block, work.count))
    grey = _grey(pixels)
    points = keypoints.detect(grey, work.how.detected)
    kept = np.zeros(len(pixels), work.record())
    kept["pixels"], kept["hashes"] = pixels, near_duplicates.hashes_of(grey)
    kept["count"] = np.diff(points.start)
    for number, picture in enumerate(pixels):
        rows, one = points.rows(number), kept[number]
        one["digest"] = np.frombuffer(near_duplicates.digest(picture), np.uint8)
        for name in ("place", "angle", "size", "descriptors"):
            one[name][: one["count"]] = getattr(points, name)[rows]
    save(work.folder / f"pictures_{block:05d}.npy", kept)
    return ids


@alone
def scatter(work: Work, block: int) -> None:
    """Says of each keypoint of a block in which list it lies, and in which ones it asks."""
    plan = plan_of(work.folder)
    if plan.project is None:
        return
    numbers, points = _compared(work, plan, block)
    pictures = np.arange(len(numbers))
    asking, asker = points.strongest(pictures, work.how.indexed)
    described = points.descriptors[asking]
    vectors = np.stack([plan.project(described, mirror) for mirror in (False, True)])
    save(work.folder / f"vectors_{block:05d}.npy", vectors)
    content: dict[str, np.ndarray] = {
        "key": numbers[asker] * _OF_A_PICTURE + asking - points.start[asker],
        "angle": points.angle[asking],
        "size": points.size[asking],
    }
    for side, parts in enumerate(plan.parts):
        rows, owner = points.strongest(pictures[plan.side[numbers] == side], work.how.indexed)
        members = np.zeros(len(rows), _MEMBER)
        members["key"] = numbers[owner] * _OF_A_PICTURE + rows - points.start[owner]
        members["angle"], members["size"] = points.angle[rows], points.size[rows]
        members["vector"] = plan.project(points.descriptors[rows])
        if not parts:
            content[f"members_{side}"] = members
            continue
        index = _lists(work.folder, side)
        if len(members):
            members["list"] = twin_candidates.lists_of(
                index, np.ascontiguousarray(members["vector"])
            )[0][:, 0]
        asks = _asks(index, vectors)
        for name, entries in (("members", members), ("asks", asks)):
            part = entries["list"] * parts // index.nlist
            for number in np.unique(part):
                content[f"{name}_{side}_{number}"] = entries[part == number]
    save_all(work.folder / f"scattered_{block:05d}.npz", content)


def _asks(index: faiss.IndexIVF, vectors: np.ndarray) -> np.ndarray:
    """Which keypoint asks in which list; those of mirrored pictures after those that are not."""
    asks = []
    for mirror, asking in enumerate(vectors):
        if len(asking):
            lists, nearness = twin_candidates.lists_of(index, asking)
            one = np.zeros(lists.shape, _ASK)
            one["query"] = np.arange(len(asking))[:, None] + mirror * len(asking)
            one["slot"] = np.arange(lists.shape[1])
            one["list"], one["nearness"] = lists, nearness
            asks.append(one[lists >= 0])
    return np.concatenate([np.empty(0, _ASK), *asks])


@alone
def gather(work: Work, side: int) -> None:
    """Puts the keypoints of a side that has few into one file."""
    save(work.folder / f"few_{side}.npy", _members(work, f"members_{side}"))


@alone
def meet(work: Work, side: int, part: int) -> None:
    """Lets all that ask in some lists of a side meet what lies there."""
    members = _members(work, f"members_{side}_{part}")
    index: Any = faiss.read_index(str(work.folder / f"lists_{side}.faiss"))
    twin_candidates.add(index, members["vector"], members["list"], np.arange(len(members)))
    content = {}
    count = twin_candidates.neighbours_of(work.how)
    for block in work.blocks:
        asks = _scattered(work, block, f"asks_{side}_{part}")
        if asks is None:
            continue
        vectors = np.load(work.folder / f"vectors_{block:05d}.npy", mmap_mode="r")
        scores, ids = twin_candidates.met(
            index, vectors.reshape(-1, vectors.shape[2])[asks["query"]], asks["list"],
            asks["nearness"], count,
        )  # fmt: skip
        near = np.zeros(ids.shape, _NEAR)
        if len(members):
            for name in ("key", "angle", "size"):
                near[name] = members[name][ids]
        near["key"][ids < 0] = -1
        near["score"] = scores
        content[f"place_{block}"] = np.stack([asks["query"], asks["slot"]])
        content[f"near_{block}"] = near
    save_all(work.folder / f"met_{side}_{part:04d}.npz", content)


@alone
def vote(work: Work, block: int) -> None:
    """Finds the pairs that a block asks for, by what its keypoints met, and by hash."""
    plan = plan_of(work.folder)
    found: set[Candidate] = set()
    if plan.project is not None:
        found.update((a, b, mirror, None) for a, b, mirror in _by_keypoints(work, plan, block))
    numbers, _ = _compared(work, plan, block)
    hashes = work.pictures(block)["hashes"][numbers - block * work.block]
    for side in range(len(plan.parts)):
        index = _hashes(work.folder, side)
        members = np.flatnonzero(plan.side == side)
        found.update(near_duplicates.near_hashes(index, members, hashes, numbers))
    save_candidates(work, f"candidates_{block:05d}", found)


def _by_keypoints(work: Work, plan: Plan, block: int) -> Iterator[tuple[int, int, bool]]:
    with np.load(work.folder / f"scattered_{block:05d}.npz") as scattered:
        key, angle, size = (scattered[name] for name in ("key", "angle", "size"))
    if not len(key):
        return
    each: Iterable[np.ndarray]
    ours = Described(key // _OF_A_PICTURE, angle, size)
    vectors = np.load(work.folder / f"vectors_{block:05d}.npy")
    for side, parts in enumerate(plan.parts):
        if parts:
            each = _met(work, side, parts, block, (2, len(key)))
        else:
            each = [_among_few(work, side, asking) for asking in vectors]
        for mirror, near in zip((False, True), each, strict=True):
            owner = np.where(near["key"] >= 0, near["key"] // _OF_A_PICTURE, -1)
            theirs = Described(owner, near["angle"], near["size"])
            pairs = twin_candidates.agreeing(ours, theirs, mirror, work.how)
            yield from ((a, b, mirror) for a, b in pairs)


def _among_few(work: Work, side: int, vectors: np.ndarray) -> np.ndarray:
    """The neighbours of each vector on a side all of which is compared, `[n, k]`."""
    members = np.load(work.folder / f"few_{side}.npy")
    count = twin_candidates.neighbours_of(work.how)
    if not len(members):
        return np.full((len(vectors), count), -1, _NEAR)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(members["vector"]))
    ids = index.search(vectors, count)[1]
    near = np.zeros(ids.shape, _NEAR)
    for name in ("key", "angle", "size"):
        near[name] = members[name][ids]
    near["key"][ids < 0] = -1
    return near


def _met(
    work: Work, side: int, parts: int, block: int, shape: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The neighbours of each keypoint of a block, `[n, k]`, then those of the mirrored ones."""
    count = twin_candidates.neighbours_of(work.how)
    entries = []
    for part in range(parts):
        with np.load(work.folder / f"met_{side}_{part:04d}.npz") as met:
            if f"place_{block}" in met:
                entries.append((met[f"place_{block}"], met[f"near_{block}"]))
    slots = 1 + max(place[1].max() for place, _ in entries)
    for mirror in range(shape[0]):
        near = np.full((shape[1], slots, count), -1, _NEAR)
        for (query, slot), of_part in entries:
            ours = query // shape[1] == mirror
            near[query[ours] % shape[1], slot[ours]] = of_part[ours]
        near = near.reshape(shape[1], -1)
        key, angle, size = twin_candidates.best_of(
            near["score"], count, near["key"], near["angle"], near["size"]
        )
        best = np.zeros(key.shape, _NEAR)
        best["key"], best["angle"], best["size"] = key, angle, size
        yield best


@alone
def verify(work: Work, block: int) -> None:
    """Compares the candidates whose first picture lies in a block."""
    candidates = [np.empty((0, 4), np.int64)]
    for path in sorted(work.folder.glob("candidates_*.npz")):
        with np.load(path) as asked:
            if f"of_{block}" in asked:
                candidates.append(asked[f"of_{block}"])
    pairs = np.unique(np.concatenate(candidates), axis=0)
    save(work.folder / f"matches_{block:05d}.npy", _verified(work, pairs))


@alone
def verify_some(work: Work, name: str, candidates: np.ndarray) -> None:
    """Compares given candidates, int64 `[n, 4]`, ascending."""
    save(work.folder / f"{name}.npy", _verified(work, candidates))


def _verified(work: Work, candidates: np.ndarray) -> np.ndarray:
    """The twins, a row each: first, second, matrix, similarity, overlap, whether pixels equal."""
    rows = [np.empty((0, 11))]
    # One pair may be looked at in several ways; the best of them counts.
    starts = np.flatnonzero((np.diff(candidates[:, :2], axis=0, prepend=-1) != 0).any(axis=1))
    for some in np.split(candidates, starts[::_PAIRS][1:]) if len(candidates) else ():
        numbers = np.unique(some[:, :2])
        pictures = _of(work, numbers)
        points = _points(pictures)
        comparison = alignment.Comparison(_grey(pictures["pixels"]), points)
        places = np.searchsorted(numbers, some[:, :2])
        pairs = [
            (a, b, bool(mirrored), None if view < 0 else view)
            for (a, b), (mirrored, view) in zip(places.tolist(), some[:, 2:].tolist(), strict=True)
        ]
        for match in near_duplicates.compare(comparison, pairs, near_duplicates.unseen).values():
            a, b = match.first, match.second
            equal = near_duplicates.same_in_view(
                match, pictures["pixels"][a], pictures["pixels"][b]
            )
            values = (*match.alignment.matrix, match.similarity, match.overlap, equal)
            rows.append(np.array([[numbers[a], numbers[b], *values]], float))
    return np.concatenate(rows)


def matches_in(path: Path) -> Iterator[tuple[Match, bool]]:
    """Reads the twins of one file, and whether the pixels of each are equal."""
    for first, second, *matrix, similarity, overlap, equal in np.load(path).tolist():
        lay = alignment.Alignment(tuple(matrix))
        yield Match(int(first), int(second), lay, similarity, overlap), bool(equal)


def candidates_of(found: set[Candidate]) -> np.ndarray:
    """Returns candidates as int64 `[n, 4]`, ascending; a view that is not known as -1."""
    rows = [(a, b, mirrored, -1 if view is None else view) for a, b, mirrored, view in found]
    return np.array(sorted(rows), np.int64).reshape(-1, 4)


def save_candidates(work: Work, name: str, found: set[Candidate]) -> None:
    """Writes candidates, those of each block of the first picture apart."""
    rows = candidates_of(found)
    block = rows[:, 0] // work.block
    parts = {f"of_{number}": rows[block == number] for number in np.unique(block)}
    save_all(work.folder / f"{name}.npz", parts)


def save(path: Path, values: np.ndarray) -> None:
    """Writes an array whole or not at all."""
    with files.replacing(path) as partial, partial.open("wb") as file:
        np.save(file, values)


def save_all(path: Path, values: dict[str, np.ndarray]) -> None:
    """Writes arrays whole or not at all."""
    with files.replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **values)


# A worker outlives audits: a plan that was made again is read again.
def plan_of(folder: Path) -> Plan:
    """Reads the plan."""
    return _plan(folder, (folder / "plan.npz").stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _plan(folder: Path, modified: int) -> Plan:
    with np.load(folder / "plan.npz") as stored:
        project = None
        if "centre" in stored:
            project = twin_candidates.Projection(stored["centre"], stored["directions"])
        return Plan(stored["side"], tuple(stored["parts"].tolist()), project)


def _lists(folder: Path, side: int) -> Any:
    path = folder / f"lists_{side}.faiss"
    return _read_lists(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_lists(path: Path, modified: int) -> Any:
    return faiss.read_index(str(path))


def _hashes(folder: Path, side: int) -> faiss.IndexBinary:
    path = folder / f"hashes_{side}.faiss"
    return _read_hashes(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_hashes(path: Path, modified: int) -> faiss.IndexBinary:
    return faiss.read_index_binary(str(path))


def _grey(pixels: np.ndarray) -> np.ndarray:
    return np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pixels])


def _compared(work: Work, plan: Plan, block: int) -> tuple[np.ndarray, keypoints.Keypoints]:
    """Numbers of the pictures of a block that are compared, and their keypoints."""
    first = block * work.block
    places = np.flatnonzero(plan.side[first : first + work.block] >= 0)
    return first + places, _points(work.pictures(block)[places])


def _of(work: Work, numbers: np.ndarray) -> np.ndarray:
    """What is kept of pictures of several blocks."""
    kept = np.empty(len(numbers), work.record())
    block = numbers // work.block
    for one in np.unique(block):
        ours = block == one
        kept[ours] = work.pictures(int(one))[numbers[ours] - one * work.block]
    return kept


def _points(pictures: np.ndarray) -> keypoints.Keypoints:
    there = np.arange(pictures["angle"].shape[1]) < pictures["count"][:, None]
    return keypoints.Keypoints(
        start=np.cumsum([0, *pictures["count"]]),
        **{name: pictures[name][there] for name in ("place", "angle", "size", "descriptors")},
    )


def _members(work: Work, name: str) -> np.ndarray:
    parts = (_scattered(work, block, name) for block in work.blocks)
    return np.concatenate([np.empty(0, _MEMBER), *(part for part in parts if part is not None)])


def _scattered(work: Work, block: int, name: str) -> np.ndarray | None:
    with np.load(work.folder / f"scattered_{block:05d}.npz") as scattered:
        return scattered.get(name)
