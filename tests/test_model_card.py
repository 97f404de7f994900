"""The two documents are read as Markdown, by a parser that is not the writer's."""

import json
import re

import numpy as np
import pytest
from markdown_it import MarkdownIt

from replication.measures import evaluation, triage
from replication.measures.class_figures import AT_CLASS_SHARES
from replication.measures.predictions import Predictions
from replication.report import model_card
from replication.runs import results
from replication.runs.directory import RunDirectory
from tfds_pap import files
from tfds_pap.errors import PapError
from tfds_pap.taxonomy import STAGE1_CLASSES, STAGE2_CLASSES

CLASSES = {1: STAGE1_CLASSES, 2: STAGE2_CLASSES}
BANNER = "Every image of this run is a drawing: no figure below is a replication."
PHRASE = "Research software, not a medical device"


def fake_predictions(stage, seed, groups):
    rng = np.random.default_rng(stage)
    names = CLASSES[stage]
    labels = np.resize(np.arange(len(names)), 90)
    logits = 2.5 * np.eye(len(names))[labels]
    logits += np.random.default_rng([stage, seed]).gumbel(size=logits.shape)
    odds = np.exp(logits)
    split = rng.permutation(["tune"] * 30 + ["test"] * 60)
    folder = {"tune": "train", "test": "validation"}
    return Predictions(
        [f"{folder[s]}/{c}/{i}.jpg" for i, (s, c) in enumerate(zip(split, labels, strict=True))],
        [f"{s}_{i % 6}" if groups else "" for i, s in enumerate(split)],
        split,
        labels,
        odds / odds.sum(axis=1, keepdims=True),
        names,
    )


def add_fit(run, stage, protocol, seed, *, groups=True, assess=False):
    predictions = fake_predictions(stage, seed, groups)
    directory = run.fit_directory(stage, protocol, seed)
    directory.mkdir(parents=True)
    predictions.write(directory / "predictions.csv")
    metrics = evaluation.evaluate(predictions.select("test"), resamples=50)
    if assess:
        metrics["triage"] = triage.assess(predictions, prevalence=0.02)
    files.write_json(directory / "metrics.json", evaluation.jsonable(metrics))
    info = {
        "stage": stage,
        "protocol": protocol,
        "seed": seed,
        "name": f"network | {stage}",
        "parameters": 131108,
        "size": 250,
        "resize": "bilinear",
        "class_names": list(CLASSES[stage]),
        "counts": {
            role: dict.fromkeys(CLASSES[stage], count)
            for role, count in (("train", 25), ("tune", 10), ("test", 20))
        },
        "epochs_run": 12,
        "best_epoch": 7,
        "kept": "best",
    }
    files.write_json(directory / "fit.json", info)


def manifest(source="phantom"):
    return {
        "source": source,
        "announcement": "" if source == "original" else BANNER,
        "environment": {
            "command": "python -m replication.run --epochs=2 --run_dir=/home/somebody/out/run_7 "
            "--data_dir=C:\\data\\tfds --seeds=0,1",
            "time": "2025-01-02T03:04:05+00:00",
            "python": "3.12.1",
            "versions": {"keras": "3.15.0"},
            "git_commit": "0123456789ab",
            "device": "CPU (8 cores)",
            "precision": "float32",
            "xla": False,
        },
        "data": {
            "pap_db4": {
                "fingerprint": "9f2c4be0",
                "notes": ["one | note"],
                "counts": {
                    "train": dict.fromkeys(STAGE2_CLASSES, 35),
                    "validation": dict.fromkeys(STAGE2_CLASSES, 20),
                },
                "groups": 12,
            }
        },
        "audit": {"pap_db4": {"line": "audit: 3 of 80 images have a near-duplicate in train"}},
        "durations": {"stage 2, clean protocol, seed 0": 12.4},
        "peak_memory_mib": 2210,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Both stages, both protocols, two seeds; triage in stage 2's clean protocol alone."""
    path = tmp_path_factory.mktemp("card") / "run"
    identity = {"source": "phantom", "weights": "/home/somebody/weights/a_b.h5", "epochs": None}
    run = RunDirectory.open(path, identity)
    run.update_manifest(**manifest())
    for stage in (1, 2):
        for protocol in ("paper", "clean"):
            for seed in (0, 1):
                assess = (stage, protocol) == (2, "clean")
                add_fit(run, stage, protocol, seed, assess=assess)
    return run


@pytest.fixture
def small(tmp_path):
    """One fit of stage 2, without groups; a test may change it."""
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    run.update_manifest(**manifest())
    add_fit(run, 2, "clean", 0, groups=False)
    return run


def texts(run):
    return [path.read_text("utf-8") for path in model_card.write(run)]


def tables(text):
    """Every table as a list of rows of cells, as a Markdown parser sees them."""
    found, row = [], []
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for token, inner in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "table_open":
            found.append([])
        elif token.type in ("td_open", "th_open"):
            row.append("".join(child.content for child in inner.children))
        elif token.type == "tr_close":
            found[-1].append(row)
            row = []
    return found


def items(text):
    """Topic and answer by item number."""
    return {
        int(number): (topic, answer)
        for table in tables(text)
        for number, topic, answer in table[1:]
    }


def test_writes_both_files_the_same_every_time(finished):
    paths = model_card.write(finished)
    assert [path.name for path in paths] == ["model_card.md", "claim_checklist.md"]
    before = [path.read_bytes() for path in paths]
    model_card.write(finished)
    assert [path.read_bytes() for path in paths] == before
    assert not list(finished.path.glob("*.partial"))


def test_says_first_what_it_is_not(finished):
    for text in texts(finished):
        top = text[:600]
        assert PHRASE in top
        assert BANNER in top
        assert top.index(PHRASE) < top.index(BANNER)


def test_the_authors_own_images_need_no_banner(small):
    small.update_manifest(**manifest("original"))
    for text in texts(small):
        assert PHRASE in text
        assert BANNER not in text
        assert "replicate nothing" not in text
        assert "the papers' authors" in text


def test_every_claim_item_has_an_answer(finished):
    found = items(texts(finished)[1])
    assert list(found) == list(range(1, 45))
    assert all(len(topic) > 5 and len(answer) > 10 for topic, answer in found.values())
    assert len({topic for topic, _ in found.values()}) == 44
    assert found[44][1].startswith("unknown: ")
    assert found[34][1].startswith("not applicable: ")


def test_claim_counts_what_it_does_not_know(finished):
    text = texts(finished)[1]
    answers = [answer for _, answer in items(text).values()]
    unknown = sum(answer.startswith("unknown") for answer in answers)
    other = sum(answer.startswith("not applicable") for answer in answers)
    assert f"Of 44 items, {unknown} are unknown and {other} not applicable" in text


def test_real_images_leave_more_unknown_than_drawings(finished, small):
    drawn = items(texts(finished)[1])
    small.update_manifest(**manifest("stand-in"))
    real = items(texts(small)[1])
    for number in (8, 10, 11, 16, 18, 36):
        assert drawn[number][1].startswith("not applicable: ")
        assert real[number][1].startswith("unknown: ")
        assert "whoever supplied the images" in real[number][1]


def test_figures_are_those_of_the_metrics(finished):
    text = texts(finished)[0]
    assert AT_CLASS_SHARES in text
    fits = results.read_fits(finished)
    for row in results.summary_rows(fits, "phantom"):
        summary = row.summary["accuracy"]
        cells = [100 * v for v in (summary.mean, summary.low, summary.high)]
        line = "| accuracy | {:.1f} % ({:.1f} to {:.1f}) |".format(*cells)
        assert line in section(text, row.stage, row.protocol)
    fit = next(fit for fit in fits if (fit.stage, fit.protocol) == (2, "clean"))
    per_class = json.loads((fit.directory / "metrics.json").read_text())["per_class"]
    table = next(t for t in tables(section(text, 2, "clean")) if t[0][0] == "class")
    assert [row[0] for row in table[1:]] == list(STAGE2_CLASSES)
    for name, *cells, images in table[1:]:
        assert int(images) == per_class[name]["support"]
        for cell, key in zip(
            cells, ("sensitivity", "specificity", "ppv", "npv", "f1"), strict=True
        ):
            found = [100 * per_class[name][key][end] for end in ("value", "low", "high")]
            assert cell == "{:.1f} % ({:.1f} to {:.1f})".format(*found)


def section(text, stage, protocol):
    return text.split(f"### Stage {stage}, {protocol} protocol: ")[1].split("\n### ")[0]


def test_calibration_and_triage_where_they_are_there(finished):
    text = texts(finished)[0]
    with_it, without = section(text, 2, "clean"), section(text, 2, "paper")
    path = finished.fit_directory(2, "clean", 0) / "metrics.json"
    found = json.loads(path.read_text())["triage"]
    ece = found["calibration"]["after"]["ece"]
    assert f"{ece['value']:.3f} (no interval)" in with_it
    point = found["operating_points"]["points"][0]
    assert f"{point['threshold']:.4f} | {100 * point['sensitivity']['value']:.1f} %" in with_it
    assert f"{100 * point['ppv']['value']:.1f} %" in with_it
    assert f"confidence of {found['risk_coverage']['threshold']:.3f}" in with_it
    assert without.count("unknown: metrics.json has none.") == 3


def test_roles_groups_and_audit_come_from_the_run(finished, small):
    card, claim = texts(finished)
    answers = items(claim)
    assert "train 100, tune 40, test 80" in answers[19][1]
    assert "cut by group" in answers[19][1]
    assert "tune (6 groups) and test (6 groups) share no group" in answers[20][1]
    assert "audit: 3 of 80 images have a near-duplicate in train" in answers[20][1]
    assert "audit: 3 of 80 images" in card
    card, claim = texts(small)
    assert "groups are unknown" in card
    assert "cut by image and stratified by class, as not every group is known" in card
    assert "patient, slide or field is unknown" in items(claim)[20][1]


def test_shared_groups_are_counted(small):
    directory = small.fit_directory(2, "clean", 0)
    predictions = Predictions.read(directory / "predictions.csv")
    shared = Predictions(
        predictions.ids,
        [f"field_{n % 5}" for n in range(len(predictions))],
        predictions.splits,
        predictions.labels,
        predictions.probabilities,
        predictions.class_names,
    )
    shared.write(directory / "predictions.csv")
    assert "tune (5 groups) and test (5 groups) share 5 groups" in texts(small)[0]


def test_a_test_set_cut_from_the_train_folder_is_named(small):
    directory = small.fit_directory(2, "clean", 0)
    test = Predictions.read(directory / "predictions.csv").select("test")
    ids = [name.replace("validation/", "train/") for name in test.ids]
    moved = Predictions(
        ids, test.groups, test.splits, test.labels, test.probabilities, test.class_names
    )
    moved.write(directory / "predictions.csv")
    assert "the test images are a random fifth of the train folder" in texts(small)[0]


@pytest.mark.parametrize(
    ("key", "item"), [("environment", 23), ("data", 7), ("audit", 20), ("source", 7)]
)
def test_what_the_manifest_lacks_is_unknown(small, key, item):
    known = items(texts(small)[1])[item][1]
    values = small.manifest()
    del values[key]
    files.write_json(small.manifest_path, values)
    card, claim = texts(small)
    answer = items(claim)[item][1]
    assert "unknown" in answer
    assert answer.count("unknown") > known.count("unknown")
    assert card.count("unknown") > 5


def test_without_a_source_nothing_passes_for_a_replication(small):
    values = small.manifest()
    del values["source"], values["announcement"]
    files.write_json(small.manifest_path, values)
    for text in texts(small):
        assert "No figure below may be called a replication" in text[:600]
        assert "not comparable" in text


def test_no_folder_of_the_machine_is_named(finished):
    for text in texts(finished):
        assert "somebody" not in text
        assert not re.search(r"[ =(](/\w|[A-Z]:)", text)
        assert "--run_dir=run_7 --data_dir=tfds --seeds=0,1" in text
    assert "a_b.h5" in texts(finished)[0]


def test_names_cannot_break_a_table(finished):
    """The network's name holds a pipe, and every row has as many cells as its heading."""
    for text in texts(finished):
        assert all(len(row) == len(table[0]) for table in tables(text) for row in table)
        assert "network | 2" in "".join(cell for t in tables(text) for row in t for cell in row)
        assert not re.search(r"\{[{%#]|Undefined|None\b(?!:)", text)


def test_how_a_model_was_trained_is_read_from_its_fit(small):
    """Whatever recipe it came from; an older fit does not say it."""
    path = small.fit_directory(2, "clean", 0) / "fit.json"
    before = path.read_text()
    card, _ = texts(small)
    assert "| bilinear | unknown | 12 |" in card
    how = {"optimizer": "adamw", "learning_rate": 0.003, "batch_size": 32}
    files.write_json(path, {**files.read_json(path), **how})
    card, claim = texts(small)
    path.write_text(before)
    words = "adamw, learning rate 0.003, batches of 32"
    assert f"| bilinear | {words} | 12 |" in card and words in claim


def test_a_run_without_fits_and_metrics(tmp_path, small):
    empty = RunDirectory.open(tmp_path / "empty", {})
    card, claim = texts(empty)
    assert "No model has been trained" in card
    assert list(items(claim)) == list(range(1, 45))
    (small.fit_directory(2, "clean", 0) / "metrics.json").unlink()
    assert "unknown: metrics.json of this seed is missing" in texts(small)[0]
    with pytest.raises(PapError, match="not a run directory"):
        model_card.write(RunDirectory(tmp_path / "nothing"))
