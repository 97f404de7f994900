"""The search and the final fit as a user types them, with a backbone that takes no time."""

import csv
import json
import shutil
import socket
import sys
import time

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf
from commands import command, start
from small_searches import SPACE
from tampering import change, differences

from finetune import tuning
from finetune.search import collect, local_workers, trials
from replication.runs.directory import RunDirectory
from replication.verification import figures, kinds, repeated
from tfds_pap import files
from tfds_pap.errors import PapError

FLAGS = ("--tuner=hyperband", "--max_epochs=3", "--deterministic", "--objective=val_loss")


@pytest.fixture(scope="module")
def places(manual_dir, data_dir, tmp_path_factory):
    """Flags that say where everything lies, and a space of six points."""
    root = tmp_path_factory.mktemp("search")
    (root / "points.py").write_text(SPACE)
    return root, (
        "--backbone=tiny",
        "--weights=none",
        "--size=32",
        f"--manual_dir={manual_dir}",
        f"--data_dir={data_dir}",
        f"--features_dir={root / 'features'}",
    )


@pytest.fixture(scope="module")
def undisturbed(places):
    root, where = places
    arguments = (*FLAGS, f"--space={root / 'points.py'}", *where)
    done = command(
        "finetune.search",
        *arguments,
        f"--search_dir={root / 'undisturbed'}",
        draws=False,
        tiny=True,
    )
    assert done.returncode == 0, done.stderr
    return root / "undisturbed", done.stdout, arguments


def test_the_command_says_what_it_will_do_and_what_it_found(undisturbed):
    directory, output, _ = undisturbed
    words = " ".join(output.split())
    assert "Space: " in words and "units 4, 8" in words
    assert "6 points; " in words and "About " in words and "ms a step of 8 on features" in words
    assert "trial 0000, bracket 1 round 0 (1 of " in words
    assert f"python -m finetune.train --from_search={directory}" in words
    rows = list(csv.DictReader((directory / "search.csv").open()))
    found = collect.read_trials(directory)
    assert len(rows) == len(found)
    ranked = [row["trial"] for row in rows if row["rank"]]
    assert ranked == [trial.trial_id for trial in trials.rank(found, "min")]
    assert tuning.Tuning.read(directory / "best.json").hidden_units in ((4,), (8,))
    assert "random weights" in files.read_json(directory / "manifest.json")["announcement"]
    assert "val_loss" in (directory / "report.html").read_text() or "loss" in words


def test_a_dry_run_tells_trials_minutes_and_disk_and_writes_nothing(places, tmp_path):
    root, where = places
    done = command(
        "finetune.search",
        *FLAGS,
        f"--space={root / 'points.py'}",
        *where,
        f"--search_dir={tmp_path / 'search'}",
        f"--features_dir={tmp_path / 'features'}",
        "--dry_run",
        tiny=True,
    )
    assert done.returncode == 0, done.stderr
    assert "\nPlan: " in done.stdout and "ms a step of" in done.stdout
    assert "--dry_run: nothing was written" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_killed_search_goes_on_to_the_same_ranking(undisturbed, places):
    directory, _, arguments = undisturbed
    root, _ = places
    killed = root / "killed"
    ended = []
    for wanted in (1, 4):
        process = start(
            "finetune.search", *arguments, f"--search_dir={killed}", draws=False, tiny=True
        )
        deadline = time.monotonic() + 120
        while len(list(killed.glob("trials/*/execution_0/result.json"))) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        ended.append({p: p.stat().st_mtime_ns for p in killed.glob("trials/*/*/result.json")})
    done = command("finetune.search", *arguments, f"--search_dir={killed}", draws=False, tiny=True)
    assert done.returncode == 0, done.stderr
    assert "Resuming: " in done.stdout
    for before in ended:
        for path, stamp in before.items():
            assert path.stat().st_mtime_ns == stamp, f"{path} ran again"
    whole, resumed = (collect.read_trials(place) for place in (directory, killed))
    assert [(t.trial_id, t.values, t.score, t.inherited) for t in resumed] == [
        (t.trial_id, t.values, t.score, t.inherited) for t in whole
    ]
    before, after = RunDirectory(directory), RunDirectory(killed)
    again = [*kinds.of(before).again(before, after, figures.Rule())]
    # An execution of each trial, and both tables.
    assert len(again) == len(whole) + 2 and not differences(again)
    change(killed / "search.csv", "completed,1.3", "completed,1.4")
    (line,) = differences(kinds.of(before).again(before, after, figures.Rule()))["search.csv"]
    assert ".score: 1.3" in line and " is stated, it is 1.4" in line


@pytest.fixture
def copy(undisturbed, tmp_path):
    """A search to be tampered with."""
    unread = shutil.ignore_patterns("logs", "figures", "*.html", ".lock")
    return RunDirectory(shutil.copytree(undisturbed[0], tmp_path / "copy", ignore=unread))


def test_an_untouched_search_verifies_and_says_how_it_is_repeated(copy, tmp_path):
    checks = [*kinds.of(copy).checks(copy)]
    assert not differences(checks)
    by_place = {checked.place.rpartition("/")[2]: checked.figures for checked in checks}
    assert by_place["search.csv"] > 100 and by_place["best.json"] > 15
    assert {"result.json", "trial.json", "images of pap_db4"} <= by_place.keys()
    assert {"tensorflow", "keras-tuner"} <= copy.manifest()["environment"]["packages"].keys()
    program, typed = repeated.arguments(copy, tmp_path)
    assert program == "finetune.search" and {*FLAGS} < {*typed}
    assert typed[-2:] == [
        f"--search_dir={tmp_path / 'run'}",
        f"--features_dir={tmp_path / 'features'}",
    ]
    rule, _ = repeated.rule(copy, [])
    assert (rule.by_interval, rule.tolerance) == (False, 1e-6)


def test_changed_tables_of_a_search_are_named(copy):
    best = json.loads((copy.path / "best.json").read_text())
    score = best["_objective"]["val_loss"]
    change(copy.path / "best.json", str(score), "1.234")
    first = next(csv.DictReader((copy.path / "search.csv").open()))
    change(copy.path / "search.csv", f",{first['epochs']},{first['seconds']}", ",7,0.5")
    different = differences(kinds.of(copy).checks(copy))
    assert different == {
        "best.json": [f"_objective.val_loss: 1.234 is stated, it is {score!r}"],
        "search.csv": [
            f"row {first['trial']}.epochs: 7 is stated, it is {first['epochs']}",
            f"row {first['trial']}.seconds: 0.5 is stated, it is {float(first['seconds'])!r}",
        ],
    }


def test_changed_scores_of_trials_are_named(copy):
    completed = [one for one in collect.read_trials(copy.path) if one.status == "completed"]
    first, second, third = (one.directory.parent for one in completed[:3])
    result = json.loads((first / "execution_0/result.json").read_text())
    accuracy = result["metrics"]["val_accuracy"]
    result["metrics"]["val_accuracy"] = 0.987
    result["best_epoch"] += 1
    (first / "execution_0/result.json").write_text(json.dumps(result))
    change(second / "trial.json", f'"score": {completed[1].score}', '"score": 0.5')
    predictions = third / "execution_0/predictions.csv"
    rows = predictions.read_text().splitlines()
    *words, one, other = rows[1].split(",")
    predictions.write_text("\n".join([rows[0], ",".join([*words, other, one]), *rows[2:]]) + "\n")
    different = differences(kinds.of(copy).checks(copy))
    places = [f"trials/{one.name}" for one in (first, second, third)]
    assert different.pop(f"{places[0]}/execution_0/result.json") == [
        f"metrics.val_accuracy: 0.987 is stated, it is {accuracy!r}",
        f"best_epoch: {result['best_epoch']} is stated, it is {result['best_epoch'] - 1}",
    ]
    # Its trial has another mean.
    (line,) = different.pop(f"{places[0]}/trial.json")
    assert line == f"metrics.val_accuracy: {accuracy!r} is stated, it is 0.987"
    assert different.pop(f"{places[1]}/trial.json") == [
        f"score: 0.5 is stated, it is {completed[1].score!r}"
    ]
    assert different.pop(f"{places[1]}/trial.json: digest")
    for place, name in ((places[0], "result.json"), (places[2], "predictions.csv")):
        (line,) = different.pop(f"{place}/execution_0: digests")
        assert line.startswith(f"{name}: ")
    (line,) = different.pop(f"{places[2]}/execution_0/result.json")
    assert "predictions.csv: is damaged or was changed" in line
    assert not different


def test_the_same_command_again_trains_nothing(undisturbed):
    directory, output, arguments = undisturbed
    before = {p: p.stat().st_mtime_ns for p in directory.glob("trials/*/*/result.json")}
    again = command(
        "finetune.search", *arguments, f"--search_dir={directory}", draws=False, tiny=True
    )
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in directory.glob("trials/*/*/result.json")} == before
    best = [line for line in output.splitlines() if line.startswith("Best found")]
    assert best and [x for x in again.stdout.splitlines() if x.startswith("Best found")] == best


def test_tensorboard_holds_every_trial(undisturbed):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    directory, _, _ = undisturbed
    columns = event_accumulator.EventAccumulator(str(directory / "logs"))
    columns.Reload()
    experiment = plugin_data_pb2.HParamsPluginData.FromString(
        columns.SummaryMetadata("_hparams_/experiment").plugin_data.content
    ).experiment
    assert [hparam.name for hparam in experiment.hparam_infos] == ["units", "learning_rate"]
    # The objective comes first.
    assert experiment.metric_infos[0].name.tag == "val_loss"
    for trial in collect.read_trials(directory):
        events = event_accumulator.EventAccumulator(
            str(directory / "logs" / f"trial_{trial.trial_id}")
        )
        events.Reload()
        shown = plugin_data_pb2.HParamsPluginData.FromString(
            events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        ).session_start_info.hparams
        assert {n: v.number_value for n, v in shown.items()} == pytest.approx(dict(trial.values))
        score = tf.make_ndarray(events.Tensors("val_loss")[0].tensor_proto)
        assert score == pytest.approx(trial.score, rel=1e-6)
        if trial.status == "completed":
            assert len(events.Tensors("epoch/val_loss")) == trial.epochs


def test_other_flags_for_the_same_directory_are_refused(undisturbed):
    directory, _, arguments = undisturbed
    done = command(
        "finetune.search", *arguments, f"--search_dir={directory}", "--seed=3", tiny=True
    )
    assert done.returncode != 0
    assert f"--search_dir={directory} was made with seed=0, not 3" in done.stderr


def test_workers_side_by_side_survive_their_chief(places):
    """Killed with -9, it takes its workers with it; the same command goes on with new ones."""
    root, where = places
    directory = root / "workers"
    (root / "four.py").write_text(SPACE.replace(", 1e30", ""))
    arguments = (
        "--tuner=grid",
        "--max_epochs=2",
        "--audit=off",
        f"--space={root / 'four.py'}",
        *where,
        # Workers are processes of their own, with the package's backbones only.
        "--backbone=mobilenetv2_035",
        f"--search_dir={directory}",
        "--workers=2",
    )
    chief = start("finetune.search", *arguments, draws=False)
    deadline = time.monotonic() + 120
    while not list(directory.glob("trials/*/execution_0/result.json")):
        assert chief.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = psutil.Process(chief.pid).children()
    assert len(workers) == 2
    chief.kill()
    chief.wait()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert len(gone) == 2 and not alive
    done = command("finetune.search", *arguments, draws=False)
    assert done.returncode == 0, done.stderr
    found = collect.read_trials(directory)
    assert len({tuple(trial.values.items()) for trial in found}) == len(found) == 4
    assert "4 of 4" in done.stdout


def test_the_best_trial_is_trained_for_good(undisturbed, places):
    directory, _, _ = undisturbed
    root, where = places
    where = [flag for flag in where if not flag.startswith(("--backbone", "--size"))]
    done = command(
        "finetune.train",
        f"--from_search={directory}",
        *where,
        f"--run_dir={root / 'final'}",
        "--seeds=0,1",
        "--train_on=train_and_tune",
        draws=False,
        tiny=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 models" in done.stdout and "as on stored features" in done.stdout
    best = tuning.Tuning.read(directory / "best.json")
    for seed in (0, 1):
        folder = root / "final" / "stage2" / "clean" / f"seed_{seed}"
        fit = json.loads((folder / "fit.json").read_text())
        assert tuning.Tuning().replace(fit["tuning"]) == best
        # The tune images chose the number of epochs, and then trained.
        assert fit["counts"]["tune"] == dict.fromkeys(("NILM", "LSIL", "HSIL", "SCC"), 0)
        assert sum(fit["counts"]["train"].values()) == 40
        assert fit["epochs_run"] == fit["epochs_chosen_on_tune"][0]
        assert fit["whole_model_differs_by"] < 1e-5
        model = keras.models.load_model(folder / "model.keras", safe_mode=True)
        assert model.input_shape == (None, 32, 32, 3) and model.output_shape == (None, 4)
    assert "P6" in (root / "final" / "report.html").read_text()


def test_a_second_phase_trains_blocks(places):
    root, where = places
    hparams = root / "hparams.json"
    tuning.Tuning(backbone="tiny", size=32, epochs=2).write(hparams)
    where = [flag for flag in where if not flag.startswith(("--backbone", "--size"))]
    done = command(
        "finetune.train",
        f"--hparams={hparams}",
        *where,
        f"--run_dir={root / 'second'}",
        "--second_phase_blocks=2",
        "--second_phase_learning_rate=0.1",
        "--second_phase_epochs=2",
        draws=False,
        tiny=True,
    )
    assert done.returncode == 0, done.stderr
    folder = root / "second" / "stage2" / "clean" / "seed_0"
    model = keras.models.load_model(folder / "model.keras", safe_mode=True)
    head = keras.models.load_model(folder / "head" / "model.keras", safe_mode=True)
    # BatchNorm of the trained blocks stayed in inference mode; the head went on.
    network = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    normalisation = network.get_layer("stem_normalization")
    np.testing.assert_array_equal(normalisation.moving_mean, np.zeros(6))
    kernels = [np.array(one.get_layer("probabilities").kernel) for one in (model, head)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("search", ["--tuner=annealing"], "--tuner=annealing: value should be one of"),
        ("search", ["--objective=val_f1"], "--objective=val_f1: value should be one of"),
        ("search", ["--tuner=random", "--max_trials=0"], "--max_trials=0"),
        ("search", ["--tuner=hyperband", "--max_trials=3"], "hyperband has its own number"),
        ("search", ["--size=8"], "--size=8: expected 0, or 32 or more pixels"),
        ("search", ["--workers=0"], "--workers=0"),
        ("train", [], "--from_search, --hparams: give one of them"),
        ("train", ["--hparams=p6", "--seeds=-1"], "--seeds=-1: expected whole numbers"),
    ],
)
def test_wrong_flags_are_one_line_at_once(module, arguments, message):
    done = command(f"finetune.{module}", *arguments)
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("search", ["--backbone=resnt152"], "did you mean resnet152"),
        ("search", ["--space={root}/bad.py"], "ZeroDivisionError: division by zero (line 2 of"),
        ("search", ["--tuner=grid", "--space=extended"], "trials; give --max_trials"),
        ("train", ["--from_search={root}/none"], "not a run directory"),
        ("train", ["--hparams={root}/bad.json"], "bad.json: dropuot: expected one of backbone"),
        (
            "train",
            ["--hparams={root}/blocks.json", "--second_phase_blocks=1"],
            "--second_phase_blocks=1: expected 0",
        ),
    ],
)
def test_bad_input_is_one_line(places, module, arguments, message):
    root, where = places
    (root / "bad.py").write_text("def space(hp):\n    return 1 / 0\n")
    (root / "bad.json").write_text('{"dropuot": 0.2}')
    (root / "blocks.json").write_text('{"unfrozen_blocks": 1}')
    if module == "train":
        where = [flag for flag in where if not flag.startswith(("--backbone", "--size"))]
    given = [argument.format(root=root) for argument in arguments]
    done = command(f"finetune.{module}", *where, *given, cwd=root, tiny=True)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr and not (root / "runs").exists()


def test_workers_that_all_fail_are_told(tmp_path, monkeypatch):
    for name in ("TUNER_ID", "ORACLE_IP", "ORACLE_PORT"):
        # So that what the workers' chief sets is taken back.
        monkeypatch.setenv(f"KERASTUNER_{name}", "")
    monkeypatch.setattr(sys, "argv", ["search", "--size=8"])
    with local_workers.LocalWorkers(2, tmp_path) as workers:
        deadline = time.monotonic() + 60
        with pytest.raises(PapError, match=r"every worker ended: .*see .*worker_0\.log"):
            while time.monotonic() < deadline:
                workers.check()
                time.sleep(0.1)
    assert "--size=8: expected 0, or 32" in (tmp_path / "worker_0.log").read_text()


def test_a_worker_without_its_port_is_told(places):
    root, where = places
    variables = {"KERASTUNER_TUNER_ID": "w", "KERASTUNER_ORACLE_IP": "127.0.0.1"}
    done = command("finetune.search", *where, cwd=root, extra=variables, tiny=True)
    assert done.returncode != 0
    assert "KERASTUNER_ORACLE_PORT" in done.stderr.splitlines()[-1]


def test_a_port_that_is_taken_is_one_line(places):
    root, where = places
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        variables = {
            "KERASTUNER_TUNER_ID": "chief",
            "KERASTUNER_ORACLE_IP": "127.0.0.1",
            "KERASTUNER_ORACLE_PORT": str(taken.getsockname()[1]),
        }
        done = command(
            "finetune.search",
            *where,
            f"--search_dir={root / 'port'}",
            cwd=root,
            extra=variables,
            tiny=True,
        )
    assert done.returncode != 0
    assert "cannot be listened on" in done.stderr.splitlines()[-1]
