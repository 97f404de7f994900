"""Layouts of image trees are recognised by names, and only where the names say so."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tfds_pap import layouts
from tfds_pap.errors import PapError
from tfds_pap.tree_files import AmbiguousTreeError, TreeError

FOLDERS = ("HSIL", "NILM")


def touch(root, *names):
    """Empty files: nothing here decodes."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def ids(listing):
    return [file.id for file in listing.files]


def said(listing):
    return "\n".join(listing.notes)


def sipakmed(root, doubled=True):
    for folder in ("im_Dyskeratotic", "im_Superficial-Intermediate"):
        top = f"{folder}/{folder}" if doubled else folder
        touch(root, f"{top}/001.bmp", f"{top}/001_cyt01.dat", f"{top}/CROPPED/001_01.bmp")
        touch(root, f"{top}/CROPPED/001_02.bmp", f"{top}/CROPPED/002_01.bmp", f"{top}/002.bmp")
        touch(root, f"{top}/CROPPED/001_01_cyt.dat")
    return root


def herlev(root):
    for folder in ("normal_columnar", "carcinoma_in_situ"):
        touch(root, *(f"{folder}/1490-{n}.BMP" for n in (1, 2)))
        touch(root, *(f"{folder}/1490-{n}-d.bmp" for n in (1, 2)))
    return root


def mendeley(root):
    return touch(
        root,
        "High squamous intra-epithelial lesion/HSIL_1 (1).jpg",
        "High squamous intra-epithelial lesion/HSIL_1 (2).jpg",
        "Negative for Intraepithelial malignancy/NL_1_ (1).jpg",
        "Squamous cell carcinoma/scc_2 (15).jpg",
    )


def cric(root, name="classifications.csv"):
    root.mkdir(parents=True, exist_ok=True)
    for field in ("a.png", "b.png", "empty.png"):
        Image.new("L", (1376, 1020)).save(root / field)
    cells = [("a.png", 10, 7, 500, "HSIL"), ("a.png", 11, 700, 500, "SCC")]
    cells += [("b.png", 12, 1376, 1020, "Negative for intraepithelial lesion")]
    if name.endswith("json"):
        fields = [
            {
                "image_id": 1,
                "image_name": field,
                "classifications": [
                    {"cell_id": i, "nucleus_x": x, "nucleus_y": y, "bethesda_system": label}
                    for picture, i, x, y, label in cells
                    if picture == field
                ],
            }
            for field in ("a.png", "b.png")
        ]
        (root / name).write_text(json.dumps(fields))
    else:
        lines = ["image_id,image_filename,image_doi,cell_id,bethesda_system,nucleus_x,nucleus_y"]
        lines += [f"1,{picture},,{i},{label},{x},{y}" for picture, i, x, y, label in cells]
        (root / name).write_text("\n".join(lines))
    return root


def test_plain_class_folders(tmp_path):
    root = touch(tmp_path / "lab", "NILM/deep/a.png", "HSIL/b.JPG", "HSIL/notes.txt", "README.md")
    (root / "__MACOSX/NILM").mkdir(parents=True)
    touch(root, "HSIL/.DS_Store", "HSIL/._b.JPG")
    listing = layouts.read(root)
    assert listing.layout == "plain"
    assert ids(listing) == ["HSIL/b.JPG", "NILM/deep/a.png"]
    assert [file.label for file in listing.files] == ["HSIL", "NILM"]
    assert listing.class_names == ("NILM", "HSIL")
    assert {(file.split, file.group, file.crop) for file in listing.files} == {("", "", None)}
    assert dict(listing.passed_over) == {"HSIL/notes.txt": "no picture", "README.md": "no picture"}
    assert listing.notes[0] == "layout plain: 2 classes, 2 images"
    assert not listing.offenders


def test_what_is_wrong_below_class_folders_is_listed(tmp_path):
    root = touch(tmp_path / "lab", "NILM/a.png", "HSIL/b.gif", "stray.png")
    (root / "NILM/gone.png").symlink_to("nowhere.png")
    (root / "NILM/again").symlink_to(".")
    assert sorted(layouts.read(root).offenders) == [
        "HSIL/b.gif: unexpected ending '.gif'; --ignore='*.gif' passes it over",
        "HSIL: class folder is empty",
        "NILM/again: is a link to a folder above it",
        "NILM/gone.png: is a link to a file that is not there",
        "stray.png: unexpected picture outside the class folders",
    ]


def test_splits_by_folders(tmp_path):
    root = touch(tmp_path / "kaggle", "Train/NILM/a.png", "Train/HSIL/b.png", "valid/NILM/c.png")
    touch(root, "testing/NILM/d.png", "testing/HSIL/e.png")
    listing = layouts.read(root)
    assert listing.layout == "split"
    assert {file.id: file.split for file in listing.files} == {
        "Train/HSIL/b.png": "train",
        "Train/NILM/a.png": "train",
        "testing/HSIL/e.png": "test",
        "testing/NILM/d.png": "test",
        "valid/NILM/c.png": "validation",
    }
    assert listing.class_names == ("NILM", "HSIL")
    assert listing.notes[0].endswith("5 images, 2 train, 1 validation, 2 test")
    assert "validation has no image of HSIL" in listing.notes


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("train/NILM/a.png", "train/HSIL/b.png", "LSIL/c.png"), "LSIL beside the splits train"),
        (("train/a.png", "validation/b.png"), "train, validation: named like splits"),
        (("train/NILM/a.png", "train/HSIL/b.png", "test/c.png"), "test: named like a split"),
        (("val/NILM/a.png", "val/HSIL/b.png", "valid/NILM/c.png"), "val and valid are both"),
        (("train/NILM/a.png", "train/HSIL/b.png", "test/nilm/c.png"), "differ in case only"),
    ],
)
def test_a_tree_that_can_be_meant_in_several_ways_asks_back(tmp_path, names, line):
    touch(tmp_path / "lab", *names)
    with pytest.raises(AmbiguousTreeError) as caught:
        layouts.read(tmp_path / "lab")
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.status == 2


def test_plain_takes_splits_as_classes_when_told_and_says_so(tmp_path):
    listing = layouts.read(touch(tmp_path / "lab", "train/a.png", "test/b.png"), "plain")
    assert listing.class_names == ("test", "train")
    assert "test, train look like splits and are taken as classes" in listing.notes


def test_one_split_alone_is_cut_in_parts(tmp_path):
    listing = layouts.read(touch(tmp_path / "lab", "train/NILM/a.png", "train/HSIL/b.png"))
    assert {file.split for file in listing.files} == {""}
    assert "train is the only split; it is cut in parts" in listing.notes


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("NILM/a.png",), "2 to 20 class folders, got 1"),
        (tuple(f"c{n}/a.png" for n in range(21)), "2 to 20 class folders, got 21"),
        (("set/NILM/a.png", "set/HSIL/b.png"), "set may be meant"),
        (("notes.txt",), "got 0"),
    ],
)
def test_numbers_of_classes(tmp_path, names, line):
    with pytest.raises(TreeError, match=line):
        layouts.read(touch(tmp_path / "lab", *names))


@pytest.mark.parametrize("doubled", [True, False])
def test_sipakmed_cells_and_fields(tmp_path, doubled):
    root = sipakmed(tmp_path / "set", doubled)
    cells = layouts.read(root)
    assert (cells.layout, cells.class_names) == (
        "sipakmed",
        ("Dyskeratotic", "Superficial-Intermediate"),
    )
    assert len(cells.files) == 6
    assert all("/CROPPED/" in file.id for file in cells.files)
    assert [file.group for file in cells.files][:3] == [
        "Dyskeratotic 001",
        "Dyskeratotic 001",
        "Dyskeratotic 002",
    ]
    assert "4 whole fields passed over; 4 clusters are groups" in said(cells)
    assert sorted(why for _, why in cells.passed_over) == ["outline"] * 4 + ["whole field"] * 4
    fields = layouts.read(root, fields=True)
    assert len(fields.files) == 4 and not any("/CROPPED/" in file.id for file in fields.files)
    assert {file.group for file in fields.files} == {file.group for file in cells.files}
    assert not cells.offenders + fields.offenders


def test_a_name_that_is_none_of_sipakmed_is_listed(tmp_path):
    root = touch(sipakmed(tmp_path / "set"), "im_Dyskeratotic/im_Dyskeratotic/CROPPED/copy.bmp")
    (line,) = layouts.read(root).offenders
    assert line.startswith("im_Dyskeratotic/im_Dyskeratotic/CROPPED/copy.bmp: expected a name such")


def test_cropped_cells_with_other_names_are_plain_with_a_note(tmp_path):
    for folder in FOLDERS:
        touch(tmp_path / "set", f"{folder}/field.bmp", f"{folder}/CROPPED/cell.bmp")
    listing = layouts.read(tmp_path / "set")
    assert listing.layout == "plain"
    assert "1 pictures in HSIL beside 1 in HSIL/CROPPED: whole fields" in said(listing)


def test_herlev_masks_are_left_out(tmp_path):
    listing = layouts.read(herlev(tmp_path / "set"))
    assert listing.layout == "herlev"
    assert len(listing.files) == 4 and not any("-d" in file.id for file in listing.files)
    assert [why for _, why in listing.passed_over] == ["mask"] * 4
    assert "4 masks passed over" in listing.notes


def test_a_few_masks_are_plain_with_a_note(tmp_path):
    root = touch(tmp_path / "set", *(f"NILM/{n}.png" for n in range(9)), "HSIL/a.png")
    touch(root, "NILM/1-d.png", "HSIL/a_mask.png", "HSIL/masks/a.png", "HSIL/grade-d.png")
    listing = layouts.read(root)
    assert listing.layout == "plain" and len(listing.files) == 14
    assert "3 files look like masks of others, such as HSIL/a_mask.png" in said(listing)


def test_mendeley_slides_and_variants(tmp_path):
    root = mendeley(tmp_path / "set")
    folder = "High squamous intra-epithelial lesion"
    touch(root, f"{folder}/a_rotated_90_HSIL_1 (1).jpg", f"{folder}/HSIL_1 (1)_flip.jpg")
    touch(root, f"{folder}/a_flipped_HSIL_1 (3).jpg", f"{folder}/b_flipped_HSIL_1 (3).jpg")
    listing = layouts.read(root)
    assert listing.layout == "mendeley_lbc"
    assert listing.class_names == ("NILM", "HSIL", "SCC")
    assert [(Path(file.id).name, file.group) for file in listing.files] == [
        ("HSIL_1 (1).jpg", "HSIL_1"),
        ("HSIL_1 (2).jpg", "HSIL_1"),
        ("a_flipped_HSIL_1 (3).jpg", "HSIL_1"),
        ("NL_1_ (1).jpg", "NL_1"),
        ("scc_2 (15).jpg", "SCC_2"),
    ]
    assert "3 slides, from the names, are groups" in listing.notes
    assert "3 files are variants of others by their stem" in said(listing)
    assert dict(listing.passed_over)[f"{folder}/HSIL_1 (1)_flip.jpg"] == (
        f"augmented copy of {folder}/HSIL_1 (1).jpg"
    )


def test_numbered_copies_of_a_desktop_are_no_slides(tmp_path):
    root = touch(tmp_path / "set", "NILM/cell_1.png", "NILM/cell_1 (2).png", "HSIL/x_1 (1).png")
    listing = layouts.read(root)
    assert listing.layout == "plain" and {file.group for file in listing.files} == {""}
    assert "1 files look like augmented copies of others, such as NILM/cell_1 (2)" in said(listing)


@pytest.mark.parametrize("name", ["classifications.csv", "classifications.json"])
def test_cric_windows(tmp_path, name):
    listing = layouts.read(cric(tmp_path / "set", name))
    assert listing.layout == "cric"
    # 150 px in a field of 1,280 are 161 in one of 1,376; windows stay in the field.
    assert {file.id: (file.label, file.group, file.crop) for file in listing.files} == {
        "a.png#10": ("HSIL", "a.png", (0, 420, 161)),
        "a.png#11": ("SCC", "a.png", (620, 420, 161)),
        "b.png#12": ("NILM", "b.png", (1215, 859, 161)),
    }
    assert dict(listing.passed_over) == {"empty.png": "no nucleus in the table"}
    assert not listing.offenders


def test_cric_lists_what_its_table_gets_wrong(tmp_path):
    root = cric(tmp_path / "set")
    with (root / "classifications.csv").open("a") as file:
        file.write("\n1,ghost.png,,13,SCC,5,5\n1,a.png,,14,SCC,5,1021\n1,a.png,,10,SCC,5,5\n")
    (root / "empty.png").write_bytes(b"no picture")
    with (root / "classifications.csv").open("a") as file:
        file.write("1,empty.png,,15,SCC,5,5\n")
    assert layouts.read(root).offenders == (
        "ghost.png: is not in the tree (classifications.csv line 5)",
        "a.png#14: lies outside 1376 x 1020 px (classifications.csv line 6)",
        "a.png#10: the same nucleus twice (classifications.csv line 7)",
        "empty.png: cannot be decoded (no known image format)",
    )
    (root / "classifications.csv").write_text("file,x\n")
    with pytest.raises(TreeError, match="expected a table of nuclei"):
        layouts.read(root, "cric")


def test_a_table_of_nuclei_of_ones_own(tmp_path):
    root = tmp_path / "set"
    (root / "fields").mkdir(parents=True)
    Image.new("L", (1280, 960)).save(root / "fields/a.png")
    (root / "nuclei.csv").write_text("field;x;y;label\na.png;640,5;480;HSIL\n")
    (file,) = layouts.read(root).files
    assert (file.id, file.crop) == ("fields/a.png#640.5-480", (566, 405, 150))


def test_a_table_of_nuclei_beside_class_folders_is_not_asked(tmp_path):
    root = touch(tmp_path / "set", "NILM/a.png", "HSIL/b.png")
    (root / "nuclei.csv").write_text("field,x,y,label\na.png,1,2,NILM\n")
    assert layouts.read(root).layout == "plain"


def test_what_looks_like_splits_inside_classes_is_named(tmp_path):
    listing = layouts.read(touch(tmp_path / "set", "NILM/train/a.png", "HSIL/test/b.png"))
    assert "folders test, train inside class folders look like splits" in said(listing)


@pytest.mark.parametrize("layout", ["plain", "split", "sipakmed", "herlev", "mendeley_lbc", "cric"])
def test_auto_recognises_what_a_name_would_choose(tmp_path, layout):
    trees = {"sipakmed": sipakmed, "herlev": herlev, "mendeley_lbc": mendeley, "cric": cric}
    split = touch(tmp_path / "split", "train/NILM/a.png", "train/HSIL/b.png", "val/NILM/c.png")
    plain = touch(tmp_path / "plain", "NILM/a.png", "HSIL/b.png")
    simple = {"split": split, "plain": plain}
    root = simple[layout] if layout in simple else trees[layout](tmp_path / "set")
    assert layouts.read(root) == layouts.read(root, layout)


def test_groups_from_names(tmp_path):
    root = touch(tmp_path / "lab", "NILM/s1_a.png", "NILM/s1_b.png", "HSIL/s2_a.png", "HSIL/x.png")
    listing = layouts.read(root, groups_from=r"^(s\d+)_")
    assert [file.group for file in listing.files] == ["s2", "", "s1", "s1"]
    assert listing.offenders == (r"HSIL/x.png: --groups_from=^(s\d+)_ names no group",)
    assert (
        r"2 groups from --groups_from=^(s\d+)_, the largest first: s1 (2), s2 (1)" in listing.notes
    )
    whole = layouts.read(root, groups_from="NILM/s1|HSIL/.")
    assert [file.group for file in whole.files] == ["HSIL/s", "HSIL/x", "NILM/s1", "NILM/s1"]
    with pytest.raises(PapError, match="expected a regular expression"):
        layouts.read(root, groups_from="(")


def test_groups_csv_wins_over_the_layout_and_excludes_a_pattern(tmp_path):
    root = mendeley(tmp_path / "set")
    listed = ids(layouts.read(root))
    (root / "groups.csv").write_text("file,group\n" + "".join(f"{i},g\n" for i in listed))
    assert {file.group for file in layouts.read(root).files} == {"g"}
    with pytest.raises(PapError, match="names the groups already"):
        layouts.read(root, groups_from="x")
    (root / "groups.csv").write_text("file,group\n" + "".join(f"{i},g\n" for i in listed[1:]))
    assert layouts.read(root).offenders == (f"{listed[0]}: has no row in groups.csv",)


def test_tables_may_name_what_is_passed_over(tmp_path):
    root = herlev(tmp_path / "set")
    everything = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.[Bb]*"))
    (root / "groups.csv").write_text("file,group\n" + "".join(f"{i},g\n" for i in everything))
    assert len(everything) == 8 and not layouts.read(root).offenders


def test_splits_csv(tmp_path):
    root = touch(tmp_path / "lab", "NILM/a.png", "HSIL/b.png", "HSIL/c.png")
    (root / "splits.csv").write_text("file;split\na.png;Train\nHSIL\\b.png;val\nc.png;test\n")
    assert [file.split for file in layouts.read(root).files] == ["validation", "test", "train"]
    (root / "splits.csv").write_text("file,split\na.png,train\nb.png,left\n")
    assert layouts.read(root).offenders == (
        "HSIL/c.png: has no row in splits.csv",
        "splits.csv: 'left': expected one of train, training, val, valid, validation, dev, test, "
        "testing",
    )
    split = touch(tmp_path / "split", "train/NILM/a.png", "train/HSIL/b.png", "test/NILM/c.png")
    (split / "splits.csv").write_text("file,split\na.png,train\n")
    with pytest.raises(PapError, match="the folders are splits already"):
        layouts.read(split)


def test_a_group_in_two_splits_is_named(tmp_path):
    root = touch(tmp_path / "lab", "train/NILM/s1_a.png", "test/NILM/s1_b.png", "test/HSIL/s2.png")
    notes = said(layouts.read(root, groups_from=r"s\d"))
    assert "1 groups lie in more than one split, such as s1" in notes


def test_splits_csv_cuts_the_fields_of_a_table_of_nuclei(tmp_path):
    root = cric(tmp_path / "set")
    (root / "splits.csv").write_text("file,split\na.png,train\nb.png,test\nempty.png,test\n")
    assert [file.split for file in layouts.read(root).files] == ["train", "train", "test"]


def test_ignored_files_and_folders_are_listed(tmp_path):
    root = touch(tmp_path / "lab", "NILM/a.png", "NILM/a.xyz", "HSIL/b.png", "other/c.png")
    listing = layouts.read(root, ignore=["*.xyz", "other", "*.none", "NILM/z*"])
    assert ids(listing) == ["HSIL/b.png", "NILM/a.png"]
    assert dict(listing.passed_over) == {"NILM/a.xyz": "--ignore=*.xyz", "other": "--ignore=other"}
    assert "--ignore=*.none left nothing out" in listing.notes
    assert not listing.offenders


@pytest.mark.parametrize(
    ("layout", "options", "line"),
    [
        ("other", {}, "--layout=other: expected one of auto, plain"),
        ("plain", {"fields": True}, "fields: plain has no fields"),
        ("split", {}, r"expected lab/\{train,validation,test\}/CLASS"),
        ("cric", {}, "expected a table of nuclei"),
    ],
)
def test_what_a_tree_has_not_is_one_line(tmp_path, layout, options, line):
    root = touch(tmp_path / "lab", "NILM/a.png", "HSIL/b.png")
    with pytest.raises(PapError, match=line):
        layouts.read(root, layout, **options)
    with pytest.raises(TreeError, match="nowhere: no such folder"):
        layouts.read(tmp_path / "nowhere")
