"""What the audit found is used: cuts keep twins together, also across groups."""

import dataclasses

import numpy as np
import pytest

from tfds_pap import alignment, blocks, folds, leak_audit, name_stems, pipeline, roles

# The sets are small on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:The least populated class:UserWarning:sklearn")


def index_of(groups, splits, labels=None):
    count = len(groups)
    return pipeline.Index(
        ids=np.array([f"{n:03d}" for n in range(count)]),
        groups=np.array(groups),
        labels=np.arange(count) % 2 if labels is None else np.array(labels),
        splits=np.array(splits),
        class_names=("NILM", "HSIL"),
    )


def audited(index, pairs, effort="full"):
    def both(values, a, b):
        return values[a], values[b]

    named = [index.class_names[label] for label in index.labels]
    return leak_audit._of_index(
        "drawn",
        index,
        tuple(
            leak_audit.Pair(
                *both(index.ids.tolist(), a, b),
                kind=leak_audit.NEAR_DUPLICATE,
                matrix=alignment.Alignment.of_view(0).matrix,
                similarity=0.95,
                overlap=1.0,
                splits=both(index.splits.tolist(), a, b),
                labels=both(named, a, b),
                groups=both(index.groups.tolist(), a, b),
            )
            for a, b in pairs
        ),
        effort,
    )


def test_groups_are_joined_along_chains():
    found = blocks.join(
        {"a": "1", "b": "1", "c": "2", "d": "3", "e": "", "f": ""}, [("b", "c"), ("c", "e")]
    )
    assert len({found[i] for i in "abce"}) == 1
    assert len({found[i] for i in "adf"}) == 3
    assert blocks.join({"a": "", "b": ""}, []) == {"a": "image a", "b": "image b"}


@pytest.fixture
def slides():
    """60 images of 12 slides; one image each of slides 0 and 1, 2 and 3 ... is the same."""
    groups = [f"slide {n // 5:02d}" for n in range(60)]
    index = index_of(groups, ["whole"] * 60)
    return index, audited(index, [(10 * n + 4, 10 * n + 6) for n in range(6)])


def apart(index, pairs, fold):
    position = {image: n for n, image in enumerate(index.ids.tolist())}
    tested = set(fold.test.tolist())
    return sum((position[p.first] in tested) != (position[p.second] in tested) for p in pairs)


def test_folds_by_group_keep_twins_of_other_groups_together(slides):
    index, found = slides
    joined = folds.cut(index, 3, by="group", seed=0, blocks=found.blocks)
    assert [apart(index, found.pairs, fold) for fold in joined] == [0, 0, 0]
    for fold in joined:
        assert not {*index.groups[fold.train]} & {*index.groups[fold.test]}
    assert sorted(np.concatenate([fold.test for fold in joined])) == list(range(60))
    # Without the joining they fall apart, and so they do by image: that cut shows the leak.
    assert any(apart(index, found.pairs, f) for f in folds.cut(index, 3, by="group", seed=0))
    by_image = folds.cut(index, 3, by="image", seed=0, blocks=found.blocks)
    assert any(apart(index, found.pairs, fold) for fold in by_image)
    assert found.joined() == "cuts of drawn keep 6 pairs of twins whose groups differ together"


def test_where_no_group_is_known_twins_alone_stay_together(slides):
    index, found = slides
    index = dataclasses.replace(index, groups=np.array([""] * 60))
    found = audited(index, [(n, n + 30) for n in range(30)])
    cut = folds.cut(index, 3, by="image", seed=0, blocks=found.blocks)
    assert [apart(index, found.pairs, fold) for fold in cut] == [0, 0, 0]
    assert any(apart(index, found.pairs, f) for f in folds.cut(index, 3, by="image", seed=0))
    assert "(no group is known)" in found.joined()


def test_too_few_blocks_are_one_line(slides):
    index, found = slides
    with pytest.raises(roles.CutError, match="6 groups, joined over twins, are fewer than"):
        folds.cut(index, 7, by="group", seed=0, blocks=found.blocks)


@pytest.mark.parametrize("known", [True, False])
def test_clean_roles_keep_twins_together_and_out_of_the_test(known):
    groups = [f"slide {n // 2:02d}" if known else "" for n in range(60)]
    index = index_of(groups, ["train"] * 48 + ["validation"] * 12, np.arange(60) // 2 % 2)
    # Of images of train two and two are twins; image 0 is in the test as well.
    pairs = [(2 * n + 1, 2 * n + 4) for n in range(0, 20, 2)] + [(0, 50)]
    found = audited(index, pairs)
    assigned = roles.assign_roles(index, "clean", stage=2, blocks=found.blocks)
    role = {int(n): name for name, rows in assigned.items() for n in rows}
    for a, b in pairs[:-1]:
        assert role.get(a) == role.get(b)
    assert 0 not in role and role[50] == "test" and len(assigned.test) == 12
    # With slides the chain of eleven slides goes; without them the one image.
    assert len(role) == 60 - (22 if known else 1)
    # The paper protocol does what the authors did.
    paper = roles.assign_roles(index, "paper", stage=2, blocks=found.blocks)
    assert sum(len(rows) for _, rows in paper.items()) == 60


def test_a_train_folder_of_copies_cannot_be_cut():
    index = index_of([""] * 8, ["train"] * 4 + ["validation"] * 4)
    found = audited(index, [(n, n + 4) for n in range(3)])
    with pytest.raises(roles.CutError, match="0 images without a twin in the test role"):
        roles.assign_roles(index, "clean", stage=2, blocks=found.blocks)


def test_unknown_is_not_zero(slides):
    index, found = slides
    assert found.summary()["pairs"]["near-duplicate"]["across groups"] == 6
    index = dataclasses.replace(index, groups=np.array([""] * 60))
    summary = audited(index, [(0, 1)]).summary()
    assert summary["pairs"]["near-duplicate"]["across groups"] is None
    assert summary["groups on both sides"] is None


def test_an_audit_that_is_off_says_so(slides):
    index, _ = slides
    line = audited(index, (), "off").summary()["line"]
    assert "off; no picture was compared" in line and "sees pictures, not patients" in line


@pytest.mark.parametrize("effort", ["full", "fast"])
def test_what_it_cannot_see_stands_beside_what_it_found(slides, effort):
    _, found = slides
    line = dataclasses.replace(found, effort=effort).summary()["line"]
    assert f"({effort})" in line and "pictures, not patients" in line and "%" in line


def test_names_of_variants_are_a_hint():
    assert name_stems.stem("train/HSIL/Cell_7_rot90_flip.png") == "cell_7"
    assert name_stems.stem("a/aug_3_cell.jpg") == "cell"
    assert name_stems.stem("a/x_jpg.rf.0123456789abcdef.jpg") == "x_jpg"
    assert name_stems.stem("a/train_1_0.jpg") == "train_1_0"
    sides = {"t/a.png": "train", "t/b.png": "train", "v/a (2).png": "validation", "v/c.png": "v"}
    assert name_stems.variants(sides) == 1
    assert name_stems.variants({"a.png": "w", "a_flip.png": "w", "b.png": "w"}) == 1
    assert name_stems.variants({"a_1.png": "train", "a_2.png": "validation"}) == 0
