"""Honest clients, hostile ones, and whoever publishes, kills and fills disks beside them.

Used by benchmarks/soak.py for minutes and by test_soak.py for seconds.
"""

import collections
import contextlib
import gzip
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import hostile
import hostile_images
import numpy as np
import psutil
from served import Served, free_port, process
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
)

from serving.store import model_config, publish

#: One request of so many is hostile.
HOSTILE_SHARE = 0.05
#: Of the hostile images, those of megabytes: one of so many.
LARGE_SHARE = 0.1

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_FLAGS = ("--file_system_poll_wait_seconds=0.5", "--rest_api_timeout_in_ms=20000")
_HALF_A_VERSION = (
    "import pathlib, sys, time; from serving.store import publish; publish.publish(pathlib.Path("
    "sys.argv[1]), lambda folder: ((folder / 'saved_model.pb').write_bytes(b'half'), "
    "print('writing', flush=True), time.sleep(60)))"
)


class Soak:
    """One soak of a server of its own.

    Args:
        serving_dir: Made here; its parent is what may be filled.
        clients: Honest ones, which are hostile now and then.
        think: Mean seconds between two requests of one.
        large: Whether hostile images of megabytes are among them.
        hostile_share: Of the requests, once the attack has begun.
        seed: Of everything drawn.
        start: Starts a command.
    """

    def __init__(
        self,
        serving_dir,
        *,
        clients,
        think,
        large=True,
        hostile_share=HOSTILE_SHARE,
        seed=0,
        start=process,
    ):
        self.serving_dir, self.clients, self.think = serving_dir, clients, think
        self._start_process = start
        self.hostile_share = hostile_share
        rng = np.random.default_rng(seed)
        self.small = list(hostile_images.corpus(rng))
        everything = list(hostile_images.corpus(rng, large=True)) if large else []
        self.large = everything[len(self.small) :]
        pixels = np.clip(rng.normal(170, 30, (64, 64, 3)), 0, 255).astype(np.uint8)
        self.image = hostile_images.encoded(pixels, "JPEG")
        self.server, self.process, self.born = None, None, 0.0
        self.ports = free_port(), free_port()
        self.phase, self.ended, self.up = "quiet", threading.Event(), threading.Event()
        self.lock, self.seed = threading.Lock(), seed
        self.latencies = collections.defaultdict(list)
        self.honest, self.attacks = collections.Counter(), collections.Counter()
        self.events, self.unexplained = collections.Counter(), []
        self.slowest, self.doing = [], "nothing"
        self.kills, self.pauses, self.memory, self.stopped_at = [], [], [], None

    def run(self, seconds, *, progress=False):
        """Serves, attacks, and stops."""
        _write_model(self.serving_dir / "1")
        model_config.ModelConfig(self.serving_dir).assign("stable", 1)
        self._start()
        threads = [
            threading.Thread(target=self._client, args=(number,), daemon=True)
            for number in range(self.clients)
        ]
        try:
            # What it allocates once is allocated then.
            self._ask_all_ways()
            for thread in (*threads, threading.Thread(target=self._watch, daemon=True)):
                thread.start()
            quiet = min(seconds / 5, 120)
            self._pass(quiet, progress)
            self.phase = "attacked"
            self._disturb(time.monotonic() + seconds - quiet, progress)
        finally:
            self.ended.set()
            for thread in threads:
                thread.join(60)
            self._remember_memory()
            self.text = self.server.rest("GET", "/monitoring/prometheus/metrics")[2].decode()
            self.process.terminate()
            self.stopped_at = self.process.wait(60)

    def rows(self):
        """(part, what, count, value) for the table."""
        found = [("event", what, n, "") for what, n in sorted(self.events.items())]
        for phase in ("quiet", "attacked"):
            values = self.latencies[phase]
            for name, share in (("p50", 50), ("p99", 99)):
                value = round(float(np.percentile(values, share)) * 1e3, 1) if values else ""
                found.append((f"honest, {phase}", f"{name}, ms", len(values), value))
        quiet, attacked = (np.percentile(self.latencies[p], 99) for p in ("quiet", "attacked"))
        found.append(("honest", "p99 attacked / p99 quiet", "", round(float(attacked / quiet), 2)))
        found += [
            (f"honest, {phase}", answer, n, "")
            for (phase, answer), n in sorted(self.honest.items())
        ]
        found += [
            (f"hostile, {kind}", answer, n, "")
            for (kind, answer), n in sorted(self.attacks.items())
        ]
        for age, megabytes in self.memory:
            found.append(("memory of the last server", f"after {age:.0f} s, MiB", "", megabytes))
        figures = [line for line in self.text.splitlines() if line.startswith("embedded_server")]
        causes = collections.Counter(
            f"{before} to {then}" if before != then else then
            for seconds, phase, before, then in self.slowest
            if phase == "attacked" and seconds > 5 * quiet
        )
        found += [
            ("honest, slower than 5 times quiet p99", f"while: {cause}", n, "")
            for cause, n in causes.most_common()
        ]
        return found + [
            ("metrics at the end", *line.split()[:1], "", line.split()[1]) for line in figures
        ]

    def broken(self):
        """Honest requests that failed though no kill explains it."""
        return self.unexplained

    # -- The server ------------------------------------------------------------------------------

    def _start(self):
        ports = (f"--port={self.ports[0]}", f"--rest_api_port={self.ports[1]}")
        flags = (f"--serving_dir={self.serving_dir}", *ports, *_FLAGS)
        self.process = self._start_process("serving.server", *flags)
        self.server, self.born = Served(self.process, *self.ports), time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                if self.server.available(self.serving_dir.name):
                    break
            assert self.process.poll() is None and time.monotonic() < self.born + 120
            time.sleep(0.1)
        self.memory = []
        self.up.set()

    def _kill_server(self):
        self.up.clear()
        self.kills.append(time.monotonic())
        self.process.kill()
        self.process.wait()
        self._start()
        self.events["server killed and started again"] += 1

    def _remember_memory(self):
        age = time.monotonic() - self.born
        mebibytes = round(psutil.Process(self.process.pid).memory_info().rss / 2**20)
        self.memory.append((age, mebibytes))

    def _watch(self):
        """Notes when this process itself did not run, as on a laptop that was closed."""
        last = time.monotonic()
        while not self.ended.wait(0.5):
            now = time.monotonic()
            if now - last > 5:
                self.pauses.append((last, now))
                self.events["all of this stopped for a while"] += 1
            last = now

    def _pass(self, seconds, progress):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))
        self._say(progress)

    def _say(self, progress):
        if progress:
            asked = sum(self.honest.values())
            print(
                f"{self.phase}: {asked} honest requests, {len(self.unexplained)} failed; "
                f"{dict(self.events)}",
                flush=True,
            )

    # -- Who publishes, kills and fills ----------------------------------------------------------

    def _disturb(self, end, progress):
        begun = time.monotonic()
        killing = min((end - begun) / 2, 150)
        steps = [self._publish, self._kill_publisher, self._move_label, self._fill_disk]
        pause = min(5.0, (end - begun) / 8)
        number, killed, noted = 0, 0, 0.0
        kills = 1 if end - begun < 60 else 3
        # Each of them once, however slow the machine.
        while time.monotonic() < end or number < len(steps) or not killed:
            step = steps[number % len(steps)]
            self.doing = step.__name__.strip("_")
            step()
            number += 1
            self.doing = f"after {self.doing}"
            now = time.monotonic()
            # The rest belongs to one server, whose memory is compared.
            if killed < min(1.0, (now - begun) / killing) * kills:
                killed += 1
                self.doing = "kill_server"
                self._kill_server()
                self.doing = "after kill_server"
            if now - noted > 30 or not self.memory:
                self._remember_memory()
                self._say(progress)
                noted = now
            time.sleep(min(pause, max(0.0, end - time.monotonic())))

    def _publish(self):
        source = self.serving_dir / str(publish.versions(self.serving_dir)[-1])
        publish.publish(
            self.serving_dir, lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True)
        )
        self.events["version published"] += 1
        config = model_config.ModelConfig(self.serving_dir)
        labelled = set(config.labels().values())
        for version in publish.versions(self.serving_dir)[:-3]:
            if version not in labelled:
                shutil.rmtree(self.serving_dir / str(version))

    def _kill_publisher(self):
        before = publish.versions(self.serving_dir)
        process = subprocess.Popen(
            [sys.executable, "-c", _HALF_A_VERSION, str(self.serving_dir)],
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert publish.versions(self.serving_dir) == before
        self.events["publisher killed"] += 1

    def _move_label(self):
        newest = publish.versions(self.serving_dir)[-1]
        config = model_config.ModelConfig(self.serving_dir)
        if config.labels()["stable"] != newest:
            config.assign("stable", newest)
            self.events["label moved"] += 1

    def _fill_disk(self):
        parent = self.serving_dir.parent
        if not os.path.ismount(parent):
            return
        junk = parent / "junk"
        try:
            with junk.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(2**20))
                    file.flush()
            before = publish.versions(self.serving_dir)
            with contextlib.suppress(OSError, shutil.Error):
                self._publish()
                raise AssertionError("it was published on a full disk")
            assert publish.versions(self.serving_dir) == before
            self.events["disk filled"] += 1
            time.sleep(1)
        finally:
            junk.unlink()

    # -- Clients ---------------------------------------------------------------------------------

    def _client(self, number):
        rng = random.Random(f"{self.seed}/{number}")
        over_grpc = number % 2 == 0
        channel = grpc.insecure_channel(f"127.0.0.1:{self.ports[0]}")
        while not self.ended.is_set():
            self.ended.wait(rng.expovariate(1 / self.think) if self.think else 0)
            if not self.up.is_set():
                # Its clients do not come back in the same millisecond.
                continue
            if self.phase == "attacked" and rng.random() < self.hostile_share:
                self._attack(rng, channel)
                continue
            start, doing = time.monotonic(), self.doing
            answer = self._ask_grpc(channel) if over_grpc else self._ask_rest()
            end = time.monotonic()
            killed = any(start - 0.1 <= kill <= end + 0.1 for kill in self.kills)
            if end - start > 5:
                # Until `_watch` has seen it, too.
                time.sleep(2)
            paused = any(start <= ends and begins <= end for begins, ends in self.pauses)
            with self.lock:
                if paused:
                    answer = f"in flight while all of this was stopped: {answer}"
                elif answer == "OK":
                    self.latencies[self.phase].append(end - start)
                    self.slowest.append((end - start, self.phase, doing, self.doing))
                    if len(self.slowest) > 10_000:
                        self.slowest = sorted(self.slowest, reverse=True)[:1000]
                elif killed or not self.up.is_set():
                    answer = f"in flight at a kill: {answer}"
                else:
                    self.unexplained.append((round(end), answer))
                self.honest[self.phase, answer] += 1
        channel.close()

    def _ask_all_ways(self):
        with grpc.insecure_channel(f"127.0.0.1:{self.ports[0]}") as channel:
            for _ in range(20):
                assert self._ask_grpc(channel) == self._ask_rest() == "OK"

    def _ask_grpc(self, channel, image=None):
        request = hostile.image_request(self.serving_dir.name, image or self.image)
        try:
            answer = channel.unary_unary(_PREDICT)(request, timeout=30)
        except grpc.RpcError as error:
            return f"gRPC {error.code().name}"
        outputs = predict_pb2.PredictResponse.FromString(answer).outputs
        return "OK" if len(outputs["probabilities"].float_val) == 4 else "gRPC: no answer"

    def _ask_rest(self, image=None, **options):
        body = hostile.image_body(image or self.image)
        try:
            path = hostile.PATH.format(self.serving_dir.name)
            status, _, text = self._rest("POST", path, body, **options)
        except (OSError, http.client.HTTPException) as error:
            return f"REST {type(error).__name__}"
        if status != 200:
            return f"REST {status}"
        return "OK" if len(json.loads(text)["predictions"]) == 1 else "REST: no answer"

    def _rest(self, method, path, body, headers=None):
        return self.server.rest(method, path, body, headers, timeout=60)

    def _attack(self, rng, channel):
        kinds = ("image", "image", "image", "header", "gzip", "host", "reload", "JSON", "idle")
        kind = rng.choice(kinds)
        answer = getattr(self, f"_attack_{kind}")(rng, channel)
        with self.lock:
            if isinstance(answer, tuple):
                kind, answer = answer
            self.attacks[kind, answer] += 1

    def _attack_image(self, rng, channel):
        images = self.large if self.large and rng.random() < LARGE_SHARE else self.small
        name, data = rng.choice(images)
        return name, self._ask_grpc(channel, data) if rng.random() < 0.5 else self._ask_rest(data)

    def _attack_header(self, rng, channel):
        del channel
        head = rng.choice([b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ", b"GET /"])
        try:
            with socket.create_connection(("127.0.0.1", self.ports[1]), timeout=20) as connection:
                connection.sendall(head)
                for _ in range(160):
                    connection.sendall(b"b" * 65536)
            return "10 MiB were taken"
        except OSError as error:
            return f"hung up ({type(error).__name__})"

    def _attack_gzip(self, rng, channel):
        del rng, channel
        return self._status(gzip.compress(bytes(32 * 2**20)), {"Content-Encoding": "gzip"})

    def _attack_host(self, rng, channel):
        del channel
        names = [{"Host": "attacker.example"}, {"Origin": "https://attacker.example"}]
        return self._status(hostile.image_body(self.image), rng.choice(names))

    def _attack_reload(self, rng, channel):
        del rng
        request = model_management_pb2.ReloadConfigRequest()
        request.config.model_config_list.config.add(name="x", base_path="/tmp")
        try:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            stub.HandleReloadConfigRequest(request, timeout=30)
            return "OK"
        except grpc.RpcError as error:
            return f"gRPC {error.code().name}"

    def _attack_JSON(self, rng, channel):
        del channel
        return self._status(hostile.json_body(np.random.default_rng(rng.randrange(2**32))), {})

    def _attack_idle(self, rng, channel):
        del channel
        with contextlib.ExitStack() as held:
            try:
                for port in (self.ports * 10)[: rng.randrange(1, 20)]:
                    held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            except OSError as error:
                return type(error).__name__
            self.ended.wait(5)
        return "let go"

    def _status(self, body, headers):
        path = hostile.PATH.format(self.serving_dir.name)
        try:
            return f"REST {self._rest('POST', path, body, headers)[0]}"
        except (OSError, http.client.HTTPException) as error:
            return f"REST {type(error).__name__}"


def _write_model(folder):
    """A small stage 2 with random weights, behind the whole of the served graph."""
    import keras

    from replication.measures.decisions import Decision
    from serving.model import warmup, warmup_requests
    from serving.model.graph import Graph

    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((64, 64, 3)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(4, activation="softmax"),
    ]
    model = keras.Sequential(layers)
    model = keras.Model(model.inputs, model.outputs)
    folder.parent.mkdir(parents=True)
    graph = Graph(model, "bilinear", Decision(("NILM", "LSIL", "HSIL", "SCC"), 1.0, 0.5))
    graph.save(folder)
    # As an exported version has them: its first request would plan the graph.
    requests = warmup_requests.requests(graph, folder.parent.name, 2)
    warmup.write(folder / warmup.FILE, requests)
