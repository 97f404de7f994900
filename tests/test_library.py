"""`import replication`: ten functions, whose examples are run as a notebook would."""

import contextlib
import doctest
import subprocess
import sys

import numpy as np
import pytest

import replication
from tfds_pap import decoding


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


def test_arrays_bytes_and_paths_get_the_same_answer_in_order(notebook):
    model = replication.load_models("runs/phantom")[2]
    paths = sorted((notebook / "drawn" / "DB_4" / "validation").rglob("*.jpg"))[:3]
    arrays = [np.asarray(decoding.decode(path.read_bytes())) for path in paths]
    mixed = [paths[0], b"no image", paths[1].read_bytes(), notebook / "nowhere.jpg", arrays[2]]
    answers = replication.predict_images(model, mixed, batch_size=2)
    assert answers[1].startswith("not a readable image (") and answers[3] == "not a file"
    read = [answers[0], answers[2], answers[4]]
    for answer, same in zip(read, replication.predict_images(model, arrays), strict=True):
        np.testing.assert_allclose(answer.probabilities, same.probabilities, atol=1e-5)
        probabilities = np.array([answer.probabilities])
        assert answer.hsil_plus == pytest.approx(model.decision.hsil_plus(probabilities)[0])
        assert answer.abstain in (model.decision.abstains(probabilities)[0], None)
        assert answer.label == model.decision.labels[answer.class_id]
    # Stage 1 knows no HSIL.
    [cell] = replication.predict_images(replication.load_models("runs/phantom")[1], paths[:1])
    assert cell.hsil_plus is None and cell.label in ("background", "cell")
