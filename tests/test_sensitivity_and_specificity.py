"""HSIL+ sensitivity never stands alone: naming everything SCC shows 100 % of it."""

import numpy as np
import pytest

from finetune.report import figure_parts
from finetune.search import scoring
from replication.measures import evaluation, names, one_class, published
from replication.measures.predictions import Predictions
from replication.runs import publication, results
from replication.runs.directory import RunDirectory
from tfds_pap.classes import Classes
from tfds_pap.taxonomy import STAGE2_CLASSES

NAMES = STAGE2_CLASSES


def answers(named, labels, groups=None):
    probabilities = np.full((len(named), 4), 0.1)
    probabilities[np.arange(len(named)), named] = 0.7
    ids = [f"{n:03d}" for n in range(len(named))]
    return Predictions(
        ids, groups or [""] * len(ids), ["test"] * len(ids), labels, probabilities, NAMES
    )


LABELS = np.repeat([0, 1, 2, 3], [10, 5, 3, 2])
ALL_SCC = np.full(20, 3)


def test_naming_everything_scc_has_sensitivity_1_and_specificity_0_beside_it():
    summary = evaluation.summarise_seeds([answers(ALL_SCC, LABELS)], resamples=50)
    keys = list(summary)
    at = keys.index("hsil_plus_sensitivity")
    assert keys[at + 1] == "hsil_plus_specificity"
    assert summary["hsil_plus_sensitivity"].mean == 1
    assert summary["hsil_plus_specificity"].mean == 0
    assert summary["hsil_plus_specificity"].count == 15


@pytest.mark.parametrize("groups", [None, [f"slide {n % 7}" for n in range(200)]])
def test_specificity_is_what_a_count_gives(groups):
    rng = np.random.default_rng(0)
    labels, named = rng.integers(4, size=(2, 200))
    summary = evaluation.summarise_seeds([answers(named, labels, groups)], resamples=200)
    found = summary["hsil_plus_specificity"]
    mild = labels < 2
    assert found.mean == pytest.approx((named[mild] < 2).mean())
    assert found.count == mild.sum()
    assert found.low < found.mean < found.high


@pytest.mark.parametrize(
    "table",
    [names.METRICS, names.SHARES, figure_parts.METRICS],
    ids=["report and model card", "comparison and TensorBoard", "search"],
)
def test_every_table_that_has_sensitivity_has_specificity_next(table):
    keys = list(table)
    at = keys.index("hsil_plus_sensitivity")
    assert keys[at + 1] == "hsil_plus_specificity"


def test_a_search_scores_both():
    probabilities = answers(ALL_SCC, LABELS).probabilities
    found = scoring.figures(LABELS, probabilities, Classes.known(NAMES), "val_")
    assert found["val_hsil_plus_sensitivity"] == 1
    assert found["val_hsil_plus_specificity"] == 0
    found = scoring.figures(LABELS[:15], probabilities[:15], Classes.known(NAMES), "val_")
    assert "val_hsil_plus_sensitivity" not in found
    assert found["val_hsil_plus_specificity"] == 0
    two = scoring.figures(np.array([0, 1]), np.eye(2), Classes.known(("background", "cell")), "")
    assert not any("hsil" in name for name in two)


def test_one_class_for_nearly_every_image_is_said():
    assert one_class.remark(ALL_SCC, NAMES, LABELS) == (
        "SCC is what it names 20 of 20 test images (100.0 %); 2 of the 20 are SCC (10.0 %)."
    )
    nearly = np.where(np.arange(100) < 95, 0, 1)
    assert one_class.remark(nearly, NAMES, noun="cells") == (
        "NILM is what it names 95 of 100 cells (95.0 %)."
    )
    assert one_class.remark(np.where(np.arange(100) < 94, 0, 1), NAMES) == ""
    assert one_class.remark(np.array([], int), NAMES) == ""


def test_the_terminal_of_a_run_prints_both_and_what_is_wrong(tmp_path, capsys):
    run = RunDirectory.open(tmp_path, {})
    run.update_manifest(announcement="Drawings.", audit={})
    summary = evaluation.summarise_seeds([answers(ALL_SCC, LABELS)], resamples=50)
    remark = one_class.remark(ALL_SCC, NAMES, LABELS)
    figure = published.published("P2.accuracy")
    row = results.Row(2, "CNN", "clean", figure, summary, "not comparable", (remark,))
    publication.print_summary([row], run)
    printed = " ".join(capsys.readouterr().out.split())
    assert "CNN, clean protocol: HSIL+ sensitivity 100.0 % [56.6, 100.0], specificity 0.0 % [" in (
        printed.replace("\u00a0", " ")
    )
    assert remark in printed
