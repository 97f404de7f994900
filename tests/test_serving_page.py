"""The page of the server: its routes over HTTP. `test_serving_page_browser.py` drives the page."""

import base64
import concurrent.futures
import contextlib
import hashlib
import io
import json
import re
import threading

import grpc
import numpy as np
import pytest
import requests
from page_server import (
    BANNER,
    EXPLAINS,
    LABELS,
    LIMIT,
    SIZE,
    FakeManager,
    FakeServable,
    estimate,
    metadata_values,
    png,
    serving,
)
from pages import Page
from PIL import Image
from tensorflow_serving.apis import model_pb2

from replication.learning.gradcam import overlay
from serving.server.errors import ServingError
from serving.server.page import answers as page_answers
from serving.server.page import app as page
from serving.server.page import facts as page_facts
from serving.server.page.answers import SAMPLE_SEED, SAMPLE_SLIDE
from tfds_pap import phantom

SPEC = model_pb2.ModelSpec(name="pap_stage2")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pap_stage2")
    with serving(FakeServable(folder, metadata=metadata_values(), outputs=EXPLAINS)) as manager:
        yield manager


def pixels(uri):
    kind, _, data = uri.partition(";base64,")
    assert kind == "data:image/png"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_page_runs_its_own_script_and_style_and_nothing_else(full):
    response = requests.get(full.url)
    policy = dict(
        rule.split(" ", 1) for rule in response.headers["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        ((attributes, text),) = re.findall(
            rf"<{tag}([^>]*)>(.*?)</{tag}>", response.text, re.DOTALL
        )
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[rule] == f"'sha256-{digest}'" and "src" not in attributes
    parsed = Page(response.text)
    assert parsed.values("href") == ["data:,", "#about"] and not parsed.values("src")
    assert not [n for _, attrs in parsed.tags for n in attrs if n.startswith("on") or n == "style"]
    assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|@import|url\(", response.text)
    assert "It must not be used for screening, diagnosis" in parsed.text
    assert "This page needs JavaScript" in parsed.text


def test_name_of_the_model_cannot_become_markup(tmp_path):
    name = '"><script>alert(1)</script>'
    html, _ = page._render(name, LIMIT)
    assert name not in html and Page(html).tags.count(("script", {"type": "module"})) == 1


def test_model_is_described_by_its_metadata(full):
    found = requests.get(full.url + "page/model").json()
    assert (found["name"], found["version"], found["state"]) == ("pap_stage2", 1, "AVAILABLE")
    assert found["unknown"] == "" and found["explains"] and found["takes_images"]
    assert found["title"] == "fine-tuned mobilenetv2" and found["labels"] == LABELS
    rows = {row["name"]: row for row in found["metrics"]}
    # The interval that respects groups is the one that is quoted.
    assert (
        rows["Accuracy"]["text"] == "76.6\u00a0% [70.9,\u00a082.5]"
        and rows["Accuracy"]["low"] == 0.7089
    )
    assert rows["HSIL+ sensitivity"]["text"] == "94.0\u00a0% [86.7,\u00a097.4]"
    assert rows["HSIL+ sensitivity"]["count"] == 83
    assert rows["HSIL+ specificity"]["value"] is None
    assert rows["HSIL+ specificity"]["text"] == "not defined: no test image"
    assert rows["SCC sensitivity"]["count"] == 8
    assert found["methods"]["Wilson"].startswith("HSIL+ sensitivity; NILM sensitivity")
    assert found["test_images"] == {"NILM": 200, "LSIL": 102, "HSIL": 75, "SCC": 8}
    assert found["announcement"] == BANNER and "twin" in found["audit"][0]
    assert [each["label"] for each in found["samples"]] == LABELS


def test_it_reads_what_the_export_writes():
    from serving.model import metadata

    assert (page_facts._METADATA.name, page_facts._FORMAT) == (metadata.FILE_NAME, metadata.FORMAT)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, "it has no assets.extra/metadata.json"),
        ("{", "its assets.extra/metadata.json cannot be read"),
        ({"format": 2}, "its assets.extra/metadata.json is of format 2, not 1"),
        ([], "its assets.extra/metadata.json is not as serving.export writes it"),
        ({**metadata_values(), "metrics": {"accuracy": 0.9}}, "not as serving.export writes it"),
        ({**metadata_values(), "limits": None}, "not as serving.export writes it"),
        ({**metadata_values(), "calibration": {"temperature": 0, "note": ""}}, "not as serving"),
    ],
)
def test_model_without_metadata_is_served_and_nothing_is_claimed(tmp_path, metadata, reason):
    servable = FakeServable(tmp_path, metadata=metadata, endpoints=["serving_default"])
    found = page_answers.describe(FakeManager(servable), SPEC)
    assert reason in found["unknown"] and found["labels"] == [] and "metrics" not in found
    answer = page_answers.ask(FakeManager(servable), SPEC, png(), None)
    assert [name for name, _ in answer["probabilities"]] == [f"class {n}" for n in range(4)]
    absent = ("calibrated", "hsil_plus", "abstain", "threshold", "size", "image", "heat")
    assert [answer[name] for name in absent] == [None] * 7 and answer["label"] in LABELS


def test_stage_1_model_is_offered_samples_of_its_own(tmp_path):
    values = {**metadata_values(), "labels": ["background", "cell"]}
    manager = FakeManager(FakeServable(tmp_path, metadata=values))
    found = page_answers.describe(manager, SPEC)
    assert [each["label"] for each in found["samples"]] == ["background", "cell"]
    for each in found["samples"]:
        number = int(re.search(r"(\d+)\.png$", each["url"])[1])
        expected = phantom.draw_roi(each["label"], SAMPLE_SEED, slide=SAMPLE_SLIDE)
        drawn = Image.open(io.BytesIO(page_answers.sample_png(number)))
        assert np.array_equal(np.asarray(drawn), expected)


def test_samples_are_phantoms_and_always_the_same(full):
    for number, label in enumerate(LABELS):
        response = requests.get(f"{full.url}page/samples/{number}.png")
        assert response.headers["Content-Type"] == "image/png"
        expected = phantom.draw_cell(label, SAMPLE_SEED, slide=SAMPLE_SLIDE)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(response.content))), expected)
        assert requests.get(f"{full.url}page/samples/{number}.png").content == response.content
    response = requests.get(f"{full.url}page/samples/6.png")
    assert response.status_code == 404
    assert response.json() == {"error": "sample: expected 0 to 5, got 6"}


def test_answer_is_the_model_s(full):
    data = png()
    response = requests.post(full.url + "page/predict", data=data)
    found = response.json()
    truth = full.servable.run("explain", {"image_bytes": np.array([data], object)})
    assert full.servable.calls[-2] == ("explain", 5.0)
    assert [name for name, _ in found["probabilities"]] == LABELS
    assert [p for _, p in found["probabilities"]] == truth["probabilities"][0].tolist()
    assert found["label"] == truth["label"][0].decode() == "LSIL"
    assert found["meaning"] == "low-grade squamous intraepithelial lesion"
    logits = np.log(truth["probabilities"][0].astype(np.float64)) / 2.83
    assert found["calibrated"] == pytest.approx(np.exp(logits) / np.exp(logits).sum())
    assert found["hsil_plus"] == float(truth["hsil_plus"][0])
    assert found["abstain"] is bool(truth["abstain"][0]) and found["threshold"] == 0.494
    assert found["version"] == 1 and 0 < found["milliseconds"] < 5000
    assert found["size"] == [SIZE, SIZE]
    seen = truth["image"][0].astype(np.uint8)
    assert np.array_equal(pixels(found["image"]), seen)
    assert np.array_equal(pixels(found["heat"]), overlay(seen, truth["heat"][0]))


def test_model_that_takes_no_image(tmp_path):
    servable = FakeServable(tmp_path, endpoints=[])
    servable.meta_graph.signature_def["serving_default"].inputs["x"].name = "x:0"
    with serving(servable) as manager:
        assert requests.get(manager.url + "page/model").json()["takes_images"] is False
        response = requests.post(manager.url + "page/predict", data=png())
    assert response.status_code == 400 and "does not turn image_bytes" in response.json()["error"]
    assert list(servable.meta_graph.signature_def) == ["serving_default"]


def test_broken_image_is_told_without_names_of_graph_nodes(full):
    for data in (b"no image", b"", png()[:40]):
        response = requests.post(full.url + "page/predict", data=data)
        assert response.status_code == 400
        assert response.json() == {"error": "image: expected JPEG, PNG, BMP"}


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body_is_refused(full, chunked):
    before = len(full.servable.calls)
    data = b"x" * (LIMIT + 1)
    body = iter([data[:1000], data[1000:]]) if chunked else data
    response = requests.post(full.url + "page/predict", data=body)
    assert response.status_code == 413
    assert response.json() == {"error": "image: expected at most 200,000 bytes"}
    assert len(full.servable.calls) == before


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("RESOURCE_EXHAUSTED", 429),
        ("DEADLINE_EXCEEDED", 504),
        ("UNAVAILABLE", 503),
        ("INTERNAL", 500),
    ],
)
def test_failure_keeps_its_status(tmp_path, code, status):
    servable = FakeServable(tmp_path)
    servable.failure = ServingError(grpc.StatusCode[code], "as it is")
    with serving(servable) as manager:
        response = requests.post(manager.url + "page/predict", data=png())
    assert (response.status_code, response.json()) == (status, {"error": "as it is"})


def test_place_is_held_while_the_model_works_and_refused_where_there_is_none(tmp_path):
    servable, free = FakeServable(tmp_path), threading.Semaphore(1)

    @contextlib.contextmanager
    def admission():
        if not free.acquire(blocking=False):
            raise ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests at once")
        try:
            yield
        finally:
            free.release()

    run, working, go_on = servable.run, threading.Event(), threading.Event()

    def slow(*arguments, **options):
        working.set()
        go_on.wait(10)
        return run(*arguments, **options)

    servable.run = slow
    with (
        serving(servable, admission=admission) as manager,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(requests.post, manager.url + "page/predict", data=png())
        assert working.wait(10)
        second = requests.post(manager.url + "page/predict", data=png())
        # Looking at the model takes no place, and the event loop is free.
        assert requests.get(manager.url + "page/model").status_code == 200
        go_on.set()
        assert first.result().status_code == 200
        assert requests.post(manager.url + "page/predict", data=png()).status_code == 200
    assert (second.status_code, second.headers["Retry-After"]) == (429, "1")
    assert second.json() == {"error": "too many requests at once"}


def test_answer_that_is_no_number_is_no_answer(tmp_path):
    servable = FakeServable(tmp_path)
    run = servable.run
    servable.run = lambda *a, **k: {**run(*a, **k), "probabilities": np.full((1, 4), np.nan)}
    with pytest.raises(ServingError, match="no probability"):
        page_answers.ask(FakeManager(servable), SPEC, png(), None)


def test_no_version_yet(tmp_path):
    with serving(None) as manager:
        for method, path in (("GET", "page/model"), ("POST", "page/predict")):
            response = requests.request(method, manager.url + path, data=b"x")
            assert response.status_code == 404
            assert response.json()["error"] == "Servable not found for request: Latest(pap_stage2)"


def test_text_of_a_check_in_the_graph_is_shown_bare():
    import tensorflow as tf

    from serving.server.servable import translated

    text = "assertion failed: [PNG image: 90000 x 90000 pixels]\n\t [[{{node map/while/Assert}}]]"
    error = translated(tf.errors.InvalidArgumentError(None, None, text))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert error.message == "PNG image: 90000 x 90000 pixels"


def test_real_model_behind_it(tmp_path):
    import serving_models

    from serving.server.manager import Manager
    from serving.server.servable import Servable

    serving_models.write_version(tmp_path / "tiny", 3)
    config = serving_models.model_config(tiny=tmp_path / "tiny")
    manager, spec = Manager(config, load=Servable.load), model_pb2.ModelSpec(name="tiny")
    manager.start()
    try:
        found = page_answers.describe(manager, spec)
        assert (found["version"], found["state"], found["takes_images"]) == (3, "AVAILABLE", True)
        answer = page_answers.ask(manager, spec, png((0, 64, 0)), 10.0)
        truth = np.exp([0, 0, 1, 0]) / np.exp([0, 0, 1, 0]).sum()
        assert [p for _, p in answer["probabilities"]] == pytest.approx(truth.tolist())
        assert answer["label"] == "HSIL" and answer["abstain"] is False
        with pytest.raises(ServingError) as error:
            page_answers.ask(manager, spec, b"no image", 10.0)
        assert error.value.code == grpc.StatusCode.INVALID_ARGUMENT
    finally:
        manager.stop()


@pytest.mark.parametrize(
    ("probabilities", "margin", "undecided"),
    [
        ([0.05, 0.1, 0.45, 0.4], 0.06, True),
        ([0.05, 0.1, 0.48, 0.37], 0.06, False),
        ([0.25, 0.25, 0.25, 0.25], 0.0, True),
        ([0.05, 0.1, 0.43, 0.42], 0.0, False),
    ],
)
def test_two_classes_within_the_margin_are_undecided(probabilities, margin, undecided):
    named = {"calibrated": None, "probabilities": list(zip("abcd", probabilities, strict=True))}
    assert page_answers._undecided(named, margin) is undecided
    swapped = {"calibrated": probabilities, "probabilities": [("a", 1.0), ("b", 0.0)]}
    assert page_answers._undecided(swapped, margin) is undecided


def test_the_margin_is_twice_the_calibration_error_of_the_models_own_test_images(tmp_path):
    values = metadata_values()
    extra = tmp_path / "assets.extra"
    extra.mkdir()

    def facts():
        (extra / "metadata.json").write_text(json.dumps(values))
        return page_facts.read(tmp_path)

    assert facts()["margin"] == 0
    values["metrics"]["triage"] = {
        "calibration": {"before": {"ece": estimate(0.2, 0.1, 0.3)}, "after": None}
    }
    assert facts()["margin"] == 0
    values["metrics"]["triage"]["calibration"]["after"] = {"ece": estimate(0.05, 0.04, 0.09)}
    assert facts()["margin"] == pytest.approx(0.1)
    assert any("within 10.0 points: twice the expected" in note for note in facts()["notes"])
    values["calibration"]["temperature"] = None
    assert facts()["margin"] == pytest.approx(0.4)


def test_remarks_and_specificities_reach_the_page(tmp_path):
    values = metadata_values() | {"remarks": ["SCC is what it names 20 of 20 test images."]}
    for found in values["metrics"]["per_class"].values():
        found["specificity"] = estimate(0.25, 0.2, 0.3)
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / "metadata.json").write_text(json.dumps(values))
    found = page_facts.read(tmp_path)
    assert found["remarks"] == values["remarks"]
    names = [row["name"] for row in found["metrics"]]
    for name, row in zip(names, [*names[1:], ""], strict=True):
        if name.endswith("sensitivity"):
            assert row == name.replace("sensitivity", "specificity")
