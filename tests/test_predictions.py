import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.measures.predictions import Predictions

FOUR = ("NILM", "LSIL", "HSIL", "SCC")
TWO = ("background", "cell")


def make(labels, probabilities, names=FOUR, groups=None):
    n = len(labels)
    return Predictions(
        ids=tuple(f"image{i:04d}" for i in range(n)),
        groups=groups or ("",) * n,
        splits=("test",) * n,
        labels=np.asarray(labels),
        probabilities=np.asarray(probabilities),
        class_names=names,
    )


def same(a, b):
    return (
        (a.ids, a.groups, a.splits, a.class_names) == (b.ids, b.groups, b.splits, b.class_names)
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.probabilities, b.probabilities)
    )


def test_round_trip_is_exact_for_float32(tmp_path):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(300, 4)).astype(np.float32) * 20
    single = np.exp(logits - logits.max(axis=1, keepdims=True))
    single /= single.sum(axis=1, keepdims=True)
    assert single.dtype == np.float32
    p = make(rng.integers(4, size=300), single, groups=tuple("ab" * 150))
    p.write(tmp_path / "p.csv")
    q = Predictions.read(tmp_path / "p.csv")
    assert same(p, q)
    assert np.array_equal(q.probabilities.astype(np.float32), single)
    assert q.probabilities.dtype == np.float64
    assert q.labels.dtype == np.int64
    header, first = (tmp_path / "p.csv").read_text().splitlines()[:2]
    expected = "id,group,split,label,"
    assert header == expected + ",".join(f"probability_{name}" for name in FOUR)
    assert first.split(",")[:4] == ["image0000", "a", "test", FOUR[p.labels[0]]]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    ids=st.lists(TEXT, min_size=1, max_size=6, unique=True),
    names=st.lists(TEXT, min_size=2, max_size=4, unique=True),
    data=st.data(),
)
def test_round_trip_of_any_text(tmp_path_factory, ids, names, data):
    n, k = len(ids), len(names)
    column = st.lists(st.integers(0, k - 1), min_size=n, max_size=n)
    p = Predictions(
        ids=tuple(ids),
        groups=tuple(data.draw(st.lists(st.just("") | TEXT, min_size=n, max_size=n))),
        splits=tuple(
            data.draw(st.lists(st.sampled_from(["train", "tune", "test"]), min_size=n, max_size=n))
        ),
        labels=np.array(data.draw(column)),
        probabilities=np.eye(k)[data.draw(column)],
        class_names=tuple(names),
    )
    path = tmp_path_factory.mktemp("text") / "p.csv"
    p.write(path)
    assert same(p, Predictions.read(path))


HEADER = "id,group,split,label,probability_background,probability_cell\n"
GOOD = "a,,test,cell,0.25,0.75\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.csv: expected a header and predictions, the file is empty"),
        (HEADER, "line 2: expected at least one prediction, got a header only"),
        (HEADER.replace("group,", "") + GOOD, "line 1: column group is missing"),
        (HEADER.replace(",probability_cell", "") + GOOD, "probability_<class> is missing, got 1"),
        (HEADER.replace("_cell", "_background") + GOOD, "probability_background is there twice"),
        (HEADER.replace("\n", ",note\n") + GOOD, "column 'note' is not known"),
        (HEADER.replace("_cell", "_") + GOOD, "column 'probability_' is not known"),
        (
            HEADER + GOOD.replace("cell", "cel"),
            "line 2, column label: expected one of background, cell, got 'cel'",
        ),
        (
            HEADER + GOOD.replace("0.25", "nan"),
            "line 2, column probability_background: expected a number from 0 to 1, got nan",
        ),
        (HEADER + GOOD.replace("0.75", "inf"), "column probability_cell: expected a number from"),
        (HEADER + GOOD.replace("0.25", "-0.25"), "expected a number from 0 to 1, got -0.25"),
        (HEADER + GOOD.replace("0.25", ""), "probability_background: expected a number, got ''"),
        (HEADER + GOOD.replace("0.25", "0.5"), "expected a sum of 1, got 1.25"),
        (HEADER + GOOD + GOOD, "line 3, column id: expected each id once, got 'a' again"),
        (HEADER + GOOD.replace("a,", ",", 1), "line 2, column id: expected a name, got nothing"),
        (
            HEADER + GOOD.replace("test", "val"),
            "line 2, column split: expected one of train, tune, test, got 'val'",
        ),
        (HEADER + GOOD + "b,,test,cell,0.2", "line 3: expected 6 fields, got 5"),
        (HEADER + GOOD + "\n", "line 3: expected 6 fields, got 0"),
        (HEADER + GOOD + '"b,,test', "line 3: expected CSV"),
    ],
)
def test_read_names_file_line_and_expectation(tmp_path, text, message):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        Predictions.read(path)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert message in said
    assert "\n" not in said


def test_read_refuses_other_encodings_and_missing_files(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(HEADER.encode() + b"\xff\xfe,,test,cell,0.25,0.75\n")
    with pytest.raises(ValueError, match=r"p\.csv: expected a CSV file in UTF-8"):
        Predictions.read(path)
    with pytest.raises(FileNotFoundError):
        Predictions.read(tmp_path / "none.csv")


def test_read_takes_a_byte_order_mark_and_other_column_order(tmp_path):
    path = tmp_path / "p.csv"
    text = "probability_background,label,id,split,group,probability_cell\n0.25,cell,a,test,g,0.75\n"
    path.write_text(text, encoding="utf-8-sig")
    p = Predictions.read(path)
    assert (p.ids, p.groups, p.class_names) == (("a",), ("g",), TWO)
    assert p.probabilities.tolist() == [[0.25, 0.75]]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "p.csv"
    make([0, 1], np.eye(4)[:2]).write(path)
    before = path.read_bytes()
    monkeypatch.setattr("replication.measures.predictions.repr", lambda value: 1 / 0, raising=False)
    with pytest.raises(ZeroDivisionError):
        make([0, 1, 2], np.eye(4)[:3]).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="got none"):
        make([0, 1], np.eye(4)[:2]).select("tune").write(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ("a", "a")}, "row 1, id: expected each id once"),
        ({"groups": ("",)}, r"groups of shape \(2,\), got \(1,\)"),
        ({"splits": ("test", "dev")}, "row 1, split"),
        ({"labels": np.array([0, 2])}, r"row 1, label: expected 0\.\.1, got 2"),
        ({"probabilities": np.ones((2, 3)) / 3}, "probabilities of shape"),
        ({"probabilities": np.ones((2, 2))}, "row 0, probability_background and on"),
        ({"class_names": ("cell", "cell")}, "distinct class names"),
    ],
)
def test_predictions_refuse_what_does_not_fit(change, message):
    good = make([0, 1], [[0.5, 0.5], [0.1, 0.9]], TWO)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(good, **change)


def test_select_and_read_only_arrays():
    p = dataclasses.replace(
        make([0, 1, 1], np.eye(2)[[0, 0, 1]], TWO), splits=("train", "test", "test")
    )
    assert p.select("test").ids == ("image0001", "image0002")
    assert p.select("test").predicted.tolist() == [0, 1]
    assert len(p.select("tune")) == 0
    with pytest.raises(ValueError, match="expected one of train, tune, test"):
        p.select("validation")
    with pytest.raises(ValueError, match="read-only"):
        p.labels[0] = 1
