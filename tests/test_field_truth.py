"""Annotated nuclei: read as they stand, and refused with the line that is wrong."""

import collections
import csv
import unicodedata

import numpy as np
import pytest

from replication.fields.judge import truth
from tfds_pap import phantom, phantom_set
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError
from tfds_pap.taxonomy import STAGE2_CLASSES

LABELS = truth.labels_of(Classes.known(STAGE2_CLASSES))


def read(tmp_path, text):
    path = tmp_path / "nuclei.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return truth.read_nuclei(path)


def test_nuclei_are_read_field_by_field(tmp_path):
    found = read(
        tmp_path,
        "field,x,y,label\nb.jpg,10,20.5,HSIL\na.jpg,0,3,ASC-US\n\nb.jpg,11,20.5,NILM\n",
    )
    assert list(found) == ["b.jpg", "a.jpg"]
    assert found["b.jpg"].x.tolist() == [10, 11]
    assert found["b.jpg"].y.tolist() == [20.5, 20.5]
    assert found["b.jpg"].labels.tolist() == ["HSIL", "NILM"]
    assert found["b.jpg"].label_ids.tolist() == [2, 0]
    assert found["a.jpg"].label_ids.tolist() == [4]
    assert (len(found["b.jpg"]), len(found["a.jpg"])) == (2, 1)


def test_a_spreadsheet_may_have_written_it(tmp_path):
    text = '\ufefflabel, y ,x,reader,field\r\n" SCC ",2,1,"Dr. A, B","a ""b"" ü.jpg"\r\n'
    found = read(tmp_path, text.encode("utf-8"))
    assert list(found) == ['a "b" ü.jpg']
    (nuclei,) = found.values()
    assert (nuclei.x.tolist(), nuclei.y.tolist(), nuclei.labels.tolist()) == ([1], [2], ["SCC"])


def test_classes_of_stage_2_come_first():
    assert LABELS[: len(STAGE2_CLASSES)] == STAGE2_CLASSES
    assert not set(truth.ATYPICAL) & set(STAGE2_CLASSES)


HEADER = "field,x,y,label\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the columns field, x, y, label; got none"),
        ("field,x,y\na,1,2\n", "line 1: expected the columns field, x, y, label; got field, x, y"),
        (HEADER, "expected a line for each annotated nucleus, got none"),
        (HEADER + "a,1,2,NILM\na,one,2,NILM\n", "line 3: x: expected a number, got 'one'"),
        (HEADER + "a,1,,NILM\n", "line 2: y: expected a number, got ''"),
        (HEADER + "a,1,nan,NILM\n", "line 2: y: expected a number, got 'nan'"),
        (HEADER + "a,inf,1,NILM\n", "line 2: x: expected a number, got 'inf'"),
        (HEADER + "a,1,-0.5,NILM\n", "line 2: y: expected pixels, 0 or more, got '-0.5'"),
        (HEADER + "a,1,2,hsil\n", "line 2: expected one of the labels NILM, .*ASC-H, got 'hsil'"),
        (HEADER + "a,1,2,\n", "line 2: expected one of the labels .* got ''"),
        (HEADER + "a,1,2\n", "line 2: expected 4 values between commas, got 3"),
        (HEADER + "a,1,2,NILM,3\n", "line 2: expected 4 values between commas, got 5"),
        (HEADER + " ,1,2,NILM\n", "line 2: expected the name of a field, got none"),
        (HEADER + "a,1,2,NILM\nb,1,2,NILM\na,1.0,2,SCC\n", "line 4: the same .* as in line 2"),
        (HEADER + 'a,1,2,"NILM\n', "line 2: expected CSV"),
        (b"field,x,y,label\n\x81\xff,1,2,NILM\n", "expected text in UTF-8, .* got byte 0x81"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(PapError, match=message) as caught:
        read(tmp_path, text)
    assert "nuclei.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PapError, match=r"none\.csv: No such file"):
        truth.read_nuclei(tmp_path / "none.csv")
    with pytest.raises(PapError, match="Is a directory"):
        truth.read_nuclei(tmp_path)


def test_the_truth_of_a_phantom_is_what_it_writes(tmp_path):
    phantom_set.write_fields(tmp_path, 1)
    found = truth.read_nuclei(tmp_path / "nuclei.csv")
    cells = phantom.draw_field(0, slide=0)[1]
    drawn = truth.Nuclei.of(*zip(*((c.x, c.y, c.label) for c in cells), strict=True))
    assert list(found) == ["phantom_00.jpg"]
    for name in ("x", "y", "labels"):
        np.testing.assert_array_equal(getattr(found["phantom_00.jpg"], name), getattr(drawn, name))
    assert set(drawn.labels) <= set(STAGE2_CLASSES)


def test_real_fields_keep_their_six_labels(shared_data):
    path = shared_data / "fields" / "nuclei.csv"
    found = truth.read_nuclei(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    counts = collections.Counter(label for one in found.values() for label in one.labels)
    assert counts == collections.Counter(row["label"] for row in rows)
    assert set(counts) == set(LABELS)
    assert sum(map(len, found.values())) == len(rows)


def test_fields_are_named_by_path_or_name_with_accents_of_either_kind(tmp_path):
    path = tmp_path / "nuclei.csv"
    field = unicodedata.normalize("NFD", "Größe.jpg")
    text = f"field\tx\ty\tlabel\nfields\\{field}\t1\t2\tHSIL\n"
    path.write_bytes(text.encode("utf-16"))
    assert list(truth.read_nuclei(path)) == ["Größe.jpg"]
    path.write_text("field,x,y,label\na/1.jpg,1,2,HSIL\nb/1.jpg,1,2,HSIL\n")
    with pytest.raises(PapError, match=r"line 3: expected one field of a name, got a/1.jpg and b"):
        truth.read_nuclei(path)


def test_labels_beside_a_labs_own_classes_count_in_detection(tmp_path):
    lab = Classes.known(("Koilocytotic", "Parabasal"))
    path = tmp_path / "nuclei.csv"
    path.write_text("field,x,y,label\na.png,1,2,Parabasal\na.png,3,4,SCC\n")
    (nuclei,) = truth.read_nuclei(path, lab).values()
    assert nuclei.labels.tolist() == ["Parabasal", truth.OTHER]
    assert nuclei.label_ids.tolist() == [1, 2]
    with pytest.raises(PapError, match="line 2: expected one of the labels NILM"):
        truth.read_nuclei(path)
