"""The page is looked at as a reader gets it: parsed, in a browser, and with parts missing."""

import base64
import dataclasses
import html
import html.parser
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from browser import Browser
from fake_runs import BANNER, add_fit, fake_pixels, fake_predictions, make_full, manifest_values
from pages import Page, needs_browser, on_a_phone, opening
from PIL import Image

from replication.drawing import confusion, figures
from replication.measures import triage
from replication.measures.class_figures import AT_CLASS_SHARES
from replication.measures.predictions import Predictions
from replication.report import answer
from replication.report import page as report
from replication.runs import results
from replication.runs.directory import RunDirectory
from tfds_pap import files
from tfds_pap.taxonomy import STAGE1_CLASSES


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    run = make_full(tmp_path_factory.mktemp("run") / "out", seeds=2)
    return report.write(run, fake_pixels).read_text("utf-8")


def written(run, pixels=fake_pixels):
    return Page(report.write(run, pixels).read_text("utf-8")).text


def test_page_holds_every_section_and_figure_of_both_protocols(full):
    page = Page(full)
    assert page.text.count(AT_CLASS_SHARES) == 4
    ids = page.values("id")
    order = ["answer", "summary", "stage1", "stage1-paper", "stage1-clean"]
    order += ["stage2", "stage2-paper", "stage2-clean", "data", "manifest", "limits"]
    assert ids == order
    pictures = [a for tag, a in page.tags if tag == "img"]
    svg = [a for a in pictures if a["src"].startswith("data:image/svg+xml;base64,")]
    # The forest; four a section; reliability, ROC, risk and coverage; reliability of HSIL+.
    assert len(svg) == 1 + 4 * 4 + 4 * 3 + 2
    assert all(a["alt"] for a in pictures)
    for attrs in svg:
        xml.etree.ElementTree.fromstring(base64.b64decode(attrs["src"].partition(",")[2]))
    cells = [a for a in pictures if a["src"].startswith("data:image/jpeg;base64,")]
    assert len(cells) >= 4 * 12
    for phrase in (
        "99.2 % [97.8, 99.7]",
        "77.9 % [74.9, 80.6]",
        "not comparable: phantom data",
        "majority baseline",
        "balanced accuracy",
        "HSIL+ sensitivity",
        "Wrong, and most confident",
        "Right, and least confident",
        "7,060 parameters",
        "python -m replication.run --epochs=12",
        "not a medical device",
    ):
        assert phrase in page.text, phrase


def test_banner_is_the_first_thing(full):
    assert Page(full).text.startswith(BANNER)


def test_nothing_is_loaded_from_outside_and_no_script_runs(full):
    page = Page(full)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {t for t, _ in page.tags}
    assert all(value.startswith("data:") for value in page.values("src"))
    assert all(value.startswith("#") for value in page.values("href"))
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "url(" not in full and "@import" not in full
    assert not re.search(r"https?://", full)
    for picture in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", full):
        svg = base64.b64decode(picture).decode()
        assert not re.search(r'(href|src)="(?!#)', svg) and "<script" not in svg


def test_links_within_the_page_have_a_target(full):
    page = Page(full)
    assert {value[1:] for value in page.values("href")} <= set(page.values("id"))


def test_headline_figures_are_those_of_the_results_module(undrawn, tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    for seed in (0, 1):
        add_fit(run, 2, "paper", seed, fake_predictions(2, seed))
    text = written(run)
    for row in results.summary_rows(results.read_fits(run), "phantom"):
        s = row.summary["accuracy"]
        shown = f"{100 * s.mean:.1f} % [{100 * s.low:.1f}, {100 * s.high:.1f}]"
        assert f"{shown} seeds {100 * s.minimum:.1f} to {100 * s.maximum:.1f}" in text


def test_same_run_gives_the_same_page(tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    add_fit(run, 2, "paper", 0, fake_predictions(2, 0, images=30))
    first = report.write(run, fake_pixels).read_bytes()
    assert report.write(run, fake_pixels).read_bytes() == first


def test_names_cannot_become_markup(undrawn, tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "<script>alert(1)</script>"})
    run.update_manifest(announcement="<script>alert(2)</script>", data={"<b>x": {"notes": ["<i>"]}})
    p = fake_predictions(2, 0, images=20)
    ids = [f'"><script>alert({i})</script>' for i in range(len(p))]
    p = Predictions(ids, p.groups, p.splits, p.labels, p.probabilities, p.class_names)
    add_fit(run, 2, "paper", 0, p)
    text = report.write(run, fake_pixels).read_text("utf-8")
    assert "<script" not in text and "<b>x" not in text and "<i>" not in text.split("</style>")[0]
    assert html.escape("<script>alert(2)</script>") in text


def test_one_seed_one_stage_and_a_class_without_test_image(tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    add_fit(run, 2, "clean", 4, fake_predictions(2, 4, images=60, absent=("SCC",)))
    text = written(run)
    assert "No test image of SCC." in text
    assert "SCC not defined: no test image 0" in text
    assert "not run" in text and "Stage 1" not in text and "nan" not in text.lower()
    assert "seed 4" in text and "Lowest to highest seed" not in text


def test_no_wrong_image_no_severe_image_and_a_class_never_named(tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    p = fake_predictions(2, 0, images=30, absent=("HSIL", "SCC"), skill=99)
    add_fit(run, 2, "paper", 0, p)
    flat = np.tile([0.7, 0.3], (10, 1))
    labels, ids = np.arange(10) % 2, [f"roi_{i}" for i in range(10)]
    never = Predictions(ids, [""] * 10, ["test"] * 10, labels, flat, STAGE1_CLASSES)
    add_fit(run, 1, "paper", 0, never)
    text = written(run)
    assert "No test image was named wrong." in text
    assert "not defined: never named" in text
    assert re.search(r"HSIL\+ sensitivity HSIL or SCC, named as either not defined", text)
    assert "nan" not in text.lower()


def test_one_test_image_alone(tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    add_fit(run, 1, "clean", 0, fake_predictions(1, 0, images=2), epochs=1)
    text = written(run)
    assert "nan" not in text.lower() and " · 1 test image No test image of background." in text
    assert "not defined: test images of one class only" in text


def test_no_fit_yet(tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    text = written(run, pixels=lambda stage, ids: pytest.fail("nothing to show"))
    assert "No finished fit" in text and "medical device" in text


def test_bare_manifest_says_unknown_and_claims_nothing(undrawn, tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "original"})
    add_fit(run, 1, "paper", 0, fake_predictions(1, 0, images=30))
    text = written(run)
    assert text.startswith("It is not known whose images these are.")
    assert "not comparable: other images" in text and "Computed unknown on unknown" in text
    assert "peak memory unknown" in text


def test_authors_own_images_get_a_verdict_and_no_banner(undrawn, tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "original"})
    run.update_manifest(source="original", announcement="")
    add_fit(run, 1, "paper", 0, fake_predictions(1, 0, images=60, skill=0.1))
    text = written(run)
    assert text.startswith("Two-stage CNNs") and "paper: lower" in text


def test_page_is_whole_or_as_it_was(undrawn, tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    add_fit(run, 1, "paper", 0, fake_predictions(1, 0, images=30))
    before = report.write(run, fake_pixels).read_bytes()

    def broken(stage, ids):
        raise OSError("disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        report.write(run, broken)
    assert (run.path / "report.html").read_bytes() == before
    left = {path.name for path in run.path.iterdir()} - {".lock"}
    assert left == {"manifest.json", "report.html", "stage1"}


def test_too_few_pixels_are_an_error_not_a_shifted_gallery(undrawn, tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    add_fit(run, 1, "paper", 0, fake_predictions(1, 0, images=30))
    with pytest.raises(ValueError):
        report.write(run, lambda stage, ids: fake_pixels(stage, ids)[1:])


def test_gallery_shows_the_surest_errors_first(undrawn, tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    p = fake_predictions(2, 0, images=60)
    add_fit(run, 2, "paper", 0, p)
    asked = []

    def pixels(stage, ids):
        asked.append((stage, list(ids)))
        return fake_pixels(stage, ids)

    report.write(run, pixels, predictions_limit=2)
    test = p.select("test")
    wrong = np.flatnonzero(test.predicted != test.labels)
    surest = wrong[np.argsort(-test.probabilities[wrong].max(axis=1))][:2]
    ((stage, ids),) = asked
    assert stage == 2 and ids[:2] == [test.ids[row] for row in surest] and len(ids) == 6


def test_calibration_and_triage_are_those_of_their_modules(undrawn, tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    p = fake_predictions(2, 0)
    add_fit(run, 2, "clean", 0, p)
    text = Page(report.write(run, fake_pixels, prevalence=0.02).read_text("utf-8")).text
    found = triage.assess(p, 0.02)
    before, after = (found["calibration"][key]["ece"] for key in ("before", "after"))
    assert f"{before['value']:.3f} no interval" in text
    assert f"{after['value']:.3f} no interval" in text
    assert f"The temperature {found['calibration']['temperature']:.3g} was fitted on" in text
    for point in found["operating_points"]["points"]:
        for name in ("sensitivity", "specificity", "ppv", "npv"):
            e = point[name]
            value = f"{100 * e['value']:.1f} % [{100 * e['low']:.1f}, {100 * e['high']:.1f}]"
            assert value in text
    assert "PPV at 2 %" in text and found["operating_points"]["prevalence_note"] in text
    assert f"from a confidence of {found['risk_coverage']['threshold']:.4f} up" in text


def test_no_prevalence_and_no_tune_image(undrawn, tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    p = fake_predictions(1, 0)
    add_fit(run, 1, "paper", 0, p.select("test"))
    text = written(run)
    assert "No temperature was fitted: this protocol has no tune images" in text
    assert "no prevalence of cell was" in text and "PPV at" not in text
    assert "Held fixed on tune" not in text and "from a confidence of" not in text


def test_heat_maps_explain_the_named_class_of_the_first_seed(full, undrawn, tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    for seed in (0, 1):
        add_fit(run, 2, "paper", seed, fake_predictions(2, seed, images=60))
    asked = []

    def heat_maps(fit, ids, classes):
        asked.append((fit.seed, list(ids), list(classes)))
        return fake_pixels(2, ids)

    page = Page(report.write(run, fake_pixels, heat_maps=heat_maps).read_text("utf-8"))
    ((seed, ids, classes),) = asked
    test = fake_predictions(2, 0, images=60).select("test")
    assert seed == 0 and classes == [test.predicted[test.ids.index(one)] for one in ids]
    maps = [alt for alt in page.values("alt") if alt.startswith("Grad-CAM of ")]
    assert len(maps) == 18 and "no proof of what the model used" in page.text
    assert "Grad-CAM" not in full


def test_heat_maps_that_are_no_pictures_are_refused(undrawn, tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    add_fit(run, 1, "paper", 0, fake_predictions(1, 0, images=30))
    with pytest.raises(ValueError, match=r"expected uint8 \[height, width, 3\], got float64"):
        report.write(
            run, fake_pixels, heat_maps=lambda fit, ids, c: [np.ones((9, 9, 3)) for _ in c]
        )


def test_audit_notes_and_documents_stand_below_the_accuracies(undrawn, tmp_path):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    add_fit(run, 1, "paper", 0, fake_predictions(1, 0, images=30))
    run.update_manifest(audit={"pap_db3": {"line": "pap_db3: 2 of 400 images are in two splits"}})
    (run.path / "model_card.md").write_text("# Model card\n")
    page = Page(report.write(run, fake_pixels, notes=["One <note>."]).read_text("utf-8"))
    below = page.text.partition("Verdict")[2].partition("Stage 1: cell or background")[0]
    assert "pap_db3: 2 of 400 images are in two splits" in below
    assert "One <note>." in below and "model_card.md" in page.values("href")
    assert "claim_checklist.md" not in page.values("href")


@pytest.mark.parametrize(
    ("monitor", "words"),
    [
        (None, "lowest tune loss"),
        ("val_accuracy", "highest tune accuracy"),
        ("val_macro_f1", "highest tune macro F1"),
    ],
)
def test_what_chose_the_epoch_is_said(undrawn, tmp_path, monitor, words):
    run = RunDirectory.open(tmp_path / "run", {"source": "phantom"})
    add_fit(run, 1, "clean", 0, fake_predictions(1, 0, images=30))
    path = run.fit_directory(1, "clean", 0) / "fit.json"
    if monitor:
        files.write_json(path, {**files.read_json(path), "monitor": monitor})
    page = Page(report.write(run, fake_pixels).read_text("utf-8"))
    assert f"the weights of the epoch with the {words} were scored" in page.text


@pytest.mark.parametrize("draw", [figures.roc_curves, figures.precision_recall_curves])
@pytest.mark.parametrize("stage, absent", [(1, ()), (1, ("cell",)), (2, ("NILM", "SCC"))])
def test_curves_of_any_classes(draw, stage, absent):
    svg = draw([fake_predictions(stage, seed, 40, absent).select("test") for seed in range(2)])
    assert xml.etree.ElementTree.fromstring(svg).tag.endswith("svg")


def test_learning_curves_without_history_and_many_classes():
    xml.etree.ElementTree.fromstring(figures.learning_curves([[]], [None]))
    many = np.eye(9, dtype=int)
    xml.etree.ElementTree.fromstring(confusion.confusion_matrix(many, [f"c{i}" for i in range(9)]))


def test_it_opens_with_the_accuracies_and_what_they_do_not_mean(full):
    box = opening(full)
    assert "defects of the published code" in box["question"]
    figures_of = box["figures"]
    assert list(figures_of) == [
        f"accuracy, stage {stage}, {protocol} protocol"
        for stage in (1, 2)
        for protocol in ("paper", "clean")
    ]
    for figure in figures_of.values():
        value, interval = figure.split(" % ")
        low, high = map(float, interval.strip("[]").split(", "))
        assert low <= float(value) <= high
        assert f"{value} %" in box["lead"]
    assert "drawings" in box["not"]


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("lower (measured 0.5 to 0.6, published 0.7 to 0.8)", "is lower than published"),
        ("agrees (intervals overlap)", "agrees with the published figure"),
        ("no verdict (measured no interval)", "cannot be set beside a published interval"),
    ],
)
def test_on_the_authors_images_the_box_says_the_verdict(tmp_path, verdict, words):
    run = make_full(tmp_path / "run", seeds=1)
    rows = results.summary_rows(results.read_fits(run), "original")
    box = answer.answer([dataclasses.replace(row, verdict=verdict) for row in rows], "original")
    assert box.answer.count(words) == 4 and "Intervals that overlap" in box.limit


def test_a_run_without_a_fit_says_so_in_its_box(tmp_path):
    run = RunDirectory.open(tmp_path / "run", {})
    run.update_manifest(**manifest_values())
    box = opening(report.write(run, fake_pixels).read_text("utf-8"))
    assert box["lead"] == "No model has been trained in this run yet."


@needs_browser
def test_two_protocols_print_on_eight_pages_at_most_and_light(full, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(full, "utf-8")
    with Browser(tmp_path / "profile") as browser:
        tab = browser.open(page.as_uri(), dark=True)
        assert 3 <= tab.printed() <= 8
        # Its figures are dark where the screen is.
        tab.run("document.querySelector('#summary img').scrollIntoView()")
        tab.screenshot(tmp_path / "dark.png")
        x, y = tab.run(
            "(({x, y}) => [x + 12, y + scrollY + 12])"
            "(document.querySelector('#summary img').getBoundingClientRect())"
        )
        with Image.open(tmp_path / "dark.png") as picture:
            assert max(picture.convert("RGB").getpixel((round(x), round(y)))) < 60
        # What a reader opened is printed.
        folded = tab.printed()
        tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert tab.printed() > folded


@needs_browser
def test_browser_shows_it_on_a_phone_without_sideways_scrolling(full, tmp_path):
    found, logged = on_a_phone(full, tmp_path)
    assert found.pop("silent") == 0
    assert found == {"width": 360, "scroll": 360, "wide": [], "tables": 0, "broken": 0}
    assert "CONSOLE" not in logged
