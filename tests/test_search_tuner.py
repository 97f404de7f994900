"""A search in this process, on a backbone of two convolutions: what trials train and score."""

import errno

import numpy as np
import pytest
from small_searches import SPACE

from finetune import recipes, space, tuning
from finetune.search import collect, oracles, scoring, tuner
from replication.learning import features, training
from replication.measures import evaluation
from replication.runs import device
from tfds_pap import files, pipeline, preparing


@pytest.fixture(scope="module")
def features_dir(tmp_path_factory):
    """The backbone is the same in every test, and so are its features."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def study(tiny_backbone, manual_dir, data_dir, features_dir, tmp_path):
    """What trials share, in this process, on the backbone of two convolutions."""

    def make(**changes):
        builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
        path = tmp_path / "points.py"
        path.write_text(changes.pop("text", SPACE))
        base = tuning.Tuning(backbone=tiny_backbone, epochs=9, patience=0)
        policy = device.configure()
        spec = features.feature_spec(tiny_backbone, source="none", precision=policy.precision)
        store = features.extract_features(builder, spec, features_dir, policy=policy)
        return tuner.Study(
            **{
                "space": space.find(str(path), base),
                "spec": spec,
                "store": store,
                "assigned": scoring.assign_roles(store.index, changes.get("protocol", "clean")),
                "images": lambda: pipeline.load_images(builder, spec.size),
                "protocol": "clean",
                "objective": "val_loss",
                "executions": 1,
                "seed": 5,
                "policy": policy,
            }
            | changes
        )

    return make


def search(study, directory, name="grid", **options):
    """Searches in this process; returns the trials in the order in which they ended."""
    options = {"max_trials": None, "max_epochs": 9, "factor": 3} | options
    oracle = oracles.build(
        name,
        study.space.hyperparameters(),
        scoring.objective(study.objective),
        seed=1,
        **options,
    )
    tuner.SearchTuner(oracle, study, directory, lease_seconds=60).search_alone(lambda: None)
    return collect.read_trials(directory)


def result(trial):
    return files.read_json(trial.directory / "result.json")


def test_every_point_is_trained_and_scored(study, tmp_path):
    one = study(executions=2)
    found = search(one, tmp_path / "search")
    points = {(trial.values["units"], trial.values["learning_rate"]) for trial in found}
    assert len(found) == 6 and len(points) == 6
    assert [trial.status for trial in found].count("diverged") == 2
    for trial in found:
        if trial.values["learning_rate"] == 1e30:
            # NaN must not reach the oracle, which ranks by it.
            assert trial.status == "diverged" and trial.score == scoring.WORST["min"]
            continue
        both = [
            evaluation.Predictions.read(trial.directory.parent / f"execution_{n}/predictions.csv")
            for n in (0, 1)
        ]
        losses = [-np.log(p.probabilities[np.arange(len(p)), p.labels]).mean() for p in both]
        assert losses[0] != losses[1] and set(both[0].splits) == {"tune"}
        assert trial.score == pytest.approx(np.mean(losses), rel=1e-5)
        assert trial.metrics["val_accuracy"] == pytest.approx(
            np.mean([(p.predicted == p.labels).mean() for p in both])
        )
        history = result(trial)["history"]
        assert trial.best_epoch - 1 == np.argmin([logs["val_loss"] for logs in history])
        # Only Hyperband goes on where a trial ended.
        assert not list(trial.directory.glob("*.npz"))


def test_promoted_trials_go_on_instead_of_starting_again(study, tmp_path):
    """And equal a fit that was trained for so long from the start."""
    text = SPACE.replace("1e30", "0.03")
    one = study(text=text)
    found = search(one, tmp_path / "search", "hyperband")
    by_id = {trial.trial_id: trial for trial in found}
    promoted = [trial for trial in found if trial.inherited]
    assert len(promoted) >= 2
    for trial in promoted:
        parent = by_id[trial.inherited]
        assert trial.values == parent.values and trial.epochs > parent.epochs
        before, after = result(parent)["history"], result(trial)["history"]
        assert after[: len(before)] == before
    longest = max(promoted, key=lambda trial: trial.epochs)
    assert longest.epochs == 9
    key = files.read_json(longest.directory / "key.json")
    recipe = recipes.recipe(
        tuning.Tuning().replace(key["tuning"]),
        one.spec,
        classes=4,
        seed=key["seed"],
        keep="best",
        monitor="val_loss",
        name="by hand",
    )
    assigned = one.assigned
    _, outcome = training.fit(
        recipe,
        one.store,
        assigned,
        seed=key["seed"],
        policy=one.policy,
        directory=tmp_path / "by_hand",
        label=None,
        validate=scoring.validator(one.store, assigned.tune),
    )
    assert outcome["history"] == result(longest)["history"]


def test_trials_with_blocks_train_on_images(study, tmp_path):
    text = """
def space(hp):
    blocks = hp.Int("unfrozen_blocks", 0, 1)
    with hp.conditional_scope("unfrozen_blocks", [1]):
        rate = hp.Choice("backbone_learning_rate", [0.1])
    return {"unfrozen_blocks": blocks, "backbone_learning_rate": rate, "epochs": 2}
"""
    one = study(text=text)
    on_features, on_images = search(one, tmp_path / "search")
    assert on_features.values == {"unfrozen_blocks": 0}
    assert on_images.values == {"unfrozen_blocks": 1, "backbone_learning_rate": 0.1}
    first = [result(trial)["history"][0]["loss"] for trial in (on_features, on_images)]
    assert first[0] != first[1]


def test_the_paper_protocol_scores_held_out_images_beside(study, tmp_path):
    one = study(protocol="paper", objective="val_accuracy")
    found = search(one, tmp_path / "search", max_trials=1)
    predictions = found[0].predictions()
    index = one.store.index
    train = set(index.ids[index.splits == "train"])
    assert set(predictions.select("tune").ids) < train
    held_out = predictions.select("test")
    assert not set(held_out.ids) & train and len(held_out) == 12
    accuracy = (held_out.predicted == held_out.labels).mean()
    assert found[0].metrics["held_out_accuracy"] == pytest.approx(accuracy)


def test_a_full_disk_stops_the_search_and_loses_nothing(study, tmp_path, monkeypatch):
    one = study()
    undisturbed = search(one, tmp_path / "undisturbed")
    written = []
    write = files.write_atomically

    def full(path, content):
        written.append(path.name)
        if len(written) == 14:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(files, "write_atomically", full)
    with pytest.raises(Exception, match="No space left on device"):
        search(one, tmp_path / "search")
    done = collect.read_trials(tmp_path / "search")
    assert 0 < len(done) < 6
    stamps = {t.trial_id: (t.directory / "result.json").stat().st_mtime_ns for t in done}
    found = search(one, tmp_path / "search")
    assert [t.score for t in found] == [t.score for t in undisturbed]
    for trial in found:
        if trial.trial_id in stamps:
            stamp = (trial.directory / "result.json").stat().st_mtime_ns
            assert stamp == stamps[trial.trial_id], "a finished trial ran again"


def test_views_that_are_not_stored_stop_the_search(study, tmp_path):
    text = "def space(hp):\n    return {'views': hp.Choice('v', [8])}\n"
    with pytest.raises(Exception, match="views=8: 1 stored"):
        search(study(text=text), tmp_path / "search")
