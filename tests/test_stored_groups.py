"""Groups are kept beside the pixels; features and caches follow the images, not their position."""

from pathlib import Path

import numpy as np
import pytest
from conftest import save_image

from replication.learning import features, weights
from replication.runs.device import DevicePolicy
from tfds_pap import folders, pipeline, preparing, stored_groups

POLICY = DevicePolicy("CPU", False, "float32")


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "cells"
    for number in range(12):
        save_image(root / ("HSIL", "NILM")[number % 2] / f"{number}.png", number)
    return root


def write_groups(root, group_of):
    rows = [
        f"{p.relative_to(root).as_posix()},{group_of(int(p.stem))}" for p in root.rglob("*.png")
    ]
    (root / "groups.csv").write_text("\n".join(["file,group", *rows]) + "\n")


def groups_of(builder):
    index = pipeline.read_index(builder)
    return dict(zip(index.ids.tolist(), index.groups.tolist(), strict=True))


def expected(builder, group_of):
    return {i: group_of(int(i.split("/")[1][:-4])) for i in pipeline.read_index(builder).ids}


def test_other_groups_prepare_no_pixel_again(tree, tmp_path):
    prepared = {}

    def prepare():
        builder = preparing.prepare_folders(tree, tmp_path / "data")
        prepared[builder.data_dir] = [
            (path.name, path.stat().st_mtime_ns)
            for path in Path(builder.data_dir).glob("*tfrecord*")
        ]
        return builder

    first = prepare()
    assert set(groups_of(first).values()) == {""}
    assert preparing.identity(first) == first.info.metadata["fingerprint"]
    records = dict(prepared)
    identities = {preparing.identity(first)}
    for group_of in (lambda n: f"slide {n % 3}", lambda n: f"slide {n % 4}"):
        write_groups(tree, group_of)
        again = prepare()
        assert groups_of(again) == expected(again, group_of)
        # Whole examples have them too, as long as the data set lives.
        for example in pipeline.examples(again, "whole", 8).as_numpy_iterator():
            assert example["group"].decode() == groups_of(again)[example["id"].decode()]
        identities.add(preparing.identity(again))
    # Neither did it prepare anything again, nor look elsewhere.
    assert prepared == records and len(identities) == 3
    (tree / "groups.csv").unlink()
    assert set(groups_of(prepare()).values()) == {""}
    assert preparing.identity(prepare()) == first.info.metadata["fingerprint"]


def test_groups_that_went_are_gone(tree, tmp_path):
    write_groups(tree, lambda n: f"slide {n}")
    builder = preparing.prepare_folders(tree, tmp_path / "data")
    assert groups_of(builder) == expected(builder, lambda n: f"slide {n}")
    assert stored_groups.read(builder) is None
    (tree / "groups.csv").unlink()
    builder = preparing.prepare_folders(tree, tmp_path / "data")
    assert set(groups_of(builder).values()) == {""}
    assert preparing.identity(builder) == builder.info.metadata["fingerprint"]


def test_broken_groups_of_prepared_images_are_one_line(tree, tmp_path):
    preparing.prepare_folders(tree, tmp_path / "data")
    (tree / "groups.csv").write_text("file,group\nHSIL/0.png,a\n")
    with pytest.raises(folders.TreeError, match=r"NILM/1.png: has no row in groups.csv"):
        preparing.prepare_folders(tree, tmp_path / "data")


def reordered(builder, monkeypatch):
    """The same images behind the same fingerprint, last split's records first."""
    parsed = pipeline._parsed

    def backwards(*arguments):
        examples = list(parsed(*arguments))[::-1]
        generator = pipeline.tf.data.Dataset.from_generator
        return generator(lambda: iter(examples), output_signature=parsed(*arguments).element_spec)

    monkeypatch.setattr(pipeline, "_parsed", backwards)
    return builder


def test_another_order_never_gets_somebody_elses_features(
    tree, tmp_path, tiny_backbone, monkeypatch
):
    """Two builders may share a fingerprint and differ in order."""
    spec = features.FeatureSpec(tiny_backbone, weights.find(tiny_backbone, "none"), 32, "torch")
    builder = preparing.prepare_folders(tree, tmp_path / "data")

    def extract():
        return features.extract_features(
            builder, spec, tmp_path / "features", policy=POLICY, batch_size=4
        )

    def by_id(store):
        return dict(zip(store.index.ids.tolist(), store.features[:, 0], strict=True))

    first = extract()
    pixels = pipeline.load_images(builder, 8, budget_bytes=1, cache_dir=tmp_path)
    reordered(builder, monkeypatch)
    second = extract()
    assert first.index.ids.tolist() == second.index.ids.tolist()[::-1]
    for image, values in by_id(second).items():
        np.testing.assert_allclose(values, by_id(first)[image], atol=1e-5, err_msg=image)
    # Decoded pixels that are kept in a file hold to the same rule.
    turned = pipeline.load_images(builder, 8, budget_bytes=1, cache_dir=tmp_path)
    np.testing.assert_array_equal(np.asarray(turned.pixels), np.asarray(pixels.pixels)[::-1])


def test_a_chunk_of_other_images_is_computed_again(tree, tmp_path, tiny_backbone, capsys):
    """Also where a store was copied, or its key did not tell."""
    spec = features.FeatureSpec(tiny_backbone, weights.find(tiny_backbone, "none"), 32, "torch")
    builder = preparing.prepare_folders(tree, tmp_path / "data")
    first = features.extract_features(builder, spec, tmp_path / "f", policy=POLICY, batch_size=4)
    (chunk,) = (tmp_path / "f").glob("tiny-*/chunk_*.npz")
    with np.load(chunk) as stored:
        values, ids = stored["features"], stored["ids"]
    np.savez(chunk, features=values, ids=ids[::-1])
    again = features.extract_features(builder, spec, tmp_path / "f", policy=POLICY, batch_size=4)
    np.testing.assert_allclose(first.features, again.features, atol=1e-5)
    assert "chunk_00000.npz" in (said := capsys.readouterr().out) and "other images" in said
