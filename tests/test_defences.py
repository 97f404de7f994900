"""What strangers may do to the embedded server over the network, and what they may not."""

import contextlib
import gc
import gzip
import http.client
import json
import socket
import threading
import weakref

import grpc
import numpy as np
import pytest
import serving_models
from serving_clients import PREDICT, eventually, linear_body, rest
from tensorflow_serving.apis import model_pb2, predict_pb2

from serving.server import connections, deadlines, fronts, listening, monitoring
from serving.server.admission import Admission
from serving.server.errors import ServingError
from serving.server.grpc import front
from serving.server.rest import names

MIB = 2**20


@pytest.fixture(scope="module")
def serving_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    serving_models.write_version(folder, 1)
    return folder


@pytest.fixture(scope="module")
def server(serving_dir):
    with fronts.running(serving_dir, allowed_hosts=("models.example",)) as running:
        yield running


# -- Without end -----------------------------------------------------------------------------------

POST = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
ENDLESS = {
    "value": b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ",
    "name": b"GET / HTTP/1.1\r\nHost: localhost\r\n",
    "URL": b"GET /",
    "extension": POST + b"2;",
    "trailer": POST + b"2\r\n{}\r\n0\r\nX: ",
    "extension of the second chunk": POST + b"1\r\n{\r\n1;",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_nothing_is_taken_without_end(server, kind):
    taken = 0
    address = ("127.0.0.1", server.rest_port)
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=20) as connection:
        connection.sendall(ENDLESS[kind])
        while taken < 64 * MIB:
            connection.sendall(b"b" * 65536)
            taken += 65536
    # What is in the buffers of the sockets is taken in any case.
    assert taken < 16 * MIB
    assert rest(server, "POST", PREDICT, linear_body([0, 0]))[0] == 200


def test_many_small_extensions_are_too_many_together(server):
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as connection:
        connection.sendall(POST)
        taken = 0
        with contextlib.suppress(OSError):
            while taken < 64 * MIB:
                connection.sendall((b"1;" + b"b" * 8000 + b"\r\n{\r\n") * 8)
                taken += 64_000
    assert taken < 16 * MIB


def test_a_body_in_chunks_of_one_byte_is_read(server):
    body = json.dumps(linear_body([1, 2])).encode() + b" " * 30_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as connection:
        connection.sendall(POST + chunks)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


# -- Connections -----------------------------------------------------------------------------------


def test_idle_connections_make_way(serving_dir):
    settings = {"max_connections": 16, "port": None, "page": False}
    with fronts.running(serving_dir, **settings) as server, contextlib.ExitStack() as held:
        idle = []
        for _ in range(100):
            address = ("127.0.0.1", server.rest_port)
            idle.append(held.enter_context(socket.create_connection(address, timeout=20)))
        assert rest(server, "POST", PREDICT, linear_body([0, 0]))[0] == 200
        # The oldest have been closed.
        with contextlib.suppress(ConnectionResetError):
            assert idle[0].recv(1) == b""
        text = rest(server, "GET", "/monitoring/prometheus/metrics")[2].decode()
        figures = dict(line.split() for line in text.splitlines() if line.startswith("embedded_"))
        assert float(figures["embedded_server_http_connections"]) <= 16
        assert float(figures["embedded_server_http_connections_closed_total"]) >= 84


def test_who_waits_for_an_answer_is_not_closed(serving_dir):
    settings = {"max_connections": 8, "port": None, "page": False}
    with fronts.running(serving_dir, **settings) as server, contextlib.ExitStack() as held:
        found = []

        def ask():
            body = {"signature_name": "slow", "instances": [1.0]}
            found.append(rest(server, "POST", PREDICT, body)[0])

        thread = threading.Thread(target=ask)
        thread.start()
        eventually(lambda: server.admission.at_work == 1)
        for _ in range(40):
            address = ("127.0.0.1", server.rest_port)
            held.enter_context(socket.create_connection(address, timeout=20))
        thread.join()
        assert found == [200]


def test_the_limit_of_connections_fits_the_descriptors(monkeypatch):
    limits = {}

    def limit(wanted, soft, hard):
        limits.clear()
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (soft, hard))
        monkeypatch.setattr(
            connections.resource, "setrlimit", lambda _, new: limits.update(new=new)
        )
        return connections.limit(wanted)

    infinity = connections.resource.RLIM_INFINITY
    assert limit(None, 256, 256) == 80 and not limits
    assert limit(None, 256, 100_000) == 1024 and limits["new"] == (2144, 100_000)
    assert limit(None, 256, infinity) == 1024 and limit(None, infinity, infinity) == 1024
    assert limit(50, 1024, 1024) == 50 and limit(50, 100, 100) == 8


# -- Deadlines -------------------------------------------------------------------------------------


def test_work_that_goes_on_frees_its_request_and_is_counted():
    pool = deadlines.DeadlinePool(threads=2)
    go_on = threading.Event()
    for overdue in (1, 2):
        with pytest.raises(ServingError, match="Deadline Exceeded"):
            pool.run(go_on.wait, timeout=0.05)
        assert pool.counts() == (overdue, overdue, overdue, 0)
    # Every thread is held: nobody waits in vain.
    with pytest.raises(ServingError, match="hold every thread") as refused:
        pool.run(lambda: 1, timeout=60)
    assert refused.value.code.name == "UNAVAILABLE"
    go_on.set()
    eventually(lambda: pool.counts() == (0, 0, 2, 0))
    assert pool.run(lambda: 42, timeout=60) == 42


def test_what_waits_too_long_is_never_begun():
    pool = deadlines.DeadlinePool(threads=1)
    go_on, begun = threading.Event(), []
    first = threading.Thread(target=pool.run, args=(go_on.wait, None))
    first.start()
    eventually(lambda: pool.counts().running == 1)
    with pytest.raises(ServingError, match="Deadline Exceeded"):
        pool.run(lambda: begun.append(1), timeout=0.05)
    go_on.set()
    first.join()
    assert pool.run(lambda: "next", timeout=60) == "next"
    assert not begun and pool.counts() == (0, 0, 0, 1)


def test_failures_reach_who_asked():
    pool = deadlines.DeadlinePool(threads=1)
    for failure in (ValueError("own"), ServingError(None, "theirs")):

        def fail(failure=failure):
            raise failure

        with pytest.raises(type(failure), match=str(failure)):
            pool.run(fail, timeout=None)
    assert pool.counts() == (0, 0, 0, 0)


def test_a_decoding_that_cannot_be_stopped_holds_nobody(serving_dir, monkeypatch):
    with fronts.running(
        serving_dir, page=False, port=None, image_threads=2, rest_timeout_seconds=0.3
    ) as server:
        go_on, inside = threading.Event(), server.manager.use
        with inside(serving_models.predict_request("tiny").model_spec) as servable:
            run_session = servable._run_session
            monkeypatch.setattr(
                servable, "_run_session", lambda *given: go_on.wait() and run_session(*given)
            )
        image = {"instances": [{"b64": "AAAA"}]}
        status, _, answer = rest(server, "POST", PREDICT, image)
        assert (status, answer["error"]) == (504, "Deadline Exceeded")
        assert server.admission.at_work == 0 and server.images.counts().overdue == 1
        text = rest(server, "GET", "/monitoring/prometheus/metrics")[2].decode()
        for line in ("overdue_runs 1.0", "overdue_runs_total 1.0", "image_threads 2.0"):
            assert f"embedded_server_{line}" in text
        go_on.set()
        eventually(lambda: server.images.counts().overdue == 0)
        assert rest(server, "POST", PREDICT, image)[0] == 400


# -- Names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "host", "origin", "is_let_in"),
    [
        ("GET", "127.0.0.1:{port}", None, True),
        ("GET", "localhost", None, True),
        ("GET", "LocalHost.:{port}", None, True),
        ("GET", "[::1]:{port}", None, True),
        ("GET", "models.example:80", None, True),
        ("GET", "attacker.example:{port}", None, False),
        ("GET", "localhost.attacker.example", None, False),
        ("GET", "", None, False),
        ("POST", "localhost:{port}", "http://localhost:{port}", True),
        ("POST", "localhost:{port}", "https://models.example", True),
        ("POST", "localhost:{port}", "http://localhost:1", False),
        ("POST", "localhost:{port}", "http://127.0.0.1:{port}", False),
        ("POST", "localhost:{port}", "https://attacker.example", False),
        ("POST", "localhost:{port}", "null", False),
        ("POST", "localhost:{port}", "", False),
        ("GET", "localhost:{port}", "https://attacker.example", True),
    ],
)
def test_only_its_own_names_and_pages(server, method, host, origin, is_let_in):
    headers = {"Host": host.format(port=server.rest_port)}
    if origin is not None:
        headers["Origin"] = origin.format(port=server.rest_port)
    paths = ("/v1/models/tiny", "/") if method == "GET" else (PREDICT, "/page/predict")
    for path in paths:
        status, _, answer = rest(server, method, path, linear_body([0, 0]), headers)
        assert (status != 403) == is_let_in, (path, answer)
        assert is_let_in or answer["error"]


def test_who_sends_no_host_is_no_browser(server):
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as connection:
        connection.sendall(b"GET /v1/models/tiny HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_names_of_the_flags():
    own = names.Names(["Models.Example.", "10.0.0.5"])
    own.check("POST", "models.example", "http://models.example:8080")
    with pytest.raises(ServingError, match="no name 'x'; see --allowed_hosts"):
        own.check("GET", "x", None)


# -- Packed bodies ---------------------------------------------------------------------------------


def test_gzip_as_tensorflow_serving_takes_it(serving_dir):
    with fronts.running(serving_dir, max_request_bytes=200_000, port=None) as server:
        body = json.dumps(linear_body([1, 2])).encode()
        packed = {"Content-Encoding": "gzip"}
        assert rest(server, "POST", PREDICT, gzip.compress(body), packed)[2] == {
            "predictions": [13.0]
        }
        picture = gzip.compress(serving_models.png(0))
        assert rest(server, "POST", "/page/predict", picture, packed)[0] == 200
        # A bomb is unpacked no further than a body may be long.
        for bomb in (gzip.compress(bytes(200_001)), gzip.compress(bytes(64 * MIB))):
            assert rest(server, "POST", PREDICT, bomb, packed)[0] == 413
        assert rest(server, "POST", PREDICT, gzip.compress(body.ljust(200_000)), packed)[0] == 200
        for broken in (body, gzip.compress(body)[:-9], b""):
            status, _, answer = rest(server, "POST", PREDICT, broken, packed)
            assert status == 400 and "no gzip" in answer["error"]


# -- The page, and what errors tell ----------------------------------------------------------------


class Aborted(Exception):
    pass


class Context:
    """Of a call, as far as one that fails asks for it."""

    def is_active(self):
        return True

    def time_remaining(self):
        return 1.0

    def abort(self, code, message):
        raise Aborted(code.name, message)


def test_messages_at_work_are_bounded_by_their_bytes():
    memory, context = front._Memory(10), Context()
    read = []

    def call(name, method):
        data = model_pb2.ModelSpec(name=name).SerializeToString()
        return front._read_and_run(method, model_pb2.ModelSpec, memory, data, context)

    def remember(spec, _):
        read.append(spec.name)
        return spec.name

    def while_at_work(spec, _):
        with pytest.raises(Aborted, match="Too many requests are on their way"):
            call("abc", remember)
        return call("ab", remember)

    # A name has two bytes more than letters: beside one of four there is room for two.
    assert call("abcd", while_at_work) == "ab" and read == ["ab"]
    with pytest.raises(Aborted, match="INTERNAL"):
        front._read_and_run(remember, model_pb2.ModelSpec, memory, b"\xff", context)
    with pytest.raises(ZeroDivisionError):
        call("abcd", lambda spec, context: 1 / 0)
    assert call("abcdefgh", remember) == "abcdefgh"


def test_a_failure_frees_what_its_request_held():
    class Pixels:
        pass

    def fail(manager, request, timeout=None):
        pixels = Pixels()
        held.append(weakref.ref(pixels))
        raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "no")

    held, request = [], predict_pb2.PredictRequest()
    calls = front._Calls(None, Admission(), monitoring.Metrics(list))
    gc.disable()
    try:
        for call in (
            lambda: calls.run(fail, "Predict", request, Context()),
            lambda: calls.look(fail, request, Context()),
        ):
            with pytest.raises(Aborted, match="INVALID_ARGUMENT"):
                call()
    finally:
        gc.enable()
    assert [reference() for reference in held] == [None, None]


def test_samples_of_any_name(server):
    assert rest(server, "GET", "/page/samples/0.png")[0] == 200
    for number in ("9" * 5000, "-1", "x", "1e3", "٣", "99"):
        path = f"/page/samples/{number}.png"
        status, _, answer = rest(server, "GET", urlquoted(path))
        assert status == 404 and len(answer["error"]) < 100


def urlquoted(path):
    return path.encode().decode("latin-1") if path.isascii() else "/page/samples/%D9%A3.png"


def test_requests_of_the_page_are_counted(server):
    assert rest(server, "POST", "/page/predict", serving_models.png(0))[0] == 200
    assert rest(server, "POST", "/page/predict", b"no image")[0] == 400
    text = rest(server, "GET", "/monitoring/prometheus/metrics")[2].decode()
    labels = 'API="predict",entrypoint="PAGE",'
    assert f":tensorflow:serving:request_latency_bucket{{{labels}" in text
    assert 'request_count{model_name="tiny",status="INVALID_ARGUMENT"}' in text


def test_errors_name_no_node_of_the_graph(server):
    body = {"instances": [{"b64": "AAAA"}]}
    status, _, answer = rest(server, "POST", PREDICT, body)
    assert status == 400 and "Unknown image file format" in answer["error"]
    assert "{{" not in answer["error"] and "\n" not in answer["error"]


def test_connections_that_are_kept_are_used_again(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
    body = json.dumps(linear_body([0, 0]))
    for _ in range(3):
        connection.request("POST", PREDICT, body)
        assert np.isclose(json.loads(connection.getresponse().read())["predictions"][0], 10)
    connection.close()


def test_a_header_without_end_finds_little_room_in_the_buffers_of_the_system():
    with listening.bound("127.0.0.1", 0) as listener:
        room = listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert listening.RECEIVED_BYTES <= room <= 2 * listening.RECEIVED_BYTES
