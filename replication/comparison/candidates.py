"""What a comparison compares: backbones with their costs, scored on the same images."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

from replication.measures import evaluation
from replication.measures.predictions import Predictions

#: What `Candidate.weights` says of random weights.
UNTRAINED = "untrained"


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one candidate costs, backbone and head together.

    Attributes:
        parameters: Number of weights.
        gflops: Of the forward pass of one image, 1e9; multiply and add counted separately.
        images_per_second: Of the forward pass, measured.
        mebibytes: float32 weights on disk, 2**20 bytes.

    Raises:
        ValueError: A figure is not above 0.
    """

    parameters: int
    gflops: float
    images_per_second: float
    mebibytes: float

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"cost: expected {name} above 0, got {value}")

    @property
    def milliseconds(self) -> float:
        """Time of one image."""
        return 1000 / self.images_per_second


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A backbone with its head, trained once a seed.

    Attributes:
        name: For example 'resnet152'.
        weights: Where the backbone's weights come from: 'imagenet', a file name or 'untrained'.
        runs: One for each seed, on the same images, all of role 'test'. With k folds, what the
            model that had not seen an image said of it, for all images.
        cost: What one image costs.
    """

    name: str
    weights: str
    runs: tuple[Predictions, ...]
    cost: Cost

    @property
    def trained(self) -> bool:
        """Whether the backbone's weights are other than random."""
        return self.weights != UNTRAINED


@functools.lru_cache(maxsize=64)
def summary(
    candidate: Candidate, confidence: float, resamples: int, seed: int
) -> Mapping[str, evaluation.SeedSummary]:
    """Figures of a candidate, see `evaluation.summarise_seeds`.

    Ranking and leak quote the same ones, and each takes a second or two to compute.

    Args:
        candidate: A candidate.
        confidence: Level of the intervals, between 0 and 1.
        resamples: Number of resamples.
        seed: Seed of the resamples.
    """
    return evaluation.summarise_seeds(
        candidate.runs, confidence=confidence, resamples=resamples, seed=seed
    )


def on_same_images(candidates: Sequence[Candidate]) -> list[list[Predictions]]:
    """Checks that candidates were scored on the same images with as many seeds each.

    Args:
        candidates: At least one.

    Returns:
        The runs of each candidate, with rows sorted by id.

    Raises:
        ValueError: They do not fit together; it names the candidate, the run and the first id.
    """
    if not candidates:
        raise ValueError("comparison: expected at least one candidate, got none")
    checked: list[list[Predictions]] = []
    for candidate in candidates:
        if len(candidate.runs) != len(candidates[0].runs) or not candidate.runs:
            raise ValueError(
                f"{candidate.name}: expected as many seeds (1 or more) as {candidates[0].name} "
                f"has, {len(candidates[0].runs)}, got {len(candidate.runs)}"
            )
        runs: list[Predictions] = []
        for number, run in enumerate(candidate.runs):
            if set(run.splits) != {"test"}:
                roles = ", ".join(sorted(set(run.splits))) or "no image"
                raise ValueError(
                    f"{candidate.name}, run {number}: expected test images only, got {roles}"
                )
            run = run.take(sorted(range(len(run)), key=run.ids.__getitem__))
            _check_same(checked[0][0] if checked else (runs or [run])[0], run, candidate, number)
            runs.append(run)
        checked.append(runs)
    return checked


def _check_same(first: Predictions, run: Predictions, candidate: Candidate, number: int) -> None:
    start = f"{candidate.name}, run {number}: expected the images of the first candidate"
    if run.class_names != first.class_names:
        raise ValueError(f"{start} and its classes {first.class_names}, got {run.class_names}")
    if different := sorted({*first.ids} ^ {*run.ids}):
        what = "is missing" if different[0] in first.ids else "is not among them"
        raise ValueError(f"{start}: id {different[0]!r} {what}")
    for name in ("labels", "groups"):
        for image, a, b in zip(first.ids, getattr(first, name), getattr(run, name), strict=True):
            if a != b:
                raise ValueError(f"{start}: id {image!r} has {name[:-1]} {b!r}, not {a!r}")
