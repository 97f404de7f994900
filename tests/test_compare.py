"""The comparison as a user types it, with small backbones."""

import csv
import json

import keras
import numpy as np
import pytest
from commands import command
from conftest import save_image

from replication.learning import weights
from tfds_pap import pipeline, preparing

FLAGS = ("--weights=none", "--size=32", "--epochs=3", "--seeds=1", "--backbones=tiny")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three classes of four slides with four images each."""
    root = tmp_path_factory.mktemp("trees") / "fields"
    rows = ["file,group"]
    for label, name in enumerate(("SCC", "NILM", "other")):
        for number in range(16):
            file = f"{name}/{number}.jpg"
            save_image(root / file, 100 * label + number)
            rows.append(f"{file},{name} slide {number // 4}")
    (root / "groups.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def both_cuts(folders, data_dir, tmp_path_factory):
    place = tmp_path_factory.mktemp("compare")
    arguments = (
        *FLAGS,
        f"--folders={folders}",
        f"--data_dir={data_dir}",
        f"--run_dir={place / 'run'}",
        f"--features_dir={place / 'features'}",
        "--cut=both",
        "--folds=2",
        "--group_unit=slide",
    )
    done = command("replication.compare", *arguments, draws=False, tiny=True)
    assert done.returncode == 0, done.stderr
    return place / "run", done.stdout, arguments


def test_both_cuts_print_the_size_of_the_leak(both_cuts):
    run_dir, output, _ = both_cuts
    assert "untrained" in output and "Not the papers' images" in output
    assert "audit of pap_folders (fast): " in output
    assert "cut by image" in output and "cut by slide" in output
    assert f"Report: {run_dir / 'report.html'}" in output
    page = (run_dir / "report.html").read_text()
    assert "leak" in page and "tiny" in page
    for cut in ("image", "group", "let_in"):
        folder = run_dir / cut / "tiny" / "seed_1"
        names = {path.name for path in folder.iterdir()}
        assert names == {"SHA256SUMS", "fit.json", "predictions.csv"}
        rows = list(csv.DictReader((folder / "predictions.csv").open()))
        assert len(rows) == 48 and {row["split"] for row in rows} == {"test"}
        assert list(rows[0])[4:] == [f"probability_{n}" for n in ("NILM", "SCC", "other")]


def test_every_image_is_scored_once_under_its_own_label(both_cuts, folders, data_dir):
    run_dir, _, _ = both_cuts
    fit = json.loads((run_dir / "group/tiny/seed_1/fit.json").read_text())
    assert [fold["counts"] for fold in fit["folds"]] == [{"train": 24, "tune": 0, "test": 24}] * 2
    assert [fold["epochs_run"] for fold in fit["folds"]] == [3, 3]
    rows = list(csv.DictReader((run_dir / "group/tiny/seed_1/predictions.csv").open()))
    index = pipeline.read_index(preparing.prepare_folders(folders, data_dir))
    truth = dict(zip(index.ids, index.labels, strict=True))
    assert {row["id"]: index.class_names.index(row["label"]) for row in rows} == truth


def test_the_same_command_again_computes_nothing(both_cuts):
    run_dir, output, arguments = both_cuts
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("predictions.csv")}
    again = command("replication.compare", *arguments, draws=False, tiny=True)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("predictions.csv")} == before
    table = [line for line in output.splitlines() if "tiny" in line]
    assert table and [x for x in again.stdout.splitlines() if "tiny" in x] == table


def test_tensorboard_holds_hparams_and_the_embedding(both_cuts):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    run_dir, _, _ = both_cuts
    events = event_accumulator.EventAccumulator(str(run_dir / "logs/tiny/seed_1"))
    events.Reload()
    data = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    shown = {name: value for name, value in data.session_start_info.hparams.items()}
    assert shown["backbone"].string_value == "tiny"
    assert shown["learning_rate"].number_value == 0.01
    assert "accuracy" in events.Tags()["tensors"]
    folder = run_dir / "logs" / "embedding"
    features = np.loadtxt(folder / "features.tsv", delimiter="\t")
    metadata = (folder / "metadata.tsv").read_text().splitlines()
    assert features.shape == (48, 8) and len(metadata) == 49
    assert (
        'tensor_path: "embedding/features.tsv"'
        in (run_dir / "logs/projector_config.pbtxt").read_text()
    )


def test_other_flags_for_the_same_directory_are_refused(both_cuts):
    _, _, arguments = both_cuts
    done = command("replication.compare", *arguments, "--epochs=4", tiny=True)
    assert done.returncode != 0
    assert "was made with epochs=3, not 4" in done.stderr.splitlines()[-1]


def test_the_published_folders_give_a_whole_model(manual_dir, data_dir, tmp_path):
    done = command(
        "replication.compare",
        *FLAGS,
        f"--manual_dir={manual_dir}",
        f"--data_dir={data_dir}",
        f"--run_dir={tmp_path / 'run'}",
        f"--features_dir={tmp_path / 'features'}",
        "--backbones=tiny,MobileNetV3Small",
        "--seeds=0",
        draws=False,
        tiny=True,
    )
    assert done.returncode == 0, done.stderr
    assert "tune images" in " ".join(done.stdout.split())
    winner = keras.models.load_model(tmp_path / "run" / "winner.keras", safe_mode=True)
    published = "tiny" if "tiny" in winner.name else "mobilenetv3small"
    rows = list(
        csv.DictReader((tmp_path / "run/published" / published / "seed_0/predictions.csv").open())
    )
    row = next(row for row in rows if row["split"] == "test")
    pixels = pipeline.decode_and_resize((manual_dir / "DB_4" / row["id"]).read_bytes(), 32)[None]
    said = winner.predict(pixels, verbose=0)[0]
    kept = [float(row[f"probability_{name}"]) for name in ("NILM", "LSIL", "HSIL", "SCC")]
    np.testing.assert_allclose(said, kept, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbones=resnt152"], "did you mean resnet152"),
        (["--weights=/nowhere", "--backbones=vgg16"], "--weights=/nowhere: no such file"),
        (["--seeds=a"], "--seeds=a: expected whole numbers"),
        (["--folds=1"], "--folds=1: expected 0"),
        (["--folders={folders}", "--folds=40"], "class NILM has 16 images, fewer than --folds=40"),
    ],
)
def test_bad_input_is_one_line(folders, data_dir, tmp_path, arguments, message):
    given = [argument.format(folders=folders) for argument in arguments]
    places = (f"--data_dir={data_dir}", f"--run_dir={tmp_path / 'run'}")
    done = command("replication.compare", *FLAGS, *places, *given, tiny=True)
    assert done.returncode != 0
    # absl prints its usage line after the message of a flag error.
    assert any(message in line for line in done.stderr.splitlines()), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_directory_of_weights_chooses_the_backbones(tmp_path, tiny_backbone):
    from replication.comparison import steps as comparison_steps
    from replication.learning import models
    from tfds_pap.errors import PapError

    specs = {"": str(tmp_path)}
    with pytest.raises(PapError, match="none of the published files"):
        comparison_steps.backbone_names(None, specs)
    network = models.backbone(tiny_backbone).build(32)
    network.save_weights(tmp_path / "tiny.weights.h5")
    (tmp_path / "tiny.weights.h5").rename(tmp_path / "tiny_net_notop.h5")
    assert comparison_steps.backbone_names(None, specs) == [tiny_backbone]
    assert "vgg16" in comparison_steps.backbone_names(None, {**specs, "vgg16": weights.NONE})
