"""What a run directory holds, read back: fits, their predictions, and the table against the papers.

A run directory:

    manifest.json                     identity (flags, data), environment, data, durations
    stage<S>/<protocol>/seed_<N>/     one fit
        model.keras  predictions.csv  metrics.json  fit.json (written last: the fit is finished)
    logs/stage<S>/<protocol>/seed_<N>/   TensorBoard
    summary.csv  report.html
"""

import dataclasses
import functools
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replication.measures import one_class
from replication.runs.directory import RunDirectory
from tfds_pap import files
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import keras

    # They import scikit-learn and statsmodels, for which a wrong --seed need not wait.
    from replication.measures import evaluation, published

#: The published figure that each stage's accuracy is set beside where the fit names none.
_PUBLISHED_KEYS = {1: "P1.accuracy", 2: "P2.accuracy"}


@dataclasses.dataclass(frozen=True)
class Fit:
    """One trained model of a run.

    Attributes:
        directory: Where its files lie.
        info: `fit.json`: stage, protocol, seed, name, parameters, size (pixels), resize,
            class_names, counts (images per role and class), history (one dict an epoch),
            epochs_run, best_epoch, kept, seconds, images_per_second.
    """

    directory: Path
    info: dict[str, Any]

    @functools.cached_property
    def predictions(self) -> "evaluation.Predictions":
        """Its predictions on the tune and test roles."""
        from replication.measures import evaluation

        return evaluation.Predictions.read(self.directory / "predictions.csv")

    @property
    def model_path(self) -> Path:
        """Where the model lies."""
        return self.directory / "model.keras"

    @property
    def stage(self) -> int:
        """1 or 2."""
        return self.info["stage"]

    @property
    def protocol(self) -> str:
        """'paper' or 'clean'."""
        return self.info["protocol"]

    @property
    def seed(self) -> int:
        """Seed of weights, order, augmentation and dropout."""
        return self.info["seed"]


def read_fits(run: RunDirectory) -> list[Fit]:
    """Returns the finished fits of a run, by stage, protocol (paper first) and seed."""
    fits = [Fit(path, files.read_json(path / "fit.json")) for path in run.fits()]
    return sorted(fits, key=lambda fit: (fit.stage, fit.protocol != "paper", fit.seed))


def choose_fits(
    run: RunDirectory, protocol: str, seed: int | None = None, *, flag: str = "run_dir"
) -> dict[int, Fit]:
    """Returns the finished fit of each stage.

    Args:
        run: The run.
        protocol: 'paper' or 'clean'.
        seed: None takes the run's first.
        flag: That names the run, for messages.

    Raises:
        PapError: This is no run, or there is no such fit in it.
    """
    run.manifest()
    fits = [fit for fit in read_fits(run) if fit.protocol == protocol]
    if seed is not None:
        fits = [fit for fit in fits if fit.seed == seed]
    if not fits:
        raise PapError(
            f"--{flag}={run.path} holds no finished model of --protocol={protocol}"
            + (f" --seed={seed}" if seed is not None else "")
        )
    # Fits are sorted by seed: the first of each stage wins.
    return {fit.stage: fit for fit in reversed(fits)}


def choose_fit(
    run_dir: str | os.PathLike, stage: int, protocol: str, seed: int | None = None
) -> Fit:
    """Returns the finished fit of one stage; arguments and errors as of `choose_fits`."""
    fits = choose_fits(RunDirectory(Path(run_dir)), protocol, seed)
    if stage not in fits:
        raise PapError(f"--run_dir={run_dir} holds no finished model of --stage={stage}")
    return fits[stage]


def load_model(fit: Fit) -> "keras.Model":
    """Loads the model of a fit; nothing in its file is run as code.

    Args:
        fit: Whose.

    Raises:
        PapError: As `load_keras`.
    """
    return load_keras(fit.model_path)


def load_keras(path: Path) -> "keras.Model":
    """Loads a model that this package saved; nothing in its file is run as code.

    Args:
        path: The `.keras` file.

    Raises:
        PapError: In one line, if the file is damaged, or holds code that safe mode refuses.
    """
    import keras

    from replication.learning import models

    files.verify(path)
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        return models.without_xla(model)
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile) as error:
        why = " ".join((str(error) or type(error).__name__).split())[:300]
        raise PapError(f"{path}: not a model that can be loaded: {why}") from error


@dataclasses.dataclass(frozen=True)
class Row:
    """One protocol of one stage against the published figure.

    Attributes:
        stage: 1 or 2.
        name: What was trained.
        protocol: 'paper' or 'clean'.
        published: The published figure.
        summary: Mean, spread and interval of every summary metric over the seeds.
        verdict: The intervals compared, in words.
        remarks: Of each seed that gives one class to nearly every test image, a sentence.
        positive: What is looked for, such as 'HSIL+'.
    """

    stage: int
    name: str
    protocol: str
    published: "published.Published"
    summary: "dict[str, evaluation.SeedSummary]"
    verdict: str
    remarks: tuple[str, ...] = ()
    positive: str = "HSIL+"


def summary_rows(fits: list[Fit], source: "published.Source") -> list[Row]:
    """Sets every stage and protocol of a run beside the published figure.

    Args:
        fits: From `read_fits`.
        source: Where the images come from; only the authors' own can replicate a figure.
    """
    from replication.measures import evaluation, published

    rows = []
    for stage, protocol in dict.fromkeys((fit.stage, fit.protocol) for fit in fits):
        same = [fit for fit in fits if (fit.stage, fit.protocol) == (stage, protocol)]
        tests = [fit.predictions.select("test") for fit in same]
        summary = evaluation.summarise_seeds(tests)
        figure = published.published(same[0].info.get("published") or _PUBLISHED_KEYS[stage])
        accuracy = summary["accuracy"]
        verdict = published.verdict(figure, accuracy.low, accuracy.high, source=source)
        remarks = tuple(
            f"{same[0].info['name']}, {protocol} protocol, seed {fit.seed}: {remark}"
            for fit, test in zip(same, tests, strict=True)
            if (remark := one_class.remark(test.predicted, test.class_names, test.labels))
        )
        name, positive = same[0].info["name"], tests[0].classes.positive_name
        rows.append(Row(stage, name, protocol, figure, summary, verdict, remarks, positive))
    return rows
