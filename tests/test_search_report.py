"""The page, figures, table and printout of a search, as a reader gets them."""

import dataclasses
import io
import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
import rich.console
from pages import Page, needs_browser, on_a_phone, opening
from PIL import Image

from finetune.report import effect_figures, effects
from finetune.report import figures as search_figures
from finetune.report import page as search_report
from finetune.search import summary
from finetune.search.trials import Search, Trial
from replication.drawing import pages
from replication.measures.class_figures import AT_CLASS_SHARES
from replication.measures.predictions import Predictions
from replication.runs.directory import RunDirectory
from tfds_pap.classes import Classes
from tfds_pap.taxonomy import STAGE2_CLASSES

BANNER = "Every image is a drawing, not a cell."
PAPER = {"head": "64", "dropout": 0.2, "learning_rate": 0.01}
IMAGES = 120


def predictions(skill, seed, split):
    rng = np.random.default_rng(len(split))
    labels, slides = rng.integers(4, size=IMAGES), rng.integers(12, size=IMAGES)
    shared = rng.gumbel(0, 1, (IMAGES, 4))
    own = np.random.default_rng([seed, len(split)]).gumbel(0, 1, (IMAGES, 4))
    odds = np.exp(-skill * np.abs(labels[:, None] - np.arange(4)) + 0.8 * shared + 0.4 * own)
    return Predictions(
        [f"{split}_{i:03}.jpg" for i in range(IMAGES)],
        [f"{split} slide {s}" for s in slides],
        [split] * IMAGES,
        labels,
        odds / odds.sum(axis=1, keepdims=True),
        STAGE2_CLASSES,
    )


def trial(order, values, skill, folder=None, protocol="clean", **fields):
    said = [predictions(skill + 2 * (protocol == "paper"), order, "tune")]
    metrics = {"val_accuracy": float((said[0].predicted == said[0].labels).mean())}
    metrics |= {"val_macro_f1": metrics["val_accuracy"] - 0.01, "val_loss": 1 - 0.1 * skill}
    if protocol == "paper":
        said.append(predictions(skill, order, "test"))
        metrics["held_out_accuracy"] = float((said[1].predicted == said[1].labels).mean())
    if folder:
        parts = [(p.ids, p.groups, p.splits) for p in said]
        ids, groups, splits = (sum(column, ()) for column in zip(*parts, strict=True))
        labels = np.concatenate([p.labels for p in said])
        odds = np.concatenate([p.probabilities for p in said])
        both = Predictions(ids, groups, splits, labels, odds, STAGE2_CLASSES)
        both.write(folder / f"trial_{order:02}" / "predictions.csv")
        fields["directory"] = folder / f"trial_{order:02}"
    given = {"best_epoch": 7, "epochs": 10, "seconds": 2.5, "order": order, **fields}
    return Trial(f"{order:03}", values, "completed", metrics["val_accuracy"], metrics, **given)


def diverged(order, values, **fields):
    return Trial(f"{order:03}", values, "diverged", 0.0, {}, 1, 2, order=order, **fields)


def search(trials, **fields):
    given = {"objective": "val_accuracy", "direction": "max", "tuner": "grid", "space": "paper"}
    given |= {"protocol": "clean", "backbone": "resnet152", "weights": "imagenet"}
    given |= {"planned": 27, "paper_values": PAPER, "unit": "slide", "resamples": 200}
    return Search(tuple(trials), **{**given, **fields})


def grid(folder=None, protocol="clean", count=27):
    trials = []
    levels = (("16", "64", "32-16"), (0.2, 0.5, 0.8), (0.01, 0.1, 1.0))
    for order, point in enumerate(itertools.islice(itertools.product(*levels), count)):
        values = dict(zip(PAPER, point, strict=True))
        if point[1:] == (0.8, 1.0):
            trials.append(diverged(order, values))
            continue
        skill = 1.8 - values["dropout"] - 0.6 * values["learning_rate"]
        trials.append(trial(order, values, skill, folder, protocol))
    return search(trials, protocol=protocol)


def hyperband(folder=None):
    trials = []
    for order in range(9):
        values = {"head": ["16", "64", "32"][order % 3], "rate": 0.1 * 3 ** (order // 3)}
        fields = {"epochs": 3, "bracket": 1, "round": 0}
        trials.append(trial(order, values, 0.4 + 0.05 * order, folder, **fields))
    for order, parent in ((9, trials[8]), (10, trials[7]), (11, None)):
        values = parent.values if parent else {"head": "64", "rate": 0.2}
        fields = {"epochs": 9, "bracket": int(bool(parent)), "round": int(bool(parent))}
        fields["inherited"] = parent.trial_id if parent else ""
        trials.append(trial(order, values, 1.4, folder, **fields))
    return search(trials, tuner="hyperband", planned=12)


def conditional(count=40):
    rng, trials = np.random.default_rng(0), []
    for order in range(count):
        values = {f"choice_{k}": str(rng.choice(["a", "b"])) for k in range(6)}
        values |= {"rate": float(10 ** rng.uniform(-5, -1)), "layers": int(rng.integers(3))}
        for k in range(values["layers"]):
            values[f"units_{k + 1}"] = int(rng.choice([16, 64, 256]))
        trials.append(trial(order, values, 1.0 + 0.3 * values["layers"]))
    return search(trials, tuner="random", space="extended", planned=None, paper_values=None)


def written(folder, found, **manifest):
    run = RunDirectory.open(folder, {"tuner": found.tuner})
    run.update_manifest(**{"source": "phantom", "announcement": BANNER, **manifest})
    page = search_report.write(run, found)
    assert page == run.path / "report.html"
    return page.read_text("utf-8")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return grid(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def run_dir(full, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "run"
    environment = {"device": "CPU (2 cores)", "time": "2025-01-02T03:04:05+00:00"}
    audit = {"pap_db4": {"line": "audit: no group on both sides"}}
    written(folder, full, environment=environment, audit=audit)
    return folder


@pytest.fixture(scope="module")
def page(run_dir):
    return (run_dir / "report.html").read_text("utf-8")


def printed(found, **fields):
    out = io.StringIO()
    console = rich.console.Console(file=out, width=150, markup=False, highlight=False)
    summary.print_summary(found, console, **fields)
    return out.getvalue()


def flat(text):
    return " ".join(text.split())


def test_page_loads_nothing_and_its_links_have_targets(page):
    found = Page(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {t for t, _ in found.tags}
    assert all(value.startswith("data:") for value in found.values("src"))
    targets = {value[1:] for value in found.values("href") if value.startswith("#")}
    assert targets <= set(found.values("id"))
    assert {v for v in found.values("href") if not v.startswith("#")} == {"search.csv"}
    assert not re.search(r"https?://|@import|url\(", page)
    assert all(found.values("alt")) and len(found.values("alt")) == len(found.values("src")) == 5


def test_page_says_what_matters(page, full, run_dir):
    text, found = Page(page).text, search_report.findings(full)
    assert text.index(BANNER) < text.index("Hyperparameter search: resnet152")
    for sentence in (*search_report.sentences(full, found), "audit: no group on both sides"):
        assert text.index(flat(sentence)) < text.index("Rank Trial Head")
    assert "Computed 2025-01-02 03:04:05 UTC on CPU (2 cores)" in text
    assert f"python -m finetune.train --from_search={run_dir}" in text
    assert f"tensorboard --logdir={run_dir}/logs" in text
    assert "The test images were not looked at." in text and "not a medical device" in text
    assert "Every combination was tried equally often" in text
    assert "Diverged trials (3) count like the worst completed one." in text


def test_sentences_of_a_full_grid(full):
    found = search_report.findings(full)
    best, *others = search_report.sentences(full, found)
    accuracy = full.best.score
    assert f"{100 * accuracy:.1f}\u00a0% [" in best and "120 images (12 slides)" in best
    assert found.first.low < accuracy < found.first.high
    assert others[0] == "27 trials ended, all that were planned: 24 completed, 3 diverged."
    place = full.ranked.index(full.paper) + 1
    expected = f"rank {place} of 27" if place > 1 else "The best found is the paper's choice."
    assert expected in others[1]
    assert f"{found.undecided} of the 23 other configurations cannot be told" in others[2]
    assert found.undecided == sum(d.low <= 0 <= d.high for d in found.differences.values())
    assert f"adds about {100 * found.optimism.expected:.1f} points" in others[3]
    assert found.cost is None
    # Of the difference in macro F1.
    assert others[-1] == AT_CLASS_SHARES


def test_tables_on_the_page_have_the_trials(page, full):
    rows = [flat(" ".join(Page(row).words)) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]
    best = full.best
    start = f"1 {best.trial_id} best found"
    assert sum(row.startswith(start) for row in rows) == 2
    assert sum("paper's choice" in row for row in rows) == 2
    assert sum(bool(re.match(r"\d+ \d{3} ", row)) for row in rows) == 10 + 27 + (
        full.ranked.index(full.paper) >= 10
    )
    (lost,) = [row for row in rows if row.startswith("25 ")]
    assert "diverged" in lost and lost.endswith("2 0.0 s")
    second = full.ranked[1]
    gap = search_report.findings(full).differences[second.trial_id]
    (row,) = [row for row in rows if row.startswith("2 ") and "told apart" in row]
    assert second.trial_id in row and f"{100 * gap.value:+.1f}".replace("-", "−") in row


def test_every_level_stands_in_the_page(page, full):
    text = Page(page).text
    for effect in search_report.findings(full).effects.effects:
        for level in effect.levels:
            figures = f"{level.label} {level.count} {level.diverged} {100 * level.mean:.1f} ["
            assert figures in text


def test_search_csv_and_pictures_lie_beside_the_page(run_dir, full):
    table = pd.read_csv(run_dir / "search.csv", dtype={"trial": str})
    assert table["trial"].tolist() == [trial.trial_id for trial in full.ranked]
    assert set(table["source"]) == {"phantom"}
    names = {path.name for path in (run_dir / "figures").iterdir()}
    assert names == {"history.png", "effects.png", "interaction.png"}
    for name in names:
        picture = Image.open(run_dir / "figures" / name)
        assert picture.width > 900 and np.asarray(picture.convert("L")).std() > 5


def test_same_search_gives_the_same_page(run_dir, full, page):
    assert search_report.write(RunDirectory(run_dir), full).read_text("utf-8") == page


def test_the_paper_protocol_shows_what_the_defect_costs(tmp_path):
    found = grid(tmp_path / "trials", "paper")
    text = Page(written(tmp_path / "run", found)).text
    cost = search_report.findings(found).cost
    assert "images that were scored, which it was trained on" in text
    assert f"{100 * cost.fold:.1f} % there and {100 * cost.held_out:.1f} %" in flat(text)
    assert f"gap of {100 * cost.optimism.value:+.1f} points [" in text and cost.optimism.low > 0
    assert f"{cost.saturated} of 24 configurations reach 99.5 % or more" in flat(text)
    assert "Held-out accuracy, %" in text and "no score above is one to report" in text
    # Memory adds more than choosing does, so that the latter is not quoted.
    assert "looks better than it is" not in text and "not looked at" not in text
    assert (tmp_path / "run" / "figures" / "fold.png").exists()
    assert "held-out accuracy" in printed(found)


def test_hyperband_counts_a_configuration_once(tmp_path):
    found = hyperband(tmp_path / "trials")
    text = Page(written(tmp_path / "run", found)).text
    assert "12 trials ended, all that were planned; they trained 10 configurations." in text
    assert "brackets are adjusted for" in text and "Lines join the trainings" in text
    assert "008 promoted: 009" in text
    assert (
        "The paper's choice, head 64, dropout 0.2, learning rate 0.01, has not been tried" in text
    )
    assert (tmp_path / "run" / "figures" / "halving.png").exists()


def test_many_conditional_hyperparameters_and_no_predictions(tmp_path):
    found = conditional()
    text = written(tmp_path / "run", found, source="original", announcement="")
    assert 'class="banner"' not in text and "paper's choice" not in Page(text).text
    words = Page(text).text
    assert "40 trials ended." in words and "cannot be told from" not in words
    assert "Means are adjusted by an additive model" in words
    rows = re.findall(r'<td class="values">(.*?)</td>', text)
    assert len(rows) == 10 + 40 and all("choice_0 " in row for row in rows)
    # Nine panels, the interaction and the history.
    assert len(Page(text).values("src")) == len(search_report.findings(found).effects.effects) + 2


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("known", [True, False])
def test_a_search_that_has_just_begun(tmp_path, count, known):
    found = grid(tmp_path / "trials" if known else None, count=count)
    text = Page(written(tmp_path / "run", found)).text
    said = ["None of 27 trials has", "1 of 27 trials has", "2 of 27 trials have"][count]
    assert f"{said} ended" in text and "no hyperparameter can be compared yet" in text
    assert ("The best configurations" in text) == bool(count)
    assert ("120 images (12 slides)" in text) == (known and count > 0)
    assert ("other configuration cannot be told" in text) == (known and count == 2)
    assert flat(said) in flat(printed(found))


def test_a_search_in_which_nothing_was_learnt(tmp_path):
    found = search([diverged(i, {"rate": 10.0**i}) for i in range(6)], paper_values={"rate": 1.0})
    text = Page(written(tmp_path / "run", found)).text
    assert "6 of 27 trials have ended so far: 6 diverged." in text
    assert "Best found" not in text and "The best configurations" not in text
    failed = Trial("000", {"rate": 1.0}, "failed", math.nan, {}, 0, 0)
    found = search([failed, trial(1, {"rate": 2.0}, 1.0)], paper_values={"rate": 1.0})
    assert "The paper's choice, rate 1, failed." in printed(found)


def test_the_lowest_loss_and_several_trainings(tmp_path):
    losses = [
        dataclasses.replace(one, score=one.metrics.get("val_loss", 16.1))
        for one in grid(tmp_path / "trials").trials
    ]
    found = search(losses, objective="val_loss", direction="min", executions=3)
    text = flat(Page(written(tmp_path / "run", found)).text)
    assert "for the lowest log loss" in text and "takes off about 0." in text
    best = min(t.score for t in losses)
    first = search_report.findings(found).first
    assert f"Log loss on the tune images, which chose it: {best:.3f}, mean of 3 trainings" in text
    assert f"the first one {first.value:.3f} no interval" in text
    # What one training adds is not taken from the mean of three.
    assert "is to be expected" not in text


def test_a_lab_reads_what_it_looks_for(tmp_path):
    names = ("round", "long", "folded", "torn")
    declared = Classes(names, names, True, ("folded", "torn"), "folded or torn")
    trials = []
    for one in grid(tmp_path / "trials", count=6).trials:
        path = one.directory / "predictions.csv"
        said = Predictions.read(path)
        dataclasses.replace(said, class_names=names, declared=declared).write(path)
        figures = {"val_hsil_plus_sensitivity": one.score, "val_hsil_plus_specificity": 0.625}
        trials.append(dataclasses.replace(one, metrics={**one.metrics, **figures}))
    found = search(trials, objective="val_hsil_plus_sensitivity", paper_values=None)
    for text in (flat(Page(written(tmp_path / "run", found)).text), flat(printed(found))):
        # Behind the interval, which is not its own.
        assert "(12 slides); at a specificity of folded or torn of 62.5" in text
        assert "ensitivity of folded or torn, %" in text
        assert "pecificity of folded or torn, %" in text
        assert "HSIL" not in text


def test_printout(full):
    text = printed(full, announcement=BANNER)
    assert text.index(BANNER) < text.index("The best configurations") < text.index("What matters")
    for sentence in search_report.sentences(full, search_report.findings(full)):
        assert flat(sentence) in flat(text)
    assert "the paper's choice" in text and "learning rate" in text
    assert max(map(len, text.splitlines())) <= 150


def test_markup_in_names_is_shown_and_not_obeyed(tmp_path, capsys):
    trials = [trial(i, {"<b>[red]": f"[/x]{i % 2}"}, 1.0 + i % 2) for i in range(8)]
    found = search(trials, paper_values=None, space="<i>mine")
    text = written(tmp_path / "run", found)
    assert "<b>" not in text and "<i>" not in text and "&lt;b&gt;[red] [/x]1" in text
    summary.print_summary(found)
    assert "<b>[red] [/x]1" in capsys.readouterr().out


def test_a_manifest_that_names_no_source_is_no_replication():
    assert "not known whose images" in pages.announcement({})
    assert pages.announcement({"source": "original"}) == ""
    assert pages.announcement({"source": "phantom", "announcement": BANNER}) == BANNER


def test_durations():
    found = [pages.duration(seconds) for seconds in (2.34, 301.0, 9000.0)]
    assert found == ["2.3 s", "5.0 min", "2.5 h"]


def labels_overlap(figure):
    figure.draw_without_rendering()
    for axes in figure.axes:
        texts = [text for text in axes.get_xticklabels() if text.get_text()]
        for one, other in itertools.pairwise(texts):
            a, b = one.get_window_extent(), other.get_window_extent()
            slant = math.radians(one.get_rotation())
            # Slanted lines of text are as far apart as their ends times the sine.
            if (
                slant
                and (b.x1 - a.x1) * math.sin(slant) < 0.9 * one.get_fontsize() * figure.dpi / 72
            ):
                return True
            if not slant and a.overlaps(b):
                return True
    return False


def test_labels_of_panels_do_not_overlap(monkeypatch):
    overlapping, drawn = [], search_figures.figures.drawn

    def checked(height, draw, form="svg", **size):
        def looked_at(figure):
            draw(figure)
            overlapping.append(labels_overlap(figure))

        return drawn(height, looked_at, form, **size)

    monkeypatch.setattr(search_figures.figures, "drawn", checked)
    long = [f"a_long_name_{k}" for k in range(6)]
    trials = [
        trial(i, {"x": long[i % 6], "rate": 1e-5 * 1.1 ** (7 * i % 60), "y": i % 4}, 1 + i % 6)
        for i in range(60)
    ]
    found = search(trials, paper_values=None)
    computed = effects.marginal_effects(found.trials, "max")
    for effect in computed.effects:
        effect_figures.marginal_effect(found, computed, effect)
    effect_figures.interaction(found, computed)
    search_figures.history(found)
    assert len(overlapping) == 5 and not any(overlapping)


def test_it_opens_with_the_best_found_and_the_papers_choice(page):
    box = opening(page)
    assert "can it be told from the paper's choice" in box["question"]
    assert box["lead"].startswith("Best found: ") and "the paper's choice" in box["lead"]
    assert any("of the best found" in what for what in box["figures"])
    assert "flatters" in box["not"]


@needs_browser
def test_browser_shows_it_on_a_phone_without_sideways_scrolling(page, tmp_path):
    found, logged = on_a_phone(page, tmp_path)
    assert found.pop("silent") == 0
    assert found == {"width": 360, "scroll": 360, "wide": [], "tables": 0, "broken": 0}
    assert "CONSOLE" not in logged
