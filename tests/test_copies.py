"""Copies of what lies behind URLs: shared by processes, whole or not there, and dropped in time."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple

import pytest

from tfds_pap import copies, files, urls

fsspec = pytest.importorskip("fsspec")


pytestmark = pytest.mark.usefixtures("apart")


def test_processes_share_a_copy_and_a_changed_file_is_copied_again(tmp_path):
    source = tmp_path / "a.bin"
    source.write_bytes(b"one")
    copy = copies.local(f"file://{source}")
    assert copy.read_bytes() == b"one" and copy != source
    code = f"from tfds_pap import copies; print(copies.local('file://{source}'))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    before = copy.stat().st_ino, copy.stat().st_mtime_ns
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert told.strip() == str(copy) and before == (copy.stat().st_ino, copy.stat().st_mtime_ns)
    source.write_bytes(b"other")
    assert copies.local(f"file://{source}").read_bytes() == b"other"


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
        threading.Thread(
            target=lambda: contents.append(copies.local("memory://a.bin").read_bytes())
        )
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
            copies.local("memory://a.bin")
    assert copies.local("memory://a.bin").read_bytes() == b"whole"


@pytest.fixture
def three(apart, monkeypatch):
    """Copies of a, b and c, used in the order b, c, a, on a disk that has no room for a fourth."""
    for number, letter in enumerate("abc"):
        apart.pipe(f"/{letter}", b"12345")
        os.utime(copies.local(f"memory://{letter}").parent, (number, number))
    copy = copies.local("memory://a")
    disk = namedtuple("disk", "total used free")

    def usage(_):
        used = 5 * len(list(copy.parents[1].glob("*/*")))
        return disk(18, used, 18 - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    apart.pipe("/d", b"12345")
    return copy.parents[1]


def test_the_least_recently_used_copies_make_room(three, monkeypatch):
    monkeypatch.setattr(copies, "_READ_AT_ONCE", 1)
    copies.local("memory://a")
    copies.local("memory://d")
    assert sorted(path.name for path in three.glob("*/*")) == ["a", "c", "d"]
    # What is told of a dropped copy goes with it.
    assert len(list(three.iterdir())) == 2 * 3


def test_what_this_process_may_be_reading_stays(three):
    copies.local("memory://d")
    assert sorted(path.name for path in three.glob("*/*")) == ["a", "b", "c", "d"]


def test_what_another_process_reads_or_copies_stays(three, monkeypatch):
    monkeypatch.setattr(copies, "_READ_AT_ONCE", 1)
    copies.local("memory://a")
    (folder_b,), (folder_c,) = ({each.parent for each in three.glob(f"*/{x}")} for x in "bc")
    code = (
        "import fcntl, sys, time; used = open(sys.argv[1]); "
        "fcntl.flock(used, fcntl.LOCK_SH); print(flush=True); time.sleep(60)"
    )
    reading = subprocess.Popen(
        [sys.executable, "-c", code, str(copies._used_by(folder_b))], stdout=subprocess.PIPE
    )
    reading.stdout.readline()
    with files.locked(folder_c):
        copies.local("memory://d")
    assert sorted(path.name for path in three.glob("*/*")) == ["a", "b", "c", "d"]
    reading.kill()
    reading.communicate()
    copies._make_room(three / "new", 5)
    assert "b" not in [path.name for path in three.glob("*/*")]


def test_a_copy_that_is_shorter_than_listed_is_none(apart, monkeypatch):
    apart.pipe("/cells/a.png", b"whole")
    listed = urls.below("memory://cells")
    monkeypatch.setattr(urls, "below", lambda url: listed)
    apart.pipe("/cells/a.png", b"who")
    with pytest.raises(urls.UrlError, match=r"a\.png: 3 bytes came of 5; did it change meanwhile"):
        copies.folder("memory://cells")


def test_what_the_disk_cannot_hold_drops_no_other_copy(apart, monkeypatch):
    apart.pipe("/a", b"1")
    before = copies.local("memory://a")
    monkeypatch.setattr(urls, "state", lambda url: {"bytes": 10**18, "key": "x"})
    with pytest.raises(urls.UrlError, match=r"1,000,000,000,000,000,000 bytes, the disk has"):
        copies.local("memory://b")
    assert before.exists()


def test_what_a_killed_copy_left_is_removed(apart):
    apart.pipe("/a", b"1")
    copy = copies.local("memory://a")
    copy.unlink()
    left = copy.with_name(".a.elsewhere.7.partial")
    left.write_bytes(b"half")
    assert copies.local("memory://a").exists() and not left.exists()


def test_copies_go_through_no_link(apart, tmp_path):
    apart.pipe("/a.png", b"1")
    (home := tmp_path / "home").mkdir()
    (tmp_path / f"pap_urls_{os.getuid()}").symlink_to(home)
    with pytest.raises(urls.UrlError, match="is a link or belongs to another user; set TMPDIR"):
        copies.local("memory://a.png")
    assert not list(home.iterdir())
