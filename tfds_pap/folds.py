"""Cross-validation: every image is tested once, by a model that has not seen it, or its group."""

from collections.abc import Mapping

import numpy as np
from sklearn import model_selection

from tfds_pap import pipeline, roles

#: How a set may be cut.
CUTS = ("image", "group", "let_in")


def cut(
    index: pipeline.Index,
    count: int,
    *,
    by: str,
    seed: int,
    blocks: Mapping[str, str] | None = None,
) -> list[roles.Roles]:
    """Cuts every image of a data set into stratified folds.

    Args:
        index: Ids, groups, labels and splits of the images; published splits are passed over.
        count: Number of folds.
        by: "image": any image may be tested by a model that trained on its neighbours from the
            same slide (scikit-learn's StratifiedKFold). "group": a group is never on both sides
            (StratifiedGroupKFold). "let_in": the control of the two, see `_let_in`; two roles a
            fold.
        seed: Another seed, other folds.
        blocks: From id to what is kept together instead of groups, see `blocks.join`. A cut by
            image heeds it where no group is known; else it is there to show what that leaks.

    Returns:
        Roles of each fold, without tune images; positions in order of id.

    Raises:
        roles.CutError: If groups are unknown, a class has fewer images than there are folds, there
            are fewer groups than folds, or a fold would train on one class alone.
    """
    if by not in CUTS:
        raise roles.CutError(f"cut {by!r}: expected one of {', '.join(CUTS)}")
    by_id = np.argsort(index.ids, kind="stable")
    labels, groups = index.labels[by_id], index.groups[by_id]
    counts = np.bincount(labels, minlength=len(index.class_names))
    if counts.min() < count:
        raise roles.CutError(
            f"class {index.class_names[counts.argmin()]} has {counts.min()} images, fewer than "
            f"--folds={count}"
        )
    if by != "image" and not np.all(groups != ""):
        raise roles.CutError(
            f"a cut by group needs the group of every image (groups.csv: file,group); "
            f"{int((groups == '').sum())} have none"
        )
    together = by != "image" or (blocks is not None and not np.any(groups != ""))
    if together and blocks is not None:
        groups = roles.block_names(index, blocks)[by_id]
    if together and len(np.unique(groups)) < count:
        joined = ", joined over twins," if blocks is not None else ""
        raise roles.CutError(
            f"{len(np.unique(groups))} groups{joined} are fewer than --folds={count}"
        )
    splitter = (
        model_selection.StratifiedGroupKFold if together else model_selection.StratifiedKFold
    )(count, shuffle=True, random_state=seed)
    folds = []
    for number, (train, test) in enumerate(
        splitter.split(by_id, labels, groups if together else None), start=1
    ):
        if len(np.unique(labels[train])) < 2:
            (only,) = np.unique(labels[train])
            raise roles.CutError(
                f"fold {number} of {count} would train on {index.class_names[only]} alone; take "
                "fewer folds"
            )
        parts = [(train, test)]
        if by == "let_in":
            parts = _let_in(labels, groups, train, test, np.random.default_rng([seed, number]))
        folds += [roles.Roles(by_id[train], by_id[:0], by_id[test]) for train, test in parts]
    return folds


def _let_in(
    labels: np.ndarray,
    groups: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    rng: np.random.Generator,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lets images of the tested groups into training, at the same number of groups a class.

    A fold cut by group trains on fewer groups than one cut by image, and on none of those that it
    is tested on. This takes the two apart. The tested images of each group and class are halved;
    each half is tested by a model that trains on the other half, and on as many other groups as
    make up the number of the fold cut by group.

    Args:
        labels: int64 ``[n]``.
        groups: str ``[n]``.
        train: Positions that the fold cut by group trains on.
        test: Positions that it tests.
        rng: Of the halves and of the groups that make room.

    Returns:
        Training and test positions of both halves. Where a class has fewer training groups than
        tested ones, only as many of these are let in; of a class without any, none.
    """
    half = np.zeros(len(labels), int)
    for label, group in {*zip(labels[test].tolist(), groups[test].tolist(), strict=True)}:
        rows = rng.permutation(test[(labels[test] == label) & (groups[test] == group)])
        # An odd image, or a lone one, falls on either side.
        half[rows] = (np.arange(len(rows)) + rng.integers(2)) % 2
    folds = []
    for tested in (0, 1):
        other, kept = test[half[test] != tested], []
        for label in np.unique(labels[train]):
            own = other[labels[other] == label]
            rest = train[labels[train] == label]
            there = rng.permutation(np.unique(groups[rest]))
            let_in = rng.permutation(np.unique(groups[own]))[: len(there)]
            stay = there[: len(there) - len(let_in)]
            kept += [own[np.isin(groups[own], let_in)], rest[np.isin(groups[rest], stay)]]
        folds.append((np.sort(np.concatenate(kept)), test[half[test] == tested]))
    return folds


def untrained_classes(index: pipeline.Index, folds: list[roles.Roles]) -> list[str]:
    """Names each fold whose training images lack a class that it is tested on.

    Args:
        index: Ids, groups, labels and splits of the images.
        folds: From `cut`.

    Returns:
        One line a fold, such as "fold 2 is tested on SCC and trains without it".
    """
    lines = []
    for number, fold in enumerate(folds, start=1):
        missing = np.setdiff1d(index.labels[fold.test], index.labels[fold.train])
        if len(missing):
            names = ", ".join(index.class_names[label] for label in missing)
            lines.append(f"fold {number} is tested on {names} and trains without it")
    return lines
