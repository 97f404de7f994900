"""The fits that sizes are computed from, each resumable, and the sizes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow_datasets.public_api as tfds
import tqdm

from replication.ablation import sizes, watching
from replication.ablation.sizes import Size
from replication.comparison import leaks
from replication.comparison.candidates import Candidate, Cost
from replication.learning import features, heads, knobs, training, training_state
from replication.measures import published
from replication.measures.predictions import Predictions
from replication.runs import description, fitting, progress
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from tfds_pap import roles

#: Every defect, in order.
DEFECTS = ("D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8")
#: What needs P2's network trained, and what needs heads on stored features.
OF_NETWORK, OF_HEADS = ("D1", "D2", "D4", "D7"), ("D1", "D3", "D5", "D6")
#: Run directories of P2 below that of the sizes.
WHOLE, WITHOUT_D1 = "p2", "p2_without_d1"

_LOTTERY = "The last epoch counts, in both: seeds vary it as much as the defect may."


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured on what.

    Attributes:
        defects: Of `DEFECTS`.
        seeds: One fit each.
        networks: Recipe of P2 as a whole and without D1, by name of its run directory.
        specs: Features as P6 fed its backbone ("bgr"), and as its weights were trained ("own").
        folds: Of D6.
        points: Of P5's 162, the paper's choice among them.
        unit: What a group is.
    """

    defects: Sequence[str]
    seeds: Sequence[int]
    networks: Mapping[str, training.Recipe]
    specs: Mapping[str, features.FeatureSpec]
    folds: int
    points: Sequence[knobs.HeadRecipe]
    unit: str = "group"

    def wants(self, *defects: str) -> bool:
        """Whether one of these is measured."""
        return bool({*defects} & {*self.defects})


def points_of_p5(count: int) -> list[knobs.HeadRecipe]:
    """Returns some of P5's points: the one that the authors chose, and others drawn at random.

    Args:
        count: From 1 to 162.
    """
    every = knobs.p5_points()
    drawn = np.random.default_rng(0).permutation(len(every)).tolist()
    chosen = next(
        number
        for number, point in enumerate(every)
        if (point.hidden_units, point.dropout, point.learning_rate, point.batch_size)
        == ((64,), 0.2, 0.01, 16)
    )
    kept = [chosen, *(number for number in drawn if number != chosen)][:count]
    return [every[number] for number in sorted(kept)]


@dataclasses.dataclass(frozen=True)
class Work:
    """A plan at work in a run directory.

    Attributes:
        run: The run directory; its manifest says whose images these are.
        plan: What is measured.
        builder: A prepared builder.
        policy: Where and how to compute.
        identity: What results depend on, for the run directories of P2.
        images: Whose images these are by declaration.
        features_dir: Where features are stored.
        blocks: What cuts by group keep together, by id; None keeps groups together.
    """

    run: RunDirectory
    plan: Plan
    builder: tfds.core.DatasetBuilder
    policy: DevicePolicy
    identity: Mapping[str, Any]
    images: published.Source | None
    features_dir: Path
    blocks: Mapping[str, str] | None = None

    def measure(self) -> list[Size]:
        """Trains what is missing and returns the size of each defect of the plan, in order."""
        found: list[Size] = []
        if self.plan.wants(*OF_NETWORK):
            found += self._of_network()
        if self.plan.wants(*OF_HEADS):
            found += self._of_heads()
        if self.plan.wants("D8"):
            found.append(
                Size("D8", "", "the readme's DOI is another paper's", note="No figure has it.")
            )
        return sorted(found, key=lambda size: size.defect)

    def _of_network(self) -> list[Size]:
        """D1, D2, D4 and D7 of P2."""
        runs = self._networks()
        whole = [_predictions(directory) for directory in runs[WHOLE]]
        tests = [run.select("test") for run in whole]
        found: list[Size] = []
        if self.plan.wants("D1"):
            without = [_predictions(each).select("test") for each in runs[WITHOUT_D1]]
            what = "BGR, 0..255, or RGB in -1..1"
            found += sizes.paired(Size("D1", "P2", what, note=_LOTTERY), tests, without)
        if self.plan.wants("D2"):
            what = "scored on the random fifth of the train folder, or on the validation folder"
            note = "P2's network, scored as P3's was; P3's own pixels are not measured."
            tunes = [run.select("tune") for run in whole]
            found += sizes.apart(Size("D2", "P2", what, note=note), tunes, tests)
        if self.plan.wants("D4"):
            found += self._watched(runs[WHOLE], tests)
        if self.plan.wants("D7"):
            what = f"{len(tests)} seeds of the same fit"
            found += sizes.spread(Size("D7", "P2", what), tests)
        return found

    def _watched(self, directories: Sequence[Path], tests: Sequence[Predictions]) -> list[Size]:
        what = "epoch chosen on the images that are scored, or on the other half of their folder"
        if len({*tests[0].groups}) == 1 and tests[0].groups[0]:
            note = "The images that are scored are of one group, which has no halves."
            return [Size("D4", "P2", what, note=note)]
        sides: tuple[list[Predictions], list[Predictions]] = ([], [])
        epochs: list[int] = []
        for seed, directory, test in zip(self.plan.seeds, directories, tests, strict=True):
            by_epoch = watching.named_by_epoch(directory, test, self.plan.networks[WHOLE].epochs)
            *named, chosen = sizes.watched(test, by_epoch, seed)
            for side, one in zip(sides, named, strict=True):
                side.append(one)
            epochs += chosen
        note = (
            f"One look an epoch ({self.plan.networks[WHOLE].epochs}); chosen were "
            f"{', '.join(map(str, epochs))}. Never below 0; half a folder flatters more than a "
            "whole one."
        )
        return sizes.paired(Size("D4", "P2", what, note=note), *sides)

    def _networks(self) -> dict[str, list[Path]]:
        """Trains P2 as a whole and, for D1, without it; returns the fits by run directory."""
        wanted = [WHOLE, *([WITHOUT_D1] if self.plan.wants("D1") else [])]
        runs = {name: self._open(name) for name in wanted}
        # Seeds are the outer loop: a pair is whole before the next begins.
        fits = [(seed, name) for seed in self.plan.seeds for name in wanted]
        missing = [
            (seed, name)
            for seed, name in fits
            if not (runs[name].fit_directory(2, "paper", seed) / "fit.json").exists()
        ]
        train = roles.count_train(self.builder)
        planned = [
            progress.Fit.of(label(name, seed), self.plan.networks[name], train)
            for seed, name in missing
        ]
        line = progress.RunProgress(planned, progress.measure_speed(self.policy), ending=False)
        print(*line.plan(), sep="\n", flush=True)
        with line:
            for seed, name in missing:
                print(label(name, seed), flush=True)
                recipe = self.plan.networks[name]
                fitting.run_fit(
                    runs[name],
                    recipe,
                    "paper",
                    seed,
                    builder=self.builder,
                    policy=self.policy,
                    progress=line.callback(recipe.epochs, train),
                    watch=watching.TestFolderWatch if name == WHOLE else None,
                )
                line.finished()
        return {
            name: [run.fit_directory(2, "paper", seed) for seed in self.plan.seeds]
            for name, run in runs.items()
        }

    def _open(self, name: str) -> RunDirectory:
        """Opens the run directory of P2 as a whole or without a defect."""
        run = RunDirectory.open(self.run.path / name, {**self.identity, "network": name})
        description.describe(
            run, {2: self.builder}, self.policy, program="replication.defects", images=self.images
        )
        return run

    def _of_heads(self) -> list[Size]:
        """D1, D5 and D6 of P6's head, and D3 of P5's."""
        bgr = self._features("bgr")
        untrained = "" if self.plan.specs["bgr"].weights.path else "Untrained backbone. "
        found: list[Size] = []
        if self.plan.wants("D1", "D5"):
            published_cut = self._heads(bgr, "bgr", heads.PUBLISHED)
            what = "BGR, 0..255, or what the backbone's weights were trained on"
            if self.plan.wants("D1"):
                own = self._heads(self._features("own"), "own", heads.PUBLISHED)
                found += sizes.paired(Size("D1", "P6", what, note=untrained), published_cut, own)
            if self.plan.wants("D5"):
                what = "batch mean over one-hot cells, or mean one-against-rest specificity"
                size = Size("D5", "P6", what, note=f"{untrained}The same predictions.")
                found.append(sizes.specificity(size, published_cut))
        if self.plan.wants("D3"):
            found += self._searched(bgr, untrained)
        if self.plan.wants("D6"):
            found += self._cut(bgr, untrained)
        return found

    def _features(self, name: str) -> features.FeatureStore:
        return features.extract_features(
            self.builder, self.plan.specs[name], self.features_dir, policy=self.policy
        )

    def _heads(self, store: features.FeatureStore, fed: str, cut: str) -> list[Predictions]:
        """Test predictions of P6's head, one a seed."""
        return [
            heads.train_head(
                store,
                knobs.HeadRecipe(),
                heads.cut(
                    store.index,
                    cut,
                    protocol="paper",
                    count=self.plan.folds,
                    seed=seed,
                    blocks=None if cut == heads.PUBLISHED else self.blocks,
                ),
                protocol="paper",
                seed=seed,
                policy=self.policy,
                directory=self.run.path / "p6" / fed / cut / f"seed_{seed}",
            ).select("test")
            for seed in tqdm.tqdm(self.plan.seeds, desc=f"P6's heads, {fed}, {cut}", unit="seed")
        ]

    def _searched(self, store: features.FeatureStore, note: str) -> list[Size]:
        """D3: the point that P5 would choose, on the rows that it was trained on and on others."""
        what = "best point scored on rows that it trained on, or on the validation folder"
        sides: tuple[list[Predictions], list[Predictions]] = ([], [])
        for seed in self.plan.seeds:
            scored = [
                self._point(store, point, seed)
                for point in tqdm.tqdm(self.plan.points, desc=f"P5, seed {seed}", unit="point")
            ]
            finite = [one for one in scored if one is not None]
            if not finite:
                return [Size("D3", "P5", what, note=f"No point of seed {seed} has a finite loss.")]
            best = max(finite, key=lambda run: sizes.figure(run.select("tune"), "accuracy"))
            sides[0].append(best.select("tune"))
            sides[1].append(best.select("test"))
        note += f"{len(self.plan.points)} of P5's 162 points; of more the best is luckier still."
        return sizes.apart(Size("D3", "P5", what, note=note), *sides)

    def _point(
        self, store: features.FeatureStore, point: knobs.HeadRecipe, seed: int
    ) -> Predictions | None:
        """Trains and scores one point of P5; None where its loss left the finite numbers."""
        knob_values = (*point.hidden_units, point.dropout, point.learning_rate, point.batch_size)
        name = "_".join(map(str, knob_values))
        directory = self.run.path / "p5" / f"seed_{seed}" / name
        path, diverged = directory / "predictions.csv", directory / "diverged"
        if path.exists():
            return Predictions.read(path)
        if diverged.exists():
            return None
        assigned = heads.scored_on_training(store.index)
        recipe = dataclasses.replace(
            heads.training_recipe(point, store, "paper", seed, tuned=True), monitor="accuracy"
        )
        try:
            model, _ = training.fit(
                recipe,
                store,
                assigned,
                seed=seed,
                policy=self.policy,
                directory=directory,
                label=None,
                # P5 watched the training accuracy; nothing else is looked at before the end.
                validate=_nothing,
            )
            rows = np.concatenate([assigned.tune, assigned.test])
            said = training.predict(model, store, rows)
            if not np.isfinite(said).all():
                # The last step may leave weights that no loss has seen.
                raise training_state.Diverged("probabilities are not finite")
        except training_state.Diverged:
            directory.mkdir(parents=True, exist_ok=True)
            diverged.touch()
            return None
        scored = (("tune", assigned.tune), ("test", assigned.test))
        Predictions.of(store.index, scored, said).write(path)
        training_state.remove_state(directory)
        return Predictions.read(path)

    def _cut(self, store: features.FeatureStore, note: str) -> list[Size]:
        """D6: folds cut by image against folds cut by group, and how much of that is leak."""
        what = f"folds cut by image, or by {self.plan.unit}"
        try:
            for cut in ("image", "group", "let_in"):
                for seed in self.plan.seeds:
                    heads.cut(
                        store.index,
                        cut,
                        protocol="paper",
                        count=self.plan.folds,
                        seed=seed,
                        blocks=self.blocks,
                    )
        except roles.CutError as error:
            return [Size("D6", "P6", what, note=f"{error}.")]
        # What a head costs says nothing here.
        cost = Cost(parameters=1, gflops=1, images_per_second=1, mebibytes=1)
        by_image, by_group, let_in = (
            Candidate(
                store.about["key"]["backbone"], "", tuple(self._heads(store, "bgr", cut)), cost
            )
            for cut in ("image", "group", "let_in")
        )
        leak = leaks.leak(by_image, by_group, let_in)
        assert leak.control is not None
        found = []
        sides = (
            (what, leak.by_image, leak.by_group, leak.difference, "Leak and scarcity together."),
            (
                f"own {self.plan.unit} let into training, or not, at as many {self.plan.unit}s",
                leak.control.let_in,
                leak.by_group,
                leak.control.leak,
                "The leak alone.",
            ),
        )
        for words, one, other, points, part in sides:
            found += [
                Size(
                    *("D6", "P6", words, metric, one[metric].mean, other[metric].mean),
                    *(points[metric], len(self.plan.seeds), leak.groups),
                    f"{note}{part} {self.plan.folds} folds.",
                )
                for metric in sizes.METRICS
            ]
        return found


def label(name: str, seed: int) -> str:
    """Returns how a fit of P2 is called on the terminal."""
    return f"P2{' without D1' if name == WITHOUT_D1 else ''}, seed {seed}"


def _nothing(model: keras.Model) -> dict[str, float]:
    del model
    return {}


def _predictions(directory: Path) -> Predictions:
    return Predictions.read(directory / "predictions.csv")
