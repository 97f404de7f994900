"""The steps of a comparison, each resumable: score one backbone, compare, publish."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets.public_api as tfds
import tqdm

from replication.comparison import ranking, report, tensorboard
from replication.comparison.candidates import Candidate, Cost
from replication.learning import features, heads, knobs, models, weights, whole_model
from replication.measures import published
from replication.measures.predictions import Predictions
from replication.runs import description, device, dry_run, provenance, results
from replication.runs import environment as run_environment
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from tfds_pap import folds, leak_audit, pipeline, preparing
from tfds_pap.errors import PapError

_THUMBNAIL_PIXELS = 64

#: Images at most on which the winner's whole model is set beside its features.
_CHECKED_IMAGES = 32

_UNTRAINED = "Untrained backbones (random weights), which say nothing about the networks: {names}."


@dataclasses.dataclass(frozen=True)
class Design:
    """What is scored on what.

    Attributes:
        protocol: "paper" or "clean".
        cuts: Names of the cuts, see `heads.cut`; the main one comes first.
        folds: Number of folds; 0 for the published folders.
        seeds: One head each.
        unit: What a group is, for example "slide".
        blocks: What cuts keep together, by id; None keeps groups together.
    """

    protocol: str
    cuts: tuple[str, ...]
    folds: int
    seeds: tuple[int, ...]
    unit: str
    blocks: Mapping[str, str] | None = None

    @property
    def words(self) -> str:
        """The main cut in words."""
        if self.cuts[0] == heads.PUBLISHED:
            return "trained on the published train folder, scored on the validation folder"
        unit = self.unit if self.cuts[0] == "group" else "image"
        return f"{self.folds} folds cut by {unit}"


def backbone_names(named: Sequence[str] | None, specs: Mapping[str, str]) -> list[str]:
    """Returns the backbones to compare.

    Args:
        named: Names from the command line, or None for all whose weights can be had.
        specs: Where weights are, by name; "" for every other backbone.

    Raises:
        PapError: If a name is unknown, or no weights are found.
    """
    for name in [*(named or ()), *(name for name in specs if name)]:
        models.backbone(name)
    if named:
        return list(dict.fromkeys(name.lower() for name in named))
    names = [
        name
        for name in models.BACKBONES
        if not Path(spec := specs.get(name, specs[""])).expanduser().is_dir()
        or weights.available(name, spec)
    ]
    left_out = [name for name in models.BACKBONES if name not in names]
    if not names:
        raise PapError(
            f"--weights={specs['']}: none of the published files, such as "
            f"{models.BACKBONES['resnet50'].weights_file}"
        )
    if left_out:
        print(f"Note: left out, no weights in that directory: {', '.join(left_out)}")
    return names


def feature_specs(
    names: Sequence[str], source: Callable[[str], str], *, at_hand: bool, **settings: Any
) -> dict[str, features.FeatureSpec]:
    """Returns which features of each backbone are compared.

    Args:
        names: The backbones.
        source: From a name to where its weights are.
        at_hand: Whether weights that would be downloaded are replaced by random ones.
        **settings: See `features.feature_spec`.
    """
    return {
        name: features.feature_spec(
            name,
            source=dry_run.at_hand(name, source(name)) if at_hand else source(name),
            **settings,
        )
        for name in names
    }


#: Input of P6's final model in pixels; that of P4's comparison is not published.
_P6_SIZE = 250


def size_remarks(protocol: str, specs: Mapping[str, features.FeatureSpec]) -> list[str]:
    """Says where the paper protocol does not have the papers' input size.

    Args:
        protocol: "paper" or "clean".
        specs: What the features are, by backbone.
    """
    sizes = sorted({spec.size for spec in specs.values()} - {_P6_SIZE})
    if protocol == "clean" or not sizes:
        return []
    pixels = " and ".join(map(str, sizes))
    return [
        f"Input of {pixels} px: the size of P4's comparison is not published, and P6's final "
        f"model has {_P6_SIZE} px (--size={_P6_SIZE})."
    ]


def data_name(builder: tfds.core.DatasetBuilder) -> str:
    """Names a data set in a path: phantom, original, or the tree's folder."""
    return re.sub(r"_[0-9a-f]{12}$", "", builder.builder_config.name)


def identity(
    builder: tfds.core.DatasetBuilder,
    design: Design,
    recipe: knobs.HeadRecipe,
    specs: Mapping[str, features.FeatureSpec],
) -> dict[str, Any]:
    """Everything that results depend on; backbones and seeds only choose among fits."""
    return {
        "data": preparing.identity(builder),
        "protocol": design.protocol,
        "cuts": list(design.cuts),
        "folds": design.folds,
        **settings(recipe),
        **{
            f"{name} features": {k: v for k, v in spec.key("").items() if k != "data"}
            for name, spec in specs.items()
        },
    }


def settings(recipe: knobs.HeadRecipe) -> dict[str, float | str]:
    """Returns the knobs that a comparison can turn, as its manifest and TensorBoard name them."""
    names = ("dropout", "optimizer", "learning_rate", "batch_size", "epochs", "patience")
    return {"units": sum(recipe.hidden_units), **{name: getattr(recipe, name) for name in names}}


def describe(
    run: RunDirectory,
    builder: tfds.core.DatasetBuilder,
    index: pipeline.Index,
    policy: DevicePolicy,
    *,
    untrained: Sequence[str],
    images: published.Source | None = None,
    remarks: Sequence[str] = (),
    program: str = "replication.compare",
) -> None:
    """Writes what is compared on what into the manifest, which holds the audit already.

    Args:
        run: The comparison.
        builder: A prepared builder.
        index: The images of the same builder.
        policy: The device policy in force.
        untrained: Names of backbones with random weights.
        images: Whose they are by declaration: "original", "stand-in", or None.
        remarks: Sentences that belong above every figure.
        program: The module that was run.

    Raises:
        PapError: If the declaration contradicts what is published.
    """
    source, announcement = provenance.source({2: builder}, images)
    if untrained:
        announcement = " ".join([announcement, _UNTRAINED.format(names=", ".join(untrained))])
    run.update_manifest(
        source=source,
        announcement=" ".join(filter(None, [announcement.strip(), *remarks])),
        environment=run_environment.describe(policy, program),
        data={builder.name: description.describe_images(builder, index)},
    )


def check_cuts(index: pipeline.Index, design: Design) -> None:
    """Makes every cut once, before hours are spent; prints which folds lack a class.

    Raises:
        roles.CutError: If the images cannot be cut so.
    """
    for name in design.cuts:
        for seed in design.seeds:
            cut = heads.cut(
                index,
                name,
                protocol=design.protocol,
                count=design.folds,
                seed=seed,
                blocks=design.blocks,
            )
            # The control trains without what the cut by group trains without.
            if name not in (heads.PUBLISHED, "let_in"):
                for line in folds.untrained_classes(index, cut):
                    print(f"Note: cut by {name}, seed {seed}: {line}")


def score(
    run: RunDirectory,
    store: features.FeatureStore,
    spec: features.FeatureSpec,
    design: Design,
    recipe: knobs.HeadRecipe,
    *,
    policy: DevicePolicy,
) -> dict[str, tuple[Candidate, list[Predictions]]]:
    """Trains and scores every head of one backbone.

    Args:
        run: Where results are kept.
        store: The backbone's features.
        spec: What they are.
        design: What is scored on what.
        recipe: How heads are trained.
        policy: Where and how to compute.

    Returns:
        For each cut the candidate (test predictions alone) and all predictions, seed by seed.
    """
    head = models.head(
        store.features.shape[-1],
        len(store.index.class_names),
        units=recipe.hidden_units,
        dropout=recipe.dropout,
    )
    cost = Cost(
        parameters=store.about["parameters"] + head.count_params(),
        gflops=store.about["gflops"] + models.gflops(head),
        images_per_second=store.about["images_per_second"],
        mebibytes=store.about["mebibytes"] + weights.mebibytes(head),
    )
    scored = {}
    fits = [(cut, seed) for cut in design.cuts for seed in design.seeds]
    with tqdm.tqdm(desc=f"{spec.backbone} heads", total=len(fits), unit="seed") as bar:
        for cut in design.cuts:
            predictions = []
            for seed in design.seeds:
                predictions.append(
                    heads.train_head(
                        store,
                        recipe,
                        heads.cut(
                            store.index,
                            cut,
                            protocol=design.protocol,
                            count=design.folds,
                            seed=seed,
                            blocks=design.blocks,
                        ),
                        protocol=design.protocol,
                        seed=seed,
                        policy=policy,
                        directory=run.path / cut / spec.backbone / f"seed_{seed}",
                    )
                )
                bar.update()
            tests = tuple(one.select("test") for one in predictions)
            candidate = Candidate(spec.backbone, spec.weights.label, tests, cost)
            scored[cut] = (candidate, predictions)
    return scored


def compare(
    scored: Mapping[str, Mapping[str, tuple[Candidate, list[Predictions]]]],
    design: Design,
) -> ranking.Comparison:
    """Chooses the winner and puts everything together.

    Args:
        scored: From `score`, by backbone.
        design: What was scored on what.
    """
    main = design.cuts[0]
    by_tune = main == heads.PUBLISHED and design.protocol == "clean"
    role = "tune" if by_tune else "test"

    def accuracy(name: str) -> float:
        return float(
            np.mean(
                [
                    (part.predicted == part.labels).mean()
                    for part in (run.select(role) for run in scored[name][main][1])
                ]
            )
        )

    winner = max(scored, key=accuracy)
    if len(scored) == 1:
        note = f"{winner} was not chosen among others, so that no choice flatters its figures."
    elif by_tune:
        note = (
            f"{winner} was chosen for its accuracy on the tune images ({accuracy(winner):.3f}), "
            "which are cut out of the train folder; the test images had no say in it."
        )
    else:
        note = (
            f"{winner} has the highest accuracy on the very images that are reported here, so its "
            "figure flatters it a little: the best of several is partly luck."
        )
    others = {
        name: tuple(cuts[name][0] for cuts in scored.values())
        for name in ("image", "let_in")
        if name in design.cuts[1:]
    }
    return ranking.Comparison(
        title="Frozen backbones compared",
        candidates=tuple(cuts[main][0] for cuts in scored.values()),
        winner=winner,
        winner_note=note,
        design=design.words,
        unit=design.unit,
        by_image=others.get("image", ()),
        let_in=others.get("let_in", ()),
    )


def publish(
    run: RunDirectory,
    result: ranking.Comparison,
    builder: tfds.core.DatasetBuilder,
    spec: features.FeatureSpec,
    design: Design,
    recipe: knobs.HeadRecipe,
    *,
    features_dir: Path,
    policy: DevicePolicy,
    audit: leak_audit.Audit,
) -> Path:
    """Writes tables, page, TensorBoard logs and, of published folders, the winner's whole model.

    Args:
        run: Where all is written.
        result: From `compare`.
        builder: A prepared builder.
        spec: What the winner's features are.
        design: What was scored on what.
        recipe: How heads were trained.
        features_dir: Where features are stored.
        policy: Where and how to compute.
        audit: The search of the images for duplicates.

    Returns:
        The page.
    """
    logs = run.path / "logs"
    common = {name: value for name, value in settings(recipe).items() if name != "patience"}
    tensorboard.write_hparams(
        logs,
        result.candidates,
        design.seeds,
        {"protocol": design.protocol, "cut": design.cuts[0], **common},
    )
    store = features.extract_features(builder, spec, features_dir, policy=policy)
    winner = next(one for one in result.candidates if one.name == result.winner)
    tested = winner.runs[0]
    position = {image: row for row, image in enumerate(store.index.ids)}
    rows = np.array([position[image] for image in tested.ids])
    tensorboard.write_projector(
        logs,
        f"{winner.name} features",
        store.features[rows, 0],
        tested,
        pipeline.read_images(builder, tested.ids, _THUMBNAIL_PIXELS),
    )
    if design.cuts[0] == heads.PUBLISHED:
        save_winner(run, store, spec, tested, builder, seed=design.seeds[0], policy=policy)
    run.update_manifest(peak_memory_mib=round(device.peak_memory_mib()))
    page = report.write(run, result)
    report.print_comparison(result, run.manifest())
    if line := description.accuracy_without_suspects(winner.runs, audit):
        print(f"{winner.name}, {line}")
    return page


def save_winner(
    run: RunDirectory,
    store: features.FeatureStore,
    spec: features.FeatureSpec,
    tested: Predictions,
    builder: tfds.core.DatasetBuilder,
    *,
    seed: int,
    policy: DevicePolicy,
) -> Path:
    """Joins the winner's backbone and the head of one seed; checks it against the features.

    Args:
        run: Where `winner.keras` is written.
        store: The winner's features.
        spec: What they are.
        tested: Its predictions on the test images.
        builder: A prepared builder.
        seed: Seed of the head that is joined.
        policy: That the features were computed under.

    Raises:
        PapError: If the whole model says something else than the head on stored features, or the
            head's file is damaged.
    """
    head_path = run.path / heads.PUBLISHED / spec.backbone / f"seed_{seed}" / "head.keras"
    head = results.load_keras(head_path)
    model = whole_model.join(spec, head)
    whole_model.largest_difference(
        model, spec, builder, tested.take(range(min(_CHECKED_IMAGES, len(tested)))), policy
    )
    path = run.path / "winner.keras"
    models.save_model(model, path)
    return path
