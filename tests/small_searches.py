"""Small spaces, and searches of them whose trials take no time."""

import json
import random

import keras_tuner
from keras_tuner.engine import trial as trial_module

from finetune import space
from finetune.search import oracles

#: Six points: two that are trained by hand below, and one learning rate that diverges.
SPACE = """
def space(hp):
    return {
        "hidden_units": (hp.Choice("units", [4, 8]),),
        "learning_rate": hp.Choice("learning_rate", [0.01, 0.1, 1e30]),
        "batch_size": 8,
    }
"""

TUNERS = ("hyperband", "bayesian", "random", "grid")
SCORE = keras_tuner.Objective("score", "max")


class Killed(BaseException):
    """Passes by every `except Exception`, as a kill does."""


class Tuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Runs trials whose score is a function of their values."""

    def __init__(self, oracle, directory, score=None):
        self.score = score or value_of
        self.ran = []
        oracle.verbose = 0
        super().__init__(oracle, directory=str(directory), project_name="trials")

    def _populate_initial_space(self):
        self.oracle.resume()

    def save(self):
        self.oracle.save()

    def run_trial(self, trial):
        metrics = {"score": self.score(trial.hyperparameters.values)}
        self.ran.append(trial.trial_id)
        return metrics


def value_of(values):
    """Different for every point and number of epochs; the better points stay the better ones."""
    text = json.dumps({k: v for k, v in sorted(values.items()) if not k.startswith("tuner/")})
    return random.Random(text).random() + values.get("tuner/epochs", 0)


def six_points():
    hp = keras_tuner.HyperParameters()
    hp.Choice("units", [16, 32, 64])
    hp.Choice("views", ["1", "8"])
    return hp


def conditional():
    """7 points: 3 x 2 with SGD, 1 with Adam."""
    hp = keras_tuner.HyperParameters()
    hp.Choice("optimizer", ["sgd", "adam"])
    with hp.conditional_scope("optimizer", ["sgd"]):
        hp.Choice("momentum", [0.0, 0.5, 0.9])
        hp.Boolean("nesterov")
    return hp


def paper():
    hp = keras_tuner.HyperParameters()
    space.paper(hp)
    return hp


def endless():
    """Hardly any draw gets past the first few points."""
    hp = keras_tuner.HyperParameters()
    hp.Int("depth", 1, 9)
    with hp.conditional_scope("depth", [9]):
        hp.Float("rate", 0.0, 1.0)
    return hp


def build(tuner, hp, *, seed=0, max_trials=None, max_epochs=9, factor=3, objective=SCORE):
    return oracles.build(
        tuner,
        hp,
        objective,
        seed=seed,
        max_trials=max_trials,
        max_epochs=max_epochs,
        factor=factor,
    )


def search(tuner, hp, directory, score=None, **options):
    made = Tuner(build(tuner, hp, **options), directory, score)
    made.search()
    return made


def ready(tuner, hp, directory, **options):
    """An oracle to be asked by hand."""
    return Tuner(build(tuner, hp, **options), directory).oracle


def finish(oracle, trial, score=None, status="COMPLETED"):
    """Reports as a worker does, which has a copy of the trial."""
    trial = trial_module.Trial.from_state(trial.get_state())
    value = value_of(trial.hyperparameters.values) if score is None else score
    oracle.update_trial(trial.trial_id, {"score": value})
    trial.status = status
    oracle.end_trial(trial)


def points(oracle):
    """What was tried, without promotions."""
    return [
        tuple((k, v) for k, v in sorted(t.hyperparameters.values.items()) if "tuner/" not in k)
        for t in oracle.trials.values()
        if "tuner/trial_id" not in t.hyperparameters.values
    ]


def ranking(oracle):
    ended = [oracle.trials[trial_id] for trial_id in oracle.end_order]
    return sorted((t.score, t.trial_id, sorted(t.hyperparameters.values.items())) for t in ended)


def build_again(directory, tuner="grid"):
    oracle = build(tuner, six_points())
    oracle.verbose = 0
    oracle._set_project_dir(str(directory), "trials")
    return oracle
