"""What names of classes tell, and what only a declaration does."""

import dataclasses
import json

import numpy as np
import pytest

from replication.measures import evaluation, triage
from replication.measures.predictions import Predictions
from tfds_pap.classes import Classes, in_order_of_severity

LAB = ("Koilocytotic", "Metaplastic", "Parabasal")


def predictions(names: tuple[str, ...], declared: Classes | None = None) -> Predictions:
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(len(names)), 60)
    return Predictions(
        ids=tuple(f"{n:02d}" for n in range(60)),
        groups=("",) * 60,
        splits=("tune",) * 20 + ("test",) * 40,
        labels=np.arange(60) % len(names),
        probabilities=scores,
        class_names=names,
        declared=declared,
    )


@pytest.mark.parametrize(
    ("names", "ordered", "positive"),
    [
        (("NILM", "LSIL", "HSIL", "SCC"), True, ("HSIL", "SCC")),
        (("SCC", "NILM"), True, ("SCC",)),
        (("nilm", "asc_us", "lsil", "asc-h", "hsil", "scc"), True, ("hsil", "scc")),
        (("background", "cell"), True, ("cell",)),
        (("HSIL", "SCC"), True, ()),
        (("NILM", "Parabasal"), False, ()),
        (("ASCUS", "ASC-US", "NILM"), False, ()),
    ],
)
def test_known_names_tell_order_and_positives(names, ordered, positive):
    known = Classes.known(names)
    assert (known.ordered, known.positive) == (ordered, positive)


def test_severity_is_that_of_the_names_wherever_they_stand():
    known = Classes.known(("SCC", "NILM", "HSIL", "LSIL"))
    assert [known.names[n] for n in known.severity] == ["NILM", "LSIL", "HSIL", "SCC"]
    assert in_order_of_severity(["SCC", "ASC-US", "NILM", "x"]) == ("NILM", "ASC-US", "SCC", "x")


def test_figures_of_severity_stand_only_where_it_is_known():
    unknown = evaluation.evaluate(predictions(LAB).select("test"))
    assert not {"quadratic_kappa", "hsil_plus_sensitivity", "hsil_plus_specificity"} & {*unknown}
    declared = Classes(LAB, LAB, ordered=True, positive=("Koilocytotic",))
    known = evaluation.evaluate(predictions(LAB, declared).select("test"))
    assert known["hsil_plus_sensitivity"].count == 13
    # Of one positive class it is that class's own figure.
    own = known["per_class"]["Koilocytotic"]["sensitivity"]
    assert known["hsil_plus_sensitivity"].value == own.value
    assert np.isfinite(known["quadratic_kappa"].value)


def test_kappa_follows_the_declared_order():
    reverse = tuple(reversed(LAB))
    swapped = ("Metaplastic", "Koilocytotic", "Parabasal")

    def kappa(order):
        p = predictions(LAB)
        columns = [LAB.index(name) for name in order]
        p = dataclasses.replace(
            p,
            class_names=order,
            labels=np.array([order.index(LAB[label]) for label in p.labels]),
            probabilities=p.probabilities[:, columns],
            declared=Classes(order, order, ordered=True),
        )
        return evaluation.evaluate(p.select("test"))["quadratic_kappa"].value

    assert kappa(LAB) == pytest.approx(kappa(reverse))
    assert kappa(LAB) != pytest.approx(kappa(swapped))


def test_declared_classes_have_operating_points_by_their_name():
    declared = Classes(LAB, LAB, positive=("Parabasal",), positive_name="immature")
    assert triage.operating_points(predictions(LAB)) is None
    assert triage.operating_points(predictions(LAB, declared)).positive == "immature"


def test_declarations_travel_with_predictions(tmp_path):
    declared = Classes(LAB, ("K", "M", "P"), True, ("Koilocytotic",), "koilocytes")
    path = tmp_path / "predictions.csv"
    predictions(LAB, declared).write(path)
    assert Predictions.read(path).classes == declared
    (tmp_path / "predictions.classes.json").write_text(
        json.dumps(Classes.known(("a", "b")).to_json())
    )
    with pytest.raises(ValueError, match=r"predictions\.classes\.json: expected the classes"):
        Predictions.read(path)


def test_nothing_lies_beside_predictions_of_known_names(tmp_path):
    declared = Classes(("NILM", "SCC"), ("normal", "cancer"))
    predictions(("NILM", "SCC"), declared).write(tmp_path / "predictions.csv")
    predictions(("NILM", "SCC")).write(tmp_path / "predictions.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]
