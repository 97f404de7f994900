"""Trains the model that was chosen: head, epochs, blocks, and then one look at the test images."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets.public_api as tfds

from finetune import recipes
from finetune.search import scoring
from finetune.tuning import Tuning
from replication.learning import features, models, training, training_state
from replication.measures import published
from replication.runs import fitting
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from tfds_pap import files, preparing, roles

#: The figure that every fine-tuned model is set beside: the paper's final one.
PUBLISHED = "P6.accuracy"


@dataclasses.dataclass(frozen=True)
class SecondPhase:
    """Training of the last blocks, once the head is trained.

    Attributes:
        blocks: How many; 0 leaves the phase out.
        learning_rate: Of blocks and head alike.
        epochs: Epochs at most.
    """

    blocks: int
    learning_rate: float
    epochs: int


@dataclasses.dataclass(frozen=True)
class FinalFit:
    """How the final model is trained, whatever the seed.

    Attributes:
        tuning: Hyperparameters.
        spec: The backbone's features.
        protocol: "paper" or "clean".
        monitor: What makes an epoch better in the clean protocol; P6 watched accuracy, and kept
            the last weights.
        train_on_tune: Whether the tune role, once it has chosen the numbers of epochs, trains too.
        second: The second phase.
        builder: A prepared builder.
        features_dir: Where features are stored.
        policy: Where and how to compute.
        blocks: What roles keep together, by id; None keeps groups together.
    """

    tuning: Tuning
    spec: features.FeatureSpec
    protocol: str
    monitor: str
    train_on_tune: bool
    second: SecondPhase
    builder: tfds.core.DatasetBuilder
    features_dir: Path
    policy: DevicePolicy
    blocks: Mapping[str, str] | None = None

    def identity(self) -> dict[str, Any]:
        """Returns everything that results depend on; protocol and seed only choose among fits."""
        hidden = "-".join(map(str, self.tuning.hidden_units)) or "none"
        return {
            "data of stage 2": preparing.identity(self.builder),
            **dataclasses.asdict(self.tuning),
            "hidden_units": hidden,
            "weights": self.spec.weights.label,
            "digest of the weights": self.spec.weights.digest[:16],
            "monitor": self.monitor,
            "train_on_tune": self.train_on_tune,
            **{f"second_phase_{k}": v for k, v in dataclasses.asdict(self.second).items()},
        }

    def run(self, run: RunDirectory, seed: int, *, prevalence: float | None = None) -> None:
        """Trains and scores the model of one seed; returns at once where that is done.

        Args:
            run: Where the fit belongs.
            seed: Of weights, order, augmentation and dropout; a whole number from 0.
            prevalence: Of HSIL+ where the model is to be used, for predictive values.
        """
        directory = run.fit_directory(2, self.protocol, seed)
        recipe = self._recipe(self.tuning, seed)
        epochs: list[int] = []
        if not (directory / "fit.json").exists():
            if self.train_on_tune:
                epochs = self._choose_epochs(recipe, seed, directory)
                recipe = _fixed(recipe, epochs[0])
            if self.second.blocks:
                head, _ = self._phase(directory / "head", recipe, seed, self.train_on_tune)
                recipe = self._with_blocks(head, seed)
                if epochs:
                    recipe = _fixed(recipe, epochs[1])
        fitting.run_fit(
            run,
            dataclasses.replace(recipe, train_on_tune=self.train_on_tune),
            self.protocol,
            seed,
            builder=self.builder,
            policy=self.policy,
            prevalence=prevalence,
            features_dir=self.features_dir,
            validator=scoring.validator,
            blocks=self.blocks,
            about={
                "tuning": dataclasses.asdict(self.tuning),
                "second_phase": dataclasses.asdict(self.second),
                "epochs_chosen_on_tune": epochs,
            },
        )

    def _choose_epochs(self, recipe: training.Recipe, seed: int, directory: Path) -> list[int]:
        """Epochs of each phase that were best on the tune images; the models are not used."""
        model, outcome = self._phase(directory / "choose", recipe, seed, False)
        chosen = [_epochs(outcome)]
        if self.second.blocks:
            recipe = self._with_blocks(model, seed)
            _, outcome = self._phase(directory / "choose_blocks", recipe, seed, False)
            chosen.append(_epochs(outcome))
        return chosen

    def _recipe(self, tuning: Tuning, seed: int, head: Path | None = None) -> training.Recipe:
        clean = self.protocol == "clean"
        own = self.builder.name in preparing.FOLDER_SETS.values()
        return recipes.recipe(
            tuning,
            self.spec,
            classes=len(self.builder.info.features["label"].names),
            seed=seed,
            keep="best" if clean else "last",
            monitor=self.monitor if clean else "val_accuracy",
            name=f"fine-tuned {tuning.backbone}",
            published=published.NONE if own else PUBLISHED,
            head=head,
        )

    def _with_blocks(self, head: Path, seed: int) -> training.Recipe:
        """The second phase: one low learning rate for blocks and head, which stays what it is."""
        tuning = self.tuning.replace(
            {
                "unfrozen_blocks": self.second.blocks,
                "learning_rate": self.second.learning_rate,
                "backbone_learning_rate": self.second.learning_rate,
                "epochs": self.second.epochs,
                "schedule": "constant",
                "warmup_epochs": 0,
            }
        )
        return self._recipe(tuning, seed, head)

    def _phase(
        self, directory: Path, recipe: training.Recipe, seed: int, train_on_tune: bool
    ) -> tuple[Path, dict[str, Any]]:
        """Trains what a later phase needs; returns its model and what happened, also when done."""
        model_path, outcome_path = directory / "model.keras", directory / "outcome.json"
        if not outcome_path.exists():
            examples = fitting.store(self.builder, recipe, self.policy, self.features_dir)
            assigned = roles.assign_roles(
                examples.index, self.protocol, stage=2, blocks=self.blocks
            )
            if train_on_tune:
                assigned = assigned.with_tune_in_train()
            model, outcome = training.fit(
                recipe,
                examples,
                assigned,
                seed=seed,
                policy=self.policy,
                directory=directory,
                label=f"{directory.name}, {self.protocol} protocol, seed {seed}",
                validate=scoring.validator(examples, assigned.tune) if len(assigned.tune) else None,
            )
            models.save_model(model, model_path)
            files.write_last(outcome_path, outcome, (model_path.name,))
            training_state.remove_state(directory)
        return model_path, files.read_json(outcome_path)


def _epochs(outcome: dict[str, Any]) -> int:
    return outcome["best_epoch"] + 1 if outcome["kept"] == "best" else outcome["epochs_run"]


def _fixed(recipe: training.Recipe, epochs: int) -> training.Recipe:
    return dataclasses.replace(recipe, epochs=epochs, patience=0, keep="last")
