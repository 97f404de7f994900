"""Pictures that say what was measured: ticks, marks and class names, looked at before drawing."""

import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from test_effects import additive, points, searched, trial

from finetune.report import effect_figures, figure_parts
from finetune.report.effects import marginal_effects
from replication.drawing import confusion, figures, palette
from replication.measures.predictions import Predictions

NAMES = {
    2: ("background", "cell"),
    4: ("NILM", "LSIL", "HSIL", "SCC"),
    5: ("carcinoma in situ", "light dysplastic", "moderate dysplastic", "columnar", "severe"),
    7: tuple(f"{kind}_dysplastic_cell" for kind in ("a", "b", "c", "d", "e", "f", "g")),
    20: tuple(f"class with a long name {n}" for n in range(20)),
}


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figure that a drawing function made last, laid out."""
    made = []

    def draw_only(height, draw, form="svg", width=figures.WIDTH, dpi=None):
        with matplotlib.rc_context(figures.STYLE):
            made.append(Figure(figsize=(width, height), layout="constrained"))
            draw(made[-1])
            made[-1].draw_without_rendering()
        return b""

    monkeypatch.setattr(figures, "drawn", draw_only)
    return made


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.475, "47.5 %"), (0.425, "42.5 %"), (0.3, "30 %"), (0.1 + 0.2, "30 %"), (0.9995, "99.95 %")],
)
def test_a_tick_is_printed_where_it_stands(drawn, value, text):
    figures.learning_curves([[{"loss": 1.0, "accuracy": value}]], [None])
    formatter = drawn[-1].axes[1].yaxis.get_major_formatter()
    assert formatter(value, 0) == text


@pytest.mark.parametrize("names", NAMES.values(), ids=map(str, NAMES))
def test_class_names_of_a_confusion_matrix_stand_apart_at_their_cells(drawn, names):
    count = len(names)
    confusion.confusion_matrix(np.full((count, count), 1200) + np.eye(count, dtype=int), names)
    axes = drawn[-1].axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        labels = axis.get_ticklabels()
        if labels[0].get_rotation() in (0, 90):
            boxes = [label.get_window_extent() for label in labels]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        else:
            # Slanted names end at their cell, and lines of text lie side by side.
            assert {label.get_ha() for label in labels} == {"right"}
            assert {label.get_rotation_mode() for label in labels} == {"anchor"}
            first, second = axes.transData.transform([(0.5, 0), (1.5, 0)])[:, 0]
            lines = max(label.get_text().count("\n") for label in labels) + 1
            high = lines * 1.2 * labels[0].get_fontsize() * drawn[-1].dpi / 72
            assert (second - first) * np.sin(np.pi / 4) > high


@pytest.mark.parametrize("names", NAMES.values(), ids=map(str, NAMES))
def test_every_cell_has_its_count_and_its_percentage_inside(drawn, names):
    count = len(names)
    confusion.confusion_matrix(np.full((count, count), 1200), names)
    axes = drawn[-1].axes[0]
    percentages = [text for text in axes.texts if text.get_text().endswith(" %")]
    # Of many classes, counts alone are large enough to be read.
    assert len(percentages) == (count**2 if count < confusion.MANY else 0)
    assert sum(text.get_text() == "1,200" for text in axes.texts) == count**2
    left, right = axes.transData.transform([(0, 0), (1, 0)])[:, 0]
    assert all(text.get_window_extent().width < right - left for text in axes.texts)


@pytest.mark.parametrize("curves", [figures.roc_curves, figures.precision_recall_curves])
@pytest.mark.parametrize("names", NAMES.values(), ids=map(str, NAMES))
def test_a_legend_hides_no_curve_and_names_each(drawn, curves, names):
    labels = np.arange(100) % len(names)
    odds = np.eye(len(names))[labels] + np.random.default_rng(0).random((100, len(names)))
    ids = [f"{i}.png" for i in range(100)]
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    curves([Predictions(ids, [""] * 100, ["test"] * 100, labels, probabilities, names)])
    (legend,), (axes,) = drawn[-1].legends, drawn[-1].axes
    assert not axes.get_legend()
    extent = legend.get_window_extent()
    assert not extent.overlaps(axes.get_window_extent())
    assert len(legend.texts) == len(names) - (curves is figures.roc_curves and len(names) == 2)
    # All of it, and the axis below, is on the picture.
    box = drawn[-1].bbox
    for part in (extent, axes.get_tightbbox()):
        assert min(part.x0, part.y0) >= -1
        assert part.x1 <= box.x1 + 1 and part.y1 <= box.y1 + 1


def effect_panel(drawn, trials, paper):
    search = searched(tuple(trials), paper_values=paper)
    effects = marginal_effects(search.trials, "max")
    effect_figures.marginal_effects(search, effects)
    return search, drawn[-1]


def marks(figure, style):
    return [
        line for axes in figure.axes for line in axes.lines if line.get_marker() == style["marker"]
    ]


def test_the_papers_choice_has_a_mark_only_at_a_score_that_was_measured(drawn):
    tried = [trial(i, v, additive(v)) for i, v in enumerate(points())]
    paper = points()[5]
    search, figure = effect_panel(drawn, tried, paper)
    assert "the paper's choice" in figure_parts.handles(search, True)
    at = [line.get_ydata()[0] for line in marks(figure, figure_parts.PAPER)]
    assert at == pytest.approx([100 * additive(paper)] * len(figure.axes))
    search, figure = effect_panel(drawn, [t for t in tried if t.values != paper], paper)
    assert not marks(figure, figure_parts.PAPER)
    handles = figure_parts.handles(search, True)
    assert "the paper's choice" not in handles
    assert "the paper's value, without a score" in handles
    assert all(
        any(line.get_color() == palette.VERMILION for line in axes.lines) for axes in figure.axes
    )
