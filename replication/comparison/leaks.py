"""How much a cut by image leaks, and how much of that is scarcity of groups."""

import dataclasses
from collections.abc import Mapping

from replication.comparison.candidates import Candidate, on_same_images, summary
from replication.comparison.differences import COMPARED, differences, majority
from replication.measures.evaluation import SeedSummary
from replication.measures.intervals import Estimate
from replication.measures.predictions import Predictions


@dataclasses.dataclass(frozen=True)
class Control:
    """As few groups to train on as cut by group, with images of the tested groups let in.

    Attributes:
        let_in: By metric of `differences.COMPARED`, what it scores.
        leak: Control minus by group: what images of the same groups in training add.
        scarcity: By image minus control: what more groups in training add.
    """

    let_in: Mapping[str, SeedSummary]
    leak: Mapping[str, Estimate]
    scarcity: Mapping[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Leak:
    """One backbone scored on the same images with folds cut in two ways, and their control.

    Cut by group, a model trains on none of the groups that it is tested on, and on fewer groups.

    Attributes:
        name: The backbone.
        images: Number of images.
        groups: Number of groups.
        groups_by_class: Number of groups that hold each class.
        majority_class: The most frequent class.
        majority: By metric of `differences.COMPARED`, what always naming it scores.
        by_image: The same with folds cut by image.
        by_group: The same with folds cut by group.
        difference: By image minus by group, paired: leak and scarcity together.
        control: What tells the two from each other (`tfds_pap.folds`); None where it was not
            scored.
    """

    name: str
    images: int
    groups: int
    groups_by_class: Mapping[str, int]
    majority_class: str
    majority: Mapping[str, float]
    by_image: Mapping[str, SeedSummary]
    by_group: Mapping[str, SeedSummary]
    difference: Mapping[str, Estimate]
    control: Control | None

    @property
    def parts(self) -> dict[str, Mapping[str, Estimate]]:
        """The difference of the two cuts and, with a control, what it is made of."""
        parts = {"by_image_minus_by_group": self.difference}
        if self.control:
            parts |= {"leak": self.control.leak, "scarcity": self.control.scarcity}
        return parts


def leak(
    by_image: Candidate,
    by_group: Candidate,
    let_in: Candidate | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Leak:
    """How much a backbone gains where images of one group may lie on both sides of a cut.

    Args:
        by_image: Out-of-fold predictions with folds cut by image.
        by_group: The same images, with folds cut by group; as many seeds.
        let_in: The same images, from the control; None leaves leak and scarcity together.
        confidence: Level of the intervals, between 0 and 1.
        resamples: Number of resamples of groups.
        seed: Seed of the resamples.

    Returns:
        All figures and their paired differences.

    Raises:
        ValueError: Different backbones, images or numbers of seeds, or a group that is not known.
    """
    for other in (by_image, *([let_in] if let_in else [])):
        if (other.name, other.weights) != (by_group.name, by_group.weights):
            raise ValueError(
                f"leak: expected one backbone under both cuts, got {other.name} "
                f"({other.weights}) and {by_group.name} ({by_group.weights})"
            )
    scored = (by_group, by_image, *([let_in] if let_in else []))
    aligned = on_same_images(scored)
    first = aligned[0][0]
    for image, group in zip(first.ids, first.groups, strict=True):
        if not group:
            raise ValueError(f"leak: expected a known group for every image, none for {image!r}")
    figures = [
        {name: summary(c, confidence, resamples, seed)[name] for name in COMPARED} for c in scored
    ]

    def minus(one: int, other: int) -> dict[str, Estimate]:
        return differences(aligned[one], aligned[other], confidence, resamples, seed)

    majority_class, majority_figures = majority(first)
    return Leak(
        name=by_image.name,
        images=len(first),
        groups=len(set(first.groups)),
        groups_by_class=_groups_by_class(first),
        majority_class=majority_class,
        majority=majority_figures,
        by_image=figures[1],
        by_group=figures[0],
        difference=minus(1, 0),
        control=Control(figures[2], minus(2, 0), minus(1, 2)) if let_in else None,
    )


def _groups_by_class(run: Predictions) -> dict[str, int]:
    pairs = {*zip(run.labels.tolist(), run.groups, strict=True)}
    return {name: sum(label == c for label, _ in pairs) for c, name in enumerate(run.class_names)}
