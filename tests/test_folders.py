import hashlib
import shutil

import cv2
import numpy as np
import pytest
import tifffile
from conftest import make_tree, save_image
from PIL import Image

from tfds_pap import folders, taxonomy


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path, "DB_4", train=2, validation=1)


def read(root, **options):
    return folders.read_tree(root, taxonomy.DB4_FOLDERS, **options)


def offenders(root):
    with pytest.raises(folders.TreeError) as caught:
        read(root)
    first, *lines = str(caught.value).splitlines()
    assert "expected DB_4/{train,validation}/{1,2,3,4}/*.(jpg/jpeg/png/bmp/tif/tiff)" in first
    assert "3 = NILM" in first
    return [line.strip() for line in lines]


def test_digits_become_classes_and_ids_are_sorted(tree):
    files = read(tree).files
    assert [file.id for file in files] == sorted(file.id for file in files)
    assert {file.id.split("/")[1]: file.label for file in files} == taxonomy.DB4_FOLDERS
    assert read(tree).counts()["train"] == {"HSIL": 2, "LSIL": 2, "NILM": 2, "SCC": 2}
    assert {file.group for file in files} == {""}


def test_every_ending_in_any_case_and_nested_folders(tree):
    for number, name in enumerate(("a.JPEG", "b.PNG", "c.Bmp", "d.TIF", "deep/er/e.jpg")):
        save_image(tree / "train/1" / name, 100 + number)
    ids = {file.id for file in read(tree).files}
    assert {"train/1/a.JPEG", "train/1/d.TIF", "train/1/deep/er/e.jpg"} <= ids


def test_hidden_files_and_sidecars_are_ignored(tree):
    before = read(tree)
    for name in (".DS_Store", "._train_1_0.jpg", "Thumbs.db", "notes.txt", "README.md"):
        (tree / "train/1" / name).write_bytes(b"x")
    (tree / "__MACOSX").mkdir()
    assert read(tree) == before


def test_fingerprint_is_sha256_of_sorted_paths_and_contents(tree):
    total = hashlib.sha256()
    for path in sorted(tree.rglob("*.jpg"), key=lambda p: p.relative_to(tree).as_posix()):
        name = path.relative_to(tree).as_posix().encode()
        total.update(name + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    assert read(tree).fingerprint == total.hexdigest()
    assert folders.fingerprint(tree, taxonomy.DB4_FOLDERS) == total.hexdigest()
    save_image(tree / "train/1/train_1_0.jpg", 999)
    assert read(tree).fingerprint != total.hexdigest()


def test_missing_tree(tmp_path):
    with pytest.raises(folders.TreeError, match="DB_4: no such folder; expected DB_4/"):
        read(tmp_path / "DB_4")


def test_unexpected_and_missing_folders(tree):
    shutil.rmtree(tree / "train/2")
    (tree / "train/5").mkdir()
    (tree / "test").mkdir()
    save_image(tree / "train/stray.jpg", 1)
    assert offenders(tree) == [
        "test: unexpected folder",
        "train/5: unexpected class folder",
        "train/stray.jpg: unexpected file outside the class folders",
        "train/2: class folder is missing",
    ]


def test_missing_split_and_empty_class(tree):
    shutil.rmtree(tree / "validation")
    shutil.rmtree(tree / "train/3")
    (tree / "train/3").mkdir()
    assert offenders(tree) == ["train/3: class folder is empty", "validation: folder is missing"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("zero.jpg", b"", "zero bytes"),
        ("text.jpg", b"not an image", "cannot be decoded (no known image format)"),
        ("picture.gif", b"GIF89a", "unexpected ending '.gif'"),
        ("no_ending", b"x", "unexpected ending ''"),
    ],
)
def test_unusable_files(tree, name, content, reason):
    (tree / "train/1" / name).write_bytes(content)
    (line,) = offenders(tree)
    assert line.startswith(f"train/1/{name}: {reason}")


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "tif"])
def test_truncated_files(tree, ending):
    path = tree / f"train/1/cut.{ending}"
    save_image(path, 7)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    (line,) = offenders(tree)
    assert line.startswith(f"train/1/cut.{ending}: cannot be decoded (")


def test_wrongly_named_file(tree):
    save_image(tree / "train/1/a.png", 7)
    (tree / "train/1/a.png").rename(tree / "train/1/a.jpg")
    assert offenders(tree) == ["train/1/a.jpg: wrongly named: holds PNG, not JPEG"]


def test_sixteen_bits_are_refused(tree):
    deep = np.full((8, 8), 40_000, np.uint16)
    cv2.imwrite(str(tree / "train/1/deep.tif"), deep)
    cv2.imwrite(str(tree / "train/1/deep.png"), deep)
    assert offenders(tree) == [
        f"train/1/deep.{ending}: more than 8 bits a channel (mode I;16); convert it first"
        for ending in ("png", "tif")
    ]


def test_deep_colours_are_refused(tree):
    tifffile.imwrite(
        tree / "train/1/deep.tif", np.full((8, 8, 3), 40_000, np.uint16), photometric="rgb"
    )
    (said,) = offenders(tree)
    assert said.startswith("train/1/deep.tif: more than 8 bits a channel")


def test_several_pages_are_refused(tree):
    page = Image.new("RGB", (8, 8))
    page.save(tree / "train/1/pages.tif", save_all=True, append_images=[page])
    assert offenders(tree) == ["train/1/pages.tif: holds 2 pictures, expected one"]


def test_same_bytes_under_different_labels(tree):
    shutil.copy(tree / "train/1/train_1_0.jpg", tree / "validation/4/copy.jpg")
    assert offenders(tree) == [
        "same bytes under different labels: "
        "train/1/train_1_0.jpg (HSIL), validation/4/copy.jpg (SCC)"
    ]


def test_same_bytes_in_both_splits_give_a_note(tree):
    shutil.copy(tree / "train/1/train_1_0.jpg", tree / "validation/1/copy.jpg")
    assert read(tree).notes == ("DB_4: 1 pictures have the same bytes in more than one split",)


def test_first_twenty_offenders_then_a_count(tree):
    for number in range(33):
        (tree / f"train/1/{number:02d}.jpg").write_bytes(b"")
    lines = offenders(tree)
    assert len(lines) == 21
    assert lines[0] == "train/1/00.jpg: zero bytes"
    assert lines[-1] == "... and 13 more"


def test_other_counts_than_published_give_a_note(tree):
    published = {"train": dict.fromkeys(taxonomy.STAGE2_CLASSES, 2), "validation": {"SCC": 200}}
    (note,) = read(tree, published=published).notes
    assert note == "DB_4: counts differ from the published ones: validation/SCC 1 (published 200)"


def test_groups(tmp_path):
    tree = make_tree(tmp_path, "DB_4", train=2, validation=1, groups=2)
    before = read(tree)
    assert {file.group for file in before.files if file.split == "train"} == {
        "train_field_0",
        "train_field_1",
    }
    rows = (tree / "groups.csv").read_text().splitlines()
    (tree / "groups.csv").write_text("\n".join([*rows[:-1], "train/1/ghost.jpg,x", rows[1], "a,"]))
    assert offenders(tree) == [
        "groups.csv line 13: train/1/ghost.jpg is not in the tree",
        "groups.csv line 14: train/1/train_1_0.jpg is named twice",
        "groups.csv line 15: expected file,group",
        "validation/4/validation_4_0.jpg: has no row in groups.csv",
    ]
    (tree / "groups.csv").write_text("image;slide\n")
    assert "groups.csv, line 1: expected the columns file, group; got image" in offenders(tree)[0]


def test_tree_without_splits(tmp_path):
    save_image(tmp_path / "set/NILM/a.png", 1)
    save_image(tmp_path / "set/SCC/b.jpg", 2)
    tree = folders.read_tree(tmp_path / "set", {"NILM": "NILM", "SCC": "SCC"}, splits=())
    assert [(file.id, file.split) for file in tree.files] == [("NILM/a.png", ""), ("SCC/b.jpg", "")]


def test_real_trees(shared_data):
    tree = read(shared_data / "DB_4")
    assert tree.counts()["train"] == {"HSIL": 171, "LSIL": 256, "NILM": 700, "SCC": 58}
    by_split = {
        split: {file.group for file in tree.files if file.split == split}
        for split in ("train", "validation")
    }
    assert not by_split["train"] & by_split["validation"]


def test_images_that_a_command_is_given(tmp_path):
    save_image(tmp_path / "cells" / "deep" / "b.png", 0)
    save_image(tmp_path / "cells" / "a.jpg", 1)
    (tmp_path / "cells" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    file, cells = str(tmp_path / "cells" / "notes.txt"), str(tmp_path / "cells")
    assert folders.expand_images([file, cells]) == [
        file,
        f"{cells}/a.jpg",
        f"{cells}/deep/b.png",
    ]
    with pytest.raises(folders.TreeError, match="empty: holds no image"):
        folders.expand_images([cells, str(tmp_path / "empty")])
    with pytest.raises(folders.TreeError, match="nowhere: no such file or folder"):
        folders.expand_images(["nowhere"])


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_groups_of_a_spreadsheet_name_files_by_path_or_bare_name(tmp_path, encoding):
    tree = make_tree(tmp_path, "DB_4", groups=2)
    ids = [file.id for file in folders.read_tree(tree, taxonomy.DB4_FOLDERS).files]
    lines = ["file;group"]
    for number, id_ in enumerate(ids):
        name = id_.rpartition("/")[2] if number % 2 else id_.replace("/", "\\")
        lines.append(f"{name};Präparat {number % 3}")
    (tree / "groups.csv").write_bytes("\r\n".join(lines).encode(encoding))
    read = folders.read_tree(tree, taxonomy.DB4_FOLDERS).files
    assert [file.group for file in read] == [f"Präparat {number % 3}" for number in range(len(ids))]


def test_a_bare_name_of_several_files_is_an_offender(tmp_path):
    tree = make_tree(tmp_path, "DB_4", groups=2)
    save_image(tree / "train" / "1" / "same.png", 1)
    save_image(tree / "train" / "2" / "same.png", 2)
    with (tree / "groups.csv").open("a") as file:
        file.write("same.png,a\n")
    listed = "same.png may be any of train/1/same.png, train/2/same.png"
    assert any(listed in line for line in offenders(tree))


@pytest.mark.parametrize(
    ("link", "target", "line"),
    [
        ("gone.jpg", "nowhere.jpg", "train/1/gone.jpg: is a link to a file that is not there"),
        ("self.jpg", "self.jpg", "train/1/self.jpg: is a link to a file that is not there"),
        ("again", ".", "train/1/again: is a link to a folder above it"),
        ("up", "../..", "train/1/up: is a link to a folder above it"),
    ],
)
def test_links_that_lead_to_no_file_are_offenders(tmp_path, link, target, line):
    tree = make_tree(tmp_path, "DB_4")
    before = folders.fingerprint(tree, taxonomy.DB4_FOLDERS)
    (tree / "train" / "1" / link).symlink_to(target)
    assert offenders(tree) == [line]
    assert folders.fingerprint(tree, taxonomy.DB4_FOLDERS) == before


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path):
    tree = make_tree(tmp_path, "DB_4")
    save_image(tmp_path / "elsewhere" / "more.png", 99)
    (tree / "train" / "1" / "linked").symlink_to(tmp_path / "elsewhere")
    ids = [file.id for file in folders.read_tree(tree, taxonomy.DB4_FOLDERS).files]
    assert "train/1/linked/more.png" in ids


def test_masks_and_outlines_beside_cells(tmp_path):
    for number, label in enumerate(("normal_columnar", "carcinoma")):
        for name in ("1.bmp", "1-d.bmp", "CROPPED/1_1.bmp"):
            save_image(tmp_path / "set" / label / name, 100 * number + len(name))
        (tmp_path / "set" / label / "1_cyt.dat").write_text("1,2\n")
    names = {name: name for name in ("normal_columnar", "carcinoma")}
    masks, *fields = folders.read_tree(tmp_path / "set", names, splits=()).notes
    assert masks.startswith("set: 2 files look like masks of others, such as carcinoma/1-d.bmp")
    assert len(fields) == 2 and "in carcinoma beside 1 in carcinoma/CROPPED" in fields[0]
