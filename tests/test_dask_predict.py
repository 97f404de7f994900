"""Images named in blocks, here and by workers on loopback: the same table, whoever is killed."""

import dataclasses
import os
import re
import sys
from pathlib import Path

import pytest
from commands import command, start
from dask_machines import Cluster, kill_when

from replication.naming import blocks
from replication.naming.output import Output
from tfds_pap import cluster, files, folders
from tfds_pap.errors import PapError

pytest.importorskip("distributed")
fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def work(tiny_run):
    """Blocks of eight images."""
    return blocks.Work.of_run(tiny_run, "clean", None, batch_size=1)


@pytest.fixture
def images(manual_dir):
    """Returns 28 images, one of which is none: four blocks."""
    paths = [*(manual_dir / "DB_4" / "train").glob("[34]/*.jpg")]
    paths += [*(manual_dir / "DB_4" / "validation").glob("[34]/*.jpg"), manual_dir / "DB_4"]
    return [(str(path), folders.state(path)) for path in sorted(paths)] + [("nowhere.jpg", "")]


@pytest.fixture
def computed(monkeypatch):
    """Numbers of the first images of the blocks that this process computes."""
    firsts, compute = [], blocks._compute

    def counted(block, advance):
        compute(block, advance)
        firsts.append(block.first)

    monkeypatch.setattr(blocks, "_compute", counted)
    return firsts


def table(path, work, images, **options):
    """Writes a table as the command does, and returns its bytes."""
    with Output(path, None, before=("truth",), served=False) as output:
        for one in blocks.named(work, images, **options):
            output.write(one.path, one.answer, truth=one.truth)
    return path.read_bytes()


def test_a_killed_worker_and_a_killed_scheduler_cost_a_block(
    tiny_run, work, manual_dir, tmp_path, computed
):
    places = [f"file://{manual_dir}/DB_4"] * 4
    line = ["replication.predict", f"--run_dir={tiny_run}", "--batch_size=1", *places]
    done = command(*line, f"--csv={tmp_path / 'one.csv'}")
    assert done.returncode == 0, done.stderr
    assert "208 of 208 images named" in done.stdout
    expected = (tmp_path / "one.csv").read_bytes()
    kept_in, errors = tmp_path / "many.csv.blocks", tmp_path / "errors"

    def kept():
        return list(kept_in.glob("block_*"))

    with Cluster(tmp_path, 2) as machines:
        with cluster.connected(str(machines.file)) as client:
            client.wait_for_workers(2, timeout=60)
        given = (f"--csv={tmp_path / 'many.csv'}", f"--cluster={machines.file}")
        running = start(*line, *given, stderr=errors)
        kill_when(machines, machines.workers[0], 1, kept)
        assert kill_when(machines, machines.scheduler, 3, kept) < 26
        assert running.wait() == 1
    last = errors.read_text().splitlines()[-1]
    assert last.startswith("replication.predict: the scheduler of --cluster went away; ")
    assert not (tmp_path / "many.csv").exists() and not list(tmp_path.glob("*.partial"))
    before = len(kept())
    assert 3 <= before < 26
    again = folders.images_and_states(places)
    assert table(tmp_path / "many.csv", work, again, kept_in=kept_in) == expected
    assert len(computed) == 26 - before
    assert [each.name for each in tmp_path.glob("*.blocks")] == ["many.csv.blocks"]


def test_only_what_is_missing_damaged_or_changed_is_named_again(
    work, images, computed, tmp_path, monkeypatch, capsys
):
    expected = table(tmp_path / "one.csv", work, images)
    assert b"not a file" in expected and not computed
    options = {"kept_in": blocks.opened(tmp_path / "many.csv")}
    told = blocks._named

    def stopped(block, advance):
        if block.first == 16:
            raise KeyboardInterrupt
        return told(block, advance)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(blocks, "_named", stopped)
        table(tmp_path / "many.csv", work, images, **options)
    assert computed == [0, 8] and not (tmp_path / "many.csv").exists()
    assert table(tmp_path / "many.csv", work, images, **options) == expected
    assert computed == [0, 8, 16, 24]
    (damaged,) = options["kept_in"].glob("block_000000008_*")
    damaged.write_bytes(damaged.read_bytes()[:-20])
    newer = [(path, state + "0" * (number == 20)) for number, (path, state) in enumerate(images)]
    computed.clear()
    assert table(tmp_path / "many.csv", work, newer, **options) == expected
    assert computed == [8, 16]
    assert f"Note: {damaged} is damaged" in capsys.readouterr().out
    for change in ({"models": ("other",)}, {"batch_size": 2}, {"annotated": tmp_path}):
        other = dataclasses.replace(work, **change)
        assert blocks.Block(work, 0, (), tmp_path).file != blocks.Block(other, 0, (), tmp_path).file


def test_workers_refuse_other_files_and_other_models(work, images, tmp_path):
    path, state = images[0]
    with pytest.raises(PapError, match=f"{path}: a worker sees another file there than this"):
        blocks._compute_there(blocks.Block(work, 0, ((path, state + "0"),), tmp_path))
    other = dataclasses.replace(work, models=("other",))
    with pytest.raises(PapError, match="a worker sees other models there than this process"):
        blocks._compute_there(blocks.Block(other, 0, ((path, state),), tmp_path))
    assert not list(tmp_path.iterdir())


def test_images_behind_urls_are_named_as_those_of_a_folder(work, manual_dir, tmp_path):
    storage = fsspec.filesystem("memory")
    storage.store.clear()
    for path in manual_dir.glob("DB_4/**/*"):
        if path.is_file():
            storage.pipe(f"/{path.relative_to(manual_dir)}", path.read_bytes())
    storage.pipe("/DB_4/broken.png", b"no image")
    answers = {}
    for place in ("memory://DB_4", str(manual_dir / "DB_4")):
        found = folders.images_and_states([place])
        answers[place] = {
            one.path.removeprefix(place): dataclasses.replace(one, path="")
            for one in blocks.named(work, found)
        }
    behind, below = answers.values()
    assert behind.pop("/broken.png").answer.startswith("not a readable image")
    assert behind == below and list(behind) == list(below) and len(behind) == 52
    assert {one.truth for one in behind.values()} == {"HSIL", "LSIL", "NILM", "SCC"}
    found = folders.images_and_states(["memory://DB_4/train/1"])
    storage.rm(found[0][0].removeprefix("memory:/"))
    first, second, *_ = blocks.named(work, found)
    assert first.answer == "no such file or folder" and not isinstance(second.answer, str)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cluster=local", "a.jpg"], "--cluster needs --csv: what workers compute is kept"),
        (["memory://nowhere"], "memory://nowhere: no such file or folder"),
        (["nope://a.jpg"], "nope://a.jpg: no protocol of fsspec's"),
        (["file:///proc/version"], None),
        (["s3://bucket/cells"], "s3://bucket/cells: Install s3fs"),
    ],
)
def test_what_cannot_be_named_is_one_line(tiny_run, arguments, said, tmp_path):
    # Whether the package is installed here does not matter.
    (tmp_path / "s3fs.py").write_text("raise ImportError('no')\n")
    places = os.pathsep.join([str(tmp_path), *sys.path])
    options = {"env": {**os.environ, "PYTHONPATH": places}} if "s3fs" in str(said) else {}
    done = command("replication.predict", f"--run_dir={tiny_run}", *arguments, **options)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 + (said is None)
    assert (said or "1 of 1 images could not be read") in done.stderr


def test_two_commands_do_not_write_one_table(tiny_run, manual_dir, tmp_path):
    files.hold(tmp_path / "a.csv.blocks")
    csv = f"--csv={tmp_path / 'a.csv'}"
    done = command("replication.predict", f"--run_dir={tiny_run}", csv, manual_dir / "DB_4")
    assert done.returncode == 1 and f"process {os.getpid()} is at work there" in done.stderr


def test_a_folder_of_others_beside_a_table_is_neither_used_nor_removed(tmp_path, capsys):
    (theirs := tmp_path / "theirs").mkdir()
    (kept_in := tmp_path / "a.csv.blocks").symlink_to(theirs)
    with pytest.raises(PapError, match=rf"^{re.escape(str(kept_in))}: is a link, "):
        blocks.opened(tmp_path / "a.csv")
    assert not list(theirs.iterdir())
    kept_in.unlink()
    kept_in.mkdir()
    (kept_in / "notes.txt").write_text("mine")
    with pytest.raises(PapError, match=r"holds notes\.txt, which is no block of --csv"):
        blocks.opened(tmp_path / "a.csv")
    (kept_in / "notes.txt").unlink()
    (theirs / "a").write_text("mine")
    (kept_in / ".lock").symlink_to(theirs / "a")
    with pytest.raises(PapError, match="cannot be written"):
        blocks.opened(tmp_path / "a.csv")
    (tmp_path / "a.csv.partial").symlink_to(theirs / "a")
    with Output(tmp_path / "a.csv", None) as output:
        output.write("a.png", "no answer")
    assert (theirs / "a").read_text() == "mine" and not (tmp_path / "a.csv").is_symlink()
    (kept_in / ".lock").unlink()
    assert blocks.opened(tmp_path / "a.csv") == kept_in
    (kept_in / "block_000000000_0.json").write_text("[]")
    (kept_in / "notes.txt").write_text("mine")
    blocks.close(kept_in)
    assert [path.name for path in kept_in.iterdir()] == ["notes.txt"]
    assert f"Note: {kept_in} is left there (Directory not empty)\n" == capsys.readouterr().out
    (kept_in / "notes.txt").unlink()
    blocks.close(kept_in)
    assert not kept_in.exists()


def test_a_table_where_nothing_can_be_made_is_one_plain_line():
    with pytest.raises(PapError, match=r"^--csv=/proc/x\.csv: cannot be written \([A-Z][a-z ]+\)$"):
        blocks.opened(Path("/proc/x.csv"))


def test_a_block_keeps_no_secret_and_is_the_same_when_its_url_is_signed_again(
    work, apart, manual_dir, tmp_path, computed
):
    picture = next((manual_dir / "DB_4" / "train" / "4").glob("*.jpg")).read_bytes()
    kept_in = blocks.opened(tmp_path / "a.csv")
    tables = []
    for signature in ("be57ed", "feed"):
        key = f"/SCC/a.jpg?X-Amz-Signature={signature}"
        apart.pipe(key, picture)
        images = [(f"memory:/{key}", "1")]
        tables.append(table(tmp_path / "a.csv", work, images, kept_in=kept_in))
    assert tables[0] == tables[1] and b"SCC/a.jpg?X-Amz-Signature=***,SCC," in tables[0]
    assert computed == [0]
    (block,) = kept_in.glob("block_*")
    assert "be57ed" not in block.read_text() and "a.jpg?X-Amz-Signature=***" in block.read_text()
