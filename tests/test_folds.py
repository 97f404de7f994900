import numpy as np
import pytest

from tfds_pap import folds, pipeline, roles


def index_of(labels, groups=None):
    count = len(labels)
    return pipeline.Index(
        ids=np.array([f"{7919 * n % 1000:03d}" for n in range(count)]),
        groups=np.array([""] * count if groups is None else groups),
        labels=np.array(labels, np.int64),
        splits=np.array(["whole"] * count),
        class_names=("NILM", "LSIL", "HSIL"),
    )


@pytest.fixture
def slides():
    """Nine slides of ten images, three slides a class."""
    slide = np.repeat(np.arange(9), 10)
    return index_of(slide % 3, [f"slide {number}" for number in slide])


def test_the_control_lets_the_tested_slides_in_and_trains_on_as_few(slides):
    by_group = folds.cut(slides, 3, by="group", seed=1)
    control = folds.cut(slides, 3, by="let_in", seed=1)
    assert sorted(np.concatenate([fold.test for fold in control])) == list(range(90))
    for number, fold in enumerate(control):
        without = by_group[number // 2]
        assert {*fold.test} <= {*without.test} and not {*fold.test} & {*fold.train}
        # Each tested slide is half in training.
        assert {*slides.groups[fold.test]} <= {*slides.groups[fold.train]}
        for label in range(3):
            slides_of = [
                {*slides.groups[rows][slides.labels[rows] == label]}
                for rows in (fold.train, without.train)
            ]
            assert len(slides_of[0]) == len(slides_of[1]) == 2


def test_the_control_trains_without_a_class_where_the_cut_by_group_does():
    # All of HSIL is on one slide, so that one fold by group trains without it.
    slide = np.repeat(np.arange(7), 10)
    index = index_of(np.minimum(slide // 3, 2), [f"slide {number}" for number in slide])
    by_group, control = (folds.cut(index, 3, by=by, seed=0) for by in ("group", "let_in"))
    for number, fold in enumerate(control):
        trained = [{*index.labels[one.train]} for one in (fold, by_group[number // 2])]
        assert trained[0] == trained[1]
    assert any(2 not in index.labels[fold.train] for fold in control)


@pytest.mark.parametrize("by", ["image", "group"])
def test_every_image_is_tested_once(slides, by):
    cut = folds.cut(slides, 3, by=by, seed=1)
    assert sorted(np.concatenate([fold.test for fold in cut])) == list(range(90))
    for fold in cut:
        assert sorted([*fold.train, *fold.test]) == list(range(90)) and len(fold.tune) == 0


def test_a_cut_by_group_keeps_slides_whole_and_one_by_image_does_not(slides):
    for fold in folds.cut(slides, 3, by="group", seed=0):
        assert not {*slides.groups[fold.train]} & {*slides.groups[fold.test]}
        assert len({*slides.labels[fold.test]}) == 3
    assert any(
        {*slides.groups[fold.train]} & {*slides.groups[fold.test]}
        for fold in folds.cut(slides, 3, by="image", seed=0)
    )


def test_the_cut_is_a_function_of_the_seed_and_not_of_stored_order(slides):
    def tests(index, seed):
        return [sorted(index.ids[fold.test]) for fold in folds.cut(index, 3, by="image", seed=seed)]

    order = np.random.default_rng(0).permutation(90)
    shuffled = pipeline.Index(
        *(getattr(slides, name)[order] for name in ("ids", "groups", "labels", "splits")),
        slides.class_names,
    )
    assert tests(slides, 4) == tests(shuffled, 4) != tests(slides, 5)


@pytest.mark.parametrize(
    ("labels", "groups", "count", "by", "message"),
    [
        ([0, 0, 0, 1, 1, 2, 2, 2], None, 3, "image", "class LSIL has 2 images, fewer than --folds"),
        ([0, 0, 1, 1, 2, 2], None, 2, "group", "needs the group of every image .*; 6 have none"),
        ([0, 0, 1, 1, 2, 2], list("aabbaa"), 3, "group", "class NILM has 2 images"),
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], list("aaabbbbbb"), 3, "group", "2 groups are fewer than"),
        ([0, 0, 1, 1, 2, 2], list("aabbbb"), 2, "group", "would train on NILM alone"),
    ],
)
def test_what_cannot_be_cut_is_one_line(labels, groups, count, by, message):
    with pytest.raises(roles.CutError, match=message) as error:
        folds.cut(index_of(labels, groups), count, by=by, seed=0)
    assert "\n" not in str(error.value)


def test_a_fold_that_lacks_a_class_is_named():
    index = index_of([0, 0, 1, 1, 2, 2] * 2, list("abcdee" * 2))
    lines = folds.untrained_classes(index, folds.cut(index, 2, by="group", seed=0))
    assert len(lines) == 1 and lines[0].endswith("is tested on HSIL and trains without it")
