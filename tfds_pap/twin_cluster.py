"""Finds twins as `near_duplicates.find` does, by the workers of a cluster.

The same pictures meet in the same lists, so the same pairs are candidates, and each is compared by
the same function: what is found is the same, to the last digit. What every worker needs to know of
all pictures is small and made here: the plan, empty lists, eight bytes of hash a picture.
"""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import threadpoolctl
import tqdm

from tfds_pap import cluster, files, near_duplicates, twin_blocks, twin_candidates
from tfds_pap.errors import PapError
from tfds_pap.near_duplicates import Match
from tfds_pap.twin_blocks import Work

if TYPE_CHECKING:
    import distributed

#: Keypoints that lie in the lists of one task, and tasks a side at most.
_PART = 50_000
_MOST_PARTS = 1_000

#: Implied pairs a task.
_IMPLIED = 2_000


def find(
    client: "distributed.Client",
    images: twin_blocks.Images,
    ids: np.ndarray,
    sides: np.ndarray,
    folder: Path,
    *,
    features: np.ndarray | None = None,
    effort: str = "full",
) -> list[Match]:
    """Finds pairs that show the same thing.

    Args:
        client: From `cluster.connected`.
        images: Read by the workers.
        ids: Of the images, `[n]`.
        sides: Split of each image, `[n]`.
        folder: Where blocks are kept, which workers see under the same path; what lies there of
            the same images and effort is not computed again.
        features: See `near_duplicates.find`.
        effort: One of `near_duplicates.EFFORTS`.

    Returns:
        What `near_duplicates.find` returns.

    Raises:
        PapError: If a worker does not see the same images, or the cluster is lost.
    """
    if len(ids) < 2:
        return []
    work = Work(folder, images, len(ids), effort, twin_candidates.blocks(len(ids)))
    described = [b for b in work.blocks if not (folder / f"pictures_{b:05d}.npy").exists()]

    def same_images(block: tuple, seen: np.ndarray) -> None:
        first = block[1] * work.block
        if not np.array_equal(seen, ids[first : first + work.block]):
            (folder / f"pictures_{block[1]:05d}.npy").unlink(missing_ok=True)
            raise PapError(f"{images}: a worker sees other images there than this process")

    _run(client, "keypoints", twin_blocks.describe, [(work, b) for b in described], same_images)
    digests = (one["digest"].tobytes() for b in work.blocks for one in work.pictures(b))
    equals = near_duplicates.same_pixels(digests, sides)
    rows = near_duplicates.distinct(equals)
    _plan(work, rows, sides)
    plan = twin_blocks.plan_of(folder)
    if features is not None:
        by_side = [np.flatnonzero(plan.side[rows] == side) for side in range(len(plan.parts))]
        found = near_duplicates.by_features(np.asarray(features, np.float32)[rows], by_side)
        numbered: set[near_duplicates.Candidate] = {
            (int(rows[a]), int(rows[b]), mirrored, None) for a, b, mirrored, _ in found
        }
        twin_blocks.save_candidates(work, "candidates_features", numbered)
    _search(client, work, plan)
    by_pair: dict[tuple[int, int], Match] = {}
    equal: set[tuple[int, int]] = set()

    def read(names: Iterable[str]) -> dict[tuple[int, int], Match]:
        pairs = {}
        for name in names:
            for match, same in twin_blocks.matches_in(folder / f"{name}.npy"):
                pairs[match.first, match.second] = match
                if same:
                    equal.add((match.first, match.second))
        return pairs

    rounds = iter(range(near_duplicates.CLOSURE_ROUNDS))

    def compare(more: list) -> dict[tuple[int, int], Match]:
        prefix = f"implied_{next(rounds)}"
        candidates = twin_blocks.candidates_of(set(more))
        parts = [candidates[n : n + _IMPLIED] for n in range(0, len(candidates), _IMPLIED)]
        names = [f"{prefix}_{number:05d}" for number in range(len(parts))]
        calls = [
            (work, name, part)
            for name, part in zip(names, parts, strict=True)
            if not (folder / f"{name}.npy").exists()
        ]
        _run(client, "comparing more", twin_blocks.verify_some, calls)
        return read(names)

    by_pair.update(read(f"matches_{b:05d}" for b in work.blocks))
    if work.how.closure:
        near_duplicates.close(by_pair, compare)
    exact = [near_duplicates.exact(m, equal=pair in equal) for pair, m in by_pair.items()]
    return near_duplicates.ranked(exact, equals)


def _search(client: "distributed.Client", work: Work, plan: twin_blocks.Plan) -> None:
    """The shuffle, the votes and the comparison of the candidates."""

    def missing(
        words: str, step: Callable[..., Any], name: str, places: Iterable[tuple[int, ...]]
    ) -> None:
        there = {path.name for path in work.folder.iterdir()}
        calls = [(work, *place) for place in places if name.format(*place) not in there]
        _run(client, words, step, calls)

    blocks = [(block,) for block in work.blocks]
    if plan.project is not None:
        missing("lists", twin_blocks.scatter, "scattered_{:05d}.npz", blocks)
        few = [(side,) for side, parts in enumerate(plan.parts) if not parts]
        missing("small sides", twin_blocks.gather, "few_{}.npy", few)
        dealt = [(side, part) for side, parts in enumerate(plan.parts) for part in range(parts)]
        missing("neighbours", twin_blocks.meet, "met_{}_{:04d}.npz", dealt)
    missing("candidates", twin_blocks.vote, "candidates_{:05d}.npz", blocks)
    missing("comparing", twin_blocks.verify, "matches_{:05d}.npy", blocks)


def _run(
    client: "distributed.Client",
    words: str,
    step: Callable[..., Any],
    calls: list[tuple],
    told: Callable[[tuple, Any], None] = lambda call, outcome: None,
) -> None:
    """Runs a step over blocks; they end in any order."""
    with (
        tqdm.tqdm(
            total=len(calls), desc=f"audit: {words}", unit="block", leave=False, disable=None
        ) as bar,
        contextlib.closing(cluster.outcomes(client, step, calls)) as done,
    ):
        for number, outcome in done:
            told(calls[number], outcome)
            bar.update()


def _plan(work: Work, rows: np.ndarray, sides: np.ndarray) -> None:
    """Decides what is compared by which lists, as `twin_candidates.by_keypoints` does."""
    if (work.folder / "plan.npz").exists():
        return
    names = np.unique(sides)
    side = np.full(work.count, -1, np.int16)
    side[rows] = np.searchsorted(names, sides[rows])
    counts = np.concatenate([work.pictures(block)["count"] for block in work.blocks])
    hashes = np.concatenate([work.pictures(block)["hashes"][:, 0] for block in work.blocks])
    content: dict[str, np.ndarray] = {"side": side}
    parts: list[int] = []
    with threadpoolctl.threadpool_limits(1, "blas"):
        total = int(counts[rows].sum())
        if total >= 2:
            sample = _descriptors(work, rows, counts[rows], twin_candidates.sample_of(total))
            project = twin_candidates.Projection.of(sample)
            content |= {"centre": project.centre, "directions": project.directions}
        for number in range(len(names)):
            members = np.flatnonzero(side == number)
            index = twin_candidates.hash_index(hashes[members])
            with files.replacing(work.folder / f"hashes_{number}.faiss") as partial:
                faiss.write_index_binary(index, str(partial))
            indexed = counts[members].clip(max=work.how.indexed)
            total = int(indexed.sum())
            if twin_candidates.few(total):
                parts.append(0)
                continue
            sample = _descriptors(work, members, indexed, twin_candidates.training_of(total))
            trained: Any = twin_candidates.trained(project(sample), total)
            with files.replacing(work.folder / f"lists_{number}.faiss") as partial:
                faiss.write_index(trained, str(partial))
            parts.append(min(max(1, total // _PART), _MOST_PARTS, trained.nlist))
    content["parts"] = np.array(parts)
    twin_blocks.save_all(work.folder / "plan.npz", content)


def _descriptors(work: Work, pictures: np.ndarray, counts: np.ndarray, which: slice) -> np.ndarray:
    """Some of the descriptors of pictures, of each its first ones, one picture after the other."""
    start = np.cumsum([0, *counts])
    wanted = np.arange(start[-1])[which]
    place = np.searchsorted(start, wanted, "right") - 1
    within = wanted - start[place]
    block, number = np.divmod(pictures[place], work.block)
    return np.concatenate(
        [
            work.pictures(int(b))["descriptors"][number[block == b], within[block == b]]
            for b in np.unique(block)
        ]
    )
