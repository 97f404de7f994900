"""The signature `detect`: the cells that a scan finds, in one graph, padded to a maximum."""

from concurrent import futures

import cv2
import hostile_images
import keras
import numpy as np
import pytest
import tensorflow as tf
from browser import Browser
from commands import command
from page_server import serving
from pages import needs_browser
from PIL import Image

from replication.fields.find import scanner, stages
from replication.fields.find.dense import Stage1
from replication.fields.read.field import ArrayField
from replication.measures import decisions
from replication.runs import results
from replication.runs.directory import RunDirectory
from serving.model.detection import Detection
from serving.model.graph import Graph
from serving.server.errors import ServingError
from serving.server.servable import Servable
from tfds_pap import files, phantom, phantom_set
from tfds_pap.errors import PapError

#: The briefly trained stage 1 is sure of nothing.
THRESHOLD, MAXIMUM = 0.4, 12


def png(pixels):
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def both(two_stage_run):
    fits = results.choose_fits(RunDirectory(two_stage_run), "clean")
    return fits, stages.load(fits[1], fits[2])


@pytest.fixture(scope="module")
def pictures():
    fields = [(420, 330, 12), (300, 260, 5), (151, 150, 1)]
    return [
        phantom.draw_field(n, slide=n, width=width, height=height, cells=cells)[0]
        for n, (width, height, cells) in enumerate(fields)
    ]


@pytest.fixture(scope="module")
def threshold(both, pictures):
    """One that keeps more than the maximum of the first field."""
    return float(np.quantile(both[1].stage1.scores(pictures[0]), 0.3))


@pytest.fixture(scope="module")
def version(both, threshold, tmp_path_factory):
    fits, found = both
    model = keras.saving.load_model(fits[2].model_path)
    detection = Detection(found.stage1, threshold=threshold, radius=30, maximum=MAXIMUM)
    decision, _ = decisions.of_fit(fits[2])
    graph = Graph(model, fits[2].info["resize"], decision, detection=detection)
    folder = tmp_path_factory.mktemp("detect") / "1"
    graph.save(folder)
    return folder


@pytest.fixture(scope="module")
def servable(version):
    loaded = Servable.load("pap", 1, version)
    yield loaded
    loaded.close()


def expected(both, picture, threshold):
    with futures.ThreadPoolExecutor(1) as pool:
        cells = scanner.scan(
            ArrayField("a", picture), both[1], threshold=threshold, radius=30, pool=pool
        ).cells
    chosen = np.argsort(-cells.scores, kind="stable")[:MAXIMUM]
    return cells.select(chosen).sorted(), len(cells)


def test_it_finds_what_a_scan_finds(servable, both, pictures, threshold):
    answer = servable.run("detect", {"image_bytes": np.array([*map(png, pictures)], object)})
    for row, picture in enumerate(pictures):
        cells, found = expected(both, picture, threshold)
        count = int(answer["count"][row])
        assert (count, int(answer["found"][row])) == (len(cells), found)
        top, left, bottom, right = answer["boxes"][row, :count].T
        np.testing.assert_array_equal(right - left, 150)
        np.testing.assert_array_equal(bottom - top, 150)
        by_place = np.lexsort((left, top))
        scanned = np.lexsort((cells.x, cells.y))
        np.testing.assert_array_equal((left + 75)[by_place], cells.x[scanned])
        np.testing.assert_array_equal((top + 75)[by_place], cells.y[scanned])
        for name, values in (
            ("scores", cells.scores),
            ("probabilities", cells.probabilities),
            ("hsil_plus", cells.hsil_plus),
            ("abstain", cells.abstain),
        ):
            given = answer[name][row, :count]
            np.testing.assert_allclose(given[by_place], values[scanned], atol=1e-5)
        assert (np.diff(answer["hsil_plus"][row, :count]) <= 0).all()
        labels = [label.decode() for label in answer["classes"][row, :count]]
        assert labels == [
            both[1].stage2.decision.labels[n] for n in answer["class_ids"][row, :count]
        ]
    assert int(answer["found"][0]) > MAXIMUM == int(answer["count"][0])


def test_what_is_beyond_the_count_is_empty(servable, pictures):
    answer = servable.run("detect", {"image_bytes": np.array([png(pictures[2])], object)})
    count = int(answer["count"][0])
    assert count <= 1
    filling = {"class_ids": -1, "abstain": -1, "classes": b""}
    for name in (
        "boxes",
        "scores",
        "class_ids",
        "classes",
        "probabilities",
        "hsil_plus",
        "abstain",
    ):
        rest = answer[name][0, count:]
        assert len(answer[name][0]) == MAXIMUM
        assert (rest == filling.get(name, 0)).all()


def test_a_field_without_any_roi_has_no_cells(servable):
    small = png(np.zeros((149, 400, 3), np.uint8))
    answer = servable.run("detect", {"image_bytes": np.array([small], object)})
    assert (int(answer["count"][0]), int(answer["found"][0])) == (0, 0)


def test_broken_and_huge_fields_are_refused(servable):
    huge = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    huge = huge[:16] + (60_000).to_bytes(4, "big") * 2 + huge[24:]
    for data in (b"no picture", huge):
        with pytest.raises(ServingError):
            servable.run("detect", {"image_bytes": np.array([data], object)})


def test_it_loads_with_tensorflow_alone(version, pictures, servable):
    loaded = tf.saved_model.load(str(version)).signatures["detect"]
    ours = servable.run("detect", {"image_bytes": np.array([png(pictures[0])], object)})
    theirs = loaded(image_bytes=tf.constant([png(pictures[0])]))
    for name, values in ours.items():
        np.testing.assert_array_equal(theirs[name].numpy(), values)
    stored = tf.train.list_variables(str(version / "variables" / "variables"))
    shapes = [tuple(shape) for name, shape in stored if "VARIABLE_VALUE" in name]
    # The convolution of stage 1 is stored once.
    assert shapes.count((10, 10, 3, 10)) == 1


def test_without_a_dense_form_there_is_no_detect(both):
    fits, _ = both
    model = keras.saving.load_model(fits[1].model_path)
    with pytest.raises(PapError, match=r"--stride=25: ROIs of 151 px share no samples"):
        Detection(Stage1(model, "nearest", roi=151))


@pytest.fixture(scope="module")
def exported(two_stage_run, tiny_run, data_dir, tmp_path_factory):
    """What the command says, and the version it published."""
    folder = tmp_path_factory.mktemp("exported")
    done = command(
        "serving.export",
        f"--run_dir={tiny_run}",
        f"--stage1_run_dir={two_stage_run}",
        f"--serving_dir={folder}/pap",
        f"--data_dir={data_dir}",
        "--max_detections=40",
        "--threshold=0.3",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "pap" / "1"


def test_export_adds_and_checks_it(exported):
    said, version = exported
    assert "Checked: detect finds the " in said
    extra = files.read_json(version / "assets.extra" / "metadata.json")
    assert extra["detection"]["max_detections"] == 40
    assert extra["detection"]["stage1"]["name"] == "stage-1 CNN (P1)"


def test_export_without_stage1_says_so(exported_tiny):
    loaded = tf.saved_model.load(str(exported_tiny / "1"))
    assert "detect" not in loaded.signatures


@needs_browser
def test_the_page_reads_a_field(exported, pictures, tmp_path):
    path = tmp_path / "a <b> field.jpg"
    stored = phantom_set.encode(pictures[0])
    orientation = Image.Exif()
    orientation[274] = 6
    # A browser would turn it, and the boxes would lie beside the cells.
    path.write_bytes(
        hostile_images.with_segments(stored, hostile_images.segment(0xE1, orientation.tobytes()))
    )
    cell = tmp_path / "cell.png"
    cell.write_bytes(png(phantom.draw_cell("HSIL", 1)))
    servable = Servable.load("pap_stage2", 1, exported[1])
    asked = servable.run("detect", {"image_bytes": np.array([path.read_bytes()], object)})
    with serving(servable) as manager, Browser(tmp_path / "profile") as browser:
        tab = browser.open(manager.url, width=360, height=800)
        tab.wait_for("document.querySelectorAll('#samples img').length")
        tab.pick("#files", path)
        tab.wait_for("document.querySelectorAll('.field-answer tbody tr').length")
        rows = tab.run("document.querySelectorAll('.field-answer tbody tr').length")
        assert rows == int(asked["count"][0])
        assert "a <b> field.jpg" in tab.text(".result .source")
        tab.run("document.querySelectorAll('.field-answer tbody button')[1].click()")
        said = tab.text(".chosen")
        assert said.startswith(f"Cell 2, {asked['classes'][0, 1].decode()}: NILM ")
        size = tab.run("(c => [c.width, c.height])(document.querySelector('.field canvas'))")
        assert size == [pictures[0].shape[1], pictures[0].shape[0]] and size[0] != size[1]
        # A click at the place of another cell chooses that one.
        top, left = asked["boxes"][0, 0, :2]
        tab.run(
            "(() => {const c = document.querySelector('.field canvas');"
            "const r = c.getBoundingClientRect(), k = c.clientWidth / c.width;"
            f"const x = r.left + {left + 75} * k, y = r.top + {top + 75} * k;"
            "c.dispatchEvent(new MouseEvent('click', {clientX: x, clientY: y, bubbles: true}));})()"
        )
        assert tab.text(".chosen").startswith("Cell 1, ")
        tab.pick("#files", cell)
        tab.wait_for("document.querySelectorAll('.answer:not([hidden])').length === 1")
        tab.run("document.getElementById('kind').value = 'field'")
        tab.pick("#files", cell)
        tab.wait_for("document.querySelectorAll('.field-answer:not([hidden])').length === 2")
        assert tab.run("document.documentElement.scrollWidth") == 360
        assert not tab.logged()
    servable.close()
