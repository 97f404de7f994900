"""The page of the server as a reader meets it: driven in a headless browser."""

import grpc
import numpy as np
import pytest
from browser import Browser
from page_server import (
    BANNER,
    EXPLAINS,
    LIMIT,
    TOKEN,
    Bearer,
    FakeServable,
    metadata_values,
    png,
    serving,
)
from pages import needs_browser
from tensorflow_serving.apis import model_pb2

from serving.server.errors import ServingError
from serving.server.page import answers as page_answers

SPEC = model_pb2.ModelSpec(name="pap_stage2")

pytestmark = needs_browser


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pap_stage2")
    with serving(FakeServable(folder, metadata=metadata_values(), outputs=EXPLAINS)) as manager:
        yield manager


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


def answers(tab, count):
    """Waits for so many results, and returns the words of each, newest first."""
    tab.wait_for(f"document.querySelectorAll('.result[aria-busy=false]').length === {count}")
    words = "[...document.querySelectorAll('.result')].map((e) => e.innerText)"
    return [" ".join(text.split()) for text in tab.run(words)]


def ready(tab):
    tab.wait_for("document.querySelectorAll('#samples img').length")
    return tab


def saved(path, content):
    path.write_bytes(content)
    return path


def test_sample_is_answered_with_all_that_is_known(browser, full):
    tab = ready(browser.open(full.url))
    words = " ".join(tab.text().split())
    assert BANNER in words and "pap_stage2: fine-tuned mobilenetv2 version 1" in words
    assert "Accuracy 76.6 % [70.9, 82.5] on 385 test images." in words
    assert "HSIL+ specificity not defined: no test image 0" in words
    assert "Measured on 385 test images: 200 NILM, 102 LSIL, 75 HSIL, 8 SCC." in words
    assert "not a medical device" in words and "Samples are drawn by a program" in words
    tab.click("#samples li:nth-child(4) button")
    ((shown,), found) = (
        answers(tab, 1),
        page_answers.ask(full, SPEC, page_answers.sample_png(3), None),
    )
    assert shown.startswith("sample: SCC, drawn version 1 · ") and found["label"] in shown
    for (label, _), share in zip(found["probabilities"], found["calibrated"], strict=True):
        assert f"{label} {100 * share:.1f} %" in shown
    assert f"HSIL+ {100 * found['hsil_plus']:.1f} % HSIL or SCC, calibrated" in shown
    assert "no proof of what the model used" in shown
    assert tab.run("[...document.querySelectorAll('.pictures img')].map((e) => e.src)") == [
        found["image"],
        found["heat"],
    ]
    widths = tab.run("[...document.querySelectorAll('.track span')].map((e) => e.style.width)")
    assert [float(width[:-1]) / 100 for width in widths] == pytest.approx(
        found["calibrated"], rel=1e-3
    )
    assert tab.run("document.querySelector('.top .class').textContent") == found["label"]
    assert not tab.logged()


def test_files_are_answered_one_after_another_and_a_broken_one_is_named(browser, full, tmp_path):
    tab = ready(browser.open(full.url))
    hostile = '<img src=x onerror="document.title=1">.png'
    files = [
        saved(tmp_path / "first.png", png()),
        saved(tmp_path / hostile, b"no image"),
        saved(tmp_path / "large.png", b"x" * (LIMIT + 1)),
        saved(tmp_path / "last.png", png((255, 255, 0))),
    ]
    before = len(full.servable.calls)
    tab.pick("#files", *files)
    last, large, broken, first = answers(tab, 4)
    assert first.startswith("first.png") and last.startswith("last.png")
    expected = "Expected: JPEG, PNG or BMP, at most 0.191 MiB and 16.8 megapixels."
    assert broken.startswith(f"{hostile} {hostile} was not accepted as an image. {expected}")
    assert "image: expected JPEG, PNG, BMP" in broken and "{{" not in broken
    assert "large.png was not accepted as an image." in large and "It has 0.191 MiB." in large
    # What is known to be too large is not sent.
    assert len(full.servable.calls) == before + 3
    assert tab.run("document.title") == "pap_stage2: ask the model about a cell"
    tab.pick("#files", files[0])
    assert len(answers(tab, 5)) == 5
    logged = [each["entry"]["text"] for each in tab.logged()]
    assert len(logged) == 1 and "400 (Bad Request)" in logged[0]


def test_dropped_and_pasted_images(browser, full, tmp_path):
    tab = ready(browser.open(full.url))
    # Beside the drop zone, where a browser would leave the page for the picture.
    tab.drop(saved(tmp_path / "dropped.png", png()), x=900, y=700)
    assert answers(tab, 1)[0].startswith("dropped.png")
    tab.run(
        """(async () => {
        const data = new DataTransfer(), blob = await (await fetch("page/samples/0.png")).blob();
        data.items.add(new File([blob], "pasted.png", {type: "image/png"}));
        document.body.dispatchEvent(
          new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
        })()"""
    )
    assert answers(tab, 2)[0].startswith("pasted.png")
    assert not tab.logged()


def test_keyboard_reaches_the_samples_and_the_result_is_said(browser, full):
    tab = ready(browser.open(full.url))
    tab.run("document.getElementById('files').focus()")
    tab.key("Tab")
    assert "drawn sample of NILM" in tab.run("document.activeElement.ariaLabel")
    tab.key("Enter")
    answers(tab, 1)
    said = "[role=status]#status"
    assert tab.text(said).startswith("sample: NILM, drawn: ")


def test_unsure_answer_is_left_to_a_person(browser, full, tmp_path):
    tab = ready(browser.open(full.url))
    tab.pick("#files", saved(tmp_path / "grey.png", png((128, 128, 128))))
    (shown,) = answers(tab, 1)
    assert "The model would leave this image to a person." in shown
    assert "from a calibrated probability of 49.4 % up" in shown
    assert "Most probable class, not sure enough" in shown and "leave it to a person" in tab.text()


def test_list_and_queue_are_bounded(browser, full, tmp_path):
    tab = ready(browser.open(full.url))
    files = [saved(tmp_path / f"{n}.png", png((n, 0, 0), (4, 4))) for n in range(55)]
    tab.pick("#files", *files)
    said = tab.wait_for("document.getElementById('left').textContent")
    assert said.startswith("5 of 55 images were not taken")
    assert answers(tab, 50)[0].startswith("49.png")
    tab.pick("#files", files[54])
    tab.wait_for("document.querySelector('.result .source').textContent === '54.png'")
    assert answers(tab, 50)[49].startswith("1.png")


def test_new_version_is_noticed_and_earlier_answers_keep_theirs(browser, tmp_path):
    first = FakeServable(tmp_path, 1, metadata=metadata_values(), outputs=EXPLAINS)
    second = FakeServable(tmp_path, 2, outputs=["hsil_plus"], endpoints=["serving_default"])
    with serving(first) as manager:
        tab = ready(browser.open(manager.url))
        tab.click("#samples button")
        answers(tab, 1)
        manager.servable = second
        tab.pick("#files", saved(tmp_path / "later.png", png()))
        later, earlier = answers(tab, 2)
        assert "later.png version 2" in later and "drawn version 1" in earlier
        assert "HSIL or SCC, not calibrated" in later and "cannot show" in later
        tab.wait_for("document.getElementById('version').textContent === 'version 2'")
        words = " ".join(tab.text().split())
        assert "until then version 1 did" in words and BANNER not in words
        assert "Nothing is known of how good this version is" in words and "Accuracy" not in words
        # Without a picture of the model's own the file itself is shown.
        tab.wait_for("document.querySelector('.result .input').naturalWidth === 90")


def test_no_version_then_one(browser, tmp_path):
    with serving(None) as manager:
        tab = browser.open(manager.url)
        tab.wait_for("document.getElementById('state').textContent")
        assert "No version is serving yet" in tab.text()
        manager.servable = FakeServable(tmp_path, metadata=metadata_values())
        tab.run("document.dispatchEvent(new Event('visibilitychange'))")
        tab.wait_for("document.getElementById('version').textContent === 'version 1'")
        assert "No version is serving yet" not in tab.text()


def test_busy_server_may_be_asked_again(browser, tmp_path):
    servable = FakeServable(tmp_path, metadata=metadata_values(), outputs=EXPLAINS)
    with serving(servable) as manager:
        tab = ready(browser.open(manager.url))
        servable.failure = ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many at once")
        tab.click("#samples button")
        (shown,) = answers(tab, 1)
        assert "There is no answer for sample: NILM, drawn." in shown and "too many" in shown
        servable.failure = None
        tab.click(".again")
        tab.wait_for("!document.querySelector('.answer').hidden")
        (shown,) = answers(tab, 1)
        assert "HSIL or SCC, calibrated" in shown and "no answer" not in shown


def test_token_is_asked_for_and_used(browser, tmp_path):
    servable = FakeServable(tmp_path, metadata=metadata_values(), outputs=EXPLAINS)
    with serving(servable, middleware=[Bearer]) as manager:
        tab = browser.open(manager.url)
        for token, words in (("wrong", "answers only those"), (TOKEN, "did not accept")):
            tab.wait_for(f"document.getElementById('token-why').textContent.includes('{words}')")
            tab.wait_for("document.activeElement.id === 'token-field'")
            tab.type(token)
            tab.key("Enter")
        ready(tab)
        assert "Access token" not in tab.text()
        tab.click("#samples button")
        assert "HSIL or SCC, calibrated" in answers(tab, 1)[0]


@pytest.mark.parametrize("dark", [False, True])
def test_phone_shows_it_without_sideways_scrolling(browser, full, tmp_path, dark):
    tab = ready(browser.open(full.url, width=360, height=780, dark=dark))
    long = saved(tmp_path / ("a_file_name_without_any_break" * 5 + ".png"), b"no image")
    tab.pick("#files", long, saved(tmp_path / "grey.png", png((128, 128, 128))))
    answers(tab, 2)
    tab.run("document.querySelector('details').open = true")
    assert tab.run("[innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    assert "Take a photo" in tab.text() and "Drop images" not in tab.text()
    wide = """[...document.body.querySelectorAll("*")]
      .filter((e) => !e.closest(".unseen") && e.getBoundingClientRect().right > 360.5)
      .map((e) => e.outerHTML.slice(0, 99))"""
    assert tab.run(wide) == []
    # The line that must always be seen is seen at the end of the page as well.
    tab.run("scrollTo(0, document.body.scrollHeight)")
    assert tab.run("document.querySelector('.device').getBoundingClientRect().top") == 0
    ground = tab.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(21, 24, 27)" if dark else "rgb(251, 251, 249)")


def test_two_classes_too_close_leave_no_class_in_large_type(browser, tmp_path):
    class Torn(FakeServable):
        def run(self, *asked, **options):
            torn = {"probabilities": [0.03, 0.07, 0.46, 0.44], "label": b"HSIL", "class_id": 2}
            return super().run(*asked, **options) | {k: np.array([v]) for k, v in torn.items()}

    values = metadata_values() | {"remarks": ["SCC is what it names 20 of 20 test images."]}
    values["calibration"]["temperature"] = None
    values["metrics"]["triage"] = {"calibration": {"before": {"ece": {"value": 0.06}}}}
    with serving(Torn(tmp_path, metadata=values, outputs=EXPLAINS)) as manager:
        tab = ready(browser.open(manager.url))
        tab.click("#samples li:nth-child(3) button")
        (shown,) = answers(tab, 1)
        assert tab.text(".result .label") == "undecided"
        assert "HSIL 46.0 % and SCC 44.0 % are too close to call" in shown
        assert "within 12.0 points of each other, twice the calibration error" in shown
        assert "SCC is what it names 20 of 20 test images." in " ".join(tab.text().split())
        assert "HSIL 46" not in tab.text("#status")
