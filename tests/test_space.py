"""Search spaces: the paper's 162 points, the extended one, and a user's file."""

import itertools

import keras_tuner
import pytest

from finetune import space, tuning
from finetune.search import finite_space
from replication.measures import published
from tfds_pap.errors import PapError

BASE = tuning.Tuning(backbone="vgg16", epochs=30)


def test_the_papers_space_is_its_162_points():
    paper = space.find("paper", BASE)
    hp = paper.hyperparameters()
    found = set()
    for values in finite_space.finite_points(hp):
        point = hp.copy()
        point.values = values
        one = paper.tuning(point)
        assert (one.optimizer, one.momentum, one.epochs) == ("sgd", 0.0, 30)
        found.add((one.hidden_units, one.dropout, one.learning_rate, one.batch_size))
    heads = [(16,), (32,), (64,), (32, 16), (32, 8), (16, 8)]
    expected = set(itertools.product(heads, (0.2, 0.5, 0.8), (0.01, 0.1, 1.0), (16, 32, 64)))
    assert found == expected and len(found) == 162


def test_the_authors_choice_is_a_point_of_it():
    paper = space.find("paper", BASE)
    hp = paper.hyperparameters()
    hp.values = dict(space.PAPER_CHOICE)
    one = paper.tuning(hp)
    reported = {
        name: published.published(f"P5.{name}").value
        for name in ("hidden_layers", "units", "dropout", "learning_rate")
    }
    assert one.hidden_units == (reported["units"],)
    assert len(one.hidden_units) == reported["hidden_layers"]
    assert (one.dropout, one.learning_rate) == (reported["dropout"], reported["learning_rate"])
    assert space.PAPER_CHOICE in list(finite_space.finite_points(paper.hyperparameters()))


def test_conditions_of_the_extended_space_are_kerastuners_own():
    extended = space.find("extended", BASE, max_unfrozen_blocks=2)
    hp = extended.hyperparameters()
    conditional = {
        parameter.name: {c.name: c.values for c in parameter.conditions}
        for parameter in hp.space
        if parameter.conditions
    }
    assert conditional == {
        "momentum": {"optimizer": ["sgd"]},
        "sgd_learning_rate": {"optimizer": ["sgd"]},
        "adam_learning_rate": {"optimizer": ["adam", "adamw"]},
        "weight_decay": {"optimizer": ["adamw"]},
        "warmup_epochs": {"schedule": ["cosine"]},
        "units_1": {"hidden_layers": [1, 2]},
        "units_2": {"hidden_layers": [2]},
        "backbone_learning_rate": {"unfrozen_blocks": [1, 2]},
    }
    without = space.find("extended", BASE).hyperparameters()
    assert not {"unfrozen_blocks", "backbone_learning_rate"} & {p.name for p in without.space}
    assert extended.views(hp) == 8


def test_every_point_of_the_extended_space_can_be_trained():
    extended = space.find("extended", BASE, max_unfrozen_blocks=2)
    hp = extended.hyperparameters()
    seen = set()
    for seed in range(300):
        hp.values = {}
        for number, parameter in enumerate(hp.space):
            if hp.is_active(parameter):
                hp.values[parameter.name] = parameter.random_sample(20 * seed + number)
        one = extended.tuning(hp)
        low, high = (1e-3, 1.0) if one.optimizer == "sgd" else (1e-5, 1e-2)
        assert low <= one.learning_rate <= high
        assert len(one.hidden_units) == hp.values["hidden_layers"]
        assert (one.weight_decay > 0) == (one.optimizer == "adamw")
        assert one.schedule == "cosine" or one.warmup_epochs == 0
        seen.add((one.optimizer, one.schedule, one.unfrozen_blocks, len(one.hidden_units)))
    assert len(seen) == 3 * 2 * 3 * 3


def test_a_short_search_warms_up_for_less_than_all_of_it():
    for epochs in (1, 2, 5):
        short = space.find("extended", tuning.Tuning(backbone="vgg16", epochs=epochs))
        warmup = {p.name: p for p in short.hyperparameters().space}["warmup_epochs"]
        assert (warmup.min_value, warmup.max_value) == (0, min(4, epochs - 1))


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return str(path)


def test_a_file_of_the_users_own(tmp_path):
    """Plain Python conditions work as well: parameters behind them are found."""
    path = write(
        tmp_path,
        "def space(hp):\n"
        "    values = {'optimizer': hp.Choice('optimizer', ['sgd', 'adam'])}\n"
        "    if values['optimizer'] == 'adam':\n"
        "        values['learning_rate'] = hp.Choice('rate', [1e-3, 1e-4])\n"
        "    return values\n",
    )
    mine = space.find(path, BASE)
    hp = mine.hyperparameters()
    assert [parameter.name for parameter in hp.space] == ["optimizer", "rate"]
    assert mine.tuning(hp) == BASE.replace({"optimizer": "sgd"})
    other = space.find(path, tuning.Tuning(backbone="vgg16", epochs=31))
    assert mine.digest(hp) != other.digest(other.hyperparameters())
    assert mine.digest(hp) == space.find(path, BASE).digest(mine.hyperparameters())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def space(hp):\n    return hp.Choise('a', [1])\n", "AttributeError"),
        ("def space(hp)\n    return {}\n", "SyntaxError"),
        ("import no_such_module\n", "ModuleNotFoundError"),
        ("spaec = 1\n", "expected a function space(hp)"),
        ("def space(hp):\n    return [hp.Choice('a', [1])]\n", "returned list, expected a dict"),
        ("def space(hp):\n    return {}\n", "it declares no hyperparameter"),
        ("def space(hp):\n    return {'units': hp.Choice('a', [1])}\n", "units: expected one of"),
        ("def space(hp):\n    return {'dropout': hp.Choice('a', [0.1, 1.5])}\n", "dropout=1.5"),
        (
            "def space(hp):\n    hp.Choice('a', [1])\n    raise ValueError()\n",
            "(line 3 of mine.py)",
        ),
    ],
)
def test_a_file_that_is_wrong_is_one_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(PapError) as raised:
        space.find(path, BASE).hyperparameters()
    said = str(raised.value)
    assert said.startswith(f"--space={path}: ") and message in said and "\n" not in said


@pytest.mark.parametrize("spec", ["papre", "no_such.py", "/"])
def test_an_unknown_space_is_one_line(spec):
    with pytest.raises(PapError, match="expected paper, extended, or a Python file"):
        space.find(spec, BASE)


def test_the_default_point_is_active_only():
    hp = space.find("extended", BASE, max_unfrozen_blocks=2).hyperparameters()
    assert isinstance(hp, keras_tuner.HyperParameters)
    assert {"adam_learning_rate", "weight_decay", "warmup_epochs", "units_2"}.isdisjoint(hp.values)
    assert hp.values["sgd_learning_rate"] == 0.01 and hp.values["units_1"] == 64
