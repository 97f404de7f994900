"""classes.csv says what classes are called, how severe they are and which are positive."""

import pytest

from tfds_pap import class_table
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError

NAMES = ("Dyskeratotic", "Metaplastic", "Parabasal")


def read(tmp_path, text, names=NAMES):
    path = tmp_path / "classes.csv"
    path.write_text(text, encoding="utf-8")
    return class_table.read(path, names)


def test_everything_a_table_can_say(tmp_path):
    table = read(
        tmp_path,
        "name;shown;order;positive\nDyskeratotic;Dyskeratotisch;3;yes\n"
        "Parabasal;;1;no\nMetaplastic;Metaplasie;2;No\n",
    )
    assert table == Classes(
        ("Parabasal", "Metaplastic", "Dyskeratotic"),
        ("Parabasal", "Metaplasie", "Dyskeratotisch"),
        ordered=True,
        positive=("Dyskeratotic",),
        positive_name="Dyskeratotisch",
    )


def test_names_alone_order_nothing(tmp_path):
    table = read(tmp_path, "name\nParabasal\nMetaplastic\nDyskeratotic\n")
    assert table == Classes(NAMES, NAMES) == class_table.of_tree(tmp_path / "none", NAMES)
    assert not table.is_declared


def test_bethesda_names_are_known_and_a_table_may_say_otherwise(tmp_path):
    bethesda = ("HSIL", "LSIL", "NILM", "SCC")
    known = Classes.known(("NILM", "LSIL", "HSIL", "SCC"))
    table = read(tmp_path, "name,positive\nNILM,no\nLSIL,yes\nHSIL,yes\nSCC,yes\n", names=bethesda)
    assert (table.names, table.positive) == (known.names, known.names[1:])
    with pytest.raises(PapError, match="order: expected that of the Bethesda System, NILM, LSIL"):
        read(tmp_path, "name,order\nNILM,4\nLSIL,3\nHSIL,2\nSCC,1\n", names=bethesda)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name\nParabasal\nOther\n", "line 3: expected one of the classes"),
        ("name\nParabasal\nParabasal\n", "line 3: Parabasal is named twice"),
        ("name\nParabasal\n", "none for Dyskeratotic, Metaplastic"),
        ("name,order\nParabasal,1\nMetaplastic,\nDyskeratotic,2\n", "line 3: order: expected a"),
        ("name,order\nParabasal,1\nMetaplastic,x\nDyskeratotic,2\n", "line 3: order: expected a n"),
        ("name,order\nParabasal,1\nMetaplastic,1\nDyskeratotic,2\n", "have the same place"),
        ("name,positive\nParabasal,1\nMetaplastic,maybe\nDyskeratotic,0\n", "yes or no, got 'may"),
        ("name,positive\nParabasal,no\nMetaplastic,no\nDyskeratotic,no\n", "got no only"),
        ("name,shown\nParabasal,x\nMetaplastic,x\nDyskeratotic,\n", "two classes are shown as 'x'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path, text, line):
    with pytest.raises(PapError) as caught:
        read(tmp_path, text)
    assert line in str(caught.value) and str(tmp_path / "classes.csv") in str(caught.value)
    assert "\n" not in str(caught.value)
