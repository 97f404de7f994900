import shutil
import threading
import time

import grpc
import pytest
import serving_models
from serving_models import refused, states, until
from tensorflow_serving.apis import model_management_pb2, model_pb2

from serving.server import handlers
from serving.server.errors import ServingError
from serving.server.manager import Manager
from serving.store import versions

CODE = grpc.StatusCode


class Loads:
    """Loads versions without TensorFlow: a version is a directory with a file `content`."""

    def __init__(self):
        self.done = []
        self.closed = []
        self.gates = {}

    def __call__(self, name, number, path):
        self.done.append((name, number))
        if (name, number) in self.gates:
            assert self.gates[name, number].wait(10)
        content = (path / "content").read_text()
        if content == "broken":
            raise ServingError(CODE.DATA_LOSS, f"{name} {number} is broken")
        if content == "crash":
            raise ZeroDivisionError("no such luck")
        return _Loaded(self, name, number, path)


class _Loaded:
    def __init__(self, loads, name, version, path):
        self.loads, self.name, self.version, self.path = loads, name, version, path

    def close(self):
        self.loads.closed.append((self.name, self.version))


def publish(base, number, content="good"):
    hidden = base / f".{number}.partial"
    hidden.mkdir(parents=True)
    (hidden / "content").write_text(content)
    return hidden.rename(base / str(number))


@pytest.fixture
def loads():
    return Loads()


@pytest.fixture
def base(tmp_path):
    publish(tmp_path / "tiny", 1)
    return tmp_path / "tiny"


@pytest.fixture
def make(loads):
    """Makes managers that look at the disk every 10 ms and stops them in the end."""
    made = []

    def make(config, **options):
        made.append(Manager(config, load=loads, **{"poll_seconds": 0.01, **options}))
        made[-1].start()
        return made[-1]

    yield make
    for manager in made:
        manager.stop(drain_seconds=0)


def spec(name="tiny", version=None, label=None):
    chosen = model_pb2.ModelSpec(name=name)
    if version is not None:
        chosen.version.value = version
    if label is not None:
        chosen.version_label = label
    return chosen


def config_of(base, policy=None, labels=(), **others):
    config = serving_models.model_config(tiny=base, **others)
    model = config.model_config_list.config[0]
    if policy == "all":
        model.model_version_policy.all.SetInParent()
    elif isinstance(policy, int):
        model.model_version_policy.latest.num_versions = policy
    elif policy:
        model.model_version_policy.specific.versions.extend(policy)
    for label, number in dict(labels).items():
        model.version_labels[label] = number
    return config


# -- Which versions --------------------------------------------------------------------------------


def test_versions_are_directories_with_numbers(tmp_path):
    for name in ("1", "002", "12x", ".3", "-4", "+5", "latest", "٣", str(2**63), str(2**63 - 1)):
        (tmp_path / name).mkdir()
    (tmp_path / "7").write_text("a file")
    found = {number: path.name for number, path in versions.on_disk(tmp_path).items()}
    assert found == {1: "1", 2: "002", 2**63 - 1: str(2**63 - 1)}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [(None, [5]), (0, [5]), (2, [5, 3]), (9, [5, 3, 2]), ("all", [5, 3, 2]), ([2, 4], [2])],
)
def test_policies(make, base, loads, policy, expected):
    shutil.rmtree(base / "1")
    for number in (3, 2, 5):
        publish(base, number)
    manager = make(config_of(base, policy))
    assert states(manager) == [(number, "AVAILABLE") for number in expected]
    assert loads.done == [("tiny", number) for number in expected]
    assert manager.available() and manager.model_names() == ["tiny"]
    with manager.use(spec()) as servable:
        assert servable.version == expected[0]
    with manager.use(spec(version=expected[-1])) as servable:
        assert servable.version == expected[-1]


def test_nothing_to_serve_yet(make, tmp_path, loads):
    manager = make(serving_models.model_config(tiny=tmp_path / "absent", empty=tmp_path))
    assert not manager.available()
    message = refused(CODE.NOT_FOUND, manager.status, spec())
    assert message == "Could not find any versions of model tiny"
    publish(tmp_path / "absent", 4)
    until(lambda: ("tiny", 4) in loads.done and states(manager) == [(4, "AVAILABLE")])
    assert not manager.available()


def test_unknown_names_versions_and_labels(make, base):
    manager = make(config_of(base, labels={"stable": 1, "next": 2}))
    for chosen, code, message in (
        (spec(""), CODE.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (spec("none"), CODE.NOT_FOUND, "Servable not found for request: Latest(none)"),
        (spec("none", 3), CODE.NOT_FOUND, "Servable not found for request: Specific(none, 3)"),
        (spec(version=9), CODE.NOT_FOUND, "Servable not found for request: Specific(tiny, 9)"),
        (spec(label="x"), CODE.INVALID_ARGUMENT, "Unrecognized servable version label: x"),
        (spec(label="next"), CODE.NOT_FOUND, "Servable not found for request: Specific(tiny, 2)"),
    ):
        assert refused(code, manager.use(chosen).__enter__) == message
    with manager.use(spec(label="stable")) as servable:
        assert servable.version == 1
    message = refused(CODE.NOT_FOUND, manager.status, spec(version=9))
    assert message == "Could not find version 9 of model tiny"
    assert len(manager.status(spec(version=1)).model_version_status) == 1
    assert len(manager.status(spec(label="x")).model_version_status) == 1


# -- Switching -------------------------------------------------------------------------------------


def test_a_new_version_takes_over_without_a_gap(make, base, loads):
    seen = []
    manager = make(config_of(base))
    manager.on_change = lambda: seen.append(states(manager))
    loads.gates["tiny", 2] = threading.Event()
    publish(base, 2)
    until(lambda: ("tiny", 2) in loads.done)
    # While it loads, requests are answered and states are told.
    with manager.use(spec()) as servable:
        assert servable.version == 1
    assert states(manager) == [(2, "LOADING"), (1, "AVAILABLE")]
    loads.gates["tiny", 2].set()
    until(lambda: states(manager) == [(2, "AVAILABLE"), (1, "END")])
    assert seen == [
        [(2, "START"), (1, "AVAILABLE")],
        [(2, "LOADING"), (1, "AVAILABLE")],
        [(2, "AVAILABLE"), (1, "AVAILABLE")],
        [(2, "AVAILABLE"), (1, "UNLOADING")],
        [(2, "AVAILABLE"), (1, "END")],
    ]
    assert loads.closed == [("tiny", 1)]


def test_the_old_version_drains(make, base, loads):
    manager = make(config_of(base))
    with manager.use(spec()) as first, manager.use(spec(version=1)) as second:
        assert first is second
        publish(base, 2)
        until(lambda: states(manager) == [(2, "AVAILABLE"), (1, "UNLOADING")])
        # Deleted while in use, too.
        shutil.rmtree(base / "1")
        refused(CODE.NOT_FOUND, manager.use(spec(version=1)).__enter__)
        # Draining holds nothing else up.
        publish(base, 3)
        until(lambda: (3, "AVAILABLE") in states(manager) and ("tiny", 2) in loads.closed)
        assert ("tiny", 1) not in loads.closed
    until(lambda: states(manager) == [(3, "AVAILABLE"), (2, "END"), (1, "END")])
    assert loads.closed == [("tiny", 2), ("tiny", 1)]


def test_a_broken_version_leaves_the_old_one_serving(make, base, loads):
    manager = make(config_of(base))
    publish(base, 2, "broken")
    until(lambda: states(manager) == [(2, "END"), (1, "AVAILABLE")])
    entry = manager.status(spec()).model_version_status[0]
    assert (entry.status.error_code, entry.status.error_message) == (15, "tiny 2 is broken")
    time.sleep(0.1)
    assert loads.done.count(("tiny", 2)) == 1
    (base / "2" / "more").write_text("still copying")
    until(lambda: loads.done.count(("tiny", 2)) == 2)
    assert states(manager) == [(2, "END"), (1, "AVAILABLE")]
    (base / "2" / "content").write_text("good")
    until(lambda: states(manager) == [(2, "AVAILABLE"), (1, "END")])
    assert manager.status(spec()).model_version_status[0].status.error_code == 0


def test_the_old_version_stays_even_if_it_was_deleted(make, base):
    manager = make(config_of(base))
    publish(base, 2, "crash")
    until(lambda: states(manager) == [(2, "END"), (1, "AVAILABLE")])
    entry = manager.status(spec(version=2)).model_version_status[0]
    assert entry.status.error_message == "ZeroDivisionError: no such luck"
    shutil.rmtree(base / "1")
    time.sleep(0.1)
    assert manager.available()


def test_a_broken_newest_version_at_start_gives_way_to_the_one_before(make, base):
    publish(base, 2, "broken")
    assert states(make(config_of(base))) == [(2, "END"), (1, "AVAILABLE")]


def test_vanishing_versions(make, base, loads):
    publish(base, 2)
    manager = make(config_of(base))
    shutil.rmtree(base / "2")
    until(lambda: states(manager) == [(2, "END"), (1, "AVAILABLE")])
    assert loads.done == [("tiny", 2), ("tiny", 1)]
    publish(base, 2)
    until(lambda: states(manager) == [(2, "AVAILABLE"), (1, "END")])
    # The whole base path away is a disk that failed, an empty one is a decision.
    base.rename(base.with_name("elsewhere"))
    time.sleep(0.1)
    assert manager.available()
    base.mkdir()
    until(lambda: states(manager) == [(2, "END"), (1, "END")])
    refused(CODE.NOT_FOUND, manager.use(spec()).__enter__)


def test_a_specific_policy_waits_for_its_version(make, base):
    manager = make(config_of(base, [1]))
    manager.reload(config_of(base, [2]))
    assert states(manager) == [(1, "AVAILABLE")]
    publish(base, 2)
    until(lambda: states(manager) == [(2, "AVAILABLE"), (1, "END")])
    shutil.rmtree(base / "2")
    until(lambda: states(manager) == [(2, "END"), (1, "END")])


def test_the_same_number_from_another_place(make, base, tmp_path, loads):
    manager = make(config_of(base))
    publish(tmp_path / "other", 1)
    with manager.use(spec()) as old:
        manager.reload(config_of(tmp_path / "other"))
        with manager.use(spec()) as new:
            assert new is not old and new.path == tmp_path / "other" / "1"
        assert states(manager) == [(1, "AVAILABLE")] and not loads.closed
    until(lambda: loads.closed == [("tiny", 1)])
    assert states(manager) == [(1, "AVAILABLE")]


def test_a_listener_that_fails_changes_nothing(make, base):
    manager = make(config_of(base), on_change=lambda: 1 / 0)
    publish(base, 2)
    until(lambda: states(manager) == [(2, "AVAILABLE"), (1, "END")])


# -- Reloading the configuration -------------------------------------------------------------------


def test_reload_adds_and_removes_models(make, base, tmp_path, loads):
    manager = make(config_of(base))
    publish(tmp_path / "other", 7)
    request = model_management_pb2.ReloadConfigRequest(
        config=serving_models.model_config(other=tmp_path / "other")
    )
    with manager.use(spec()):
        response = handlers.reload_config(manager, request)
        assert response.HasField("status") and response.status.error_code == 0
        assert manager.model_names() == ["other"]
        assert states(manager, "other") == [(7, "AVAILABLE")]
        assert states(manager) == [(1, "UNLOADING")]
        refused(CODE.NOT_FOUND, manager.use(spec()).__enter__)
    until(lambda: states(manager) == [(1, "END")])
    manager.reload(config_of(base))
    assert states(manager) == [(1, "AVAILABLE")]


def test_labels_move_to_available_versions_only(make, base):
    publish(base, 2)
    manager = make(config_of(base, "all", {"stable": 1}))
    message = refused(
        CODE.FAILED_PRECONDITION, manager.reload, config_of(base, labels={"stable": 3})
    )
    assert message == (
        "Request to assign label to version 3 of model tiny, which is not currently available for "
        "inference"
    )
    assert states(manager) == [(2, "AVAILABLE"), (1, "AVAILABLE")]
    manager.reload(config_of(base, "all", {"stable": 2, "canary": 3}))
    with manager.use(spec(label="stable")) as servable:
        assert servable.version == 2
    refused(CODE.NOT_FOUND, manager.use(spec(label="canary")).__enter__)


def test_a_label_moves_to_a_version_that_only_the_new_configuration_wants(make, base):
    def pinned(version):
        config = config_of(base, [version], {"stable": version})
        assert not config.model_config_list.config[0].model_version_policy.HasField("latest")
        return config

    manager = make(pinned(1))
    publish(base, 2)
    manager.reload(pinned(2))
    with manager.use(spec(label="stable")) as servable:
        assert servable.version == 2
    until(lambda: states(manager) == [(2, "AVAILABLE"), (1, "END")])
    # And back, as a roll-back does.
    manager.reload(pinned(1))
    with manager.use(spec(label="stable")) as servable:
        assert servable.version == 1


def test_what_a_refused_configuration_wanted_is_unloaded(make, base):
    publish(base, 2)
    manager = make(config_of(base, [1], {"stable": 1}))
    refused(CODE.FAILED_PRECONDITION, manager.reload, config_of(base, [1, 2], {"stable": 3}))
    until(lambda: states(manager) == [(2, "END"), (1, "AVAILABLE")])


def test_labels_at_start_need_the_flag(make, base, loads):
    config = config_of(base, labels={"stable": 1})
    strict = {"allow_version_labels_for_unavailable_models": False}
    refused(CODE.FAILED_PRECONDITION, Manager, config, load=loads, **strict)
    manager = make(config_of(base), **strict)
    refused(CODE.FAILED_PRECONDITION, manager.reload, config_of(base, labels={"stable": 2}))
    manager.reload(config)
    with manager.use(spec(label="stable")) as servable:
        assert servable.version == 1


def listed_twice(config, base):
    config.model_config_list.config.add(name="tiny", base_path=str(base))


def without_name(config, base):
    config.model_config_list.config.add(base_path=str(base))


def of_another_platform(config, base):
    config.model_config_list.config[0].model_platform = "sklearn"


def with_an_empty_policy(config, base):
    config.model_config_list.config[0].model_version_policy.specific.SetInParent()


def with_a_model_that_fails(config, base):
    publish(base.parent / "bad", 1, "broken")
    publish(base.parent / "good", 1)
    for name in ("good", "bad"):
        config.model_config_list.config.add(name=name, base_path=str(base.parent / name))


def with_a_model_that_is_absent(config, base):
    config.model_config_list.config.add(name="absent", base_path=str(base.parent / "absent"))


def not_a_list(config, base):
    config.Clear()


@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        (listed_twice, CODE.INVALID_ARGUMENT, "Illegal to list model tiny multiple times"),
        (without_name, CODE.INVALID_ARGUMENT, "config 1: expected a name and a base_path"),
        (of_another_platform, CODE.INVALID_ARGUMENT, "requests unsupported platform sklearn"),
        (with_an_empty_policy, CODE.INVALID_ARGUMENT, "specific: expected versions"),
        (with_a_model_that_fails, CODE.UNKNOWN, "{bad: version 1: bad 1 is broken}"),
        (with_a_model_that_is_absent, CODE.UNKNOWN, "No such file or directory"),
        (not_a_list, CODE.FAILED_PRECONDITION, "Cannot transition to requested config."),
    ],
)
def test_a_refused_configuration_leaves_everything_as_it_was(make, base, change, code, expected):
    publish(base, 2)
    manager = make(config_of(base, labels={"stable": 2}))
    config = config_of(base, "all")
    change(config, base)
    assert expected in refused(code, manager.reload, config)
    time.sleep(0.05)
    assert manager.model_names() == ["tiny"]
    assert states(manager) == [(2, "AVAILABLE")]
    for name in ("good", "bad", "absent"):
        refused(CODE.NOT_FOUND, manager.status, spec(name))
    with manager.use(spec(label="stable")) as servable:
        assert servable.version == 2


def test_a_new_model_answers_only_when_all_of_the_configuration_holds(make, base, loads):
    manager = make(config_of(base))
    config = config_of(base)
    with_a_model_that_fails(config, base)
    loads.gates["bad", 1] = threading.Event()
    errors = []

    def reload():
        try:
            manager.reload(config)
        except ServingError as error:
            errors.append(error.code)

    thread = threading.Thread(target=reload)
    thread.start()
    until(lambda: ("bad", 1) in loads.done)
    assert states(manager, "good") == [(1, "AVAILABLE")]
    refused(CODE.NOT_FOUND, manager.use(spec("good")).__enter__)
    refused(CODE.NOT_FOUND, manager.use(spec("good", 1)).__enter__)
    with manager.use(spec()):
        pass
    loads.gates["bad", 1].set()
    thread.join(10)
    assert errors == [CODE.UNKNOWN]
    until(lambda: loads.closed == [("good", 1)])


def test_reload_before_the_start_is_what_starts(base, loads, tmp_path):
    manager = Manager(serving_models.model_config(other=tmp_path / "x"), load=loads)
    manager.reload(config_of(base))
    manager.start()
    assert states(manager) == [(1, "AVAILABLE")]
    manager.stop()


# -- Stopping --------------------------------------------------------------------------------------


def test_stop_waits_for_requests_in_flight(make, base, loads):
    manager = make(config_of(base))
    entered, leave = threading.Event(), threading.Event()

    def request():
        with manager.use(spec()):
            entered.set()
            leave.wait(10)

    threads = [threading.Thread(target=request), threading.Thread(target=manager.stop)]
    threads[0].start()
    entered.wait(10)
    threads[1].start()
    until(lambda: states(manager) == [(1, "UNLOADING")])
    assert not loads.closed
    leave.set()
    for thread in threads:
        thread.join(10)
    assert loads.closed == [("tiny", 1)] and states(manager) == [(1, "END")]
    refused(CODE.UNAVAILABLE, manager.reload, config_of(base))


def test_stop_waits_no_longer_than_told(make, base, loads):
    manager = make(config_of(base))
    with manager.use(spec()):
        # The use ends after this block only: waiting for it would never end.
        manager.stop(drain_seconds=0.1)
        assert loads.closed == [("tiny", 1)]


def test_a_version_that_loads_during_the_stop_is_freed(make, base, loads):
    manager = make(config_of(base))
    loads.gates["tiny", 2] = threading.Event()
    publish(base, 2)
    until(lambda: ("tiny", 2) in loads.done)
    manager.stop(drain_seconds=0.05)
    loads.gates["tiny", 2].set()
    until(lambda: sorted(loads.closed) == [("tiny", 1), ("tiny", 2)])


def test_what_nobody_expected_ends_its_reload_alone(make, base, monkeypatch):
    manager = make(config_of(base))
    with monkeypatch.context() as patch:
        patch.setattr(manager, "_apply", lambda config: [][0])
        with pytest.raises(IndexError):
            manager.reload(config_of(base))
    manager.reload(config_of(base))
    assert states(manager) == [(1, "AVAILABLE")]
