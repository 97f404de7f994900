"""`--dry_run`: what is missing, minutes, disk; and nothing is written."""

import re

import numpy as np
import pytest
from conftest import save_image

from replication.learning import features, recipes
from replication.learning.knobs import HeadRecipe
from replication.runs import device, dry_run, sources
from replication.runs import steps as run_steps
from tfds_pap import layouts, preparing
from tfds_pap.pap_db3 import pap_db3_dataset_builder as pap_db3
from tfds_pap.pap_db4 import pap_db4_dataset_builder as pap_db4


@pytest.fixture(scope="module")
def policy():
    return device.configure()


def contents(folder):
    return sorted(path for path in folder.rglob("*"))


def test_a_run_tells_its_fits_minutes_and_disk_and_writes_nothing(
    tmp_path, policy, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    steps = run_steps.Steps(
        path=tmp_path / "run",
        sources=sources.Sources("phantom", data_dir=str(tmp_path / "data")),
        images=None,
        policy=policy,
        identity={},
        planned={("clean", stage): recipes.plan("clean", stage, phantoms=True) for stage in (1, 2)},
    )
    steps.dry_run([0, 1], [1, 2], ending=True)
    told = capsys.readouterr().out
    assert told.startswith("Plan: 4 fits, at most ") and " on this processor\n" in told
    assert "images " in told and "are free at" in told
    # 880 drawn images of stage 2 and 800 of stage 1, decoded.
    held = 3 * (880 * 190**2 + 800 * 20**2)
    assert f"({dry_run.size(held)} of images)" in told
    most = re.search(r"Memory: at most about ([\d.]+) GB", told)
    assert 1e9 * float(most[1]) > 2**20 * device.peak_memory_mib() + held
    assert told.endswith(f"nothing was written; without it results go to {tmp_path / 'run'}\n")
    assert contents(tmp_path) == []


def test_drawn_images_are_counted_before_they_are_drawn(tmp_path):
    for builder, count, train in (
        (pap_db3.Builder(config="phantom", data_dir=tmp_path), 800, 600),
        (pap_db4.Builder(config="phantom", data_dir=tmp_path), 880, 640),
    ):
        images = dry_run.images(builder, None)
        assert (len(images.index.ids), images.train) == (count, train)
        assert images.bytes_to_prepare > 1000 * count
        assert all(np.bincount(images.index.labels) == count / len(builder.class_names))
    assert contents(tmp_path) == []


def test_images_of_a_tree_are_counted_where_they_lie(tmp_path):
    for label, count in (("NILM", 3), ("HSIL", 2)):
        for number in range(count):
            save_image(tmp_path / "tree" / label / f"{number}.png", 10 * count + number)
    size = sum(path.stat().st_size for path in (tmp_path / "tree").rglob("*.png"))
    builder = preparing.listing_builder(layouts.read(tmp_path / "tree"), tmp_path)
    images = dry_run.images(builder, None)
    assert images.bytes_to_prepare == size and images.index.class_names == ("NILM", "HSIL")
    assert sorted(images.index.labels) == [0, 0, 0, 1, 1]


def test_a_comparison_counts_heads_and_features(tmp_path, policy, monkeypatch, tiny_backbone):
    monkeypatch.chdir(tmp_path)
    rows = [
        (f"{split}/{number}", "", "NILM" if number % 2 else "SCC", split)
        for split, count in (("train", 20), ("validation", 8))
        for number in range(count)
    ]
    index, said = dry_run._index(rows, ("NILM", "SCC")), []
    lines, parts = dry_run.comparison(
        {"a": features.feature_spec(tiny_backbone, source="none", size=32)},
        index,
        fits=3,
        recipe=HeadRecipe(epochs=2),
        protocol="clean",
        policy=policy,
        say=said.append,
    )
    assert lines[0].startswith("Plan: 1 backbone, 28 images, 3 fits of heads, at most 6 epochs, ")
    assert parts["features"] == 28 * 8 * 4
    assert len(said) == 1 and said[0].startswith("a: ")
    assert contents(tmp_path) == []


def test_weights_that_would_be_downloaded_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert dry_run.at_hand("mobilenetv2", "imagenet") == "none"
    assert dry_run.download_bytes("mobilenetv2", "imagenet") == 4 * 2_257_984
    assert dry_run.at_hand("mobilenetv2", "file.h5") == "file.h5"
    assert dry_run.download_bytes("mobilenetv2", "none") == 0
