"""Files that are there whole or not at all, and locks."""

import pytest

from tfds_pap import files


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
