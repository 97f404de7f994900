"""Phantoms: the same everywhere, true where they claim truth, neither trivial nor hopeless."""

import csv
import hashlib
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from tfds_pap import phantom, phantom_latent, phantom_set, taxonomy

GOLDEN = "69882509b10b5432783bf510d998cb1d34193e80ca0e72d3710ec4d7cd338033"

_DIGEST = """
import hashlib
from tfds_pap import phantom
digest = hashlib.sha256()
for label in ("NILM", "LSIL", "HSIL", "SCC"):
    digest.update(phantom.draw_cell(label, 3, slide=2).tobytes())
for label in ("cell", "background"):
    digest.update(phantom.draw_roi(label, 4, slide=1).tobytes())
field, truth = phantom.draw_field(5, slide=3, width=320, height=240, cells=6)
digest.update(field.tobytes() + repr(truth).encode())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_pixels_are_the_same_in_every_process(hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", _DIGEST], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == GOLDEN


def test_global_random_state_is_neither_used_nor_moved():
    np.random.seed(1)
    before = phantom.draw_cell("LSIL", 0)
    state = np.random.random()
    np.random.seed(1)
    assert np.random.random() == state
    np.random.seed(2)
    np.testing.assert_array_equal(phantom.draw_cell("LSIL", 0), before)


@pytest.mark.parametrize("label", taxonomy.STAGE2_CLASSES)
def test_cell_and_mask(label):
    for seed in range(8):
        image, mask = phantom.draw_cell_with_mask(label, seed, slide=seed)
        assert image.shape == (250, 250, 3) and image.dtype == np.uint8
        assert mask.shape == (250, 250) and mask.dtype == bool
        np.testing.assert_array_equal(image, phantom.draw_cell(label, seed, slide=seed))
        rows, columns = np.nonzero(mask)
        assert abs(rows.mean() - 125) < 20 and abs(columns.mean() - 125) < 20
        assert 150 < mask.sum() < 20000
        assert image[mask].mean() < np.median(image) - 10


def test_cell_is_the_enlarged_roi():
    small, small_mask = phantom.draw_cell_with_mask("HSIL", 7, size=150)
    large, large_mask = phantom.draw_cell_with_mask("HSIL", 7, size=250)
    enlarged = cv2.resize(small, (250, 250), interpolation=cv2.INTER_LINEAR_EXACT)
    np.testing.assert_array_equal(enlarged, large)
    assert large_mask.sum() / small_mask.sum() == pytest.approx((250 / 150) ** 2, rel=0.1)


def test_seeds_slides_and_classes_differ():
    base = phantom.draw_cell("NILM", 0)
    assert (base != phantom.draw_cell("NILM", 1)).any()
    assert (base != phantom.draw_cell("NILM", 0, slide=1)).any()
    assert (base != phantom.draw_cell("SCC", 0)).any()
    # Another slide changes the stain, not the cell.
    masks = [phantom.draw_cell_with_mask("NILM", 0, slide=slide)[1] for slide in (0, 1)]
    np.testing.assert_array_equal(*masks)


def test_roi_has_a_dark_middle_only_with_a_cell():
    def darkness(label, seed):
        image = phantom.draw_roi(label, seed, slide=seed)
        assert image.shape == (150, 150, 3)
        return float(image[40:110, 40:110, 0].min())

    cells = [darkness("cell", seed) for seed in range(40)]
    background = [darkness("background", seed) for seed in range(40)]
    assert np.median(cells) < np.median(background) - 30


@pytest.mark.parametrize(
    ("draw", "allowed"),
    [
        (phantom.draw_cell, taxonomy.STAGE2_CLASSES),
        (phantom.draw_cell_with_mask, taxonomy.STAGE2_CLASSES),
        (phantom.draw_roi, taxonomy.STAGE1_CLASSES),
    ],
)
def test_unknown_label_names_the_allowed_ones(draw, allowed):
    with pytest.raises(ValueError, match=", ".join(allowed) + "; got 'ASC-US'"):
        draw("ASC-US", 0)


def test_field_is_dark_where_the_truth_is():
    field, truth = phantom.draw_field(1, slide=4)
    assert field.shape == (960, 1280, 3) and field.dtype == np.uint8
    assert len(truth) == 60
    red = field[..., 0].astype(int)
    for cell in truth:
        assert 0 <= cell.x < 1280 and 0 <= cell.y < 960 and cell.label in taxonomy.STAGE2_CLASSES
        x, y = round(cell.x), round(cell.y)
        assert red[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].mean() < np.median(red) - 25


def test_field_mix():
    _, truth = phantom.draw_field(0, width=300, height=200, cells=5, mix={"SCC": 2.0, "NILM": 0})
    assert {cell.label for cell in truth} == {"SCC"}
    assert phantom.draw_field(0, width=200, height=200, cells=0)[1] == ()
    with pytest.raises(ValueError, match="NILM, LSIL, HSIL, SCC; got 'AGC'"):
        phantom.draw_field(0, mix={"AGC": 1.0})
    with pytest.raises(ValueError, match="mix needs shares"):
        phantom.draw_field(0, mix={"NILM": 0.0})


def test_field_and_roi_share_their_scale():
    areas = []
    for seed in range(12):
        rng = np.random.Generator(np.random.PCG64(seed))
        radius = phantom_latent.draw_latent("NILM", rng).radius
        assert 5 <= radius <= 30
        areas.append(phantom.draw_cell_with_mask("NILM", seed, size=150)[1].sum())
    _, truth = phantom.draw_field(0, width=400, height=400, cells=40, mix={"NILM": 1})
    in_field = np.pi * np.mean([cell.radius**2 for cell in truth])
    assert np.mean(areas) == pytest.approx(in_field, rel=0.3)


def test_encode_is_jpeg_in_rgb_order():
    image = phantom.draw_cell("LSIL", 0)
    data = phantom_set.encode(image)
    assert data[:2] == b"\xff\xd8" and data == phantom_set.encode(image)
    decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), 1), cv2.COLOR_BGR2RGB)
    assert np.abs(decoded.astype(int) - image).mean() < 4


@pytest.mark.parametrize("stage", [1, 2])
def test_examples_do_not_depend_on_how_many_are_asked_for(stage):
    few = {key: (label, group, image) for key, label, group, image in _examples(stage, 2)}
    many = {key: (label, group, image) for key, label, group, image in _examples(stage, 3)}
    assert set(few) < set(many)
    for key, (label, group, image) in few.items():
        assert (label, group) == many[key][:2]
        np.testing.assert_array_equal(image, many[key][2])
    digests = {hashlib.sha256(image.tobytes()).digest() for _, _, image in many.values()}
    assert len(digests) == len(many)


def _examples(stage, per_class, **options):
    return list(phantom_set.examples(stage, "train", per_class=per_class, **options))


def test_examples_seed_and_errors():
    assert (_examples(2, 1)[0][3] != _examples(2, 1, seed=1)[0][3]).any()
    with pytest.raises(ValueError, match="stage must be 1 or 2; got 3"):
        _examples(3, 1)
    with pytest.raises(ValueError, match="train, validation; got 'test'"):
        list(phantom_set.examples(2, "test", per_class=1))
    with pytest.raises(ValueError, match="slides must be at least 2"):
        _examples(2, 1, slides=1)


def test_tree(tmp_path):
    root = tmp_path / "data"
    counts = {"train": 3, "validation": 2}
    phantom_set.write_tree(root, db3=counts, db4=counts, slides=5)
    assert sorted(path.name for path in root.iterdir()) == ["DB_3", "DB_4"]
    for name, folders in (("DB_3", taxonomy.DB3_FOLDERS), ("DB_4", taxonomy.DB4_FOLDERS)):
        with (root / name / "groups.csv").open(newline="") as table:
            groups = {row["file"]: row["group"] for row in csv.DictReader(table)}
        expected = {
            f"{split}/{digit}/{split}_{digit}_{index}.jpg"
            for split, count in counts.items()
            for digit in folders
            for index in range(count)
        }
        files = {path.relative_to(root / name).as_posix() for path in root.glob(f"{name}/*/*/*")}
        assert files == expected == set(groups)
        train, validation = (
            {group for file, group in groups.items() if file.startswith(split)} for split in counts
        )
        assert train and validation and not train & validation
        side = 150 if name == "DB_3" else 250
        picture = cv2.imread(str(root / name / "train/1/train_1_0.jpg"))
        assert picture.shape == (side, side, 3)
    key, _, group, image = _examples(2, 1, slides=5)[0]
    assert (root / "DB_4" / key).read_bytes() == phantom_set.encode(image)
    assert groups[key] == group
    with pytest.raises(FileExistsError, match="already there"):
        phantom_set.write_tree(root, db3=counts, db4={}, slides=5)


def test_unfinished_tree_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="train, validation; got 'test'"):
        phantom_set.write_tree(tmp_path, db3={"train": 1, "test": 1}, db4={})
    assert list(tmp_path.iterdir()) == []


def test_tree_without_pictures_is_skipped(tmp_path):
    counts = {"train": 1, "validation": 1}
    phantom_set.write_tree(tmp_path, db3=counts, db4={"train": 0, "validation": 0}, slides=2)
    assert [path.name for path in tmp_path.iterdir()] == ["DB_3"]


def _measure(label, seed, slide):
    """What is measured by hand in cytometry, with the true outline of the nucleus."""
    image, mask = phantom.draw_cell_with_mask(label, seed, slide=slide, size=150)
    absorbance = np.log(np.percentile(image, 98, axis=(0, 1)) / np.maximum(image, 1.0))
    around = cv2.dilate(mask.astype(np.uint8), np.ones((19, 19), np.uint8)).astype(bool) & ~mask
    contour = max(cv2.findContours(mask.astype(np.uint8), 0, 2)[0], key=cv2.contourArea)
    roundness = cv2.contourArea(contour) / max(cv2.arcLength(contour, True), 1) ** 2
    (_, _), (width, height), _ = cv2.minAreaRect(contour)
    inside = absorbance[mask]
    shape = [mask.sum(), roundness, width / height, height / width, inside.std()]
    pale = np.percentile(absorbance[around], 20, axis=0)
    return [*shape, *inside.mean(axis=0), *absorbance[around].mean(axis=0), *pale]


def test_classes_overlap_but_can_be_learned():
    rows = [
        (k, _measure(label, seed, slide=seed % 10))
        for k, label in enumerate(taxonomy.STAGE2_CLASSES)
        for seed in range(80)
    ]
    labels, features = np.array([k for k, _ in rows]), np.array([row for _, row in rows])
    held_out = np.tile(np.arange(80) % 10 >= 5, 4)  # Other slides than the model learns from.
    model = RandomForestClassifier(200, random_state=0).fit(features[~held_out], labels[~held_out])
    accuracy = model.score(features[held_out], labels[held_out])
    assert 0.7 < accuracy < 0.995


def test_ceiling_leaves_room_for_error():
    assert 0.92 < phantom_latent.ceiling(300) < 0.975


def test_command_line_writes_a_contact_sheet(tmp_path):
    sheet = tmp_path / "sheet.png"
    command = [sys.executable, "-m", "tfds_pap.phantom", f"--contact_sheet={sheet}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    # What runpy warns of when the package imports the module that is to run.
    assert "found in sys.modules" not in done.stderr
    assert cv2.imread(str(sheet)).shape == (6 * 150, 10 * 150, 3)
