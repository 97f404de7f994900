"""Whose images a run is about: declared, never guessed; published facts may contradict."""

import cv2
import numpy as np
import pytest
from commands import command

from replication.measures import published
from replication.runs import provenance
from tfds_pap import pipeline, preparing, published_facts
from tfds_pap.errors import PapError
from tfds_pap.pap_db4 import pap_db4_dataset_builder as db4

#: Images a class, in place of the published 1,000 and 200.
COUNTS = {"train": 3, "validation": 2}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """From a form to the prepared builder of a DB_4 with names, size and format as published."""
    folder = tmp_path_factory.mktemp("trees")
    made = {}

    def tree(form, *, ending="jpg", size=250, name="{split}_{digit}_{number}", groups=False):
        if form not in made:
            rng = np.random.default_rng(len(made))
            rows = ["file,group"]
            for split, count in COUNTS.items():
                for digit in "1234":
                    place = folder / form / "DB_4" / split / digit
                    place.mkdir(parents=True)
                    for number in range(count):
                        stem = name.format(split=split, digit=digit, number=number)
                        pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
                        cv2.imwrite(str(place / f"{stem}.{ending}"), pixels)
                        rows.append(f"{split}/{digit}/{stem}.{ending},{split}{number}")
            if groups:
                (folder / form / "DB_4" / "groups.csv").write_text("\n".join(rows))
            made[form] = preparing.prepare(
                "pap_db4", "original", folder / form, folder / form / "data"
            )
        return made[form]

    return tree


@pytest.fixture(autouse=True)
def few_are_published(monkeypatch):
    counts = {split: dict.fromkeys(db4.Builder.CLASSES, n) for split, n in COUNTS.items()}
    monkeypatch.setattr(db4.Builder, "PUBLISHED_COUNTS", counts)


def test_nothing_passes_for_the_papers_images_unless_it_is_declared(trees):
    builders = {2: trees("as_published")}
    source, sentence = provenance.source(builders, None)
    assert source == "undeclared"
    assert "was not declared (--images=original or --images=stand-in)" in sentence
    assert provenance.source(builders, "stand-in")[0] == "stand-in"
    source, sentence = provenance.source(builders, "original")
    assert source == "original"
    assert "as the user of this command declares" in sentence
    assert "no checksum is published" in sentence


def test_a_groups_csv_takes_nothing_from_the_authors_images(trees):
    builder = trees("grouped", groups=True)
    assert all(pipeline.read_index(builder).groups)
    assert provenance.source({2: builder}, "original")[0] == "original"


@pytest.mark.parametrize(
    ("form", "made", "phrase"),
    [
        ("png", {"ending": "png"}, "20 of 20 images are no JPEGs, such as train/1/train_1_0.png"),
        ("small", {"size": 224}, "20 of 20 images are not 250 x 250 px, such as train/1/"),
        ("named", {"name": "cell {number}"}, "not named like train/1/train_1_257.jpg, such as"),
    ],
)
def test_a_declaration_is_refused_where_a_published_fact_contradicts_it(trees, form, made, phrase):
    builder = trees(form, **made)
    assert any(phrase in found for found in published_facts.contradictions(builder))
    with pytest.raises(PapError, match="these cannot be the papers' images") as error:
        provenance.source({2: builder}, "original")
    assert phrase in str(error.value) and "\n" not in str(error.value)
    assert provenance.source({2: builder}, "stand-in")[0] == "stand-in"


def test_other_counts_contradict_beyond_what_is_published_as_about(trees, monkeypatch):
    builder = trees("as_published")
    for count, contradicted in ((2.1, False), (4, True)):
        counts = {"validation": {"SCC": count}}
        monkeypatch.setattr(db4.Builder, "PUBLISHED_COUNTS", counts)
        found = published_facts.contradictions(builder)
        assert bool(found) == contradicted
    assert found == ["validation/SCC has 2 images (published: 4)"]


def test_a_declaration_needs_images_that_it_is_about():
    done = command("replication.compare", "--images=original")
    assert done.returncode != 0
    assert "--images=original says whose images lie in --manual_dir, which is not given" in (
        done.stdout + done.stderr
    )


def test_undeclared_images_get_no_verdict():
    said = published.verdict(published.published("P6.accuracy"), 0.9, 0.95, source="undeclared")
    assert said.startswith("not comparable: whose images is not declared")
