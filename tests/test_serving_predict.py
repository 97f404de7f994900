"""`python -m serving.predict`: files, order, broken images, bounded memory, errors in one line."""

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import psutil
import pytest
from commands import command
from fake_model_servers import (
    ABSTAIN_BELOW,
    LABELS,
    Model,
    image,
    probabilities,
    serve_grpc,
    serve_rest,
)

from replication.naming.output import Output
from replication.naming.prediction import Prediction
from tfds_pap.errors import PapError

PREDICT = (sys.executable, "-m", "serving.predict")
RESEARCH = "Research software, not a medical device"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, nested and in no order of writing; two that the server refuses, and a text."""
    found = tmp_path_factory.mktemp("images")
    for number in reversed(range(23)):
        path = found / ("b" if number % 2 else "a") / f"[red]{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"broken" if number in (4, 5) else image(number))
    (found / "a" / "notes.txt").write_text("no image")
    return found


@pytest.fixture(scope="module")
def server():
    with serve_rest(Model()) as port:
        yield f"--server=localhost:{port}"


def predict(*arguments, **options):
    """The finished command over REST, which starts in a second."""
    return command("serving.predict", "--rest", *arguments, **options)


def lines(done):
    # TensorFlow writes about itself before it can be told not to.
    chatter = ("WARNING: All log", "I0000", "E0000", "W0000")
    return [line for line in done.stderr.splitlines() if not line.startswith(chatter)]


def test_both_transports_write_the_same_files_and_name_broken_images(folder, tmp_path):
    model = Model()
    with serve_grpc(model) as grpc_port, serve_rest(model) as rest_port:
        for name, arguments in (
            ("grpc", [f"--server=localhost:{grpc_port}"]),
            ("rest", ["--rest", f"--server=http://localhost:{rest_port}/"]),
        ):
            done = command(
                "serving.predict",
                *arguments,
                folder,
                folder / "a" / "[red]00.png",
                *("--batch_size=4", "--concurrency=3"),
                f"--csv={tmp_path / name}.csv",
                f"--json={tmp_path / name}.jsonl",
            )
            assert done.returncode == 1
            assert lines(done)[0].endswith("2 of 24 images have no answer:")
            assert [line.split(": ")[:2] for line in lines(done)[1:]] == [
                [f"  {folder}/a/[red]04.png", "INVALID_ARGUMENT"],
                [f"  {folder}/b/[red]05.png", "INVALID_ARGUMENT"],
            ]
            assert done.stdout.splitlines()[0].startswith("22 of 24 images named; NILM ")
            assert "; pap_stage2 version 3; " in done.stdout and RESEARCH in done.stdout
    assert (tmp_path / "grpc.csv").read_bytes() == (tmp_path / "rest.csv").read_bytes()
    assert (tmp_path / "grpc.jsonl").read_bytes() == (tmp_path / "rest.jsonl").read_bytes()
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".jsonl"}

    order = [*(folder / "a").glob("*.png"), *(folder / "b").glob("*.png")]
    order = [*sorted(order), folder / "a" / "[red]00.png"]
    rows = list(csv.DictReader((tmp_path / "grpc.csv").open()))
    objects = [json.loads(line) for line in (tmp_path / "grpc.jsonl").open()]
    assert [row["image"] for row in rows] == [each["image"] for each in objects]
    assert [row["image"] for row in rows] == list(map(str, order))
    for path, row, found in zip(order, rows, objects, strict=True):
        data = path.read_bytes()
        if data == b"broken":
            assert row["class"] == "" and row["error"] == found["error"]
            assert found["error"].startswith("INVALID_ARGUMENT: Unknown image file format")
            continue
        truth = probabilities(data)
        assert [float(row[name]) for name in LABELS] == pytest.approx(truth, abs=5.1e-7)
        assert list(found["probabilities"].values()) == pytest.approx(truth, abs=5.1e-7)
        assert row["class"] == found["class"] == LABELS[found["class_id"]]
        assert row["class"] == LABELS[truth.argmax()] and row["error"] == ""
        assert float(row["hsil_plus"]) == pytest.approx(truth[2:].sum(), abs=1e-6)
        assert int(row["abstain"]) == found["abstain"] == (truth.max() < ABSTAIN_BELOW)
        assert row["model_version"] == "3" and found["model_version"] == 3


def test_few_images_are_shown_as_a_table(folder, server):
    done = predict(server, "[red]00.png", "[red]02.png", cwd=folder / "a")
    assert (done.returncode, done.stderr) == (0, "")
    header, _, first, second = (line for line in done.stdout.splitlines()[:-2] if line.strip())
    assert header.split() == ["image", "class", *LABELS, "hsil_plus", "abstain", "model_version"]
    truth = probabilities(image(0))
    # A bracket in a name is no markup.
    assert "[red]00.png" in first and f"{truth[0]:.4f}" in first and "[red]02.png" in second
    assert done.stdout.splitlines()[-2].startswith("2 of 2 images named; ")


def test_files_that_cannot_be_sent_are_named_and_formats_of_the_lab_are_converted(tmp_path):
    model = Model()
    model.outputs = lambda images: Model().outputs([read(data) for data in images])
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)

    def read(data):
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return decoded.tobytes() if data.startswith(b"\x89PNG") else data

    cv2.imwrite(str(tmp_path / "a.tif"), pixels)
    (tmp_path / "b.png").write_bytes(b"x" * 2001)
    (tmp_path / "c.tif").write_bytes(b"II*\0" + b"rubbish" * 9)
    (tmp_path / "d.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "e.jpg")
    (tmp_path / "f.jpg").write_bytes(image(1))
    with serve_rest(model) as port:
        done = predict(
            f"--server=localhost:{port}",
            "--max_image_bytes=2000",
            tmp_path,
            f"--json={tmp_path}/out/found.jsonl",
        )
    assert done.returncode == 1
    found = [json.loads(line) for line in (tmp_path / "out" / "found.jsonl").open()]
    assert [each.get("error", "").split(" (")[0] for each in found] == [
        "",
        "2,001 bytes, expected at most --max_image_bytes=2000",
        "not a readable image",
        "not a file",
        "not a file",
        "",
    ]
    for each, data in ((found[0], pixels.tobytes()), (found[-1], image(1))):
        assert list(each["probabilities"].values()) == pytest.approx(probabilities(data), abs=1e-6)
    assert "4 of 6 images have no answer" in lines(done)[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{folder}/none.png"], "{folder}/none.png: no such file or folder"),
        (["{folder}/empty"], "{folder}/empty: holds no image"),
        (
            ["{folder}", "--model=other"],
            "NOT_FOUND: Servable not found for request: Latest(other) (--model=other: expected a ",
        ),
        (["{folder}", "--signature=nope"], "no such signature, expected one of serving_default"),
        (["{folder}", "--label=nope"], "INVALID_ARGUMENT: Unrecognized servable version label"),
        (["{folder}", "--csv=/proc/no/x.csv"], "/proc/no"),
        (["{folder}", "--bearer_token_file=/none"], "--bearer_token_file=/none: no such file"),
        (["{folder}", "--server={nobody}", "--retries=1"], "UNAVAILABLE: http://{nobody}: "),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_errors_are_one_line(tmp_path, server, arguments, said):
    (tmp_path / "a.png").write_bytes(image(1))
    (tmp_path / "empty").mkdir()
    with socket.socket() as found:
        found.bind(("localhost", 0))
        words = {"folder": tmp_path, "nobody": f"localhost:{found.getsockname()[1]}"}
        output = f"--json={tmp_path}/out.jsonl"
        done = predict(server, output, *(each.format(**words) for each in arguments))
    assert done.returncode == 1 and done.stdout == ""
    (line,) = lines(done)
    assert line.startswith("serving.predict: ") and said.format(**words) in line
    assert not list(tmp_path.glob("out*"))


def test_wrong_flags_are_named(server):
    for arguments, said in (
        ([server], "expected images or folders"),
        ([server, "x.png", "--version=1", "--label=a"], "expected one of them"),
        ([server, "x.png", "--csv=a", "--json=a"], "expected two files"),
    ):
        done = predict(*arguments)
        assert done.returncode == 1 and said in done.stderr + done.stdout


def test_a_server_that_goes_leaves_what_was_done(folder, tmp_path):
    model = Model(max_batch=2)
    answered = model.outputs

    def outputs(images):
        if len(model.requests) > 4:
            raise BrokenPipeError
        return answered(images)

    model.outputs = outputs
    with serve_rest(model) as port:
        done = predict(
            f"--server=localhost:{port}",
            *("--retries=0", "--concurrency=1", "--batch_size=2", "--version=3"),
            folder / "b",
            f"--csv={tmp_path}/out.csv",
        )
    (line,) = lines(done)
    assert done.returncode == 1 and "UNAVAILABLE" in line
    assert line.endswith(f"; answers until then: {tmp_path}/out.csv.partial")
    assert len(list(csv.DictReader((tmp_path / "out.csv.partial").open()))) > 0
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("delay", [0.05, 20.0])
def test_an_interrupt_ends_at_once_and_keeps_what_was_done(folder, tmp_path, delay):
    model = Model(delay=delay)
    arguments = [folder, "--batch_size=1", "--concurrency=2", f"--csv={tmp_path}/out.csv"]
    with serve_rest(model) as port:
        process = subprocess.Popen(
            [*PREDICT, "--rest", f"--server=localhost:{port}", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A suite that a shell runs in the background ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        end = time.monotonic() + 30
        while len(model.requests) < (8 if delay < 1 else 2) and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    assert process.returncode == 130 and out == ""
    if delay < 1:
        assert error == (
            f"\nserving.predict: interrupted; answers until then: {tmp_path}/out.csv.partial\n"
        )
        assert len(list(csv.DictReader((tmp_path / "out.csv.partial").open()))) >= 4
    else:
        assert error == (
            "\nserving.predict: interrupted; nothing half-written is left; the same command starts "
            "again\n"
        )
        assert not list(tmp_path.iterdir())


def test_two_thousand_images_run_in_bounded_memory(tmp_path, server):
    """120 MB of images; what is held at a time is 2 requests of 4 images, 480 kB."""
    data = image(1).ljust(60_000, b" ")
    (tmp_path / "few").mkdir()
    first = tmp_path / "few" / "first.png"
    first.write_bytes(data)
    (tmp_path / "many").mkdir()
    for number in range(2_000):
        os.link(first, tmp_path / "many" / f"{number:05d}.png")
    peaks, output = {}, tmp_path / "out.csv"
    arguments = ["--batch_size=4", "--concurrency=2", f"--csv={output}"]
    for name in ("few", "many"):
        process = subprocess.Popen(
            [*PREDICT, "--rest", server, tmp_path / name, *arguments],
            stdout=subprocess.DEVNULL,
        )
        # Not the system's own figure of the peak: that counts this process, before the command
        # took its place.
        peaks[name] = 0.0
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                used = psutil.Process(process.pid).memory_info().rss / 2**20
                peaks[name] = max(peaks[name], used)
            time.sleep(0.01)
        assert process.returncode == 0
    with output.open() as file:
        names = [row["image"] for row in csv.DictReader(file)]
    assert names == [str(tmp_path / "many" / f"{number:05d}.png") for number in range(2_000)]
    assert peaks["few"] > 20 and peaks["many"] < peaks["few"] + 40, f"MiB: {peaks}"


def test_images_of_several_versions_and_other_classes(tmp_path):
    def found(label, class_id, version):
        return Prediction((0.1, 0.2, 0.3), label, class_id, None, None, version)

    with Output(tmp_path / "a.csv", None) as output:
        output.write("first", "unreadable")
        output.write("caf\udce9.png", found("x", 1, 7))
        output.write("third", found("y", 2, None))
    assert (tmp_path / "a.csv").read_bytes().splitlines() == [
        b"image,class,probability_0,probability_1,probability_2,hsil_plus,abstain,model_version,error",
        b"first,,,,,,,,unreadable",
        b"caf\xe9.png,x,0.1,0.2,0.3,,,7,",
        b"third,y,0.1,0.2,0.3,,,,",
    ]
    assert output.summary.line("m", 2.0) == (
        "2 of 3 images named; x 1, y 1; m versions 7, unknown; 2.0 s, 1.5 images/s"
    )
    # Cells of a terminal are text, whatever the name was.
    assert [row[0] for row in output.table()] == ["image", "first", "caf\ufffd.png", "third"]


def test_classes_that_change_on_the_way_are_refused():
    def found(label, class_id):
        return Prediction((0.1, 0.2, 0.3, 0.4), label, class_id, 0.7, False, 1)

    output = Output(None, None)
    output.write("first", found("SCC", 3))
    with pytest.raises(PapError, match=r"second: expected the classes NILM, .* got probability"):
        output.write("second", found("HSIL", 0))


def test_all_images_broken_still_make_a_table(tmp_path):
    with Output(tmp_path / "a.csv", None) as output:
        output.write("only", "unreadable")
    text = "image,class,hsil_plus,abstain,model_version,error\nonly,,,,,unreadable\n"
    assert (tmp_path / "a.csv").read_text() == text
    assert output.summary.line("m", 0.0) == "0 of 1 images named; 0.0 s, 0.0 images/s"


def test_a_file_that_cannot_be_made_leaves_none(tmp_path):
    (tmp_path / "taken").write_text("")
    with contextlib.suppress(OSError):
        Output(tmp_path / "a.csv", tmp_path / "taken" / "b.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
