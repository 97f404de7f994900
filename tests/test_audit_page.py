"""What the page of an audit opens with."""

import dataclasses

import pytest

from tfds_pap import audit_page, leak_audit
from tfds_pap.answer import Answer, Figure

PAIR = leak_audit.Pair(
    *("a.png", "c.png", leak_audit.IDENTICAL, (1, 0, 0, 0, 1, 0), 1.0, 1.0),
    *(("train", "validation"), ("NILM", "NILM"), ("s1", "s2")),
)
AUDIT = leak_audit.Audit(
    "pap_db4",
    {"train": ("a.png", "b.png"), "validation": ("c.png", "d.png", "e.png")},
    dict.fromkeys(("a.png", "b.png", "c.png", "d.png", "e.png"), "NILM"),
    {"s1": ("a.png", "d.png"), "s2": ("c.png",)},
    (PAIR,),
)


def test_it_says_what_lies_on_both_sides_and_what_it_cannot_see():
    box = audit_page.answer([AUDIT, dataclasses.replace(AUDIT, dataset="b", pairs=(), groups={})])
    assert box.answer == "Yes: 1 pair apart in pap_db4, 1 group on both sides of pap_db4."
    assert [figure.value for figure in box.figures] == ["1 of 3", "0 of 3"]
    assert "pictures, not patients" in box.limit


def test_nothing_found_is_not_nothing_looked_for():
    clean = dataclasses.replace(AUDIT, pairs=(), groups={})
    within = dataclasses.replace(PAIR, splits=("train", "train"), groups=("s1", "s1"))
    kept = audit_page.answer([dataclasses.replace(clean, pairs=(within,))])
    assert kept.answer == "No: of 1 pairs that show the same thing none lies apart."
    assert audit_page.answer([clean]).answer.startswith("No: of 0 pairs")
    off = audit_page.answer([dataclasses.replace(clean, effort="off")])
    assert off.answer == "No picture was compared." and off.figures[0].value == "not looked"


def test_an_answer_misses_no_part():
    whole = {"question": "Why?", "answer": "So.", "figures": [Figure("1", "", "x")], "limit": "No."}
    Answer(**whole)
    for part, empty in (("question", "Why"), ("answer", ""), ("figures", []), ("limit", "")):
        with pytest.raises(ValueError, match="expected a question"):
            Answer(**{**whole, part: empty})
