"""Slides behind URLs: copied once to the machine that reads, the same results as from a path."""

import dataclasses
import io
import itertools
import json
import os
import types

import cv2
import numpy as np
import pytest
from commands import command

from replication.fields import field_blocks, scan_directory, scan_evaluation, whole_fields
from replication.fields.find.cells import Cells
from replication.fields.read import reader
from replication.fields.read.field import FieldError
from replication.naming import output, reading
from replication.runs import environment
from replication.runs.directory import RunDirectory
from replication.verification import repeated
from tfds_pap import copies, folders, layouts, path_flags, phantom, urls
from tfds_pap.errors import PapError

fsspec = pytest.importorskip("fsspec")


pytestmark = pytest.mark.usefixtures("apart")


def png(pixels):
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def test_a_field_is_read_from_memory_as_from_a_file(apart, tmp_path):
    pixels, _ = phantom.draw_field(0, width=300, height=200, cells=3)
    apart.pipe("/slides/a.png", png(pixels))
    with reader.open_field("memory://slides/a.png") as field:
        assert field.name == "a.png"
        np.testing.assert_array_equal(field.read(0, 0, 300, 200), pixels)
    assert list((tmp_path / f"pap_urls_{os.getuid()}").glob("*/*")) == [
        copies.local("memory://slides/a.png")
    ]


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
        copies.local("memory://a.png")


def test_a_picture_file_larger_than_any_picture_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(2**29 + 1)
    with pytest.raises(
        PapError, match=r"^more than the 536,870,912 bytes that a picture can have$"
    ):
        reading.read(path)


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
    copy = copies.folder(url)
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
    copied, copy = [], copies._copy

    def counted(url, place, size):
        if len(copied) == 30:
            raise ConnectionError("the line\nwent dead")
        copied.append(url)
        copy(url, place, size)

    monkeypatch.setattr(copies, "_copy", counted)
    monkeypatch.setattr(copies, "_AT_ONCE", 1)
    with pytest.raises(urls.UrlError, match=r"^memory://cells: cannot .*\(the line went dead\)$"):
        copies.folder("memory://cells")
    copied[:30] = ["before"]
    first = copies.folder("memory://cells")
    assert len(copied) == 1 + 10
    assert copies.folder("memory://cells") == first and len(copied) == 11
    apart.pipe("/cells/1/another.jpg", b"1")
    apart.pipe("/cells/.cache/b.jpg", b"1")
    copied.clear()
    apart.pipe("/cells/1/groups.csv", b"file,group")
    monkeypatch.setattr(copies, "_copy", copy)
    second = copies.folder("memory://cells")
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
            copies.folder(url)
    # Keys of a bucket need be no paths.
    apart.store["/x/1//a.jpg"] = apart.store["/a.jpg"]
    with pytest.raises(urls.UrlError, match=r"^memory://x: '/x/1/' is no path of a file$"):
        copies.folder("memory://x")


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


def scanned(path, run, settings):
    """Scans what a path or URL names, with stand-ins."""
    stages = types.SimpleNamespace(stage1=Stage1(), stage2=Stage2(), about={})
    run = RunDirectory.open(run, {})
    run.update_manifest(settings=dataclasses.asdict(settings))
    scan_directory.scan(run, reader.expand_fields([path]), stages, settings, workers=1)
    return run


def test_a_folder_of_fields_behind_a_url_is_read_as_on_this_machine(apart, tmp_path):
    """With the tables beside them, byte for byte; a name may hold what URLs use otherwise."""
    folder = tmp_path / "fields"
    (folder / "b").mkdir(parents=True)
    names = ["a 1%20.png", "b/c.png"]
    for number, name in enumerate([*names, ".hidden.png"]):
        pixels, _ = phantom.draw_field(number, width=400, height=300, cells=4, litter=0)
        (folder / name).write_bytes(png(pixels))
    (folder / "nuclei.csv").write_text("field,x,y,label\na 1%20.png,200,150,HSIL\n")
    (folder / "groups.csv").write_text("file,group\na 1%20.png,slide 7\n")
    for file in folder.rglob("*.*"):
        apart.pipe(f"/lab/fields/{file.relative_to(folder)}", file.read_bytes())
    settings = scan_directory.Settings(threshold=0.4)
    runs = {}
    for url in (str(folder), "memory://lab/fields/", f"file://{folder}"):
        runs[url] = scanned(url, tmp_path / f"run{len(runs)}", settings)
    alone, *others = (
        [run.path / "fields" / name for name in run.manifest()["fields"]] for run in runs.values()
    )
    truths = []
    for (url, run), folders_of_run in zip(runs.items(), [alone, *others], strict=True):
        infos = [json.loads((each / "field.json").read_text()) for each in folders_of_run]
        assert [info["path"] for info in infos] == [f"{url.rstrip('/')}/{name}" for name in names]
        assert infos[0]["truth"] == f"{url.rstrip('/')}/nuclei.csv" and infos[1]["truth"] is None
        table = scan_directory.summaries(run)
        assert table["fields.csv"]["slide"].tolist() == ["slide 7", ""]
        truths.append([truth for _, truth in scan_evaluation.annotated_fields(run)])
        for one, other in zip(alone, folders_of_run, strict=True):
            for name in ("scores.npy", "cells.csv", "heat_map.png", "overlay.jpg"):
                assert (one / name).read_bytes() == (other / name).read_bytes(), name
        assert all(scan_directory.is_finished(run.path, info["path"], None) for info in infos)
    for truth in truths:
        assert truth[1] is None
        assert len(truth[0].nuclei) == 1 and truth[0].nuclei.labels.tolist() == ["HSIL"]


def test_a_folder_without_fields_and_a_file_without_an_ending_are_told(apart):
    apart.pipe("/none/a.txt", b"1")
    apart.pipe("/slide", b"1")
    with pytest.raises(PapError, match=r"^memory://none: holds no field$"):
        reader.expand_fields(["memory://none"])
    assert reader.expand_fields(["memory://slide"]) == ["memory://slide"]
    with pytest.raises(PapError, match=r"^memory://nowhere: no such file or folder$"):
        reader.expand_fields(["memory://nowhere"])


def test_no_secret_of_a_signed_url_is_written(apart, tmp_path, monkeypatch):
    """Neither by a scan nor by names of cells; signed again, a field is the same one."""
    pixels, _ = phantom.draw_field(5, width=300, height=300, cells=2, litter=0)
    signed = [f"/a.png?id={n}&X-Amz-Signature=be57ed&X-Amz-Date={n}" for n in (1, 1, 2)]
    signed[1] = signed[1].replace("be57ed", "feed")
    for key in signed:
        apart.pipe(key, png(pixels))
    paths = [f"memory:/{key}" for key in signed]
    shown = [f"memory://a.png?id={n}&X-Amz-Signature=***&X-Amz-Date=***" for n in (1, 1, 2)]
    stages = types.SimpleNamespace(stage1=Stage1(), stage2=Stage2(), about={})
    run = RunDirectory.open(tmp_path / "scan", {})
    gone = "memory://gone.png?X-Amz-Signature=be57ed"
    settings = scan_directory.Settings()
    scan_directory.scan(run, [*paths, gone], stages, settings, workers=1)
    ids = [scan_directory.field_id(path) for path in paths]
    assert ids[0] == ids[1] != ids[2] and run.manifest()["fields"] == [ids[0], ids[2]]
    assert [entry["path"] for entry in run.manifest()["unreadable"]] == [
        "memory://gone.png?X-Amz-Signature=***"
    ]
    with output.Output(tmp_path / "scan" / "a.csv", tmp_path / "scan" / "a.json") as table:
        for path in (*paths, gone):
            table.write(path, reading.read_or_reason(path)[:0] or "no answer")
    rows = (tmp_path / "scan" / "a.csv").read_text()
    assert all(f"{url}," in rows for url in shown)
    assert "be57ed" not in str(table.failed("x")) + str(table.rows)
    monkeypatch.setattr("sys.argv", ["scan", "--x=1", *paths])
    environment.describe(None)
    run.update_manifest(environment=environment.describe(None))
    assert run.manifest()["environment"]["repeat"]["arguments"] == ["--x=1", *shown]
    with pytest.raises(PapError, match="is not whole, since secrets are not kept"):
        arguments = {"program": "replication.scan", "arguments": shown}
        run.update_manifest(environment={"repeat": arguments})
        repeated.arguments(run, tmp_path)
    written = [path for path in (tmp_path / "scan").rglob("*") if path.is_file()]
    assert len(written) > 8
    for path in written:
        assert b"be57ed" not in path.read_bytes() and "be57ed" not in str(path), path


class Nested:
    """Listings without an end: a folder in a folder, or names without number."""

    def __init__(self, kind):
        self.kind = kind

    def ls(self, folder, detail):
        if self.kind == "deep":
            return [{"name": f"{folder}/a", "type": "directory", "size": 0}]
        entries = ({"name": f"{folder}/{n}", "type": "file", "size": 1} for n in itertools.count())
        return entries


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("deep", "more than 64 folders in one another at 'a/a"),
        ("wide", "more than the 1,000 files"),
    ],
)
def test_a_listing_without_an_end_ends(apart, monkeypatch, kind, said):
    apart.pipe("/x/a.png", b"1")
    monkeypatch.setattr(urls, "_MOST_LISTED", 1_000)
    monkeypatch.setattr(apart, "ls", Nested(kind).ls)
    with pytest.raises(urls.UrlError, match=f"^memory://x: {said}"):
        urls.below("memory://x")


def test_what_may_not_be_listed_is_no_empty_folder(apart, monkeypatch):
    apart.pipe("/x/a/b.png", b"1")
    apart.pipe("/x/c.png", b"1")
    listing = apart.ls

    def partly(folder, **options):
        if folder.endswith("/a"):
            raise PermissionError("Access Denied")
        return listing(folder, **options)

    monkeypatch.setattr(apart, "ls", partly)
    with pytest.raises(urls.UrlError, match=r"^memory://x: Access Denied$"):
        urls.below("memory://x")


@pytest.mark.parametrize("key", ["/x/../../a.png", "/x//a.png", "/x/./a.png"])
def test_a_key_that_leads_elsewhere_is_refused(apart, key):
    apart.store[key] = types.SimpleNamespace(size=1, created=0, modified=0, getvalue=bytes)
    with pytest.raises(urls.UrlError, match=r"^memory://x: '.*' is no path of a file$"):
        urls.below("memory://x")


def test_links_of_this_machine_are_followed_but_in_no_circle(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"1")
    (tree := tmp_path / "tree").mkdir()
    (tree / "b.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tree / "c").symlink_to(tmp_path / "elsewhere")
    (tree / "d").symlink_to(tree)
    (tree / "e").symlink_to(tree)
    listed = urls.below(f"file://{tree}")
    assert [(file.relative, file.bytes) for file in listed] == [("b.png", 1), ("c/a.png", 1)]
    (tree / "f.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(urls.UrlError, match="no such file"):
        urls.below(f"file://{tree}")


def test_several_file_systems_in_one_another_are_refused():
    with pytest.raises(urls.UrlError, match="expected one file system"):
        urls.check("zip://a.png::memory://a.zip")


def test_a_list_mixes_paths_and_urls(tmp_path):
    (tmp_path / "list.csv").write_text("slide\na.svs\n/b.svs\ngs://bucket/c.svs\n")
    paths = urls.listed(tmp_path / "list.csv", "slide")
    assert paths == [str(tmp_path / "a.svs"), "/b.svs", "gs://bucket/c.svs"]
