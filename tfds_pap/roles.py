"""Which image trains, which one tunes, which one tests.

The published trees have two folders. The `paper` protocol uses them as the authors did; the
`clean` protocol cuts a tune role out of the train folder, by group where groups are known, and
keeps the validation folder for one test at the end. Of other trees a test folder tests and a
validation folder beside it tunes; where a tree has no such folders a fifth of it, by group where
groups are known, is kept for the test of either protocol.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets.public_api as tfds
from sklearn import model_selection

from tfds_pap import pipeline
from tfds_pap.errors import PapError
from tfds_pap.splits import TEST, TRAIN, VALIDATION, WHOLE

PROTOCOLS = ("paper", "clean")

#: One fifth of the train folder tunes: the authors' own 80/20 (PAPERS P2). As much of a tree
#: without folders tests.
_TUNE_FRACTION = 0.2
_CLEAN_CUT_SEED = 0
_CLEAN_CUT_TRIES = 10
#: `random_state` of the authors' cut (P2).
_PAPER_CUT_SEED = 1


class CutError(PapError):
    """Images that cannot be cut as asked; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Roles:
    """Positions in a `pipeline.Index`, disjoint.

    Attributes:
        train: int64 positions that fit weights.
        tune: Positions that choose epochs, thresholds and hyperparameters; may be empty.
        test: Positions that are scored once.
    """

    train: np.ndarray
    tune: np.ndarray
    test: np.ndarray

    def items(self) -> tuple[tuple[str, np.ndarray], ...]:
        """Returns (role name, positions) pairs."""
        return (("train", self.train), ("tune", self.tune), ("test", self.test))

    def with_tune_in_train(self) -> "Roles":
        """Returns the same roles without a tune role, whose images train."""
        return Roles(np.concatenate([self.train, self.tune]), self.tune[:0], self.test)


def assign_roles(
    index: pipeline.Index,
    protocol: str,
    *,
    stage: int,
    test_within_train: bool = False,
    blocks: Mapping[str, str] | None = None,
) -> Roles:
    """Assigns every image its role.

    Args:
        index: Ids, groups, labels and splits of the images.
        protocol: "paper": stage 1 trains on the whole train folder and has no tune role (P1),
            stage 2 cuts the shuffled train folder 80/20 by image (P2). "clean": a stratified
            fifth of the train folder tunes, cut by group where every group is known. Where both
            a validation and a test folder are given, the first tunes in either protocol.
        stage: 1 or 2.
        test_within_train: Scores the fifth of the train folder that the paper protocol cuts off
            at random, and leaves the validation folder out, as P3 did.
        blocks: From id to what the clean protocol keeps together, see `blocks.join`: no block is
            in train and tune, and images of a block that has test images train nothing. None
            keeps groups together.

    Returns:
        The roles; positions are sorted by id, so that they do not depend on stored order.

    Raises:
        CutError: If there is too little to cut, or nothing to train or test on.
        ValueError: If the protocol is unknown.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    train, tune, test = _folders(index, blocks)
    if len(tune):
        return Roles(*_apart(index, blocks, train, tune, test, protocol), test)
    if protocol == "paper" and stage == 1:
        return Roles(train, train[:0], test)
    if protocol == "paper":
        fit, tune = model_selection.train_test_split(
            train, test_size=_TUNE_FRACTION, random_state=_PAPER_CUT_SEED
        )
        if test_within_train:
            return Roles(fit, tune[:0], tune)
        return Roles(fit, tune, test)
    train, _ = _apart(index, blocks, train, tune, test, protocol)
    fit, tune = _clean_cut(index, train, blocks)
    return Roles(train[fit], train[tune], test)


def _folders(
    index: pipeline.Index, blocks: Mapping[str, str] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions that a tree gives to training, to tuning (perhaps none) and to the test, by id."""
    by_id = np.argsort(index.ids, kind="stable")
    given = {name: by_id[index.splits[by_id] == name] for name in (TRAIN, VALIDATION, TEST, WHOLE)}
    train, validation, test, whole = given.values()
    if len(whole):
        kept, tested = _clean_cut(index, whole, blocks, what="the tree", role="test")
        return whole[kept], whole[:0], whole[tested]
    if not len(test):
        test, validation = validation, validation[:0]
    for name, positions in (("train", train), ("test or validation", test)):
        if not len(positions):
            raise CutError(f"the tree has no {name} folder with images")
    return train, validation, test


def _apart(
    index: pipeline.Index,
    blocks: Mapping[str, str] | None,
    train: np.ndarray,
    tune: np.ndarray,
    test: np.ndarray,
    protocol: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Train and tune positions; of the clean protocol without blocks that are tested, or tune."""
    if protocol == "paper" or blocks is None:
        return train, tune
    block = block_names(index, blocks)
    tune = tune[~np.isin(block[tune], block[test])]
    return train[~np.isin(block[train], block[np.concatenate([tune, test])])], tune


def count_train(builder: tfds.core.DatasetBuilder) -> int:
    """Returns about how many images train, before anything is cut.

    Args:
        builder: A prepared builder.
    """
    if TRAIN in builder.info.splits:
        return builder.info.splits[TRAIN].num_examples
    return round(builder.info.splits[WHOLE].num_examples * (1 - _TUNE_FRACTION) ** 2)


def lacking(index: pipeline.Index, roles: Roles) -> list[str]:
    """Names the classes of which a role that has images has none.

    Args:
        index: Ids, groups, labels and splits of the images.
        roles: From `assign_roles`.

    Returns:
        One line a role, such as "the test role has no image of SCC".
    """
    lines = []
    for role, positions in roles.items():
        missing = np.setdiff1d(np.arange(len(index.class_names)), index.labels[positions])
        if len(positions) and len(missing):
            names = ", ".join(index.class_names[label] for label in missing)
            lines.append(f"the {role} role has no image of {names}")
    return lines


def block_names(index: pipeline.Index, blocks: Mapping[str, str]) -> np.ndarray:
    """Returns the block of each image of an index.

    Args:
        index: Ids, groups, labels and splits of the images.
        blocks: From id to block.
    """
    return np.array([blocks[image] for image in index.ids.tolist()])


def _clean_cut(
    index: pipeline.Index,
    train: np.ndarray,
    blocks: Mapping[str, str] | None,
    *,
    what: str = "the train folder",
    role: str = "tune",
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a fifth off, stratified and by group where every group is known."""
    labels = index.labels[train]
    groups = (index.groups if blocks is None else block_names(index, blocks))[train]
    folds = round(1 / _TUNE_FRACTION)
    smallest = np.bincount(labels, minlength=len(index.class_names)).min()
    if smallest < 2:
        raise CutError(
            f"{what} has a class with {smallest} images"
            + (" without a twin in the test role" if blocks is not None and role == "tune" else "")
            + f"; a {role} role needs 2 or more"
        )
    if not np.all(groups != ""):
        if math.ceil(_TUNE_FRACTION * len(train)) < len(index.class_names):
            # A fifth of so few images cannot hold every class: one image of each is more.
            return _cuts_by_class(labels, np.arange(len(train)))[0]
        return model_selection.train_test_split(
            np.arange(len(train)),
            test_size=_TUNE_FRACTION,
            random_state=_CLEAN_CUT_SEED,
            stratify=labels,
        )
    if len(np.unique(groups)) < folds:
        raise CutError(f"{what} has {len(np.unique(groups))} groups; a cut by group needs {folds}")
    # A greedy cut can leave a rare class out of a fold; of several, take one with the most classes
    # on both sides, and of these the best stratified one.
    cuts = [
        cut
        for seed in range(_CLEAN_CUT_TRIES)
        for cut in model_selection.StratifiedGroupKFold(
            folds, shuffle=True, random_state=seed
        ).split(train, labels, groups)
    ]
    totals = np.bincount(labels, minlength=len(index.class_names))

    def faults(cut: tuple[np.ndarray, np.ndarray]) -> tuple[int, float]:
        share = np.bincount(labels[cut[1]], minlength=len(totals)) / totals
        return int(np.isin(share, (0, 1)).sum()), float(np.abs(share - _TUNE_FRACTION).max())

    best = min(cuts, key=faults)
    if not faults(best)[0]:
        return best
    return min([best, *_cuts_by_class(labels, groups)], key=faults)


def _cuts_by_class(labels: np.ndarray, groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cuts off about a fifth of the groups of each class, one at least where it has two.

    Greedy folds leave a class of two or three groups out of most of them.
    """
    names, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), labels.max() + 1), int)
    np.add.at(counts, (group, labels), 1)
    own = counts.argmax(axis=1)
    cuts = []
    for seed in range(_CLEAN_CUT_TRIES):
        rng = np.random.default_rng(seed)
        held: list[int] = []
        for label in np.unique(own):
            members = rng.permutation(np.flatnonzero(own == label))
            if len(members) > 1:
                held += members[: max(1, round(len(members) * _TUNE_FRACTION))].tolist()
        off = np.isin(group, held)
        cuts.append((np.flatnonzero(~off), np.flatnonzero(off)))
    return cuts
