"""Files that are there whole or not at all, and locks."""

import subprocess
import sys

import pytest

from tfds_pap import files
from tfds_pap.errors import PapError


def test_a_file_that_fails_half_way_leaves_the_one_before(tmp_path):
    path = tmp_path / "folder" / "table.csv"
    files.write_atomically(path, "before")

    with pytest.raises(OSError, match="full"), files.replacing(path) as partial:
        partial.write_text("half")
        raise OSError("full")
    assert [(each.name, each.read_text()) for each in path.parent.iterdir()] == [
        ("table.csv", "before")
    ]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_lock_is_held_once_and_free_afterwards(tmp_path, is_folder):
    path = tmp_path / "locked"
    path.mkdir() if is_folder else path.touch()
    for _ in range(2):
        with files.locked(path), pytest.raises(BlockingIOError), files.locked(path, wait=False):
            raise AssertionError
        assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError), files.locked(tmp_path / "missing"):
        raise AssertionError


HOLDS = """
import sys
from pathlib import Path
from tfds_pap import files
from tfds_pap.errors import PapError
files.hold(Path(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""


def test_a_held_directory_is_refused_to_another_process_until_the_holder_is_gone(tmp_path):
    directory = tmp_path / "runs" / "one"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(PapError) as caught:
            files.hold(directory)
        assert str(caught.value) == (
            f"{directory}: process {other.pid} is at work there; wait until it ends, or give "
            "another directory"
        )
        other.kill()
    files.hold(directory)
    files.hold(directory)
    assert files.is_empty(directory)
    (directory / "manifest.json").touch()
    assert not files.is_empty(directory)


def test_halves_that_killed_processes_left_are_removed(tmp_path):
    code = """
import os, pathlib, signal, sys
from tfds_pap import files
begun = []
for number, ending in enumerate((".partial", ".weights.h5")):
    begun.append(files.replacing(pathlib.Path(sys.argv[1], "a", f"{number}.bin"), ending))
    begun[-1].__enter__().write_text("half")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list((tmp_path / "a").iterdir())) == 2
    (tmp_path / "a" / ".mine.txt").write_text("of somebody else")
    with files.replacing(tmp_path / "a" / "now.bin") as partial:
        partial.write_text("this process is at it")
        files.hold(tmp_path)
        assert {path.name for path in (tmp_path / "a").iterdir()} == {".mine.txt", partial.name}


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert files.why_unwritable(tmp_path / "a" / "b") == ""
    assert files.why_unwritable(tmp_path / "file", is_file=True) == ""
    assert files.why_unwritable(tmp_path) == ""
    assert files.why_unwritable(tmp_path / "file") == "is no folder"
    assert files.why_unwritable(tmp_path, is_file=True) == "is a folder, expected a file"
    assert files.why_unwritable(tmp_path / "file" / "a") == f"{tmp_path}/file is no folder"
    assert not (tmp_path / "a").exists()
    # Who runs tests may write anywhere.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert files.why_unwritable(tmp_path) == "cannot be written"
    assert files.why_unwritable(tmp_path / "a" / "b") == f"{tmp_path} cannot be written"
