"""Trees, backgrounds and annotated fields behind URLs: the same data as from a folder."""

import os
import re
import shutil

import cv2
import pytest
from commands import command
from conftest import make_tree, save_image

from replication.fields import whole_fields
from replication.runs import dry_run
from replication.runs.directory import RunDirectory
from replication.runs.sources import Sources
from replication.verification import recomputed, repeated
from replication.whole_paper import plan
from tfds_pap import copies, folders, layouts, phantom, pipeline, preparing, urls
from tfds_pap.errors import PapError


def put(storage, folder, place):
    """Puts what a folder holds into memory://."""
    for path in folder.rglob("*"):
        if path.is_file():
            storage.pipe(f"/{place}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@pytest.fixture
def behind(apart, manual_dir):
    """Returns the URL of DB_3 and DB_4 in a kind of storage."""
    put(apart, manual_dir, "lab/smears")
    places = {"memory": "memory://lab/smears/", "file": f"file://{manual_dir}"}
    return places.__getitem__


def prepared(builder):
    """Returns all that TFDS wrote of a data set, but for where and when."""
    folder = builder.data_path
    return {path.name: path.read_bytes() for path in folder.iterdir() if "json" not in path.name}


@pytest.mark.parametrize("storage", ["memory", "file"])
def test_trees_are_prepared_as_from_a_folder(storage, behind, manual_dir, data_dir, tmp_path):
    for name in ("pap_db3", "pap_db4"):
        here = preparing.prepare(name, "original", manual_dir, data_dir)
        there = preparing.prepare(name, "original", behind(storage), tmp_path / "data")
        assert preparing.identity(there) == preparing.identity(here)
        assert prepared(there) == prepared(here) and len(prepared(here)) > 1
        one, other = pipeline.read_index(here), pipeline.read_index(there)
        assert one.order == other.order and one.groups.tolist() == other.groups.tolist()
    assert any(one.groups)
    counted = dry_run.images(there, behind(storage))
    assert counted.bytes_to_prepare == 0 and len(counted.index.ids) == len(one.ids)


def test_a_tree_behind_a_url_that_changed_is_prepared_again(apart, tmp_path, capsys):
    make_tree(tmp_path, "DB_4", train=2, validation=2, groups=2)
    put(apart, tmp_path / "DB_4", "lab/DB_4")
    first = preparing.prepare("pap_db4", "original", "memory://lab", tmp_path / "data")
    before = preparing.identity(first)
    save_image(tmp_path / "other.jpg", 99)
    apart.pipe("/lab/DB_4/train/1/train_1_0.jpg", (tmp_path / "other.jpg").read_bytes())
    again = preparing.prepare("pap_db4", "original", "memory://lab", tmp_path / "data")
    assert preparing.identity(again) != before
    assert "pap_db4/original changed since it was prepared" in capsys.readouterr().out
    shutil.copy(tmp_path / "other.jpg", tmp_path / "DB_4/train/1/train_1_0.jpg")
    local = preparing.prepare("pap_db4", "original", tmp_path, tmp_path / "data2")
    assert preparing.identity(again) == preparing.identity(local)
    # Groups alone are read again as well.
    table = (tmp_path / "DB_4" / "groups.csv").read_text().replace("field_1", "field_0")
    apart.pipe("/lab/DB_4/groups.csv", table.encode())
    grouped = preparing.prepare("pap_db4", "original", "memory://lab", tmp_path / "data")
    assert preparing.identity(grouped) != preparing.identity(local)
    assert preparing.identity(grouped).split()[0] == preparing.identity(local).split()[0]


def test_a_tree_that_is_not_there_is_one_line(apart, tmp_path):
    apart.pipe("/lab/readme.txt", b"1")
    with pytest.raises(PapError, match=r"^memory://lab/DB_4: no such file or folder$"):
        preparing.prepare("pap_db4", "original", "memory://lab", tmp_path)
    with pytest.raises(PapError, match=r"^memory://lab/DB_3: no such file or folder$"):
        plan.fingerprint("memory://lab")


def test_nothing_but_the_tree_is_copied(behind, tmp_path):
    copy = copies.folder(behind("memory"), "DB_4")
    cache = tmp_path / f"pap_urls_{os.getuid()}"
    assert [path.name for path in cache.glob("*/*")] == ["DB_4"] and copy.name == "DB_4"


@pytest.mark.parametrize("storage", ["memory", "file"])
def test_the_paper_takes_trees_and_fields_behind_a_url(storage, behind, manual_dir, apart):
    url = behind(storage)
    assert plan.fingerprint(url) == plan.fingerprint(str(manual_dir))
    settings = plan.Settings(manual_dir, manual_dir="memory://lab/smears/")
    assert settings.fields is None
    apart.pipe("/lab/smears/fields/a.png", b"1")
    assert settings.fields is None  # Asked once: a plan does not change while it runs.
    settings = plan.Settings(manual_dir, manual_dir="memory://lab/smears/")
    assert settings.fields == "memory://lab/smears/fields"
    (scan,) = [step for step in plan.steps(settings) if step.name == "scan"]
    assert scan.arguments[-1] == "memory://lab/smears/fields"


def test_backgrounds_and_annotated_fields_make_the_same_first_stage(apart, tmp_path, capsys):
    lab = tmp_path / "lab"
    for number in range(4):
        save_image(lab / "cells" / "ab"[number % 2] / f"{number}.png", number)
        save_image(lab / "glass" / f"{number} 1%20.png", 10 + number)
    (lab / "glass" / ".hidden.png").write_bytes(b"1")
    rows = [f"{number} 1%20.png,slide {number % 2}" for number in range(4)]
    (lab / "glass" / "groups.csv").write_text("\n".join(["file,group", *rows]))
    pixels, nuclei = phantom.draw_field(0, width=480, height=360, cells=12)
    (lab / "fields").mkdir()
    cv2.imwrite(str(lab / "fields" / "a.png"), pixels[..., ::-1])
    rows = [f"a.png,{nucleus.x},{nucleus.y},{nucleus.label}" for nucleus in nuclei]
    (lab / "fields" / "nuclei.csv").write_text("\n".join(["field,x,y,label", *rows]))
    put(apart, lab, "lab")
    own = layouts.read(lab / "cells")
    for flag, name in (("backgrounds", "glass"), ("annotated_fields", "fields")):
        listings = [
            Sources("folders", own=own, rois=tmp_path / f"rois{number}", **{flag: place})._listing(
                1
            )
            for number, place in enumerate((str(lab / name), f"memory://lab/{name}"))
        ]
        here, there = ([(file.id, file.group) for file in each.files] for each in listings)
        assert here == there and len(here) > 4
        assert len({folders.listing_fingerprint(each) for each in listings}) == 1
    assert (
        Sources("folders", annotated_fields="memory://lab/fields").fields == "memory://lab/fields"
    )
    assert "glass: a copy of memory://lab/glass in " in capsys.readouterr().out


def test_a_run_without_fields_behind_its_url_says_so(
    apart, tiny_run, tmp_path, monkeypatch, capsys
):
    apart.pipe("/lab/DB_4/a.png", b"1")
    fits = [type("Fit", (), {"stage": stage, "protocol": "clean"}) for stage in (1, 2)]
    monkeypatch.setattr(whole_fields.results, "read_fits", lambda run: fits)
    sources = Sources("original", manual_dir="memory://lab")
    whole_fields.scan_of_run(RunDirectory(tmp_path), sources.fields, 3, None)
    said = "No field is scanned: memory://lab/fields does not exist\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("module", "flag", "said"),
    [
        ("replication.run", "manual_dir=nope://lab", "no protocol of fsspec's"),
        ("replication.run", "backgrounds=nope://lab", "no protocol of fsspec's"),
        ("replication.run", "annotated_fields=https://t@h/a", "a password in a URL is not taken"),
        ("finetune.search", "manual_dir=nope://lab", "no protocol of fsspec's"),
        ("replication.run", "weights=s3://lab/w.h5", "expected a path, not a URL: those are"),
        ("replication.scan", "truth=s3://lab/nuclei.csv", "expected a path, not a URL: those are"),
    ],
)
def test_a_url_that_cannot_be_taken_is_one_line_before_tensorflow(module, flag, said):
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    ended = command(module, f"--{flag}", env=environment)
    imports, lines = [], []
    for line in ended.stderr.splitlines():
        (imports if line.startswith("import time:") else lines).append(line)
    assert ended.returncode == 1 and len(lines) == 1 and said in lines[0]
    assert f"--{flag.partition('=')[0]}=" in lines[0] and "t@h" not in lines[0]
    assert imports and not any(re.search(r"\| +tensorflow$", line) for line in imports)


def test_verify_asks_no_url_for_a_directory_and_names_the_folders_that_it_reads(
    behind, manual_dir, tmp_path
):
    tree = manual_dir / "DB_4" / "train"
    digest = folders.listing_fingerprint(layouts.read(tree))
    run = RunDirectory.open(tmp_path / "run", {})

    def checked(place):
        repeat = {"program": "replication.run", "arguments": [f"--folders={place}"]}
        data = {"pap_folders": {"fingerprint": digest}}
        run.update_manifest(environment={"repeat": repeat}, data=data)
        (one,) = recomputed.images(run)
        return one

    url = f"{behind('memory')}DB_4/train"
    said = f"images of pap_folders (read: {tree}): 1 figure, same to the bit"
    assert list(checked(tree).lines()) == [said]
    assert checked(url).same == 1 and not checked(url).different
    with urls.unasked("the directory names it"):
        unread = checked(url)
    assert unread.figures == 0 and unread.notes == [
        f"not looked at: {url}: not asked (the directory names it)"
    ]
    with pytest.raises(PapError, match="is not asked without --urls"):
        repeated.arguments(run, tmp_path)
    assert repeated.arguments(run, tmp_path, urls=True)[0] == "replication.run"


@pytest.mark.slow
def test_an_audit_of_a_url_writes_what_that_of_a_folder_does(manual_dir, tmp_path):
    for place, name in ((manual_dir, "here"), (f"file://{manual_dir}", "there")):
        where = (f"--data_dir={tmp_path / name}", f"--output={tmp_path / name / 'audit'}")
        ended = command(
            "tfds_pap.audit", f"--manual_dir={place}", "--audit=fast", "--datasets=pap_db4", *where
        )
        assert ended.returncode == 0, ended.stderr
    for name in ("pap_db4/pairs.csv", "pap_db4/audit.json"):
        files = [(tmp_path / place / "audit" / name).read_bytes() for place in ("here", "there")]
        assert files[0] == files[1]
