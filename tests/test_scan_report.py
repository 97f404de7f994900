"""The page of a scan, as text and in a headless browser."""

import functools
import http.server
import json
import threading
import time

import numpy as np
import pytest
from browser import Browser
from pages import Page, needs_browser, opening

from replication.fields.find import summary
from replication.fields.find.cells import Cells
from replication.fields.find.lattice import Lattice
from replication.fields.judge.counts import AnnotatedField, Detections
from replication.fields.judge.truth import Nuclei
from replication.fields.read.field import ArrayField
from replication.fields.show import answer, pictures, scan_report, truth_layer
from replication.runs.directory import RunDirectory
from tfds_pap import files, phantom
from tfds_pap.classes import Classes
from tfds_pap.taxonomy import STAGE2_CLASSES

NAMES = ("plain.jpg", "</script><b onmouseover=x>'\" ü#%.jpg")


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return made(tmp_path_factory.mktemp("scan"), Classes.known(STAGE2_CLASSES))


def made(place, classes):
    """A scan of two fields of four classes, and its page."""
    """Two scanned fields with cells at known places."""
    run = RunDirectory(place)
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        pixels = phantom.draw_field(number, slide=number, width=1200, height=800, cells=20)[0]
        field, lattice = ArrayField(name, pixels, scale=2.0, mpp=0.25), Lattice(1200, 800)
        scores = rng.random((lattice.rows, lattice.columns), np.float32)
        places = np.array([[200, 200], [600, 400], [1000, 600], [400, 650]]) * 2.0
        probabilities = rng.dirichlet(np.ones(4), 4)
        hsil = np.array([0.9, 0.6, 0.3, 0.1 + 0.1 * number])
        if not classes.severe:
            hsil = np.full(4, np.nan)
        abstain = np.array([False, True, False, False])
        cells = Cells(*places.T, np.full(4, 0.8), probabilities, hsil, abstain, classes)
        folder = run.path / "fields" / f"field-{number}"
        pictures.write_pictures(folder, field, lattice, scores, cells, threshold=0.5)
        cells.write(folder / "cells.csv")
        if number:
            # The first cell is a nucleus; another nucleus, at the edge, is no cell.
            labels = [classes.names[2], classes.names[1]]
            nuclei = Nuclei.of([405.0, 20.0], [395.0, 900.0], labels, classes=classes)
            known = AnnotatedField(
                name, Detections(*places.T, cells.scores), nuclei, lattice, 2.0, cells
            )
            truth_layer.write(folder, known, 0.5, None)
        info = {"id": folder.name, "name": name, "path": name, "width": 2400, "height": 1600}
        info |= {"scale": 2.0, "mpp": 0.125, "rois": lattice.rois, "detections": 9, "notes": []}
        info |= {"seconds": {"stage1": 0.1, "stage2": 0.2}, "truth": None}
        info["classes"] = classes.to_json()
        files.write_json(folder / "field.json", info | summary.summary(cells))
    about = {"name": "P", "protocol": "clean", "seed": 0, "size": 20, "notes": ["a note"]}
    settings = {"roi": 150, "stride": 25, "threshold": 0.5, "radius": 50.0, "method": "exact"}
    run.update_manifest(
        source="phantom",
        announcement="Drawings, all of them.",
        fields=["field-0", "field-1"],
        unreadable=[{"path": "x", "reason": "<i>x.jpg</i>: expected an image"}],
        models={"stage1": about, "stage2": about},
        settings=settings,
    )
    return run, scan_report.write_report(run)


def test_what_the_page_says(scan):
    page = Page(scan[1].read_text())
    for words in (
        "Drawings, all of them.",
        "not a medical device",
        "<i>x.jpg</i>: expected an image",
        NAMES[1],
        "a note",
        "mean calibrated probability of HSIL or SCC",
    ):
        assert words in page.text
    assert len(scan[1].read_bytes()) < 200_000
    links = [link for link in page.values("href") + page.values("src") if not link.startswith("#")]
    assert links
    for link in links:
        assert not link.startswith(("http", "/", "data:image/jpeg"))
        assert (scan[0].path / link).exists(), link


def test_it_opens_with_what_was_found_and_then_the_viewer(scan):
    text = scan[1].read_text()
    box = opening(text)
    assert box["lead"].startswith("8 cells in 2 fields; the most severe class")
    assert "nothing here says how many cells were missed" in box["not"]
    assert "diagnosis" in box["not"]
    places = [text.index(part) for part in ('id="answer"', 'id="viewer"', "<table")]
    assert places == sorted(places)


@pytest.mark.parametrize("looked_for", ["HSIL+", "folded or worse"])
def test_with_truth_it_opens_with_recall(looked_for):
    others = {"sensitivity round": 0.9, "specificity round": 0.8}
    shares = {"recall": 0.75, "precision": 0.5, f"sensitivity {looked_for}": None, **others}
    evaluation = {
        "classes": {"positive_name": looked_for},
        "fields": 3,
        "figures": [
            {
                "name": name,
                "words": name,
                "value": value,
                "low": None if value is None else value - 0.1,
                "high": None if value is None else value + 0.1,
                "count": 40,
                "reliable": name != "precision",
            }
            for name, value in shares.items()
        ],
    }
    box = answer.of_scan([], evaluation)
    assert "30 of 40 known nuclei were found" in box.answer
    assert [(one.value, one.interval) for one in box.figures] == [
        ("75.0\xa0%", "[65.0, 85.0]"),
        ("50.0\xa0%", "[40.0, 60.0]"),
        ("not defined", ""),
    ]
    assert "not reliable" in box.figures[1].words and "3 annotated fields" in box.limit


@needs_browser
def test_stepping_through_what_was_missed(browser, scan):
    tab = browser.open(scan[1].as_uri() + "#field=field-1")
    tab.wait_for("!document.getElementById('truths').hidden")
    assert [tab.text(f"#{name}") for name in ("hits", "missed", "extra")] == [
        "1 hit",
        "1 missed",
        "3 extra, or not annotated",
    ]
    assert tab.text("#miss_list") == "LSIL at 20, 900"
    tab.click("#next_miss")
    assert "Missed: LSIL at 20, 900 px. No ROI can be centred on it" in tab.text("#miss")
    tab.click("#next")
    assert tab.run("document.getElementById('miss').hidden")
    assert "Hit: a nucleus annotated as HSIL" in tab.text("#against")
    tab.click("#next")
    assert "Extra: no known nucleus lies here" in tab.text("#against")
    # The first field has no truth: nothing of the other one's is left.
    tab.run("(($) => { $.selectedIndex = 0; $.onchange(); })(document.getElementById('field'))")
    tab.wait_for("document.getElementById('truths').hidden")
    assert tab.run("document.getElementById('misses').hidden") and tab.logged() == []


@needs_browser
def test_classes_of_which_nobody_said_what_is_looked_for(browser, tmp_path):
    names = ("Koilocytotic", "Metaplastic", "Parabasal", "Superficial")
    lab = Classes(names, ("Koilo", "Meta", "Para", "Super"))
    run, page = made(tmp_path, lab)
    tab = opened(browser, page, "#field=field-1")
    assert not tab.run("document.getElementById('least').offsetParent")
    tab.click("#next")
    number = int(Cells.read(run.path / "fields/field-1/cells.csv", lab).class_ids[0])
    assert tab.text("#label") == lab.shown[number]
    # Truth speaks in the same words.
    otherwise = "" if number == 2 else ", named otherwise"
    assert tab.text("#against") == f"Hit: a nucleus annotated as Para{otherwise}."
    assert tab.text("#miss_list").startswith("Meta at 20, 900")
    assert not tab.logged()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


def opened(browser, page, hash_="", **screen):
    tab = browser.open((page if isinstance(page, str) else page.as_uri()) + hash_, **screen)
    tab.wait_for("document.getElementById('shown').textContent.includes('4 of 4')")
    return tab


@pytest.fixture(scope="module")
def served(scan):
    """The same page over HTTP, and the paths that a browser asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=scan[0].path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/report.html", asked
        server.shutdown()
        thread.join()


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def levels(asked):
    """The levels of the tiles that were asked for."""
    return {int(path.split("tiles_files/")[1].split("/")[0]) for path in asked if "tiles_" in path}


def point(tab, x, y):
    """Presses and releases at a place of the canvas, in its own pixels."""
    box = tab.run(
        "(() => {const c = document.getElementById('canvas'); c.scrollIntoView({block: 'center'});"
        "const r = c.getBoundingClientRect(); return [r.left, r.top];})()"
    )
    for event in ("mousePressed", "mouseReleased"):
        tab.send(
            "Input.dispatchMouseEvent",
            type=event,
            button="left",
            clickCount=1,
            x=box[0] + x,
            y=box[1] + y,
        )


@needs_browser
def test_walking_through_a_field(browser, scan):
    run, page = scan
    tab = opened(browser, page)
    canvas = "document.getElementById('canvas')"
    width, height = tab.run(f"[{canvas}.clientWidth, {canvas}.clientHeight]")
    fit = min(width / 1200, height / 800)
    # The second cell stands in the middle of the field, and so of the canvas.
    point(tab, width / 2, height / 2)
    cells = Cells.read(run.path / "fields" / "field-0" / "cells.csv")
    assert tab.text("#label") == cells.labels[1]
    assert tab.text("#hsil") == "60.0 %"
    assert tab.text("#place") == "1200, 800"
    assert "abstains" in tab.text("#abstained")
    words = tab.text("#bars").split("\n")
    shares = [float(word.removesuffix(" %")) for word in words if word.endswith("%")]
    np.testing.assert_allclose(shares, 100 * cells.probabilities[1], atol=0.06)
    # The first, by its place; then the next by key, and by button.
    point(tab, width / 2 - 400 * fit, height / 2 - 200 * fit)
    assert tab.text("#place") == "400, 400"
    tab.run(f"{canvas}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'n', bubbles: true}}))")
    assert tab.text("#place") == "1200, 800"
    tab.click("#next")
    assert tab.text("#place") == "2000, 1200"
    assert tab.run("location.hash") == "#field=field-0&cell=2"
    assert not tab.logged()


@needs_browser
def test_zooming_asks_for_finer_tiles(browser, scan, served):
    url, asked = served
    tab = opened(browser, url, width=700, height=500)
    wait_for(lambda: levels(asked))
    assert max(levels(asked)) < 11
    for _ in range(5):
        tab.click("#in")
    # 1200 px are level 11; nothing finer is there, and nothing finer is asked for.
    wait_for(lambda: max(levels(asked)) == 11)
    assert all((scan[0].path / path.lstrip("/")).exists() for path in asked if "tiles_" in path)


@needs_browser
def test_dragging_moves_the_field(browser, scan):
    tab = opened(browser, scan[1])
    canvas = "document.getElementById('canvas')"
    width, height = tab.run(f"[{canvas}.clientWidth, {canvas}.clientHeight]")
    fit = min(width / 1200, height / 800)
    left, top = tab.run(
        f"(() => {{{canvas}.scrollIntoView({{block: 'center'}});"
        f"const r = {canvas}.getBoundingClientRect(); return [r.left, r.top];}})()"
    )
    x, y = left + width / 2, top + height / 2
    steps = (("mousePressed", 0), ("mouseMoved", 50), ("mouseMoved", 100), ("mouseReleased", 100))
    for kind, moved in steps:
        tab.send(
            "Input.dispatchMouseEvent", type=kind, button="left", x=x + moved, y=y, clickCount=1
        )
    assert not tab.text("#label")
    # The cell of the middle went along.
    point(tab, width / 2 + 100, height / 2)
    assert tab.text("#place") == "1200, 800"
    assert fit < 1
    length, unit = tab.text("#bar").split()
    bar = tab.run("document.querySelector('#bar i').getBoundingClientRect().width")
    assert unit == "µm"
    assert bar == pytest.approx(float(length) / 0.25 * fit, rel=0.02)


@needs_browser
def test_choosing_what_is_shown(browser, scan, served):
    (run, _), (url, asked) = scan, served
    tab = opened(browser, url)
    cells = Cells.read(run.path / "fields" / "field-0" / "cells.csv")
    first = int(cells.class_ids[0])
    tab.run(f"document.querySelectorAll('input.class')[{first}].click()")
    left = sum(int(number) != first for number in cells.class_ids)
    tab.wait_for(f"document.getElementById('shown').textContent.startsWith('{left} of 4')")
    tab.run(f"document.querySelectorAll('input.class')[{first}].click()")
    tab.run(
        "(() => {const e = document.getElementById('least'); e.value = 50;"
        "e.dispatchEvent(new Event('input'));})()"
    )
    tab.wait_for("document.getElementById('shown').textContent.startsWith('2 of 4')")
    assert not any("heat_" in path for path in asked)
    shown = "document.getElementById('opaque').checkVisibility()"
    assert not tab.run(shown)
    tab.run("document.getElementById('heat').click()")
    wait_for(lambda: any("heat_layer.png" in path for path in asked))
    assert tab.run(shown)


@needs_browser
def test_the_heat_lies_over_the_field_as_opaque_as_asked(browser, served):
    tab = opened(browser, served[0])
    for check in range(4):
        tab.run(f"document.querySelectorAll('input.class')[{check}].click()")
    tab.wait_for("document.getElementById('shown').textContent.startsWith('0 of 4')")
    middle = (
        "(() => {const c = document.getElementById('canvas'); return [...c.getContext('2d')"
        ".getImageData(c.width / 2, c.height / 2, 1, 1).data];})()"
    )
    wait_for(lambda: len(set(tab.run(middle)[:3])) > 1)  # A tile is there.
    plain = np.array(tab.run(middle)[:3])
    tab.run("document.getElementById('heat').click()")
    wait_for(lambda: tab.run(middle)[:3] != plain.tolist())
    full = tab.run(middle)[:3] - plain
    tab.run(
        "(() => {const e = document.getElementById('opacity'); e.value = 50;"
        "e.dispatchEvent(new Event('input'));})()"
    )
    wait_for(lambda: tab.run(middle)[:3] != (plain + full).tolist())
    np.testing.assert_allclose(tab.run(middle)[:3] - plain, full / 2, atol=1.5)


@needs_browser
def test_the_table_is_sorted_by_its_headings(browser, scan):
    tab = opened(browser, scan[1])
    links = "[...document.querySelectorAll('#fields tbody th > a')].map((e) => e.hash)"
    scores = [
        json.loads((scan[0].path / "fields" / name / "field.json").read_text())["slide_score"]
        for name in ("field-0", "field-1")
    ]
    assert scores[0]["value"] < scores[1]["value"]
    assert tab.run(links) == ["#field=field-0", "#field=field-1"]
    heading = "#fields thead th:nth-last-child(2)"
    tab.click(f"{heading} button")
    assert tab.run(links) == ["#field=field-1", "#field=field-0"]
    assert tab.run(f"document.querySelector('{heading}').ariaSort") == "descending"
    tab.click(f"{heading} button")
    assert tab.run(links) == ["#field=field-0", "#field=field-1"]
    tab.click("#fields thead th:first-child button")
    # By name: the hostile one begins with a sign, which comes before letters.
    assert tab.run(links) == ["#field=field-1", "#field=field-0"]


@needs_browser
def test_the_gallery_and_a_link_lead_to_a_cell(browser, scan):
    tab = opened(browser, scan[1], "#field=field-1&cell=3", width=360, height=800, dark=True)
    tab.wait_for("document.getElementById('place').textContent === '800, 1300'")
    assert tab.run("document.getElementById('field').selectedIndex") == 1
    assert tab.run("document.querySelectorAll('#field option')[1].textContent") == NAMES[1]
    assert tab.run("document.documentElement.scrollWidth") == 360
    tab.run("document.querySelector('#gallery a').click()")
    tab.wait_for("document.getElementById('place').textContent === '400, 400'")
    # The same link again leads back to its cell, though the address stays the same.
    tab.click("#next")
    tab.wait_for("document.getElementById('place').textContent === '1200, 800'")
    tab.run("history.replaceState(null, '', document.querySelector('#gallery a').hash)")
    tab.run("document.querySelector('#gallery a').click()")
    tab.wait_for("document.getElementById('place').textContent === '400, 400'")
    assert tab.run("document.querySelectorAll('b[onmouseover]').length") == 0
    assert tab.run("[...document.images].every((e) => e.naturalWidth || e.loading === 'lazy')")
    assert not tab.logged()


def test_without_fields(tmp_path, scan):
    run = RunDirectory(tmp_path)
    manifest = scan[0].manifest() | {"fields": [], "unreadable": []}
    files.write_json(tmp_path / "manifest.json", manifest)
    assert "No field was read." in scan_report.write_report(run).read_text()
    assert json.loads((tmp_path / "manifest.json").read_text())["fields"] == []
