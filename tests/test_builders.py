"""TFDS's own test of both dataset builders, on trees made here."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import make_tree, save_image

import tfds_pap
from tfds_pap import folders, phantom_set, pipeline, preparing, taxonomy, tree_builder
from tfds_pap.pap_db3 import pap_db3_dataset_builder
from tfds_pap.pap_db4 import pap_db4_dataset_builder

assert tfds_pap


class _TreeCase(tfds.testing.DatasetBuilderTestCase):
    """Makes the dummy tree that the case's builder reads."""

    TREE = ""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        make_tree(Path(folder.name), cls.TREE, train=3, validation=2, groups=2)
        cls.EXAMPLE_DIR = folder.name
        super().setUpClass()


class PapDb3Original(_TreeCase):
    TREE = "DB_3"
    DATASET_CLASS = pap_db3_dataset_builder.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["original"]  # noqa: RUF012
    SPLITS = {"train": 6, "validation": 4}  # noqa: RUF012


class PapDb4Original(_TreeCase):
    TREE = "DB_4"
    DATASET_CLASS = pap_db4_dataset_builder.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["original"]  # noqa: RUF012
    SPLITS = {"train": 12, "validation": 8}  # noqa: RUF012


# Drawing every phantom would take most of the test's time.
FEW = tree_builder.PapConfig(name="few", phantom_counts={"train": 3, "validation": 2})


class PapDb3Phantom(_TreeCase):
    TREE = "DB_3"
    DATASET_CLASS = pap_db3_dataset_builder.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = [FEW]  # noqa: RUF012
    SPLITS = {"train": 6, "validation": 4}  # noqa: RUF012


class PapDb4Phantom(_TreeCase):
    TREE = "DB_4"
    DATASET_CLASS = pap_db4_dataset_builder.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = [FEW]  # noqa: RUF012
    SPLITS = {"train": 12, "validation": 8}  # noqa: RUF012


# unittest would also run the base class, which names no builder.
del _TreeCase


def raw(builder, split):
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders)))


def test_images_are_the_files_own_bytes(manual_dir, data_dir):
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
    names = builder.info.features["label"].names
    assert tuple(names) == taxonomy.STAGE2_CLASSES
    for split in ("train", "validation"):
        for example in raw(builder, split):
            path = manual_dir / "DB_4" / example["id"].decode()
            assert example["image"] == path.read_bytes()
            assert names[example["label"]] == taxonomy.DB4_FOLDERS[path.parent.name]
            assert example["group"].decode().startswith(f"{split}_field_")


def test_stage1_labels_without_groups(manual_dir, data_dir):
    builder = preparing.prepare("pap_db3", "original", manual_dir, data_dir)
    for example in raw(builder, "train"):
        folder = example["id"].decode().split("/")[1]
        assert {"0": 1, "1": 0}[folder] == example["label"]
        assert example["group"] == b""


def test_phantoms_equal_their_drawing(data_dir):
    builder = pap_db4_dataset_builder.Builder(config=FEW, data_dir=data_dir)
    builder.download_and_prepare()
    drawn = {
        id_: (label, phantom_set.encode(image))
        for id_, label, _, image in phantom_set.examples(2, "validation", per_class=2)
    }
    names = builder.info.features["label"].names
    found = raw(builder, "validation")
    assert {e["id"].decode(): (names[e["label"]], e["image"]) for e in found} == drawn


def test_fingerprint_covers_all_drawing_code():
    package = Path(tree_builder.__file__).parent
    drawing = {path.name for path in package.glob("phantom*.py")}
    assert {*drawing, "taxonomy.py"} == set(tree_builder._DRAWING_CODE)


def test_a_changed_tree_is_prepared_again(tmp_path, capsys):
    tree = make_tree(tmp_path, "DB_3", train=2, validation=1)
    before = preparing.prepare("pap_db3", "original", tmp_path, tmp_path / "data")
    capsys.readouterr()
    preparing.prepare("pap_db3", "original", tmp_path, tmp_path / "data")
    assert "changed" not in capsys.readouterr().out
    save_image(tree / "train/0/new.png", 77)
    after = preparing.prepare("pap_db3", "original", tmp_path, tmp_path / "data")
    assert "pap_db3/original changed since it was prepared" in capsys.readouterr().out
    assert after.info.splits["train"].num_examples == before.info.splits["train"].num_examples + 1


def test_prepared_data_need_no_manual_dir(manual_dir, data_dir):
    preparing.prepare("pap_db4", "original", manual_dir, data_dir)
    again = preparing.prepare("pap_db4", "original", None, data_dir)
    assert again.info.splits["train"].num_examples == 40


def test_missing_trees_are_named(tmp_path):
    with pytest.raises(folders.TreeError, match="give --manual_dir, the folder that holds DB_4"):
        preparing.prepare("pap_db4", "original", None, tmp_path)
    with pytest.raises(folders.TreeError, match="nowhere: no such folder"):
        preparing.prepare("pap_db4", "original", tmp_path / "nowhere", tmp_path)
    with pytest.raises(folders.TreeError, match="DB_4: no such folder; expected DB_4/"):
        preparing.prepare("pap_db4", "original", tmp_path, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.tfrecord*"))


def test_instructions_name_both_sources_and_the_tree():
    for builder in (pap_db3_dataset_builder.Builder, pap_db4_dataset_builder.Builder):
        text = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
        assert "CarlosJMB/Deep-Reinforcement-Learning-for-Efficient-Digital-Pap-Smear" in text
        assert "1fz9-srsO7EBUKztheth8f1W_g1DAySB_" in text
        assert f"{builder.TREE}/{{train,validation}}/" in text


def test_decoded_examples(manual_dir, data_dir):
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
    example = next(iter(pipeline.examples(builder, "train", 16)))
    assert example["image"].dtype == np.uint8
    assert example["image"].shape == (16, 16, 3)
    assert set(example) == {"image", "label", "id", "group"}
