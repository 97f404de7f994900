"""The size of each defect: hand-made predictions with a known answer, and the command itself."""

import dataclasses

import keras
import numpy as np
import pytest
from commands import command

from replication.ablation import figure, report, sizes, steps, watching
from replication.ablation.sizes import Size
from replication.comparison.differences import COMPARED, gaps
from replication.learning import features, heads, knobs, models, recipes
from replication.measures import shares
from replication.measures.predictions import Predictions
from replication.runs import device
from replication.runs.directory import RunDirectory
from tfds_pap import files, pipeline, preparing
from tfds_pap.errors import PapError

CLASSES = ("NILM", "LSIL", "HSIL", "SCC")


def predictions(labels, named, *, split="test", groups=None, sure=1.0):
    """Predictions that give a class a probability and share the rest out."""
    labels, named = np.asarray(labels), np.asarray(named)
    probabilities = np.full((len(labels), 4), (1 - sure) / 3)
    probabilities[np.arange(len(labels)), named] = sure
    return Predictions(
        tuple(f"{split} {number:04}" for number in range(len(labels))),
        tuple(groups or [""] * len(labels)),
        (split,) * len(labels),
        labels,
        probabilities,
        CLASSES,
    )


def cells_by_hand(labels, probabilities, batch):
    """P6's specificity, cell by cell."""
    means = []
    for start in range(0, len(labels), batch):
        negative = right = 0
        for label, row in zip(labels[start : start + batch], probabilities[start:], strict=False):
            for c, probability in enumerate(row):
                if c != label:
                    negative += 1
                    right += probability < 0.5
        means.append(right / negative)
    return sum(means) / len(means)


def test_the_published_specificity_is_that_of_its_cells_by_hand():
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 4, 57), rng.dirichlet([0.3] * 4, 57)
    found = sizes.published_specificity(labels, probabilities)
    assert found == pytest.approx(cells_by_hand(labels, probabilities, 16), abs=1e-6)


def test_the_published_matrix_gives_the_published_specificity():
    matrix = [[191, 1, 0, 8], [2, 197, 0, 1], [0, 1, 199, 0], [5, 4, 0, 191]]
    pairs = [(i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) for _ in range(n)]
    labels, named = np.array(pairs).T
    # 800 images are 50 whole batches: the mean over them is the mean over all cells.
    assert sizes.published_specificity(labels, np.eye(4)[named]) == pytest.approx(0.9908, abs=5e-5)
    size = sizes.specificity(Size("D5", "P6", ""), [predictions(labels, named)])
    # Classes of equal numbers: both formulas say the same.
    assert size.points.value == pytest.approx(0, abs=1e-6) and size.verdict != "told apart"
    assert "The lowest of a class is 98.5 %." in size.note


def test_a_rare_class_that_is_overcalled_is_hidden_by_the_published_specificity():
    labels = np.array([0] * 90 + [1] * 30 + [2] * 20 + [3] * 20)
    named = np.zeros(160, int)  # Always NILM, which is right for 90 of 160.
    run = predictions(labels, named)
    size = sizes.specificity(Size("D5", "P6", ""), [run, run])
    cells = cells_by_hand(labels, run.probabilities, 16)
    # One class is always said wrongly of the others, three never.
    assert size.with_defect == pytest.approx(cells, abs=1e-6)
    assert size.without == pytest.approx(3 / 4, abs=1e-6)
    assert size.points.value == pytest.approx(cells - 3 / 4, abs=1e-6)
    assert size.verdict == "told apart" and size.points.low < size.points.value < size.points.high


def test_a_score_on_training_rows_is_as_much_too_high_as_it_was_made():
    labels = np.tile(np.arange(4), 50)
    learned, unseen = labels.copy(), labels.copy()
    learned[:20], unseen[:80] = (learned[:20] + 1) % 4, (unseen[:80] + 1) % 4
    found = sizes.apart(
        Size("D3", "P5", ""),
        [predictions(labels, learned, split="tune")],
        [predictions(labels, unseen)],
    )
    for size in found:
        assert (size.with_defect, size.without) == (pytest.approx(0.9), pytest.approx(0.6))
        assert size.points.value == pytest.approx(0.3) and size.verdict == "told apart"
        assert 0.2 < size.points.low < size.points.high < 0.4
    # Without groups, the interval of the accuracies is Wilson's of each, combined.
    one, other = shares.wilson(180, 200), shares.wilson(120, 200)
    low = 0.3 - np.hypot(0.9 - one[0], other[1] - 0.6)
    assert found[0].points.low == pytest.approx(low)


def test_gaps_of_several_seeds_are_wider_than_those_of_one():
    labels = np.tile(np.arange(4), 25)
    named = [np.where(np.arange(100) < wrong, (labels + 1) % 4, labels) for wrong in (10, 30)]
    first = [predictions(labels, one) for one in named]
    second = [predictions(labels, labels, split="tune")] * 2
    alone, both = gaps(first[:1] * 2, second), gaps(first, second)
    for name in COMPARED:
        assert both[name].value == pytest.approx(
            np.mean([gaps([f], second[:1])[name].value for f in first])
        )
        assert both[name].high - both[name].low > alone[name].high - alone[name].low


def test_an_epoch_chosen_on_the_scored_images_is_flattered_by_as_much_as_it_was_made():
    labels = np.zeros(40, int)
    test = predictions(labels, labels)
    half = sizes._halves(test, seed=3)
    # Epoch 1 knows one half, epoch 2 the other: each half chooses its own.
    by_epoch = np.stack([np.where(half == side, 0, 1) for side in (0, 1)])
    watched, held_out, chosen = sizes.watched(test, by_epoch, seed=3)
    assert chosen == [1, 2]
    assert sizes.figure(watched, "accuracy") == 1 and sizes.figure(held_out, "accuracy") == 0


def test_one_epoch_leaves_nothing_to_choose_and_groups_are_in_one_half():
    labels = np.tile(np.arange(4), 20)
    groups = [f"field {number // 5}" for number in range(80)]
    test = predictions(labels, (labels + 1) % 4, groups=groups)
    watched, held_out, chosen = sizes.watched(test, test.predicted[None], seed=0)
    assert chosen == [1, 1]
    np.testing.assert_array_equal(watched.predicted, held_out.predicted)
    half = sizes._halves(test, seed=0)
    assert 0 < half.sum() < 80
    assert all(len({*half[np.array(groups) == group]}) == 1 for group in set(groups))


def test_one_group_has_no_halves_and_is_not_measured():
    one = predictions([0, 1], [0, 0], groups=["slide", "slide"])
    (size,) = steps.Work._watched(None, [], [one, one])
    assert size.verdict == "not measured" and "of one group" in size.note


def test_the_interval_of_watching_holds_the_flattery_of_other_images():
    """300 samples of 200 images, 20 equal epochs: how often the interval holds the true mean."""
    rng = np.random.default_rng(0)
    gains, ends = [], []
    for sample in range(300):
        labels = np.zeros(200, int)
        # Epochs agree on the hard images more than coins would.
        hard = rng.beta(2, 1, 200)
        by_epoch = (rng.random((20, 200)) > hard).astype(int)
        test = predictions(labels, by_epoch[-1])
        watched, held_out, _ = sizes.watched(test, by_epoch, sample)
        gains.append(sizes.figure(watched, "accuracy") - sizes.figure(held_out, "accuracy"))
        right = [(one.predicted == 0)[None] for one in (watched, held_out)]
        interval = shares.difference(*right, test.groups)
        ends.append((interval.low, interval.high))
    truth = np.mean(gains)
    assert truth > 0.05 and min(gains) >= 0
    low, high = np.array(ends).T
    assert ((low <= truth) & (truth <= high)).mean() >= 0.9


def test_the_spread_of_one_seed_is_not_told():
    labels = np.tile(np.arange(4), 10)
    runs = [
        predictions(labels, np.where(np.arange(40) < n, (labels + 1) % 4, labels)) for n in (0, 4)
    ]
    accuracy = sizes.spread(Size("D7", "P2", ""), runs)[0]
    assert accuracy.points.value == pytest.approx(np.std([1, 0.9], ddof=1))
    assert accuracy.note.strip() == "Seeds from 90.0 to 100.0 %."
    assert accuracy.verdict == "no interval"
    alone = sizes.spread(Size("D7", "P2", ""), runs[:1])[0]
    assert alone.verdict == "not measured" and np.isnan(alone.points.value)
    assert figure.drawable([accuracy, alone]) == []


def test_without_d1_the_recipe_differs_in_what_the_network_is_fed_alone():
    whole = recipes.plan("paper", 2, phantoms=False)
    without = recipes.plan("paper", 2, phantoms=False, without="D1")
    differing = [
        field.name
        for field in dataclasses.fields(whole)
        if getattr(whole, field.name) != getattr(without, field.name)
    ]
    assert differing == ["build"]
    fed, own = (one.build(94 + 96) for one in (whole, without))
    clean = models.stage2_cnn("clean", 190)
    assert [layer.name.split("_")[0] for layer in own.layers] == [
        layer.name.split("_")[0] for layer in clean.layers
    ]
    assert own.get_layer("scale").get_config() == clean.get_layer("scale").get_config()
    assert fed.count_params() == own.count_params()
    three = recipes.plan("paper", 2, phantoms=False, classes=3, without="D1").build(190)
    assert three.output_shape == (None, 3) and three.get_layer("scale")


def test_p5s_points_are_the_published_ones_and_hold_the_authors_choice():
    every = knobs.p5_points()
    assert len(every) == len(set(every)) == 162
    for count in (1, 18, 162):
        points = steps.points_of_p5(count)
        assert len(set(points)) == count and {*points} <= {*every}
        assert knobs.HeadRecipe(epochs=30, patience=5) in points


def test_p5_scores_rows_that_it_trains_on(manual_dir, data_dir):
    index = pipeline.read_index(preparing.prepare("pap_db4", "original", manual_dir, data_dir))
    assigned = heads.scored_on_training(index)
    assert {*assigned.tune} <= {*assigned.train} and len(assigned.tune) == len(assigned.test) == 12
    assert {*index.splits[assigned.train]} == {"train"} and len(assigned.train) == 40


def test_a_damaged_or_missing_epoch_is_named(tmp_path):
    test = predictions([0, 1, 2], [0, 1, 1])
    (tmp_path / "epochs").mkdir()
    np.save(tmp_path / "epochs" / "0001.npy", np.array([3, 3, 3], np.int16))
    np.testing.assert_array_equal(
        watching.named_by_epoch(tmp_path, test, 2), [[3, 3, 3], [0, 1, 1]]
    )
    with pytest.raises(PapError, match=r"0002\.npy: expected the classes named after epoch 2"):
        watching.named_by_epoch(tmp_path, test, 3)
    (tmp_path / "epochs" / "0001.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(PapError, match=r"0001\.npy"):
        watching.named_by_epoch(tmp_path, test, 2)


def test_a_wrong_defect_is_answered_at_once():
    done = command("replication.defects", "--defects=D1,D9")
    assert done.returncode != 0 and "--defects=D1,D9: D9 is none of D1 to D8" in done.stderr


def small_network(scale, size):
    images = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(scale)(images)
    x = keras.layers.Conv2D(4, 5, strides=4, activation="relu")(x)
    x = keras.layers.Dropout(0.3)(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(images, keras.layers.Dense(4, activation="softmax")(x))


@pytest.fixture(scope="module")
def features_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def work(manual_dir, data_dir, features_dir, tiny_backbone):
    """Returns what makes a work of all defects in a folder, with small networks."""
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
    whole = dataclasses.replace(recipes.plan("paper", 2, phantoms=False), size=32, epochs=3)
    networks = {
        name: dataclasses.replace(whole, build=lambda size, scale=scale: small_network(scale, size))
        for name, scale in ((steps.WHOLE, 1.0), (steps.WITHOUT_D1, 1 / 127.5))
    }
    spec = features.feature_spec(tiny_backbone, source="none", size=32)
    policy = device.configure()

    def made(path, defects=steps.DEFECTS, seeds=(0,)):
        plan = steps.Plan(
            defects=defects,
            seeds=seeds,
            networks=networks,
            specs={"bgr": dataclasses.replace(spec, preprocessing="bgr"), "own": spec},
            folds=2,
            points=steps.points_of_p5(1),
            unit="field",
        )
        run = RunDirectory.open(path, {"data": "small"})
        run.update_manifest(source="stand-in", announcement="Other images.")
        return steps.Work(run, plan, builder, policy, {"epochs": 3}, "stand-in", features_dir)

    return made


@pytest.mark.slow
def test_every_defect_gets_a_row_and_the_same_command_trains_nothing_again(
    work, tmp_path, monkeypatch, capsys
):
    whole = work(tmp_path / "run")
    found = whole.measure()
    assert list(dict.fromkeys(size.defect for size in found)) == list(steps.DEFECTS)
    by_name = {(s.defect, s.part, s.metric): s for s in found if "let into" not in s.what}
    assert {metric for _, _, metric in by_name} == {*sizes.METRICS, "specificity", ""}
    for key in (("D1", "P2"), ("D1", "P6"), ("D2", "P2"), ("D3", "P5"), ("D4", "P2"), ("D6", "P6")):
        size = by_name[*key, "accuracy"]
        assert size.points.value == pytest.approx(size.with_defect - size.without), key
    # The folder is scored on 12 images of 5 fields; D6 on all 52.
    assert by_name["D1", "P2", "accuracy"].points.count == 12
    assert by_name["D6", "P6", "accuracy"].points.count == 52
    page = report.write(whole.run, found, whole.plan)
    text, printed = page.read_text(), capsys.readouterr().out
    assert "Other images." in text and text.count('<th scope="row">') == len(found)
    assert "D8" in printed and "not measured" in printed
    assert (tmp_path / "run" / "figures" / "defects.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "run" / "defects.csv").read_text().count("\n") == len(found) + 1

    def no_fit(*arguments, **options):
        raise AssertionError("a finished fit was trained again")

    monkeypatch.setattr("replication.learning.training.fit", no_fit)
    again = work(tmp_path / "run").measure()
    assert report.table(again, {}).equals(report.table(found, {}))


@pytest.mark.slow
def test_a_killed_network_misses_no_epoch(work, tmp_path, monkeypatch):
    undisturbed = work(tmp_path / "whole", ["D4"])
    expected = undisturbed.measure()
    looked = watching.TestFolderWatch.on_epoch_begin

    def killed(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt
        looked(self, epoch, logs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(watching.TestFolderWatch, "on_epoch_begin", killed)
        work(tmp_path / "killed", ["D4"]).measure()
    left = sorted(path.name for path in (tmp_path / "killed").rglob("epochs/*.npy"))
    assert left == ["0001.npy"]
    resumed = work(tmp_path / "killed", ["D4"])
    assert report.table(resumed.measure(), {}).equals(report.table(expected, {}))
    for path in sorted((tmp_path / "whole").rglob("epochs/*.npy")):
        twin = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
        np.testing.assert_array_equal(np.load(path), np.load(twin))
    fit = files.read_json(next((tmp_path / "killed").rglob("seed_0/fit.json")))
    assert fit["epochs_run"] == 3 and fit["kept"] == "last"


@pytest.mark.slow
def test_a_dry_run_tells_fits_and_minutes_and_writes_nothing(tmp_path):
    done = command(
        "replication.defects", "--dry_run", "--defects=D1", "--seeds=0,1,2", "--size=32",
        "--backbone=tiny", f"--data_dir={tmp_path}", cwd=tmp_path, tiny=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "P2's network: 6 fits, at most 54 epochs, about " in done.stdout
    assert "Heads: " in done.stdout and "6 fits of heads" in done.stdout
    assert done.stdout.endswith("without it results go to runs/defects-phantom\n")
    assert not list(tmp_path.iterdir())
