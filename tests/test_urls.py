"""Slides behind URLs: copied once to the machine that reads, the same results as from a path."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from collections import namedtuple

import cv2
import numpy as np
import pytest
from commands import command

from replication.fields import field_blocks, scan_directory, whole_fields
from replication.fields.find.cells import Cells
from replication.fields.read import reader
from replication.fields.read.field import FieldError
from replication.naming import reading
from tfds_pap import folders, layouts, path_flags, phantom, urls
from tfds_pap.errors import PapError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """A cache and a memory of this test alone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    storage = fsspec.filesystem("memory")
    storage.store.clear()
    storage.pseudo_dirs[:] = [""]
    return storage


def png(pixels):
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def test_a_field_is_read_from_memory_as_from_a_file(apart, tmp_path):
    pixels, _ = phantom.draw_field(0, width=300, height=200, cells=3)
    apart.pipe("/slides/a.png", png(pixels))
    with reader.open_field("memory://slides/a.png") as field:
        assert field.name == "a.png"
        np.testing.assert_array_equal(field.read(0, 0, 300, 200), pixels)
    assert list((tmp_path / f"pap_urls_{os.getuid()}").glob("*/*")) == [
        urls.local("memory://slides/a.png")
    ]


def test_processes_share_a_copy_and_a_changed_file_is_copied_again(tmp_path):
    source = tmp_path / "a.bin"
    source.write_bytes(b"one")
    copy = urls.local(f"file://{source}")
    assert copy.read_bytes() == b"one" and copy != source
    code = f"from tfds_pap import urls; print(urls.local('file://{source}'))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    before = copy.stat().st_ino, copy.stat().st_mtime_ns
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert told.strip() == str(copy) and before == (copy.stat().st_ino, copy.stat().st_mtime_ns)
    source.write_bytes(b"other")
    assert urls.local(f"file://{source}").read_bytes() == b"other"


def test_who_comes_second_waits_for_the_copy(apart, monkeypatch):
    apart.pipe("/a.bin", b"whole")
    copied = []

    def slowly(self, path, place, **_):
        copied.append(path)
        with open(place, "wb") as file:  # noqa: PTH123
            file.write(b"wh")
            file.flush()
            time.sleep(0.2)
            file.write(b"ole")

    monkeypatch.setattr(type(apart), "get_file", slowly)
    contents = []
    threads = [
        threading.Thread(target=lambda: contents.append(urls.local("memory://a.bin").read_bytes()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents == [b"whole"] * 3 and len(copied) == 1


def test_a_copy_that_fails_leaves_nothing_that_looks_whole(apart, monkeypatch):
    apart.pipe("/a.bin", b"whole")

    def breaks(self, path, place, **_):
        with open(place, "wb") as file:  # noqa: PTH123
            file.write(b"wh")
        raise ConnectionError("the line\nwent dead")

    with monkeypatch.context() as patch:
        patch.setattr(type(apart), "get_file", breaks)
        with pytest.raises(urls.UrlError, match=r"memory://a\.bin: .*\(the line went dead\)"):
            urls.local("memory://a.bin")
    assert urls.local("memory://a.bin").read_bytes() == b"whole"


def test_the_least_recently_used_copies_make_room(apart, monkeypatch):
    for number, letter in enumerate("abc"):
        apart.pipe(f"/{letter}", b"12345")
        os.utime(urls.local(f"memory://{letter}").parent, (number, number))
    urls.local("memory://a")
    disk = namedtuple("disk", "total used free")
    cache = urls.local("memory://a").parent.parent

    def usage(_):
        used = 5 * len(list(cache.glob("*/*")))
        return disk(18, used, 18 - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    apart.pipe("/d", b"12345")
    urls.local("memory://d")
    assert sorted(path.name for path in cache.glob("*/*")) == ["a", "c", "d"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nowhere.svs", "no such file"),
        ("memory://folder", "expected a file, not a folder"),
        ("nope://a.svs", "no protocol of fsspec's"),
        ("memory://a.mrxs", "a slide of several files has no URL"),
    ],
)
def test_what_cannot_be_read_is_one_line(apart, url, said):
    apart.pipe("/folder/a.svs", b"")
    with pytest.raises(FieldError, match=said) as raised:
        reader.open_field(url)
    assert url in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_a_missing_package_is_named(monkeypatch):
    def lacks(protocol):
        raise ImportError("Install s3fs to access S3")

    with monkeypatch.context() as patch:
        patch.setattr(fsspec, "get_filesystem_class", lacks)
        with pytest.raises(urls.UrlError, match=r"s3://b/a.svs: Install s3fs .* every machine"):
            urls.check("s3://b/a.svs")
    monkeypatch.setattr(urls.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(urls.UrlError, match=r"pip install 'pap-two-stage\[scale\]'"):
        urls.check("s3://b/a.svs")


def test_a_storage_that_does_not_answer_is_one_line(apart, monkeypatch):
    def dead(self, path, **_):
        raise RuntimeError("no\nanswer")

    monkeypatch.setattr(type(apart), "info", dead)
    with pytest.raises(urls.UrlError, match=r"^memory://a.svs: no answer$"):
        urls.state("memory://a.svs")


def test_fields_behind_urls_have_names_states_and_no_neighbours(apart, tmp_path):
    apart.pipe("/x/a b.svs", b"1")
    one, other = "memory://x/a b.svs", "memory://y/a b.svs"
    ids = {scan_directory.field_id(each) for each in (one, other, "x/a b.svs")}
    assert len(ids) == 3 and all(each.startswith("a_b-") for each in ids)
    before = scan_directory.file_state(one)
    assert before["bytes"] == 1 and json.loads(json.dumps(before)) == before
    apart.pipe("/x/a b.svs", b"2")
    assert scan_directory.file_state(one) != before
    assert scan_directory.truth_file(one, None) is None
    assert reader.expand_fields([one, other]) == [one, other]


def test_a_finished_field_whose_url_is_gone_is_read_again(apart, tmp_path):
    apart.pipe("/a.svs", b"1")
    url = "memory://a.svs"
    folder = tmp_path / "fields" / scan_directory.field_id(url)
    folder.mkdir(parents=True)
    (folder / "field.json").write_text(
        json.dumps({"file": scan_directory.file_state(url), "truth": None})
    )
    assert scan_directory.is_finished(tmp_path, url, None)
    apart.rm("/a.svs")
    assert not scan_directory.is_finished(tmp_path, url, None)


def test_no_more_is_read_of_a_file_than_is_expected(apart, tmp_path, monkeypatch):
    """A web server may declare little and send for ever; a local file is looked at before."""

    def endless(self, path, place, callback, **_):
        while True:
            callback.relative_update(2**20)

    (tmp_path / "a.png").write_bytes(bytes(11))
    apart.pipe("/a.png", bytes(11))
    for url in (f"file://{tmp_path}/a.png", "memory://a.png"):
        with pytest.raises(urls.UrlError, match=r"a\.png: more than the 10 bytes expected$"):
            urls.read(url, 10)
        assert urls.read(url, 11) == bytes(11)
    monkeypatch.setattr(type(apart), "get_file", endless)
    with pytest.raises(PapError, match=r"^more than the 536,870,912 bytes expected$"):
        reading.read("memory://a.png")
    with pytest.raises(urls.UrlError, match=r"^memory://a\.png: .*more than the 11 bytes"):
        urls.local("memory://a.png")


def test_a_picture_file_larger_than_any_picture_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(2**29 + 1)
    with pytest.raises(
        PapError, match=r"^more than the 536,870,912 bytes that a picture can have$"
    ):
        reading.read(path)


def test_a_copy_that_is_shorter_than_listed_is_none(apart, monkeypatch):
    apart.pipe("/cells/a.png", b"whole")
    listed = urls.below("memory://cells")
    monkeypatch.setattr(urls, "below", lambda url: listed)
    apart.pipe("/cells/a.png", b"who")
    with pytest.raises(urls.UrlError, match=r"a\.png: 3 bytes came of 5; did it change meanwhile"):
        urls.folder("memory://cells")


def test_what_the_disk_cannot_hold_drops_no_other_copy(apart, monkeypatch):
    apart.pipe("/a", b"1")
    before = urls.local("memory://a")
    monkeypatch.setattr(urls, "state", lambda url: {"bytes": 10**18, "key": "x"})
    with pytest.raises(urls.UrlError, match=r"1,000,000,000,000,000,000 bytes, the disk has"):
        urls.local("memory://b")
    assert before.exists()


def test_what_a_killed_copy_left_is_removed(apart):
    apart.pipe("/a", b"1")
    copy = urls.local("memory://a")
    copy.unlink()
    left = copy.with_name(".a.elsewhere.7.partial")
    left.write_bytes(b"half")
    assert urls.local("memory://a").exists() and not left.exists()


def test_a_password_in_a_url_is_refused_and_told_nowhere():
    url = "https://me:se@cret@host/a.png"
    with pytest.raises(urls.UrlError, match=r"^https://\*\*\*@host/a\.png: a password"):
        urls.below(url)
    with pytest.raises(ValueError, match="a password in a URL") as raised:
        path_flags._PathParser(path_flags.FOLDER_OR_URL).parse(url)
    assert "cret" not in str(raised.value)
    ended = command("replication.run", f"--folders={url}", env=os.environ)
    assert ended.returncode == 1 and "cret" not in ended.stdout + ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and "https://***@host/a.png" in ended.stderr
    urls.check("memory://bucket/a:b@c.png")


def test_a_url_that_names_nothing_is_refused():
    with pytest.raises(urls.UrlError, match="expected a URL that ends in a name"):
        urls.check("memory://a/..")


def test_a_table_takes_the_place_of_no_image(tmp_path):
    (image := tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "manifest.json").write_text("{}")
    typed = (image, f"--run_dir={tmp_path}", f"--csv={image}")
    ended = command("replication.predict", *typed, env=os.environ)
    assert ended.returncode == 1 and "a.png: is one of the images\n" in ended.stderr
    assert image.read_bytes() == b"1"


def test_other_places_refuse_urls_in_one_line():
    for must_be in (path_flags.FOLDER, path_flags.FILE, path_flags.NEW_FOLDER):
        with pytest.raises(ValueError, match="expected a path, not a URL: those are taken for"):
            path_flags._PathParser(must_be).parse("s3://bucket/images")
    with pytest.raises(ValueError, match=r"^no protocol of fsspec's \(s3, gs, http, file ...\)$"):
        path_flags._PathParser(path_flags.FOLDER_OR_URL).parse("nope://images")


def test_an_image_behind_a_url_is_read_as_a_file_is(apart, tmp_path):
    black = np.zeros((9, 9, 3), np.uint8)
    (tmp_path / "a.bmp").write_bytes(cv2.imencode(".bmp", black)[1].tobytes())
    apart.pipe("/a.bmp", (tmp_path / "a.bmp").read_bytes())
    assert reading.read("memory://a.bmp") == reading.read(tmp_path / "a.bmp")
    for url, said in (
        ("memory://a.bmp", "^[0-9]+ bytes, expected at most --max_image_bytes=10$"),
        ("memory://nowhere.png", "^no such file or folder$"),
    ):
        with pytest.raises(PapError, match=said):
            reading.read(url, max_bytes=10)


@pytest.fixture
def tree(apart, manual_dir):
    """Returns class folders, which are in memory:// as well."""
    root = manual_dir / "DB_4" / "train"
    for path in root.glob("*/*"):
        apart.pipe(f"/cells/{path.relative_to(root)}", path.read_bytes())
    return root


@pytest.mark.parametrize("storage", ["memory", "file"])
def test_class_folders_behind_a_url_are_the_same_data_as_on_this_machine(storage, tree, tmp_path):
    url = "memory://cells/" if storage == "memory" else f"file://{tree}"
    copy = urls.folder(url)
    assert copy.name == ("cells" if storage == "memory" else "train") and copy != tree
    listed, behind = layouts.read(tree), layouts.read(copy)
    assert [file.id for file in behind.files] == [file.id for file in listed.files]
    assert behind.class_names == listed.class_names and len(listed.files) == 40
    assert folders.listing_fingerprint(behind) == folders.listing_fingerprint(listed)
    assert folders.expand_images([url]) == [
        f"{url.rstrip('/')}/{path.relative_to(tree).as_posix()}"
        for path in folders.image_paths(tree)
    ]


def test_a_folder_is_copied_once_and_again_where_it_changed(apart, tree, monkeypatch):
    copied, copy = [], urls._copy

    def counted(url, place, size):
        if len(copied) == 30:
            raise ConnectionError("the line\nwent dead")
        copied.append(url)
        copy(url, place, size)

    monkeypatch.setattr(urls, "_copy", counted)
    monkeypatch.setattr(urls, "_AT_ONCE", 1)
    with pytest.raises(urls.UrlError, match=r"^memory://cells: cannot .*\(the line went dead\)$"):
        urls.folder("memory://cells")
    copied[:30] = ["before"]
    first = urls.folder("memory://cells")
    assert len(copied) == 1 + 10
    assert urls.folder("memory://cells") == first and len(copied) == 11
    apart.pipe("/cells/1/another.jpg", b"1")
    apart.pipe("/cells/.cache/b.jpg", b"1")
    copied.clear()
    apart.pipe("/cells/1/groups.csv", b"file,group")
    monkeypatch.setattr(urls, "_copy", copy)
    second = urls.folder("memory://cells")
    assert second != first and second.name == "cells"
    names = {path.relative_to(second).as_posix() for path in second.rglob("*") if path.is_file()}
    assert {"1/another.jpg", "1/groups.csv"} < names and len(names) == 42


def test_what_is_no_folder_is_one_line(apart):
    apart.pipe("/a.jpg", b"1")
    for url, said in (
        ("memory://a.jpg", "expected a folder with files"),
        ("memory://nowhere", "no such file or folder"),
    ):
        with pytest.raises(urls.UrlError, match=f"^{url}: {said}$"):
            urls.folder(url)
    # Keys of a bucket need be no paths.
    apart.store["/x/1//a.jpg"] = apart.store["/a.jpg"]
    with pytest.raises(urls.UrlError, match=r"^memory://x: '/x/1/' is no path of a file$"):
        urls.folder("memory://x")


class Stage1:
    """A stand-in: the score of an ROI is how dark its middle is."""

    roi, stride = 150, 25

    def scores(self, pixels):
        rows, columns = ((side - 150) // 25 + 1 for side in pixels.shape[:2])
        middle = np.ix_(np.arange(rows) * 25 + 75, np.arange(columns) * 25 + 75)
        return (1 - pixels[..., 0].astype(np.float32) / 255)[middle]


class Stage2:
    """A stand-in: names by the colour of the middle."""

    decision = types.SimpleNamespace(
        labels=("NILM", "LSIL", "HSIL", "SCC"),
        classes=Cells.empty().classes,
        hsil_plus=lambda probabilities: probabilities[:, 2:].sum(axis=1),
        abstains=lambda probabilities: probabilities.max(axis=1) < 0.3,
    )

    def probabilities(self, field, tops, lefts):
        some = [
            field.read(int(x) + 75, int(y) + 75, 1, 1)[0, 0]
            for y, x in zip(tops, lefts, strict=True)
        ]
        values = np.array([[*map(float, each), 99.0] for each in some]).reshape(-1, 4)
        return values / values.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("skip_glass", [False, True])
def test_the_steps_of_a_cluster_give_what_one_process_gives(
    apart, tmp_path, monkeypatch, skip_glass
):
    """From a path in one process, from memory:// in the steps that workers take; byte for byte."""
    pixels, _ = phantom.draw_field(5, width=700, height=500, cells=6, litter=0)
    glass = phantom.draw_field(6, slide=0, width=700, height=300, cells=0, litter=0)[0]
    (tmp_path / "a.png").write_bytes(png(np.vstack([pixels, glass])))
    apart.pipe("/a.png", (tmp_path / "a.png").read_bytes())
    stages = types.SimpleNamespace(stage1=Stage1(), stage2=Stage2(), about={})
    monkeypatch.setattr(field_blocks, "_stages", lambda work: stages)
    settings = scan_directory.Settings(threshold=0.4, skip_glass=skip_glass)
    run = types.SimpleNamespace(path=tmp_path / "one", update_manifest=lambda **_: None)
    path = str(tmp_path / "a.png")
    scan_directory.scan(run, [path], stages, settings, workers=1)
    models = whole_fields.Models(tmp_path, tmp_path)
    work, url = field_blocks.Work(tmp_path / "many", models, settings, ()), "memory://a.png"
    count, missing = field_blocks.plan(work, url)
    assert count == len(missing) == 1
    for block in missing:
        field_blocks.score(work, url, *block)
    assert field_blocks.plan(work, url) == (1, [])
    kept, parts = field_blocks.keep(work, url, 16)
    for part in parts:
        field_blocks.name(work, url, part, part + 16)
    assert field_blocks.finish(work, url, url, 16, None) == kept > 0
    alone, apart_from_it = (
        tmp_path / "one" / "fields" / scan_directory.field_id(path),
        work.folder(url),
    )
    for name in ("scores.npy", "cells.csv", "heat_map.png", "overlay.jpg"):
        assert (alone / name).read_bytes() == (apart_from_it / name).read_bytes(), name
    infos = [json.loads((each / "field.json").read_text()) for each in (alone, apart_from_it)]
    assert infos[0]["notes"] == infos[1]["notes"]
    assert bool(infos[0]["notes"]) == skip_glass and infos[1]["path"] == url
    if skip_glass:
        scores = np.load(io.BytesIO((alone / "scores.npy").read_bytes()))
        assert "ROIs were taken for glass" in infos[0]["notes"][0] and (scores[-4:] == 0).all()


def test_a_list_mixes_paths_and_urls(tmp_path):
    (tmp_path / "list.csv").write_text("slide\na.svs\n/b.svs\ngs://bucket/c.svs\n")
    paths = urls.listed(tmp_path / "list.csv", "slide")
    assert paths == [str(tmp_path / "a.svs"), "/b.svs", "gs://bucket/c.svs"]
