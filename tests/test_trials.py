"""Records of a search: ranking, promotions, the table, and answers lined up by image."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from finetune.search.trials import (
    Answers,
    Search,
    Trial,
    configurations,
    described,
    find,
    names,
    rank,
    superseded,
    worded,
    write_csv,
)
from replication.measures.predictions import Predictions
from tfds_pap.taxonomy import STAGE2_CLASSES


def trial(name, score=0.5, status="completed", values=None, **fields):
    given = {"metrics": {}, "best_epoch": 1, "epochs": 10, "order": int(name)}
    return Trial(str(name), values or {}, status, score, **{**given, **fields})


def ids(trials):
    return [one.trial_id for one in trials]


def said(seed, split="tune", known=True, count=40, classes=STAGE2_CLASSES):
    rng = np.random.default_rng(seed)
    odds = rng.random((count, len(classes)))
    labels = np.random.default_rng(0).integers(len(classes), size=count)
    return Predictions(
        [f"{split} {i:02}" for i in range(count)],
        [f"slide {i % 7}" if known else "" for i in range(count)],
        [split] * count,
        labels,
        odds / odds.sum(axis=1, keepdims=True),
        classes,
    )


def test_the_best_comes_first_then_the_cheaper_then_the_earlier():
    trials = [
        trial(0, 0.8),
        trial(1, 0.9, epochs=30),
        trial(2, 0.9, epochs=20),
        trial(3, 0.9, epochs=20),
        trial(4, math.nan, "failed", epochs=0),
        trial(5, 0.0, "diverged", epochs=2),
        trial(6, 0.0),
    ]
    assert ids(rank(trials, "max")) == ["2", "3", "1", "0", "6", "5", "4"]
    assert ids(rank(trials[::-1], "max")) == ["2", "3", "1", "0", "6", "5", "4"]
    losses = [trial(0, 0.4), trial(1, 0.3), trial(2, 16.1, "diverged"), trial(3, 17.0)]
    assert ids(rank(losses, "min")) == ["1", "0", "3", "2"]
    assert rank([], "max") == []


def test_a_promoted_configuration_counts_once_with_its_longest_training():
    trials = [
        trial(0, 0.6, epochs=2),
        trial(1, 0.9, epochs=2),
        trial(2, 0.7, epochs=5, inherited="0"),
        trial(3, 0.8, epochs=15, inherited="2"),
        trial(4, 0.5, epochs=5, inherited="1"),
    ]
    # Trial 1 scored best, but its configuration ended at 0.5 with trial 4.
    assert ids(rank(trials, "max")) == ["3", "4"]
    assert superseded(trials) == {"0": "3", "2": "3", "1": "4"}
    assert [ids(family) for family in configurations(trials)] == [["0", "2", "3"], ["1", "4"]]


def test_a_promotion_that_failed_leaves_the_training_before_it():
    trials = [trial(0, 0.6), trial(1, math.nan, "failed", epochs=30, inherited="0")]
    assert ids(rank(trials, "max")) == ["0"]
    trials = [trial(0, 0.6), trial(1, 0.0, "diverged", epochs=30, inherited="0")]
    assert ids(rank(trials, "max")) == ["1"]


def test_a_parent_that_is_not_among_the_trials_is_no_error():
    trials = [trial(1, 0.6, inherited="0"), trial(2, 0.7, epochs=20, inherited="0")]
    assert ids(rank(trials, "max")) == ["2"]


def test_what_is_no_search_is_refused():
    with pytest.raises(ValueError, match="trial 1: expected each id once"):
        rank([trial(1), trial(1)], "max")
    with pytest.raises(ValueError, match="inherits from itself"):
        rank([trial(1, inherited="2"), trial(2, inherited="1")], "max")
    with pytest.raises(ValueError, match="direction: expected max or min, got 'up'"):
        rank([], "up")
    with pytest.raises(ValueError, match="trial 7, status: expected one of completed"):
        trial(7, status="done")
    with pytest.raises(ValueError, match="trial 7, score: expected a finite number"):
        trial(7, math.nan)


def test_the_table_has_every_trial_and_hyperparameter(tmp_path):
    trials = [
        trial(0, 0.6, values={"units": 16, "rate": 0.1}, bracket=1, round=0),
        trial(1, 0.9, values={"units": 16, "rate": 0.1}, epochs=30, inherited="0", round=1),
        trial(2, 0.7, values={"units": 32, "loss": "x"}, metrics={"loss": 0.25}),
        trial(3, -math.inf, "diverged", values={"units": 64, "flag": True}),
        trial(4, math.nan, "failed"),
    ]
    write_csv(tmp_path / "search.csv", trials, "max", source="phantom")
    table = pd.read_csv(tmp_path / "search.csv", dtype={"trial": str, "superseded_by": str})
    assert table["trial"].tolist() == ["1", "2", "3", "4", "0"]
    assert table["rank"].tolist()[:4] == [1, 2, 3, 4] and math.isnan(table["rank"][4])
    assert table["superseded_by"].tolist()[4] == "1" and table["superseded_by"].isna().sum() == 4
    assert table["units"].tolist()[:3] == [16, 32, 64] and math.isnan(table["units"][3])
    # A hyperparameter that is called like a metric keeps its values beside it.
    assert table["value_loss"][1] == "x" and table["loss"][1] == 0.25
    assert table["score"][:2].tolist() == [0.9, 0.7] and table["score"][2:4].isna().all()
    assert table["status"].tolist()[2:4] == ["diverged", "failed"]
    assert table["bracket"][4] == 1 and table["round"].tolist()[4] == 0
    assert set(table["source"]) == {"phantom"}


def test_a_search_without_a_trial_has_a_table_too(tmp_path):
    write_csv(tmp_path / "search.csv", [], "max")
    header = (tmp_path / "search.csv").read_text()
    assert header.startswith("rank,trial,status,score,") and header.count("\n") == 1


def test_configurations_in_words():
    values = {"head": "32-16", "learning_rate": 0.01, "units_1": 64, "flips": True, "decay": 1e-5}
    assert described(values) == "head 32-16, learning rate 0.01, units_1 64, flips yes, decay 1e-05"
    assert worded("class_weights") == "class weights"
    assert names([trial(0, values={"b": 1}), trial(1, values={"a": 1, "b": 2})]) == ["b", "a"]


def test_finding_a_point():
    point = {"rate": 0.3, "units": 64}
    trials = [
        trial(3, values={"rate": 0.1 + 0.2, "units": 64, "more": 1}),
        trial(1, values={"rate": 0.3, "units": 64.0}),
        trial(0, values={"rate": 0.3, "units": "64"}),
        trial(2, values={"units": 64}),
    ]
    assert find(trials, point).trial_id == "1"
    assert find(trials[:1], point).trial_id == "3"
    assert find(trials[2:], point) is None
    # True is not the number 1.
    assert find([trial(0, values={"flag": True})], {"flag": 1}) is None


def test_search_knows_its_best_and_the_paper():
    trials = (
        trial(0, 0.0, "diverged", values={"units": 16}),
        trial(1, 0.7, values={"units": 32}),
        trial(2, math.nan, "failed", values={"units": 64}),
    )

    def search(trials, units):
        given = ("grid", "paper", "clean", "resnet152", "imagenet")
        return Search(trials, "val_accuracy", "max", *given, paper_values={"units": units})

    assert search(trials, 16).best.trial_id == "1" and search(trials, 16).paper.trial_id == "0"
    assert ids(search(trials, 64).scored) == ["1", "0"] and search(trials, 64).paper is None
    assert search(trials[:1], 16).best is None and search((), 16).best is None


def test_answers_are_lined_up_whatever_the_order_of_the_rows():
    first, second = said(1), said(2)
    shuffled = second.take(np.random.default_rng(3).permutation(len(second)))
    found = Answers.align([(trial(0), first), (trial(1), shuffled)], "tune")
    np.testing.assert_array_equal(found.predicted, [first.predicted, second.predicted])
    assert found.row(trial(1)) == 1 and found.row(trial(9)) is None
    assert Answers.align([(trial(0), first)], "test") is None
    assert Answers.align([], "tune") is None


def test_answers_to_other_images_are_refused():
    first = (trial(0), said(1))
    with pytest.raises(ValueError, match="trial 1, tune predictions: expected the ids of trial 0"):
        Answers.align([first, (trial(1), said(1, count=39))], "tune")
    with pytest.raises(ValueError, match="expected the groups of trial 0"):
        Answers.align([first, (trial(1), said(1, known=False))], "tune")
    other = said(1)
    labels = (other.labels + 1) % 4
    other = Predictions(
        other.ids, other.groups, other.splits, labels, other.probabilities, other.class_names
    )
    with pytest.raises(ValueError, match="expected the labels of trial 0"):
        Answers.align([first, (trial(1), other)], "tune")


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "hsil_plus_sensitivity", "loss"])
def test_figures_equal_those_of_scikit_learn(metric):
    predictions = [said(1), said(2)]
    answers = Answers.align([(trial(i), p) for i, p in enumerate(predictions)], "tune")
    weights = np.random.default_rng(5).integers(0, 4, (3, 40)).astype(float)
    naive = {
        "accuracy": lambda y, q: metrics.accuracy_score(y, q.argmax(axis=1)),
        "macro_f1": lambda y, q: metrics.f1_score(y, q.argmax(axis=1), average="macro"),
        "hsil_plus_sensitivity": lambda y, q: metrics.recall_score(y > 1, q.argmax(axis=1) > 1),
        "loss": lambda y, q: metrics.log_loss(y, q, labels=range(4)),
    }[metric]
    expected = [
        [
            naive(
                np.repeat(p.labels, row.astype(int)), np.repeat(p.probabilities, row.astype(int), 0)
            )
            for p in predictions
        ]
        for row in weights
    ]
    np.testing.assert_allclose(answers.figures(metric, weights), expected, rtol=1e-9)


def test_figures_without_an_image_are_undefined():
    answers = Answers.align([(trial(0), said(1))], "tune")
    only_mild = (answers.labels < 2).astype(float)[None]
    assert np.isnan(answers.figures("hsil_plus_sensitivity", only_mild)).all()
    assert np.isnan(answers.figures("macro_f1", only_mild)).all()
    assert np.isnan(answers.figures("accuracy", np.zeros((1, 40)))).all()
    with pytest.raises(ValueError, match="metric: expected macro_f1, accuracy"):
        answers.figures("speed", only_mild)
    two = Answers.align([(trial(0), said(1, classes=("background", "cell")))], "tune")
    assert 0 < two.figures("accuracy", np.ones((1, 40)))[0, 0] < 1


def test_predictions_are_read_where_there_are_any(tmp_path):
    said(1).write(tmp_path / "predictions.csv")
    assert trial(0, directory=tmp_path).predictions().ids == said(1).ids
    assert trial(0).predictions() is None
    assert trial(0, directory=tmp_path / "gone").predictions() is None
    (tmp_path / "predictions.csv").write_text("id,label\n")
    with pytest.raises(ValueError, match="column group is missing"):
        trial(0, directory=tmp_path).predictions()
