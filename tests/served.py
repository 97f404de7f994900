"""Runs the embedded server as a user does: in a process of its own."""

import contextlib
import dataclasses
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import typing
from pathlib import Path


@dataclasses.dataclass
class Served:
    """A running server."""

    process: typing.Any
    grpc_port: int
    rest_port: int

    def rest(self, method, path, body=None, headers=None, timeout=30):
        """Status, headers and body of one answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def available(self, name):
        """The versions that serve."""
        status, _, body = self.rest("GET", f"/v1/models/{name}")
        if status != 200:
            return []
        states = json.loads(body)["model_version_status"]
        return [int(found["version"]) for found in states if found["state"] == "AVAILABLE"]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def process(module, *arguments, stdout=os.devnull, stderr=os.devnull):
    """Starts `python -m module arguments`, which writes to files; `commands.start` is quicker."""
    typed = [sys.executable, "-m", module, *map(str, arguments)]
    with Path(stdout).open("ab") as out, Path(stderr).open("ab") as err:
        return subprocess.Popen(typed, stdout=out, stderr=err)


@contextlib.contextmanager
def served(serving_dir, *arguments, seconds=90, log=os.devnull, start=process):
    """Starts a server, waits for its first version, stops it at the end."""
    ports = free_port(), free_port()
    flags = (f"--serving_dir={serving_dir}", f"--port={ports[0]}", f"--rest_api_port={ports[1]}")
    process = start("serving.server", *flags, *arguments, stdout=log, stderr=log)
    server = Served(process, *ports)
    try:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                if server.available(serving_dir.name):
                    break
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server did not become available"
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
