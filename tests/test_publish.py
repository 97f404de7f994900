"""Versions appear whole or not at all, whatever happens to their publishers; labels, and back."""

import json
import random
import time

import pytest
from commands import command, start
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.store import model_config, publish

# Writes twenty files that name one another, slowly: a half-written version is easy to tell.
PUBLISHER = """
import sys, time, pathlib
from serving.store import publish
def write(folder):
    (folder / "variables").mkdir()
    for number in range(20):
        (folder / "variables" / str(number)).write_text(str(number) * 100)
        print("file", number, flush=True)
        time.sleep(0.003)
    (folder / "saved_model.pb").write_text("20")
    print("written", flush=True)
print("started", flush=True)
for _ in range(int(sys.argv[2])):
    print(publish.publish(pathlib.Path(sys.argv[1]), write), flush=True)
"""


def publisher(serving_dir, name="log", count=1):
    """A process, and the file beside the directory into which it prints."""
    log = serving_dir.with_name(name)
    log.write_text("")
    return start("-c", PUBLISHER, serving_dir, count, stdout=log), log


def wait_for(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.001)


def broken(serving_dir):
    """Versions that are not whole."""
    return [
        version
        for version in publish.versions(serving_dir)
        if (serving_dir / str(version) / "saved_model.pb").read_text() != "20"
        or len(list((serving_dir / str(version) / "variables").iterdir())) != 20
    ]


def hidden(serving_dir):
    return [path.name for path in serving_dir.iterdir() if path.name.startswith(".")]


def simple(content="model"):
    return lambda folder: (folder / "saved_model.pb").write_text(content)


def test_the_next_integer_whatever_else_lies_there(tmp_path):
    serving_dir = tmp_path / "models" / "pap_stage2"
    assert publish.publish(serving_dir, simple()) == 1
    (serving_dir / "41").mkdir()
    (serving_dir / "notes").mkdir()
    (serving_dir / "99.txt").write_text("no version")
    assert publish.publish(serving_dir, simple("newer")) == 42
    assert publish.versions(serving_dir) == [1, 41, 42]
    assert (serving_dir / "42" / "saved_model.pb").read_text() == "newer"
    assert (serving_dir / "42").stat().st_mode & 0o777 == 0o755


def test_a_failed_write_leaves_nothing(tmp_path):
    publish.publish(tmp_path, simple())

    def fails(folder):
        simple()(folder)
        raise ValueError("the check failed")

    with pytest.raises(ValueError, match="the check failed"):
        publish.publish(tmp_path, fails)
    assert publish.versions(tmp_path) == [1] and not hidden(tmp_path)


def test_no_broken_version_after_any_of_fifty_kills(tmp_path):
    serving_dir = tmp_path / "model"
    serving_dir.mkdir()
    moments = random.Random(0)
    whole = 0
    for _ in range(50):
        process, log = publisher(serving_dir)
        # Of the 23 lines that it prints, from its start to the number of the version.
        line = moments.randrange(1, 24)
        wait_for(lambda log=log, line=line: log.read_text().count("\n") >= line)
        time.sleep(moments.uniform(0, 0.003))
        process.kill()
        process.wait()
        assert not broken(serving_dir)
        whole = len(publish.versions(serving_dir))
        # At most what the last one left: each publisher sweeps before it writes.
        assert len(hidden(serving_dir)) <= 1
    assert 0 < whole < 50
    assert publish.publish(serving_dir, simple()) == whole + 1
    assert not hidden(serving_dir)


def test_concurrent_publishers_do_not_collide(tmp_path):
    serving_dir = tmp_path / "model"
    numbers = []
    for process, log in [publisher(serving_dir, name, count=4) for name in "abcde"]:
        assert process.wait(60) == 0
        numbers += [int(line) for line in log.read_text().splitlines() if line.isdecimal()]
    assert sorted(numbers) == publish.versions(serving_dir) == list(range(1, 21))
    assert not broken(serving_dir) and not hidden(serving_dir)


def test_a_publisher_at_work_is_not_swept(tmp_path):
    serving_dir = tmp_path / "model"
    process, log = publisher(serving_dir)
    wait_for(lambda: list(serving_dir.glob(".publishing-*")))
    publish.sweep(serving_dir)
    assert process.wait(60) == 0
    assert log.read_text().splitlines()[-2:] == ["written", "1"]
    assert not broken(serving_dir)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        publish.publish(tmp_path / "file", simple())


@pytest.fixture
def serving_dir(tmp_path):
    folder = tmp_path / "models" / "pap_stage2"
    for _ in range(4):
        publish.publish(folder, simple())
    return folder


def entry(serving_dir):
    text = (serving_dir.parent / "models.config").read_text()
    (found,) = text_format.Parse(
        text, model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config
    return found


def test_labels_are_what_tensorflow_serving_reads(serving_dir):
    config = model_config.ModelConfig(serving_dir, "/srv/models/")
    config.publish(3, "stable")
    config.publish(4, "canary")
    found = entry(serving_dir)
    assert (found.name, found.base_path) == ("pap_stage2", "/srv/models/pap_stage2")
    assert found.model_platform == "tensorflow"
    assert dict(found.version_labels) == {"stable": 3, "canary": 4}
    assert list(found.model_version_policy.specific.versions) == [3, 4]


def test_rollback_goes_back_to_what_the_label_pointed_to_and_not_one_lower(serving_dir):
    config = model_config.ModelConfig(serving_dir)
    config.assign("stable", 1)
    config.assign("canary", 3)
    config.assign("stable", 4)
    assert config.roll_back("stable") == (4, 1)
    assert config.labels() == {"stable": 1, "canary": 3}
    assert list(entry(serving_dir).model_version_policy.specific.versions) == [1, 3]
    with pytest.raises(model_config.ConfigError, match="pointed to no other version before 1"):
        config.roll_back("stable")


def test_rollback_passes_over_versions_that_were_deleted(serving_dir):
    config = model_config.ModelConfig(serving_dir)
    for version in (1, 2, 4):
        config.assign("stable", version)
    (serving_dir / "2" / "saved_model.pb").unlink()
    (serving_dir / "2").rmdir()
    assert config.roll_back("stable") == (4, 1)


def test_rollback_without_labels_and_the_next_publication(serving_dir):
    config = model_config.ModelConfig(serving_dir)
    config.publish(4)
    assert not entry(serving_dir).HasField("model_version_policy")
    assert config.roll_back() == (4, 3)
    assert config.roll_back() == (3, 2)
    assert config.pinned() == [2]
    config.publish(publish.publish(serving_dir, simple()))
    assert config.pinned() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.assign("stable", 9), "version 9 of pap_stage2: expected one of 1, 2, 3, 4"),
        (lambda c: c.assign("", 1), "--label: expected a name"),
        (lambda c: c.roll_back("nope"), "has no such label"),
    ],
)
def test_wrong_labels_change_nothing(serving_dir, change, message):
    config = model_config.ModelConfig(serving_dir)
    config.assign("canary", 2)
    before = config.path.read_text()
    with pytest.raises(model_config.ConfigError, match=message):
        change(config)
    assert config.path.read_text() == before


def test_labels_forbid_a_rollback_that_names_none(serving_dir):
    config = model_config.ModelConfig(serving_dir)
    config.assign("stable", 2)
    with pytest.raises(model_config.ConfigError, match="expected one of stable"):
        config.roll_back()


def test_entries_of_other_models_are_kept(serving_dir):
    other = 'model_config_list { config { name: "other" base_path: "/x" } }'
    (serving_dir.parent / "models.config").write_text(other)
    model_config.ModelConfig(serving_dir).assign("stable", 2)
    names = [
        found.name
        for found in model_config.read(
            serving_dir.parent / "models.config"
        ).model_config_list.config
    ]
    assert names == ["other", "pap_stage2"]


def test_a_config_that_is_none_is_named(serving_dir):
    (serving_dir.parent / "models.config").write_text("model_config_list {")
    with pytest.raises(model_config.ConfigError, match=r"models\.config: expected a ModelServer"):
        model_config.ModelConfig(serving_dir).assign("stable", 2)


def test_concurrent_changes_lose_none(serving_dir):
    change = (
        "import pathlib, sys; from serving.store.model_config import ModelConfig\n"
        "[ModelConfig(pathlib.Path(sys.argv[1])).assign(sys.argv[2] + str(n), 1)"
        " for n in range(10)]"
    )
    processes = [start("-c", change, serving_dir, name) for name in "abcd"]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert len(model_config.ModelConfig(serving_dir).labels()) == 40


def test_the_command_shows_promotes_and_rolls_back(serving_dir):
    def labels(*arguments):
        return command("serving.labels", f"--serving_dir={serving_dir}", *arguments, timeout=60)

    assert labels("--label=stable", "--to_version=2").returncode == 0
    done = labels("--label=stable", "--to_version=4")
    assert done.stdout.splitlines()[0] == "stable: version 2 -> 4"
    done = labels("--label=stable", "--rollback")
    assert done.stdout.splitlines() == [
        "stable: version 4 -> 2",
        "     1  -",
        "     2  served  stable",
        "     3  -",
        "     4  -",
    ]
    done = labels("--label=stable", "--to_version=7")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "serving.labels: version 7 of pap_stage2: expected one of 1, 2, 3, 4"
    )
    history = json.loads((serving_dir.parent / ".models.history.json").read_text())
    assert history == {"pap_stage2": {"stable": []}}
