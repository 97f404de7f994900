"""`import replication`: ten functions, whose examples are run as a notebook would."""

import contextlib
import doctest
import subprocess
import sys

import numpy as np
import pytest

import replication


@pytest.fixture(scope="module")
def notebook(manual_dir, data_dir, two_stage_run, tmp_path_factory):
    """A folder with images in drawn/ and prepared/, and a finished run in runs/phantom."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "drawn").symlink_to(manual_dir)
    (folder / "prepared").symlink_to(data_dir)
    (folder / "runs").mkdir()
    (folder / "runs" / "phantom").symlink_to(two_stage_run)
    with contextlib.chdir(folder):
        yield folder


@pytest.mark.parametrize("name", sorted(replication.__all__))
def test_every_example_does_what_it_says(notebook, name):
    function = getattr(replication, name)
    [example] = doctest.DocTestFinder(recurse=False).find(
        function, name, globs={"replication": replication, "np": np}
    )
    assert example.examples, "expected an example"
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert not failed


def test_the_import_alone_loads_nothing_heavy():
    code = (
        "import replication, sys; assert len(replication.__all__) == 10; "
        "assert {*replication.__all__} <= {*dir(replication)}; "
        "heavy = {'tensorflow', 'keras', 'numpy', 'serving'}; assert not heavy & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_told():
    with pytest.raises(AttributeError, match="'replication' has no attribute 'predict_image'"):
        _ = replication.predict_image
