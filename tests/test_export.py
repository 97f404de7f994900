"""A published version answers what was evaluated, and says what it is."""

import io
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import command
from PIL import Image
from tampering import change, differences

from replication.measures import calibration, decisions, triage
from replication.runs import results
from replication.runs.directory import RunDirectory
from replication.verification import figures, kinds, recomputed, repeated
from serving.model import graph, self_check
from serving.model.warmup_requests import example
from serving.server.errors import ServingError
from serving.server.servable import Servable
from tfds_pap import files, pipeline, preparing
from tfds_pap.errors import PapError

OUTPUTS = {"probabilities", "label", "class_id", "hsil_plus", "abstain"}


def export(tiny_run, serving_dir, *arguments, **options):
    return command(
        "serving.export",
        f"--run_dir={tiny_run}",
        f"--serving_dir={serving_dir}",
        *arguments,
        **options,
    )


@pytest.fixture(scope="module")
def exported(tiny_run, data_dir, tmp_path_factory):
    """What the command printed, and where the version lies."""
    serving_dir = tmp_path_factory.mktemp("models") / "pap_stage2"
    done = export(tiny_run, serving_dir, f"--data_dir={data_dir}", "--label=stable")
    assert done.returncode == 0, done.stderr
    return done.stdout, serving_dir / "1"


@pytest.fixture(scope="module")
def servable(exported):
    loaded = Servable.load("pap_stage2", 1, exported[1])
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def fit(tiny_run):
    return results.choose_fits(RunDirectory(tiny_run), "clean")[2]


@pytest.fixture(scope="module")
def model(fit):
    return keras.saving.load_model(fit.model_path)


def picture(width=30, height=20, seed=0, mode="RGB"):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def encode(image, form, **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def test_the_command_checks_against_the_model_and_the_report(exported):
    output, version = exported
    assert "5 signatures on 12 test images of the run: probabilities differ by at most" in output
    assert "from the run's predictions.csv" in output
    assert output.splitlines()[-1] == f"Published: {version}, label stable"
    assert not list(version.parent.glob(".*"))


def test_every_test_image_is_answered_as_in_the_report(servable, fit, data_dir):
    builder = preparing.prepare("pap_db4", "original", data_dir=data_dir)
    tested = fit.predictions.select("test")
    answer = servable.run(
        "serving_default",
        {"image_bytes": np.array(pipeline.read_files(builder, tested.ids), object)},
    )
    np.testing.assert_allclose(answer["probabilities"], tested.probabilities, atol=1e-5)
    assert [label.decode() for label in answer["label"]] == [
        tested.class_names[row] for row in tested.predicted
    ]
    np.testing.assert_array_equal(answer["class_id"], tested.predicted)
    found = decisions.of_fit(fit)[0]
    calibrated = calibration.apply_temperature(tested, found.temperature).probabilities
    np.testing.assert_allclose(answer["hsil_plus"], calibrated[:, 2:].sum(axis=1), atol=1e-5)
    np.testing.assert_array_equal(answer["abstain"], calibrated.max(axis=1) < found.threshold)


@pytest.mark.parametrize("temperature", [None, 0.01, 1.0, 2.83, 100.0])
def test_calibration_in_the_graph_is_that_of_the_report(temperature):
    rows = np.random.default_rng(0).dirichlet([0.05] * 4, 200).astype(np.float32)
    rows[0] = [1, 0, 0, 0]
    predictions = triage.Predictions(
        [str(n) for n in range(200)], [""] * 200, ["test"] * 200, [0] * 200, rows, tuple("abcd")
    )
    expected = calibration.apply_temperature(predictions, temperature or 1.0).probabilities
    np.testing.assert_allclose(
        graph.calibrate(tf.constant(rows), temperature), expected, atol=1e-12
    )


FILES = {
    "JPEG": encode(picture(), "JPEG"),
    "progressive JPEG": encode(picture(), "JPEG", progressive=True),
    "grey JPEG": encode(picture(mode="L"), "JPEG"),
    "CMYK JPEG": encode(picture(mode="CMYK"), "JPEG"),
    "PNG": encode(picture(), "PNG"),
    "PNG with alpha": encode(picture(mode="RGBA"), "PNG"),
    "grey PNG": encode(picture(mode="L"), "PNG"),
    "palette PNG": encode(picture(mode="P"), "PNG"),
    "BMP": encode(picture(), "BMP"),
    "one pixel": encode(picture(1, 1), "PNG"),
    "a line": encode(picture(900, 1), "PNG"),
    "huge": encode(picture(4096, 4096), "JPEG"),
    "the model's size": encode(picture(24, 24), "PNG"),
}


@pytest.mark.parametrize("name", FILES)
def test_from_file_to_probability_as_in_training(servable, model, name):
    data = FILES[name]
    pixels = pipeline.decode_and_resize(data, 24, "bilinear").numpy()
    expected = np.asarray(model(pixels[None]))
    encoded = {"image_bytes": np.array([data], object)}
    answer = servable.run("explain", encoded)
    np.testing.assert_array_equal(answer["image"][0], pixels)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
    assert set(answer) == OUTPUTS | {"image", "heat"}
    served = servable.run("serving_default", encoded)
    assert set(served) == OUTPUTS
    np.testing.assert_allclose(served["probabilities"], expected, atol=1e-5)


def test_forty_real_images(servable, model, shared_data):
    paths = sorted((shared_data / "DB_4").rglob("*.jpg"))[::25][:40]
    assert len(paths) == 40
    files = [path.read_bytes() for path in paths]
    pixels = np.stack([pipeline.decode_and_resize(data, 24).numpy() for data in files])
    for form in ("as they are", "PNG", "grey", "CMYK"):
        sent = files
        if form != "as they are":
            images = [Image.open(io.BytesIO(data)) for data in files]
            kinds = {"PNG": ("RGB", "PNG"), "grey": ("L", "JPEG"), "CMYK": ("CMYK", "JPEG")}
            mode, kind = kinds[form]
            sent = [encode(image.convert(mode), kind) for image in images]
            pixels = np.stack([pipeline.decode_and_resize(data, 24).numpy() for data in sent])
        answer = servable.run("serving_default", {"image_bytes": np.array(sent, object)})
        np.testing.assert_allclose(
            answer["probabilities"], model.predict_on_batch(pixels), atol=1e-5
        )


def test_other_signatures(servable, model):
    files = [FILES["JPEG"], FILES["PNG"]]
    pixels = np.stack([pipeline.decode_and_resize(data, 24).numpy() for data in files])
    expected = model.predict_on_batch(pixels)
    answer = servable.run("pixels", {"image": pixels.astype(np.float32)})
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
    examples = [example(data).SerializeToString() for data in files]
    answer = servable.run("classify", {"inputs": np.array(examples, object)})
    assert answer["classes"].tolist() == [[b"NILM", b"LSIL", b"HSIL", b"SCC"]] * 2
    np.testing.assert_allclose(answer["scores"], expected, atol=1e-5)
    answer = servable.run("features", {"image_bytes": np.array(files, object)})
    extractor = keras.Model(model.input, model.get_layer("features").output)
    np.testing.assert_allclose(answer["features"], extractor.predict_on_batch(pixels), atol=1e-5)


def test_grad_cam_in_the_graph_is_that_of_the_report(servable, model):
    from replication.learning.gradcam import GradCam

    files = [FILES["JPEG"], FILES["PNG"]]
    answer = servable.run("explain", {"image_bytes": np.array(files, object)})
    expected = GradCam(model).maps(answer["image"], answer["class_id"])
    assert expected.max() == 1
    np.testing.assert_allclose(answer["heat"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "inputs", "message"),
    [
        ("serving_default", {"image_bytes": [b"no image"]}, "expected the bytes of a JPEG, PNG"),
        ("serving_default", {"image_bytes": [FILES["JPEG"], FILES["JPEG"][:200]]}, "JPEG"),
        ("serving_default", {"image_bytes": [FILES["PNG"][:-20]]}, "PNG"),
        ("serving_default", {"image_bytes": []}, "expected 1 to 256 images in a request, got 0"),
        ("serving_default", {"image_bytes": [b""] * 257}, "expected 1 to 256 images"),
        ("classify", {"inputs": [b"\xff"]}, "Could not parse example"),
        ("classify", {"inputs": [example(b"").SerializeToString()]}, "got 0 other bytes"),
    ],
)
def test_a_batch_is_answered_as_a_whole_or_refused(servable, key, inputs, message):
    arrays = {name: np.array(values, object) for name, values in inputs.items()}
    with pytest.raises(ServingError, match=message) as raised:
        servable.run(key, arrays)
    assert raised.value.code.name == "INVALID_ARGUMENT"


def test_pixels_of_a_request_need_bytes(servable):
    """256 flat pictures of 4 megapixels, 17 kB each, would take a minute."""

    def run(pixels, count):
        data = encode(Image.new("RGB", (pixels, pixels), "white"), "PNG")
        return servable.run("", {"image_bytes": np.array([data] * count, object)})

    assert len(run(2048, 1)["label"]) == 1
    with pytest.raises(ServingError, match=r"in \d+ bytes: expected at least \d+ for its work"):
        run(2048, 2)
    assert len(run(512, 32)["label"]) == 32
    with pytest.raises(ServingError, match=r"in \d+ bytes: expected at least \d+ for its work"):
        run(768, 32)


@pytest.mark.parametrize(
    "shape", [(3,), (1, 24, 24), (1, 24, 24, 1), (1, 25, 24, 3), (0, 24, 24, 3)]
)
def test_pixels_of_another_shape_are_refused(servable, shape):
    with pytest.raises(ServingError) as raised:
        servable.run("pixels", {"image": np.zeros(shape, np.float32)})
    assert raised.value.code.name == "INVALID_ARGUMENT"


def test_pixels_that_are_no_numbers_are_refused(servable):
    image = np.zeros((1, 24, 24, 3), np.float32)
    image[0, 0, 0, 0] = np.nan
    with pytest.raises(ServingError, match="expected finite numbers"):
        servable.run("pixels", {"image": image})


def test_metadata_is_that_of_the_report(exported, fit, tiny_run):
    extra = exported[1] / "assets.extra"
    found = json.loads((extra / "metadata.json").read_text())
    assert found["labels"] == ["NILM", "LSIL", "HSIL", "SCC"]
    assert found["metrics"] == json.loads((fit.directory / "metrics.json").read_text())
    assert found["metrics"]["accuracy"].keys() >= {"value", "low", "high", "method"}
    assert "not a medical device" in found["intended_use"]
    assert "was not declared" in found["announcement"]
    assert found["calibration"]["temperature"] == decisions.of_fit(fit)[0].temperature
    assert found["limits"]["formats"] == ["JPEG", "PNG", "BMP"]
    assert (
        found["run"]["identity"] == json.loads((tiny_run / "manifest.json").read_text())["identity"]
    )
    assert (extra / "model_card.md").read_bytes() == (tiny_run / "model_card.md").read_bytes()
    assert str(tiny_run.parent) not in (extra / "metadata.json").read_text()


@pytest.fixture
def copy(exported, tmp_path):
    """The directory of versions, with their labels, to be tampered with."""
    return shutil.copytree(exported[1].parents[1], tmp_path / "models") / "pap_stage2"


def test_an_untouched_version_verifies_and_says_how_it_is_repeated(copy, data_dir, tmp_path):
    (run,) = kinds.directories(copy)
    assert kinds.directories(copy / "1") == [run]
    assert recomputed.packages(run) == []
    checks = [*kinds.of(run).checks(run)]
    assert not differences(checks)
    by_place = {checked.place: checked for checked in checks}
    assert {place: checked.figures for place, checked in by_place.items()}.items() >= {
        *{"files: digests": 8, "models.config": 2, "manifest.json: models": 2}.items(),
        # Four classes of 12 test images.
        ("self-check", 48),
    }
    assert by_place["metadata.json"].figures > 500
    assert by_place["model_card.md by the run"].figures > 150
    assert "5 signatures on 12 test images of the run" in by_place["self-check"].notes[0]
    program, typed = repeated.arguments(run, tmp_path)
    assert program == "serving.export" and typed[-1] == f"--serving_dir={tmp_path / 'run'}"
    assert f"--data_dir={data_dir}" in typed
    assert repeated.rule(run, ["x"])[1] == "nothing is trained"
    assert not differences(kinds.of(run).again(run, run, figures.Rule()))


def test_changed_figures_and_files_of_a_version_are_named(copy, fit):
    (run,) = kinds.directories(copy)
    (copy.parent / "models.config").write_text(
        (copy.parent / "models.config").read_text().replace("value: 1", "value: 7")
    )
    accuracy = json.loads((fit.directory / "metrics.json").read_text())["accuracy"]["value"]
    change(run.path / "metadata.json", f'"value": {accuracy}', '"value": 0.987')
    change(run.path / "model_card.md", "| stage", "| Stage")
    weights = next((copy / "1").glob("variables/*.data*"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    different = differences(kinds.of(run).checks(run))
    assert different.pop("models.config") == ["label stable: 7 is stated, it is 'no version 7'"]
    assert different.pop("metadata.json") == [
        f"metrics.accuracy.value: 0.987 is stated, it is {accuracy!r}"
    ]
    (line,) = different.pop("model_card.md by the run")
    assert line.startswith("line ") and "| Stage" in line and "| stage" in line
    named = [line.partition(": ")[0] for line in different.pop("files: digests")]
    assert named == ["metadata.json", "model_card.md", f"../variables/{weights.name}"]
    # What was changed is not loaded.
    assert not different


def test_other_answers_and_another_model_are_told(copy, tiny_run, tmp_path):
    (run,) = kinds.directories(copy)
    manifest = run.manifest()
    manifest["self_check"]["probabilities"][3][1] += 0.001
    files.write_json(run.manifest_path, manifest)
    done = command("replication.verify", f"--run_dir={copy}")
    assert done.returncode == 1 and done.stdout == f"{copy / '1'}:\n"
    assert "manifest.json: is damaged or was changed" in done.stderr
    (run.path / "SHA256SUMS").unlink()
    different = differences(kinds.of(run).checks(run))
    (line,) = different.pop("self-check")
    assert line.startswith("probabilities of image 3[1]: ") and not different
    gone = {**manifest["options"], "run_dir": str(tmp_path / "gone")}
    files.write_json(run.manifest_path, {**manifest, "options": gone})
    *_, last = kinds.of(run).checks(run)
    assert "gone" in last.notes[0] and not last.figures
    run.manifest_path.unlink()
    with pytest.raises(PapError, match=r"expected assets\.extra/manifest\.json in a version"):
        kinds.directories(copy)


LOADER = """
import sys
for name in ("tfds_pap", "replication", "serving", "finetune", "keras"):
    sys.modules[name] = None
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
image = open(sys.argv[2], "rb").read()
answer = model.signatures["serving_default"](image_bytes=tf.constant([image]))
print(answer["label"].numpy()[0].decode(), len(answer), flush=True)
from tensorflow.python.tools import saved_model_cli
sys.argv = ["saved_model_cli", "show", f"--dir={sys.argv[1]}", "--all"]
saved_model_cli.main()
"""


def test_loads_where_neither_this_package_nor_keras_is(exported, tmp_path):
    (tmp_path / "a.jpg").write_bytes(FILES["JPEG"])
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(exported[1]), str(tmp_path / "a.jpg")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer, *shown = done.stdout.splitlines()
    assert answer.split()[1] == "5"
    for name in ("serving_default", "pixels", "classify", "features", "explain"):
        assert any(f"signature_def['{name}']" in line for line in shown)
    assert any("shape: (-1, 24, 24, 3)" in line for line in shown)


def test_all_variables_once(exported, model):
    stored = [
        shape
        for name, shape in tf.train.list_variables(str(exported[1] / "variables" / "variables"))
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    ]
    assert sorted(map(tuple, stored)) == sorted(tuple(v.shape) for v in model.variables)


def test_a_version_that_answers_otherwise_is_not_published(tmp_path, model, fit):
    other = keras.models.clone_model(model)
    built = graph.Graph(other, "bilinear", decisions.of_fit(fit)[0])
    built.save(tmp_path / "version")
    images = [FILES["JPEG"], FILES["PNG"]]
    found = self_check.Samples(images, np.full((2, 4), 0.25), "images")
    with pytest.raises(PapError, match="the served probabilities differ by"):
        self_check.check(tmp_path / "version", model, built, found)
    with pytest.raises(PapError, match=r"differ by .* from the run's predictions\.csv"):
        self_check.check(tmp_path / "version", other, built, found)


def test_nothing_to_calibrate_with(model):
    built = graph.Graph(model, "bilinear", graph.Decision(tuple("wxyz"), None, None))
    answer = built.serving_default(tf.constant([FILES["JPEG"]]))
    assert set(answer) == {"probabilities", "label", "class_id"}


def test_errors_are_one_line(tiny_run, tmp_path):
    for arguments, expected in (
        (("--protocol=paper",), "holds no finished model of --protocol=paper"),
        (("--stage=1",), "holds no finished model of --stage=1"),
    ):
        done = export(tiny_run, tmp_path / "models", *arguments)
        assert done.returncode == 1
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("serving.export: ") and expected in line
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "models").exists()
