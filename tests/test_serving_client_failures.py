"""The client over both transports where an answer fails: what is tried again, for how long."""

import collections
import http.server
import json
import re
import socket
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from fake_model_servers import TRANSPORTS, Model, connected, image, serve_grpc, serve_rest

from serving.client import Client, ClientError, Prediction, transport

CODE = grpc.StatusCode


@pytest.fixture
def model():
    return Model()


@TRANSPORTS
def test_unavailable_is_tried_again(model, rest, monkeypatch):
    monkeypatch.setattr(transport, "_FIRST_DELAY_SECONDS", 0.01)
    model.failures.extend([CODE.UNAVAILABLE] * 2)
    with connected(model, rest) as client:
        assert len(client.predict([image(1)])) == 1
        assert len(model.requests) == 3
        model.failures.extend([CODE.UNAVAILABLE] * 5)
        with pytest.raises(ClientError, match=r"^UNAVAILABLE: scripted$") as error:
            client.predict([image(1)])
    assert re.search(r" \(5 attempts in \d+\.\d s\)$", error.value.message)
    assert len(model.requests) == 8


@TRANSPORTS
@pytest.mark.parametrize(
    "code",
    [
        CODE.INVALID_ARGUMENT,
        CODE.NOT_FOUND,
        CODE.RESOURCE_EXHAUSTED,
        CODE.INTERNAL,
        CODE.UNIMPLEMENTED,
        CODE.UNAUTHENTICATED,
        CODE.DEADLINE_EXCEEDED,
    ],
    ids=lambda code: code.name,
)
def test_nothing_else_is_tried_again(model, rest, code):
    model.failures.append(code)
    with connected(model, rest, batch_size=2) as client, pytest.raises(ClientError) as error:
        client.predict([image(1)])
    assert error.value.code is code and len(model.requests) == 1


@TRANSPORTS
def test_an_error_names_its_images(model, rest):
    with connected(model, rest, batch_size=2) as client, pytest.raises(ClientError) as error:
        client.predict([image(1), image(2), image(3), b"broken", image(5)])
    assert error.value.images == (2, 3) and error.value.code is CODE.INVALID_ARGUMENT
    # One line, although the server's message has two.
    assert str(error.value) == (
        "INVALID_ARGUMENT: Unknown image file format. One of JPEG, PNG, GIF, BMP required."
    )


@TRANSPORTS
def test_a_server_that_is_slow_meets_the_deadline(rest):
    with (
        connected(Model(delay=2.0), rest, timeout=0.3) as client,
        pytest.raises(ClientError, match=r"no answer within 0\.3 s") as error,
    ):
        client.predict([image(1)])
    assert error.value.code is CODE.DEADLINE_EXCEEDED and error.value.images == (0,)


@TRANSPORTS
def test_repetitions_end_with_the_deadline(model, rest):
    model.failures.extend([CODE.UNAVAILABLE] * 1000)
    with (
        connected(model, rest, timeout=0.8, retries=900) as client,
        pytest.raises(ClientError) as error,
    ):
        client.predict([image(1)])
    assert error.value.code is CODE.UNAVAILABLE and 2 <= len(model.requests) <= 6


@TRANSPORTS
def test_a_server_that_comes_later_is_reached(model, rest):
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    with (
        Client(f"localhost:{port}", rest=rest, retries=8) as client,
        futures.ThreadPoolExecutor() as executor,
    ):
        answer = executor.submit(client.predict, [image(1)])
        time.sleep(0.5)
        assert not answer.done()
        with (serve_rest if rest else serve_grpc)(model, port):
            assert len(answer.result(10)) == 1


def test_delays_double_up_to_a_limit_and_differ(monkeypatch):
    delays = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, delay: delays.append(delay))

    def fail(timeout):
        raise ClientError(CODE.UNAVAILABLE, "down")

    for _ in range(40):
        with pytest.raises(ClientError):
            transport.Retrying(6, 1000.0).call(fail)
    delays = np.reshape(delays, (40, 6))
    longest = [0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert (delays <= longest).all() and (delays >= np.array(longest) / 2).all()
    assert (np.ptp(delays, axis=0) > np.array(longest) / 4).all()


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next bytes of `model`, then closes the connection."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(self.model.popleft())
        self.close_connection = True

    def log_message(self, *_):
        pass


GOOD = json.dumps({"outputs": {"probabilities": [[0.5, 0.5]], "label": ["a"], "class_id": [0]}})


def test_rest_tries_again_before_an_answer_but_not_within_one():
    whole = f"HTTP/1.1 200 OK\r\nContent-Length: {len(GOOD)}\r\n\r\n{GOOD}".encode()
    answers = collections.deque(
        [b"", whole, whole[:-10], b"HTTP/1.1 301 Go\r\nLocation: /x\r\n\r\n"]
    )
    answers += [b"HTTP/1.1 200 OK\r\n\r\n<html>", b"HTTP/1.1 404 No\r\n\r\n<html>\x1b[2J"]
    with (
        serve_rest(answers, handler=Scripted) as port,
        Client(f"localhost:{port}", rest=True, version=1) as client,
    ):
        assert client.predict([b"x"]) == [Prediction((0.5, 0.5), "a", 0, None, None, 1)]
        for code, said in (
            (CODE.UNKNOWN, "IncompleteRead"),
            (CODE.UNKNOWN, "HTTP 301"),
            (CODE.UNKNOWN, "expected an answer as TensorFlow Serving gives it, got '<html>'"),
            (CODE.NOT_FOUND, "HTTP 404: '<html>"),
        ):
            with pytest.raises(ClientError, match=said) as error:
                client.predict([b"x"])
            assert error.value.code is code and str(error.value).isprintable()
    assert not answers


@TRANSPORTS
def test_closing_ends_a_wait(model, rest):
    with socket.socket() as found:
        found.bind(("localhost", 0))
        # Bound, not listening: connections are refused.
        client = Client(f"localhost:{found.getsockname()[1]}", rest=rest, retries=50)
        with futures.ThreadPoolExecutor() as executor:
            answer = executor.submit(client.predict, [image(1)])
            time.sleep(0.5)
            client.close()
            with pytest.raises(ClientError):
                answer.result(2)


@pytest.mark.parametrize("rest", [False, True])
def test_the_first_question_is_repeated_where_somebody_listens(rest):
    def fail(message):
        raise ClientError(grpc.StatusCode.UNAVAILABLE, message)

    with (
        (serve_rest if rest else serve_grpc)(Model()) as port,
        Client(f"localhost:{port}", rest=rest) as client,
    ):
        answer, asked = client._transport.metadata, []

        def metadata(target, timeout):
            asked.append(target)
            return answer(target, timeout) if len(asked) > 1 else fail("connection timed out")

        client._transport.metadata = metadata
        client.check()
        assert len(asked) == 2
        client._transport.metadata = lambda *_: fail("Connection refused")
        with pytest.raises(ClientError, match=r"refused \(1 attempt in"):
            client.check()
