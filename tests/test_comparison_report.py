"""The page, figures, tables and printout of a comparison, as a reader gets them."""

import base64
import io
import itertools
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from pages import Page, needs_browser, on_a_phone, opening
from PIL import Image

from replication.comparison import figures as comparison_figures
from replication.comparison import report as comparison_report
from replication.comparison import steps as comparison_steps
from replication.comparison.candidates import Candidate, Cost
from replication.comparison.ranking import COSTS, Comparison
from replication.drawing import shown
from replication.learning import features, heads
from replication.measures.class_figures import AT_CLASS_SHARES
from replication.measures.predictions import Predictions
from replication.runs.directory import RunDirectory
from tfds_pap.taxonomy import STAGE2_CLASSES

BANNER = "Not the papers' images: a tree of class folders."

#: Name, weights, skill, GFLOPs: the last two have nearly the same cost and accuracy.
BACKBONES = (
    ("resnet152", "imagenet", 2.4, 23.0),
    ("vgg16", "imagenet", 2.3, 31.0),
    ("densenet201", "imagenet", 2.35, 8.6),
    ("mobilenetv2", "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5", 1.9, 0.6),
    ("xception", "untrained", 0.3, 9.0),
    ("efficientnetb3", "imagenet", 2.0, 3.7),
    ("nasnetmobile", "imagenet", 2.0, 3.75),
)


def predictions(skill, seed, known, names):
    rng = np.random.default_rng(0)
    slides, labels = rng.integers(12, size=90), rng.integers(len(names), size=90)
    rng = np.random.default_rng([seed, round(100 * skill)])
    odds = np.exp(
        -skill * np.abs(labels[:, None] - np.arange(len(names)))
        + rng.gumbel(0, 1, (90, len(names)))
    )
    return Predictions(
        [f"{i:02}.jpg" for i in range(90)],
        [f"slide {s}" if known else "" for s in slides],
        ["test"] * 90,
        labels,
        odds / odds.sum(axis=1, keepdims=True),
        names,
    )


def candidates(count=7, seeds=2, gain=0.0, known=True, names=STAGE2_CLASSES):
    return tuple(
        Candidate(
            name,
            weights,
            tuple(predictions(skill + gain, seed, known, names) for seed in range(seeds)),
            Cost(round(3e6 * gflops), gflops, 90 / gflops, 11.5 * gflops),
        )
        for name, weights, skill, gflops in BACKBONES[:count]
    )


def compared(by_image=(), **fields):
    given = {
        "title": "Frozen backbones compared",
        "winner": "resnet152",
        "winner_note": "resnet152 was chosen on the tune images.",
        "design": "5 folds cut by slide",
        "unit": "slide",
        "resamples": 100,
    }
    return Comparison(by_image=by_image, **{**given, **fields})


def written(folder, result, **manifest):
    run = RunDirectory.open(folder, {"folds": 5})
    run.update_manifest(**{"source": "stand-in", "announcement": BANNER, **manifest})
    page = comparison_report.write(run, result)
    assert page == run.path / "report.html"
    return page.read_text("utf-8")


@pytest.fixture(scope="module")
def both_cuts():
    return compared(
        candidates=candidates(), by_image=candidates(gain=1.5), let_in=candidates(gain=1.4)
    )


@pytest.fixture(scope="module")
def run_dir(both_cuts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "run"
    environment = {"device": "CPU (2 cores)", "time": "2025-01-02T03:04:05+00:00"}
    audit = {"pap_folders": {"line": "audit: no image in two folds"}}
    written(folder, both_cuts, environment=environment, audit=audit)
    return folder


@pytest.fixture(scope="module")
def page(run_dir):
    return (run_dir / "report.html").read_text("utf-8")


def test_page_loads_nothing_and_its_links_have_targets(page):
    found = Page(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {t for t, _ in found.tags}
    assert all(value.startswith("data:") for value in found.values("src"))
    assert {value[1:] for value in found.values("href")} <= set(found.values("id"))
    assert not re.search(r"https?://|@import|url\(", page)
    assert all(found.values("alt")) and len(found.values("alt")) == len(found.values("src"))


def test_page_says_what_matters(page, both_cuts):
    text = Page(page).text
    assert text.index(BANNER) < text.index("Frozen backbones compared")
    # Every claim of the comparison stands above the first table.
    for claim in (*both_cuts.sentences, both_cuts.winner_note, "audit: no image in two folds"):
        assert text.index(claim) < text.index("Rank Backbone")
    assert AT_CLASS_SHARES in text
    assert "measured on CPU (2 cores)" in text and "2025-01-02 03:04:05 UTC" in text
    assert "5 folds cut by slide; 90 images (12 slides)" in text.lower()
    assert "Not told apart is not equal" in text.replace(" :", "")
    assert "not a medical device" in text


def test_page_has_the_figures_of_the_comparison(page, both_cuts):
    text = Page(page).text
    for entry in both_cuts.ranked:
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "hsil_plus_sensitivity"):
            s = entry.summary[name]
            ends = f"seeds {100 * s.minimum:.1f} to {100 * s.maximum:.1f}"
            assert f"{100 * s.mean:.1f} [{100 * s.low:.1f}, {100 * s.high:.1f}] {ends}" in text
    for pair in both_cuts.pairs:
        assert f"{pair.only_first} : {pair.only_second}" in text
        assert pair.method in text
    assert text.count("not told apart") >= sum(not pair.told_apart for pair in both_cuts.pairs)
    assert f"All {len(both_cuts.pairs)} pairs" in text


def test_the_leak_of_the_winner_stands_on_top(page, both_cuts):
    leak = next(one for one in both_cuts.leaks if one.name == both_cuts.winner)
    by_image, by_group = leak.by_image["accuracy"], leak.by_group["accuracy"]
    let_in = leak.control.let_in["accuracy"]
    sentence = comparison_report.leak_sentence(leak, "slide")
    for figure in (by_image, by_group, let_in):
        assert f"{100 * figure.mean:.1f} %" in sentence
    points = shown.points
    assert f"the leak is {points(let_in.mean - by_group.mean)} points" in sentence
    assert f"scarcity of slides {points(by_image.mean - let_in.mean)} points" in sentence
    text = Page(page).text
    assert text.index(sentence) < text.index("Rank Backbone")


def test_beside_every_leak_stand_slides_a_class_majority_and_whether_it_can_be_told(
    page, both_cuts, run_dir, capsys
):
    leak = both_cuts.leaks[0]
    run = both_cuts.candidates[0].runs[0]
    pairs = {*zip(run.labels.tolist(), run.groups, strict=True)}
    counts = [sum(label == c for label, _ in pairs) for c in range(4)]
    assert list(leak.groups_by_class.values()) == counts
    most = np.bincount(run.labels).max() / len(run)
    named = run.class_names[np.bincount(run.labels).argmax()]
    facts = (
        f"Slides a class: NILM {counts[0]}, LSIL {counts[1]}, HSIL {counts[2]}, SCC {counts[3]}. "
        f"Always naming {named} scores: accuracy {100 * most:.1f} %, balanced accuracy 25.0 %"
    )
    comparison_report.print_comparison(both_cuts, {})
    printed = " ".join(capsys.readouterr().out.split())
    table = pd.read_csv(run_dir / "leak.csv")
    for text in (Page(page).text, printed):
        assert facts in text
    unsure = sum(
        not of[name].told_from_zero
        for one in both_cuts.leaks
        for of in (one.control.leak, one.control.scarcity)
        for name in ("accuracy", "balanced_accuracy", "macro_f1")
    )
    assert unsure == (~table[["leak_told_from_0", "scarcity_told_from_0"]]).to_numpy().sum() > 0
    assert Page(page).text.count("not told apart from 0") >= unsure
    assert "* not told apart from 0" in printed
    assert table["majority"][0] == pytest.approx(most) and table["groups of SCC"][0] == counts[3]


def test_without_the_control_nobody_says_leak(undrawn, tmp_path):
    two = compared(candidates=candidates(2), by_image=candidates(2, gain=1.0))
    (first, *_) = two.leaks
    assert first.control is None
    sentence = comparison_report.leak_sentence(first, "slide")
    assert "How much of that is leak and how much is scarcity of slides is not known" in sentence
    assert "Scarcity, points" in Page(written(tmp_path / "run", two)).text


def test_untrained_backbones_are_labelled_wherever_they_stand(page, both_cuts, capsys):
    rows = re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
    named = [row for row in rows if "xception" in row]
    assert len(named) > 3 + len(BACKBONES) - 1
    assert all(">untrained<" in row for row in named)
    assert not any(">untrained<" in row for row in rows if row not in named)
    comparison_report.print_comparison(both_cuts, {"source": "original"})
    lines = [line for line in capsys.readouterr().out.splitlines() if "xception" in line]
    assert lines and all("untrained" in line for line in lines if "cannot" not in line)


def test_pareto_marks_of_the_cost_table(page, both_cuts):
    marks = page.count('aria-label="on the Pareto front"')
    assert marks == sum(len(both_cuts.front(cost)) for cost in COSTS) > len(COSTS)


def test_a_manifest_that_names_no_source_is_no_replication(undrawn, tmp_path):
    one = compared(candidates=candidates(1))
    text = written(tmp_path / "unknown", one, source=None, announcement="")
    assert "It is not known whose images these are." in text
    text = written(tmp_path / "original", one, source="original", announcement="")
    assert 'class="banner"' not in text


def test_one_backbone_one_seed_two_classes_and_no_groups(tmp_path):
    one = candidates(1, seeds=1, known=False, names=("background", "cell"))
    folder = tmp_path / "run"
    text = Page(written(folder, compared(candidates=one, design="published folders"))).text
    assert "resnet152 alone was scored, on 90 images: there is nothing to compare." in text
    assert "HSIL+" not in text and "seeds" not in text.partition("Limits This is")[0]
    assert "McNemar" not in text and "size of the leak" not in text
    assert {path.name for path in folder.glob("*.csv")} == {"ranking.csv"}
    assert not list(folder.glob("figures/leak*"))


def test_markup_in_names_is_shown_and_not_obeyed(undrawn, tmp_path, capsys):
    odd = compared(candidates=candidates(2), unit="<b>[red]slide[/x]", by_image=candidates(2))
    text = written(tmp_path / "run", odd)
    assert "<b>[red]" not in text and "&lt;b&gt;[red]slide[/x]" in text
    comparison_report.print_comparison(odd, {})
    assert "by <b>[red]slide[/x]" in capsys.readouterr().out


def test_tables_hold_the_comparison(run_dir, both_cuts):
    ranking = pd.read_csv(run_dir / "ranking.csv")
    best, summary = both_cuts.ranked[0], both_cuts.ranked[0].summary
    rows = ranking[ranking["rank"] == 1].set_index("metric")
    assert set(rows.index) == set(summary) and set(rows["backbone"]) == {best.candidate.name}
    for name, row in rows.iterrows():
        s = summary[name]
        assert (row["mean"], row["low"], row["high"], row["deviation"]) == pytest.approx(
            (s.mean, s.low, s.high, s.deviation)
        )
    assert rows["gflops"].unique() == [best.candidate.cost.gflops]
    pairs = pd.read_csv(run_dir / "pairs.csv")
    assert pairs["told_apart"].tolist() == [pair.told_apart for pair in both_cuts.pairs]
    assert pairs["holm_p"].tolist() == pytest.approx([pair.p_holm for pair in both_cuts.pairs])
    leaks = pd.read_csv(run_dir / "leak.csv")
    gaps = leaks["by_image"] - leaks["by_group"]
    np.testing.assert_allclose(leaks["leak"] + leaks["scarcity"], gaps, atol=1e-12)
    np.testing.assert_allclose(leaks["leak"], leaks["let_in"] - leaks["by_group"], atol=1e-12)
    assert len(leaks) == 3 * len(both_cuts.leaks)
    for table in (ranking, pairs, leaks):
        assert set(table["source"]) == {"stand-in"}


def test_printout(both_cuts, capsys):
    manifest = {"announcement": BANNER, "audit": {"d": {"line": "audit: no image in two folds"}}}
    comparison_report.print_comparison(both_cuts, manifest)
    printed = capsys.readouterr().out
    joined = " ".join(printed.split())
    said = (BANNER, "audit: no image in two folds", *both_cuts.sentences, AT_CLASS_SHARES)
    for sentence in said:
        assert sentence in joined
    accuracy = both_cuts.ranked[0].summary["accuracy"]
    assert f"{100 * accuracy.mean:.1f} [{100 * accuracy.low:.1f}, " in joined
    # Of 21 pairs the winner's 6 are shown, and each line ends with what they decide.
    assert "(15 more pairs in pairs.csv)" in joined
    assert len(re.findall(r"told apart +$", printed, re.MULTILINE)) == 6
    assert "Cut by image against cut by slide, and what the difference is made of" in joined
    assert max(map(len, printed.splitlines())) <= 176


def test_pictures_for_a_readme(run_dir):
    names = {f"accuracy_against_{cost}.png" for cost in COSTS}
    names |= {"ranking.png", "leak_accuracy.png", "leak_balanced_accuracy.png"}
    assert {path.name for path in (run_dir / "figures").iterdir()} == names
    for name in names:
        picture = Image.open(run_dir / "figures" / name)
        assert picture.width == 936 and np.asarray(picture.convert("L")).std() > 5


def test_same_comparison_gives_the_same_files(both_cuts, run_dir, page):
    run = RunDirectory(run_dir)
    assert comparison_report.write(run, both_cuts).read_text("utf-8") == page


def test_names_in_the_cost_figure_hide_neither_points_nor_each_other(both_cuts):
    figure = Figure(figsize=(5.2, 4.1), layout="constrained")
    comparison_figures._accuracy_against(figure, both_cuts, "gflops")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    names = [text for text in axes.texts if isinstance(text, Annotation) and text.get_text()]
    assert {text.get_text() for text in names} == {name for name, *_ in BACKBONES}
    boxes = [text.get_window_extent() for text in names]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    points = [axes.transData.transform(text.xy) for text in names]
    assert not any(box.contains(*point) for box in boxes for point in points)
    frame = figure.bbox
    assert all(frame.containsx(box.x0) and frame.containsx(box.x1) for box in boxes)


def test_figures_of_a_single_backbone_are_drawn():
    one = compared(candidates=candidates(1), by_image=candidates(1))
    for form, start in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        assert comparison_figures.accuracy_against(one, "parameters", form).startswith(start)
        assert comparison_figures.ranking(one, form).startswith(start)
        assert comparison_figures.leak(one, "macro_f1", form).startswith(start)


def test_no_backbone_is_called_beaten_where_pairs_are_not_told_apart(both_cuts, monkeypatch):
    made = []

    def draw_only(height, draw, form):
        made.append(Figure(figsize=(5.2, height), layout="constrained"))
        draw(made[-1])
        return b""

    monkeypatch.setattr(comparison_figures, "_drawn", draw_only)
    assert both_cuts.sets
    comparison_figures.accuracy_against(both_cuts, "gflops")
    words = [text.get_text() for text in made[-1].legends[0].get_texts()]
    assert words == ["Pareto front", "off the front", "untrained backbone"]


def test_one_backbone_is_not_the_best_of_several():
    one = candidates(count=1)[0]
    design = comparison_steps.Design("paper", (heads.PUBLISHED,), 0, (0, 1), "slide")
    scored = {one.name: {heads.PUBLISHED: (one, list(one.runs))}}
    found = comparison_steps.compare(scored, design)
    assert found.winner == one.name
    assert "best of" not in found.winner_note and "luck" not in found.winner_note
    assert "was not chosen among others" in found.winner_note


def test_the_paper_protocol_says_where_it_lacks_the_papers_size():
    specs = {
        name: features.FeatureSpec(name, None, size, "bgr")
        for name, size in (("resnet152", 224), ("efficientnetb3", 300))
    }
    (said,) = comparison_steps.size_remarks("paper", specs)
    assert said.startswith("Input of 224 and 300 px: the size of P4's comparison is not published")
    assert comparison_steps.size_remarks("clean", specs) == []
    final = {"resnet152": features.FeatureSpec("resnet152", None, 250, "bgr")}
    assert comparison_steps.size_remarks("paper", final) == []


def test_undefined_figures_are_words():
    nan = float("nan")
    assert shown.points(0.2114) == "+21.1"
    assert shown.points(-0.031) == "−3.1"
    assert shown.points(nan) == "not defined"
    assert shown.points_interval(-0.1, 0.2) == "[−10.0, 20.0]"
    assert shown.points_interval(nan, nan) == "no interval"


def test_embedded_pictures_are_whole(page):
    pictures = re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page)
    assert len(pictures) == 7
    for picture in pictures:
        svg = io.BytesIO(base64.b64decode(picture)).read().decode()
        assert svg.rstrip().endswith("</svg>") and "<script" not in svg


def test_it_opens_with_the_leak(page, both_cuts):
    box = opening(page)
    leak = both_cuts.leaks[0]
    assert leak.name == both_cuts.winner
    assert "How much of the accuracy is leak between images of one slide" in box["question"]
    part = leak.control.leak["accuracy"]
    (size,) = [figure for what, figure in box["figures"].items() if what.startswith("leak")]
    assert size.startswith(f"{100 * part.value:+.1f} points [".replace("-", "−"))
    assert box["lead"].count("%") == 2 and "fine-tuned they may rank otherwise" in box["not"]


def test_without_a_second_cut_it_opens_with_the_choice(tmp_path):
    box = opening(written(tmp_path / "run", compared(candidates=candidates(3))))
    assert box["question"] == "Which frozen backbone is best?"
    assert box["lead"].startswith("resnet152 was chosen, and ")
    (figure,) = box["figures"].values()
    assert re.fullmatch(r"[\d.]+ % \[[\d.]+, [\d.]+\]", figure)


@needs_browser
def test_browser_shows_it_on_a_phone_without_sideways_scrolling(page, tmp_path):
    found, logged = on_a_phone(page, tmp_path)
    assert found.pop("silent") == 0
    assert found == {"width": 360, "scroll": 360, "wide": [], "tables": 0, "broken": 0}
    assert "CONSOLE" not in logged
