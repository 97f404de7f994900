"""The health check of the generated files, run as a container would run it."""

import contextlib
import http.server
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from serving.deploy.render import Settings

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None, reason="no bash on the PATH, which the image has"
)


def health_check(port):
    return Settings(Path("models/pap_stage2"), Path("deploy"), "", rest_port=port).health_check()


@contextlib.contextmanager
def status_server(status, body, *, silent=False):
    """Yields the port of a server that answers GET /v1/models/pap_stage2 with these."""
    done = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            assert self.path == "/v1/models/pap_stage2" and self.headers["Host"]
            if silent:
                done.wait(30)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        done.set()
        server.shutdown()
        server.server_close()


def versions_status(*states):
    """As TensorFlow Serving prints it."""
    each = '  {\n   "version": "%d",\n   "state": "%s",\n   "status": {}\n  }'
    found = ",\n".join(each % (number, state) for number, state in enumerate(states, 1))
    return '{\n "model_version_status": [\n' + found + "\n ]\n}\n"


@pytest.mark.parametrize(
    ("status", "body", "healthy"),
    [
        (200, versions_status("AVAILABLE"), True),
        (200, versions_status("END", "AVAILABLE", "LOADING"), True),
        (200, versions_status("LOADING"), False),
        (200, versions_status("END", "UNLOADING"), False),
        (404, '{\n    "error": "Could not find any versions of model pap_stage2"\n}', False),
        (503, '{"error": "UNAVAILABLE"}', False),
    ],
    ids=["available", "one of three", "loading", "ended", "not found", "unavailable"],
)
def test_health_check_looks_for_an_available_version(status, body, healthy):
    with status_server(status, body) as port:
        done = subprocess.run(health_check(port), capture_output=True, timeout=20, check=False)
    assert (done.returncode == 0) is healthy and done.stdout == b""


def test_health_check_fails_where_nobody_answers():
    with status_server(200, "", silent=True) as port:
        check = health_check(port)
        # The probes' own time is up after five seconds.
        done = subprocess.run(check, capture_output=True, timeout=5, check=False)
        assert done.returncode != 0
    assert subprocess.run(check, capture_output=True, timeout=5, check=False).returncode != 0
