"""Roles of trees with and without folders for training, tuning and the test."""

import numpy as np
import pytest

from tfds_pap import pipeline, roles


def index(splits: list[str], groups: list[str] | None = None) -> pipeline.Index:
    count = len(splits)
    return pipeline.Index(
        ids=np.array([f"{n:03d}" for n in range(count)]),
        groups=np.array(groups or [""] * count),
        labels=np.arange(count) % 3,
        splits=np.array(splits),
        class_names=("a", "b", "c"),
    )


def names(positions: np.ndarray, of: pipeline.Index) -> set[str]:
    return set(of.splits[positions].tolist())


@pytest.mark.parametrize("protocol", ["paper", "clean"])
@pytest.mark.parametrize("stage", [1, 2])
def test_three_folders_are_three_roles(protocol, stage):
    given = index(["train"] * 30 + ["validation"] * 9 + ["test"] * 12)
    assigned = roles.assign_roles(given, protocol, stage=stage)
    of_roles = [names(positions, given) for _, positions in assigned.items()]
    assert of_roles == [{"train"}, {"validation"}, {"test"}]
    assert [len(positions) for _, positions in assigned.items()] == [30, 9, 12]


def test_a_lone_test_folder_tests_as_a_lone_validation_folder_does():
    for name in ("test", "validation"):
        given = index(["train"] * 30 + [name] * 9)
        assigned = roles.assign_roles(given, "clean", stage=2)
        assert names(assigned.test, given) == {name}
        assert names(assigned.tune, given) == names(assigned.train, given) == {"train"}


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_folder_that_is_needed_is_named(missing):
    given = index(["test" if missing == "train" else "train"] * 12)
    with pytest.raises(roles.CutError, match=f"no {missing}.* folder"):
        roles.assign_roles(given, "clean", stage=2)


def test_both_protocols_test_on_the_same_groups_of_a_tree_without_folders():
    groups = [f"slide {n // 4}" for n in range(120)]
    given = index(["whole"] * 120, groups)
    by_protocol = [roles.assign_roles(given, name, stage=2) for name in roles.PROTOCOLS]
    paper, clean = by_protocol
    assert paper.test.tolist() == clean.test.tolist()
    assert 0.1 < len(clean.test) / 120 < 0.3
    for one, other in (("train", "test"), ("tune", "test"), ("train", "tune")):
        mine, yours = ({groups[n] for n in getattr(clean, role)} for role in (one, other))
        assert mine and yours and not mine & yours
    everything = np.concatenate([positions for _, positions in clean.items()])
    assert sorted(everything.tolist()) == list(range(120))


def test_no_twin_of_a_tuned_or_tested_image_trains_in_given_folders():
    given = index(["train"] * 30 + ["validation"] * 9 + ["test"] * 12)
    blocks = {image: f"image {image}" for image in given.ids.tolist()}
    blocks["000"] = blocks["030"] = "twins of train and validation"
    blocks["001"] = blocks["045"] = "twins of train and test"
    blocks["031"] = blocks["046"] = "twins of validation and test"
    clean = roles.assign_roles(given, "clean", stage=2, blocks=blocks)
    assert clean.train.tolist() == list(range(2, 30))
    assert clean.tune.tolist() == [30, *range(32, 39)]
    assert len(clean.test) == 12
    paper = roles.assign_roles(given, "paper", stage=2, blocks=blocks)
    assert len(paper.train) == 30 and len(paper.tune) == 9


def test_a_class_that_a_role_lacks_is_named():
    given = index(["train"] * 30 + ["test"] * 9)
    assigned = roles.assign_roles(given, "clean", stage=2)
    poor = roles.Roles(assigned.train, assigned.tune, assigned.test[:1])
    (line,) = roles.lacking(given, poor)
    assert line.startswith("the test role has no image of ") and line.count(",") == 1
    assert not roles.lacking(given, assigned)


@pytest.mark.parametrize("count", [6, 9, 12])
def test_a_fifth_of_few_images_holds_one_of_each_class(count):
    # Of 3 classes; scikit-learn refuses to stratify a fifth of 6 or 9, which is 2 images.
    given = index(["train"] * count + ["validation"] * 3)
    assigned = roles.assign_roles(given, "clean", stage=2)
    assert roles.lacking(given, assigned) == []
    assert len(assigned.tune) == 3 and len(assigned.train) == count - 3
    again = roles.assign_roles(given, "clean", stage=2)
    assert assigned.tune.tolist() == again.tune.tolist()


def test_one_image_of_a_class_cannot_be_cut_and_says_so():
    given = index(["train"] * 5 + ["validation"] * 3)
    with pytest.raises(roles.CutError, match="train folder has a class with 1 image"):
        roles.assign_roles(given, "clean", stage=2)
