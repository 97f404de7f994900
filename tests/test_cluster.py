"""A chief and its workers on loopback: killed, started again, late, alone."""

import json
import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from pathlib import Path

import grpc
import keras_tuner
import pytest
from keras_tuner.src import protos
from keras_tuner.src.distribute import oracle_chief, oracle_client

from finetune.search import cluster, oracles, place
from tfds_pap import files
from tfds_pap.errors import PapError

SCORE = keras_tuner.Objective("score", "max")
LEASE_SECONDS = 2.0


class Tuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Notes each trial that begins; those that `held` names wait until its file is gone."""

    def __init__(self, oracle, directory, held=None):
        self.held = held
        oracle.verbose = 0
        super().__init__(oracle, directory=str(directory), project_name="trials")
        if place.is_worker():
            cluster.connect(self.oracle, patience_seconds=60)

    def _populate_initial_space(self):
        if not place.is_worker():
            self.oracle.resume()

    def save(self):
        pass

    def pre_create_trial(self):
        time.sleep(0.05)

    def run_trial(self, trial):
        values = trial.hyperparameters.values
        with (Path(self.directory) / "began.txt").open("a") as notes:
            print(self.tuner_id, trial.trial_id, file=notes)
        with cluster.Heartbeat(self.oracle, trial.trial_id, LEASE_SECONDS):
            wait_until(lambda: not self.held or not self.held.exists())
        # What is not active is absent, also after the journey.
        assert ("momentum" in values) == (values["optimizer"] == "sgd")
        return {"score": value_of(values)}


def value_of(values):
    return random.Random(str(sorted(values.items()))).random()


def space():
    """7 points."""
    hp = keras_tuner.HyperParameters()
    hp.Choice("optimizer", ["sgd", "adam"])
    with hp.conditional_scope("optimizer", ["sgd"]):
        hp.Choice("momentum", [0.0, 0.5, 0.9])
        hp.Boolean("nesterov")
    return hp


def build(tuner="grid"):
    return oracles.build(tuner, space(), SCORE, seed=0, max_trials=None, max_epochs=9, factor=3)


def run(tuner_id, port, directory, tuner="grid", held=None):
    """One process of a search; leases run by a clock that the test sets, however busy the machine.

    The chief writes at which time of that clock it last heard of whom.
    """
    environment(os.environ.__setitem__, tuner_id, port)
    oracle = build(tuner)
    oracle.clock = lambda: float((directory / "clock").read_text())
    made = Tuner(oracle, directory, held)
    if place.is_chief():

        def note():
            content = json.dumps(oracle._heard)
            files.write_atomically(directory / "heard.json", content)

        cluster.serve(oracle, lease_seconds=LEASE_SECONDS, on_tick=note)
    else:
        cluster.wait_for_chief()
        made.search()


def environment(put, tuner_id, port):
    put("KERASTUNER_TUNER_ID", tuner_id)
    put("KERASTUNER_ORACLE_IP", "127.0.0.1")
    put("KERASTUNER_ORACLE_PORT", str(port))


def wait_until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def port(monkeypatch):
    """Of a chief that this process can be."""
    found = free_port()
    environment(monkeypatch.setenv, "chief", found)
    return found


@pytest.fixture
def start(tmp_path):
    """Starts processes; a server that has imported everything makes that quick."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["finetune.search.oracles"])
    found, processes = free_port(), []
    set_clock(tmp_path, 0)

    def start(tuner_id, **options):
        process = context.Process(target=run, args=(tuner_id, found, tmp_path), kwargs=options)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def set_clock(directory, seconds):
    files.write_atomically(directory / "clock", str(seconds))


def heard_of(directory, seconds, *names):
    """Whether the chief has heard of these since its clock was set."""
    path = directory / "heard.json"
    heard = json.loads(path.read_text()) if path.exists() else {}
    return all(heard.get(name) == seconds for name in names)


def began(directory):
    """Who began which trial."""
    path = directory / "began.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(line.split()) for line in lines]


def ended(*processes):
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes]


def results(directory, tuner="grid"):
    """Scores by point, one for each trial that ended."""
    oracle = build(tuner)
    oracle._set_project_dir(str(directory), "trials")
    assert oracle.resume()
    assert sorted(oracle.end_order) == oracle.start_order
    trials = [oracle.trials[trial_id] for trial_id in oracle.end_order]
    return {str(sorted(t.hyperparameters.values.items())): t.score for t in trials}


def test_a_chief_and_two_workers_run_each_trial_once(start, tmp_path):
    held = tmp_path / "held"
    held.touch()
    processes = [start("chief")] + [start(name, held=held) for name in ("worker_1", "worker_2")]
    wait_until(lambda: len(began(tmp_path)) == 2)
    held.unlink()
    assert ended(*processes[1:]) == [0, 0]
    assert ended(processes[0]) == [0]
    assert sorted(trial_id for _, trial_id in began(tmp_path)) == [f"{n:04d}" for n in range(7)]
    assert {name for name, _ in began(tmp_path)} == {"worker_1", "worker_2"}
    found = results(tmp_path)
    assert len(found) == 7
    for point, score in found.items():
        # KerasTuner sends scores in single precision.
        assert score == pytest.approx(random.Random(point).random(), rel=1e-6)


def test_neither_a_killed_worker_nor_a_killed_chief_loses_the_search(start, tmp_path):
    held = tmp_path / "held"
    held.touch()
    chief, lost = start("chief", tuner="hyperband"), start("lost", held=held)
    wait_until(lambda: began(tmp_path) == [("lost", "0000")])
    slow = start("slow", held=held)
    wait_until(lambda: ("slow", "0001") in began(tmp_path))
    os.kill(lost.pid, signal.SIGKILL)
    os.kill(chief.pid, signal.SIGKILL)
    chief.join()
    chief, quick = start("chief", tuner="hyperband"), start("quick")
    # The lease of the lost one runs out; the slow one keeps its trial for longer than a lease.
    for seconds in (1.0, 2.5, 4.0):
        set_clock(tmp_path, seconds)
        wait_until(lambda now=seconds: heard_of(tmp_path, now, "slow", "quick"))
    wait_until(lambda: ("quick", "0000") in began(tmp_path))
    held.unlink()
    assert ended(slow, quick, chief) == [0, 0, 0]
    names = [trial_id for _, trial_id in began(tmp_path)]
    assert sorted(names) == sorted([*{*names}, "0000"])
    # All points, then the halving of 7: 3 and 1.
    assert len(results(tmp_path, "hyperband")) == 7 + 3 + 1


class Alone:
    """A chief in this process, and clients of it."""

    def __init__(self, oracle, port, **options):
        self.error = None
        self.thread = threading.Thread(target=self._serve, args=[oracle, options], daemon=True)
        self.thread.start()

    def _serve(self, oracle, options):
        try:
            cluster.serve(oracle, **options)
        except Exception as error:
            self.error = error

    def end(self):
        self.thread.join(timeout=60)
        assert not self.thread.is_alive()
        if self.error:
            raise self.error


def client_of(oracle, **options):
    client = oracle_client.OracleClient(oracle)
    cluster.connect(client, **options)
    return client


@pytest.fixture
def oracle(tmp_path):
    return Tuner(build(), tmp_path).oracle


def test_three_failures_stop_the_workers_and_end_the_chief(oracle, port):
    chief, client = Alone(oracle, port), client_of(oracle)
    for _ in range(3):
        trial = client.create_trial("worker")
        trial.status = "INVALID"
        client.end_trial(trial)
    assert client.create_trial("worker").status == "STOPPED"
    with pytest.raises(PapError, match="3 trials in a row failed, 0002 with: see the output"):
        chief.end()


def test_what_a_tick_raises_ends_the_chief_and_frees_its_port(oracle, port):
    def tick():
        # No trial begins or ends meanwhile.
        assert not other_thread_gets(oracle.lock)
        raise PapError("every worker ended")

    def other_thread_gets(lock):
        got = []
        thread = threading.Thread(target=lambda: got.append(lock.acquire(blocking=False)))
        thread.start()
        thread.join()
        return got[0]

    for _ in range(2):
        with pytest.raises(PapError, match="every worker ended"):
            cluster.serve(oracle, on_tick=tick)


def test_a_port_that_another_chief_has_is_refused(oracle, port):
    server = grpc.server(cluster.futures.ThreadPoolExecutor(), options=(("grpc.so_reuseport", 0),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    with pytest.raises(PapError, match=rf"127\.0\.0\.1:{port} cannot be listened on"):
        cluster.serve(oracle)
    server.stop(None).wait()


def test_a_worker_gives_up_a_chief_that_is_not_there(oracle, port):
    with pytest.raises(PapError, match=rf"no chief at 127\.0\.0\.1:{port} for 0\.2 s"):
        cluster.wait_for_chief(0.2)
    client = client_of(oracle, patience_seconds=0.2)
    # An error of any other kind would only fail the trial.
    with pytest.raises(keras_tuner.errors.FatalError, match=r"did not answer for 0\.2 s"):
        client.create_trial("worker")
    assert issubclass(cluster.ChiefLost, PapError)


def test_a_worker_is_told_why_the_chief_failed(oracle, port):
    chief, client = Alone(oracle, port), client_of(oracle)
    with pytest.raises(cluster.ChiefLost, match=rf"127\.0\.0\.1:{port} failed: .*0815"):
        client.get_trial("0815")
    run_all(client, "worker")
    chief.end()


def test_only_who_has_the_secret_is_answered(oracle, port, tmp_path, monkeypatch):
    secret, other = tmp_path / "secret", tmp_path / "other"
    secret.write_text("sixteen letters.\n")
    other.write_text("sixteen letters!\n")
    monkeypatch.setenv("FINETUNE_SECRET_FILE", str(secret))
    chief, client = Alone(oracle, port), client_of(oracle)
    cluster.wait_for_chief(10)
    for path in (str(other), ""):
        monkeypatch.setenv("FINETUNE_SECRET_FILE", path)
        with pytest.raises(cluster.ChiefLost, match="expected the secret of FINETUNE_SECRET_FILE"):
            client_of(oracle).create_trial("stranger")
    run_all(client, "worker")
    chief.end()


def test_a_chief_that_others_reach_wants_a_secret(oracle, port, tmp_path, monkeypatch):
    for address in ("0.0.0.0", "10.0.0.5", "::", "chief.example"):
        monkeypatch.setenv("KERASTUNER_ORACLE_IP", address)
        with pytest.raises(PapError, match="expected FINETUNE_SECRET_FILE as well"):
            cluster.serve(oracle)
    for content in (None, "too short", "é" * 20):
        path = tmp_path / "secret"
        if content is not None:
            path.write_text(content)
        monkeypatch.setenv("FINETUNE_SECRET_FILE", str(path))
        with pytest.raises(PapError, match=f"FINETUNE_SECRET_FILE={path}: "):
            cluster.serve(oracle)


def run_all(client, name):
    while (trial := client.create_trial(name)).status == "RUNNING":
        client.update_trial(trial.trial_id, {"score": 1.0})
        trial.status = "COMPLETED"
        client.end_trial(trial)
    return trial.status


def test_a_call_under_way_when_the_chief_dies_reaches_the_next_one(oracle, port):
    class Dying(oracle_chief.OracleServicer):
        def CreateTrial(self, request, context):
            super().CreateTrial(request, context)
            context.abort(grpc.StatusCode.UNAVAILABLE, "killed before it could answer")

    dying = grpc.server(cluster.futures.ThreadPoolExecutor())
    protos.get_service_grpc().add_OracleServicer_to_server(Dying(oracle), dying)
    dying.add_insecure_port(f"127.0.0.1:{port}")
    dying.start()
    client, got = client_of(oracle), []
    thread = threading.Thread(target=lambda: got.append(client.create_trial("worker")))
    thread.start()
    wait_until(lambda: oracle.start_order)
    dying.stop(None).wait()
    chief = Alone(oracle, port)
    thread.join(timeout=20)
    assert [trial.trial_id for trial in got] == ["0000"]
    assert run_all(client, "worker") == "STOPPED"
    chief.end()
    assert len(oracle.end_order) == 7


def test_a_heart_beats_through_errors_and_stops_with_the_trial():
    class Flaky:
        def __init__(self):
            self.asked = []

        def get_trial(self, trial_id):
            self.asked.append(trial_id)
            if len(self.asked) == 1:
                raise grpc.RpcError("the chief is away")
            if len(self.asked) == 2:
                raise cluster.ChiefLost("the chief is away for long")

    oracle = Flaky()
    with cluster.Heartbeat(oracle, "0007", lease_seconds=0.04):
        wait_until(lambda: len(oracle.asked) >= 5)
    count = len(oracle.asked)
    assert {*oracle.asked} == {"0007"}
    time.sleep(0.05)
    assert len(oracle.asked) == count


def test_trials_cross_the_network_without_a_word(oracle, port, capfd):
    chief, client = Alone(oracle, port), client_of(oracle)
    run_all(client, "worker")
    chief.end()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("variables", "roles"),
    [
        ({}, (False, False)),
        ({"TUNER_ID": "tuner_3"}, (False, False)),
        ({"TUNER_ID": "chief", "ORACLE_IP": "0.0.0.0", "ORACLE_PORT": "1"}, (True, False)),
        ({"TUNER_ID": "w1", "ORACLE_IP": "10.0.0.5", "ORACLE_PORT": "1"}, (False, True)),
    ],
)
def test_the_variables_say_who_is_who(variables, roles, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(f"KERASTUNER_{name}", value)
    assert (place.is_chief(), place.is_worker()) == roles


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("KERASTUNER_ORACLE_PORT", None, "KERASTUNER_ORACLE_PORT: missing"),
        ("KERASTUNER_ORACLE_IP", None, "KERASTUNER_ORACLE_IP: missing"),
        ("KERASTUNER_ORACLE_PORT", "http", "KERASTUNER_ORACLE_PORT=http: expected a number"),
        ("KERASTUNER_ORACLE_PORT", "0", "KERASTUNER_ORACLE_PORT=0: expected a number"),
        ("KERASTUNER_ORACLE_PORT", "65536", "expected a number from 1 to 65535"),
    ],
)
def test_a_variable_that_is_wrong_is_named(name, value, message, oracle, port, monkeypatch):
    monkeypatch.delenv(name)
    if value is not None:
        monkeypatch.setenv(name, value)
    for call in (lambda: cluster.serve(oracle), cluster.wait_for_chief):
        with pytest.raises(PapError, match=message):
            call()


def test_an_id_is_missing(port, monkeypatch):
    monkeypatch.delenv("KERASTUNER_TUNER_ID")
    with pytest.raises(PapError, match="KERASTUNER_TUNER_ID: missing, though"):
        place.is_worker()
