import csv
import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
from commands import command
from PIL import Image

from tfds_pap import (
    audit_files,
    folders,
    layouts,
    leak_audit,
    near_duplicates,
    phantom_set,
    pipeline,
    preparing,
)


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """Drawn DB_4 with planted leaks between train and validation."""
    root = tmp_path_factory.mktemp("leaky")
    phantom_set.write_tree(root, db3={}, db4={"train": 5, "validation": 3}, slides=8)
    tree = root / "DB_4"
    groups = dict(list(csv.reader((tree / "groups.csv").open()))[1:])
    copy = cv2.imread(str(tree / "train/1/train_1_0.jpg"))
    twins = {
        "validation/1/copied.jpg": copy,
        "validation/2/contradicting.png": cv2.flip(copy, 1),
    }
    for number, (name, image) in enumerate(twins.items()):
        assert cv2.imwrite(str(tree / name), image)
        groups[name] = f"other {number}"
    groups["validation/3/validation_3_0.jpg"] = groups["train/3/train_3_0.jpg"]
    rows = ["file,group", *(f"{name},{group}" for name, group in sorted(groups.items()))]
    (tree / "groups.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def builder(leaky, tmp_path_factory):
    return preparing.prepare("pap_db4", "original", leaky, tmp_path_factory.mktemp("leaky_data"))


def test_leaks_between_splits_are_found(builder):
    found = leak_audit.audit_builder(builder)
    across = {frozenset((p.first, p.second)): p for p in found.pairs if p.across}
    copied = across[frozenset(("train/1/train_1_0.jpg", "validation/1/copied.jpg"))]
    flipped = across[frozenset(("train/1/train_1_0.jpg", "validation/2/contradicting.png"))]
    assert copied.same_picture and not copied.contradicts
    assert flipped.same_picture and flipped.contradicts and flipped.alignment.view == 1
    index = pipeline.read_index(builder)
    groups = dict(zip(index.ids, index.groups, strict=True))
    shared = groups["train/3/train_3_0.jpg"]
    assert set(found.shared_groups) == {shared}
    suspects = found.suspects(found.ids["validation"])
    in_shared = {i for i in found.ids["validation"] if groups[i] == shared}
    assert suspects == {"validation/1/copied.jpg", "validation/2/contradicting.png"} | in_shared
    assert found.one_line() == (
        "audit of pap_db4 (full): 2 of 14 validation images have a twin in train; "
        "1 group on both sides; "
        "pairs of the same picture under different labels: 2"
    )


def test_the_audit_is_kept_and_read_again(builder, monkeypatch):
    first = leak_audit.audit_builder(builder)
    monkeypatch.setattr(near_duplicates, "find", None)
    assert leak_audit.audit_builder(builder) == first
    with pytest.raises(TypeError):
        leak_audit.audit_builder(builder, features=np.zeros((34, 2), np.float32))


def test_suspects_depend_on_what_is_tested(builder):
    found = leak_audit.audit_builder(builder)
    everything = [image for ids in found.ids.values() for image in ids]
    assert found.suspects(everything) == set()
    assert "train/1/train_1_0.jpg" in found.suspects(found.ids["train"])


def test_accuracy_without_suspects_is_that_of_the_rest(builder):
    from replication.measures import evaluation
    from replication.runs import description

    found = leak_audit.audit_builder(builder)
    ids = sorted(found.ids["validation"])
    names = ("NILM", "LSIL", "HSIL", "SCC")
    labels = np.array([names.index(found.labels[image]) for image in ids])
    suspects = found.suspects(ids)
    # Right on suspects alone.
    named = np.array(
        [c if i in suspects else (c + 1) % 4 for i, c in zip(ids, labels, strict=True)]
    )
    predictions = evaluation.Predictions(
        ids=ids,
        groups=[""] * len(ids),
        splits=["test"] * len(ids),
        labels=labels,
        probabilities=np.eye(4)[named],
        class_names=names,
    )
    line = description.accuracy_without_suspects([predictions], found)
    assert (
        f"without suspect test images ({len(suspects)}," in line and ": 0.0000 [0.0000 to" in line
    )
    clean = dataclasses.replace(found, pairs=(), groups={})
    assert description.accuracy_without_suspects([predictions], clean) == ""


def test_the_command_prints_and_writes(leaky, tmp_path):
    predictions = tmp_path / "predictions.csv"
    classes = {"1": "HSIL", "2": "LSIL", "3": "NILM", "4": "SCC"}
    rows = ["id,group,split,label," + ",".join(f"probability_{c}" for c in classes.values())]
    # Of the whole validation folder; right on the planted copy alone.
    for path in sorted((leaky / "DB_4" / "validation").rglob("*.*")):
        image, label = path.relative_to(leaky / "DB_4").as_posix(), classes[path.parent.name]
        right = path.name == "copied.jpg"
        named = label if right else "SCC" if label == "NILM" else "NILM"
        rows.append(
            ",".join([image, "", "test", label, *(f"{c == named:d}" for c in classes.values())])
        )
    predictions.write_text("\n".join(rows) + "\n")
    done = command(
        "tfds_pap.audit",
        f"--manual_dir={leaky}",
        f"--data_dir={tmp_path / 'data'}",
        f"--output={tmp_path / 'out'}",
        "--datasets=pap_db4",
        f"--predictions={predictions}",
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "2 of 14 validation images have a twin in train" in done.stdout
    # Images of one group are not independent, so that Wilson's interval would be too narrow.
    assert "accuracy, all test images: 0.0714 (1 of 14; no interval)" in done.stdout
    assert "accuracy, without suspect ones: 0.0000 (0 of 11; no interval)" in done.stdout
    out = tmp_path / "out" / "pap_db4"
    assert json.loads((out / "audit.json").read_text())["groups on both sides"] == 1
    pairs = list(csv.DictReader((out / "pairs.csv").open()))
    assert {pair["second"] for pair in pairs} >= {"validation/1/copied.jpg"}
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 900


def test_folders_are_audited_across_groups(leaky, tmp_path):
    tree = tmp_path / "fields"
    for number, source in enumerate(("train/1/train_1_0.jpg", "validation/1/copied.jpg")):
        place = tree / ("HSIL" if number else "SCC") / f"{number}.jpg"
        place.parent.mkdir(parents=True)
        shutil.copy(leaky / "DB_4" / source, place)
    (tree / "groups.csv").write_text("file,group\nSCC/0.jpg,a\nHSIL/1.jpg,b\n")
    found = leak_audit.audit_builder(preparing.prepare_folders(tree, tmp_path / "data"))
    assert found.one_line() == (
        "audit of pap_folders (full): pairs among 2 images that show the same thing: 1, "
        "across groups: 1; "
        "pairs of the same picture under different labels: 1"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets=pap_db5"], "--datasets=pap_db5: expected pap_db3,pap_db4"),
        (["--folders=/nowhere"], "/nowhere: no such folder"),
        (["--folders=memory://nowhere"], "memory://nowhere: no such file or folder"),
        (["--folders=/", "--manual_dir=/"], "--folders and --manual_dir: give one of them"),
        (["--cluster=nowhere"], "--cluster=nowhere: expected local, an address such as tcp://"),
        (["--predictions=/nowhere.csv"], "--predictions=/nowhere.csv: no such file"),
        (["--predictions={empty}"], "expected id,split,label"),
        (
            ["--predictions={empty}", "--datasets=pap_db3,pap_db4"],
            "--features and --predictions belong to one data set: name it with --datasets",
        ),
    ],
)
def test_bad_input_is_one_line(leaky, tmp_path, arguments, message):
    given = [f"--data_dir={tmp_path}", f"--output={tmp_path / 'out'}", "--datasets=pap_db4"]
    if not any("folders" in argument for argument in arguments):
        given.append(f"--manual_dir={leaky}")
    (empty := tmp_path / "empty.csv").touch()
    given += [argument.format(empty=empty) for argument in arguments]
    done = command("tfds_pap.audit", *given, timeout=200)
    assert done.returncode != 0
    assert any(message in line for line in done.stderr.splitlines()), done.stderr
    assert "Traceback" not in done.stderr


#: Copies of URLs lie where `tempfile` says, which asks its environment once a process.
BEHIND_A_URL = """
import runpy, sys, tempfile
tempfile.tempdir = sys.argv.pop()
sys.argv[0] = "audit"
runpy.run_module("tfds_pap.audit", run_name="__main__", alter_sys=True)
"""


def test_class_folders_may_lie_behind_a_url(manual_dir, tmp_path):
    url = f"file://{manual_dir}/DB_4/train"
    given = [f"--folders={url}", f"--data_dir={tmp_path / 'data'}", f"--output={tmp_path}"]
    done = command("-c", BEHIND_A_URL, "--audit=off", *given, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"train: a copy of {url} in {tmp_path}/pap_urls_" in done.stdout
    assert "train: layout plain: 4 classes, 40 images" in done.stdout
    (prepared,) = (tmp_path / "data" / "pap_folders").iterdir()
    listed = layouts.read(manual_dir / "DB_4" / "train")
    assert prepared.name == f"train_{folders.listing_fingerprint(listed)[:12]}"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,,test,cell,0,1", "expected images of the audited data set, but a (cell) is HSIL there"),
        ("b,,test,HSIL,0,1", "expected images of the audited data set, but b (HSIL) is not there"),
        ("a,,train,HSIL,0,1", "expected rows with split test, got none"),
        ("a,,test,HSIL,0,much", "expected id,split,label,probability_<class>"),
        ("a,,test", "expected id,split,label,probability_<class>"),
        ("", "expected id,split,label,probability_<class>"),
    ],
)
def test_predictions_of_other_images_are_refused(tmp_path, rows, message):
    path = tmp_path / "predictions.csv"
    path.write_text(f"id,group,split,label,probability_NILM,probability_HSIL\n{rows}\n")
    with pytest.raises(audit_files.FileError) as caught:
        audit_files.read_predictions(path, {"a": "HSIL"})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_features_are_put_into_the_order_of_the_images(tmp_path):
    path, ids = tmp_path / "features.npz", np.array(["a", "b"])
    with pytest.raises(audit_files.FileError, match="not readable"):
        audit_files.read_features(path, ids)
    np.savez(path, ids=np.array(["b", "c", "a"]), features=np.arange(6.0).reshape(3, 2))
    features = audit_files.read_features(path, ids)
    np.testing.assert_array_equal(features, [[4, 5], [0, 1]])
    for ids_there, values, message in (
        (["a"], np.ones((1, 2)), "expected ids and features of 'b'"),
        (["a", "b"], np.ones(2), "expected finite features"),
        (["a", "b"], np.full((2, 2), np.nan), "expected finite features"),
    ):
        np.savez(path, ids=np.array(ids_there), features=values)
        with pytest.raises(audit_files.FileError, match=message):
            audit_files.read_features(path, ids)


def test_a_class_folder_alone_is_refused(tmp_path):
    (tmp_path / "one" / "NILM").mkdir(parents=True)
    with pytest.raises(folders.TreeError, match="with 2 to 20 class folders, got 1"):
        preparing.prepare_folders(tmp_path / "one", tmp_path)
