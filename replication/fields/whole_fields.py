"""From trained models and fields to a report: what `replication.scan` and `replication.run` do."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from replication.drawing import terminal
from replication.fields import archive, scan_directory, scan_evaluation, scanned
from replication.fields.find import stages
from replication.fields.read import reader
from replication.fields.scan_directory import Settings
from replication.fields.show import scan_report
from replication.runs import device, results
from replication.runs import environment as run_environment
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from tfds_pap import phantom_set, redaction, urls
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import distributed

_TRAINED_ON = {
    "phantom": "drawings made by this package",
    "stand-in": "images that are not the authors' own",
    "undeclared": "images that nobody declared to be the authors' own",
    "original": "the authors' images",
}


@dataclasses.dataclass(frozen=True)
class Models:
    """Which trained models read the fields.

    Attributes:
        stage1: Run that holds stage 1.
        stage2: Run that holds stage 2; may be the same.
        protocol: 'paper' or 'clean'.
        seed: None takes each run's first.
    """

    stage1: Path
    stage2: Path
    protocol: str = "clean"
    seed: int | None = None

    def load(self, settings: Settings) -> stages.Stages:
        """Loads both.

        Args:
            settings: Of the scan.

        Raises:
            PapError: If a run does not hold that model.
        """
        return stages.load(
            self._fit(1),
            self._fit(2),
            roi=settings.roi,
            stride=settings.stride,
            method=settings.method,
        )

    def classes(self) -> Classes:
        """Returns what is known of the classes of stage 2, without loading it.

        Raises:
            PapError: If the run does not hold that model.
        """
        return self._fit(2).predictions.classes

    def _fit(self, stage: int) -> results.Fit:
        path, flag = {1: self.stage1, 2: self.stage2}[stage], f"stage{stage}"
        fits = results.choose_fits(RunDirectory(path), self.protocol, self.seed, flag=flag)
        if stage not in fits:
            raise PapError(f"--{flag}={path} holds no finished model of stage {stage}")
        return fits[stage]

    def announcement(self, phantoms: bool) -> tuple[str, str]:
        """Returns the source of the least real images, and the sentence for the top of the page.

        Args:
            phantoms: Whether the fields are drawings.
        """
        sources = [RunDirectory(p).manifest().get("source") for p in (self.stage1, self.stage2)]
        trained = [_TRAINED_ON.get(str(source), "images of unknown origin") for source in sources]
        both = trained[0] if trained[0] == trained[1] else f"{trained[0]} and on {trained[1]}"
        if sources == ["original", "original"] and not phantoms:
            return "original", ""
        drawn = "The fields are drawings made by this package. " if phantoms else ""
        return (
            "phantom" if phantoms or "phantom" in sources else "stand-in",
            f"{drawn}The models were trained on {both}. No figure below may be called a "
            "replication of a published one.",
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a scan.

    Attributes:
        page: The report.
        fields: How many fields were read.
        unreadable: Those that were not: "path" and "reason".
    """

    page: Path
    fields: int
    unreadable: list[dict[str, str]]


def scan_and_report(
    path: Path,
    models: Models,
    arguments: Sequence[str],
    *,
    settings: Settings,
    policy: DevicePolicy,
    phantoms: int = 0,
    workers: int,
    truth: Path | None = None,
    complete_truth: bool = False,
    match_radius: float | None = None,
    program: str = "replication.scan",
    flag: str = "scan_dir",
    client: "distributed.Client | None" = None,
) -> Outcome:
    """Scans fields into a directory, measures them against truth, and writes the report.

    Args:
        path: The scan directory.
        models: The networks.
        arguments: Files and folders of fields, and URLs of these.
        settings: Of the scan.
        policy: The device policy in force.
        phantoms: Above 0: draw so many fields instead.
        workers: Threads.
        truth: File of annotated nuclei; None takes the `nuclei.csv` beside a field.
        complete_truth: Whether every cell is annotated.
        match_radius: Farthest that a detection lies from its nucleus, pixels of the file; None: the
            default of the evaluation.
        program: For the manifest.
        flag: That names the directory, for messages.
        client: From `cluster.connected`, whose workers read the fields block by block; None reads
            them in this process.

    Raises:
        PapError: If models, directory or truth cannot be used, or the cluster is lost.
        folders.TreeError: If there is no field.
    """
    both = models.load(settings)
    run = RunDirectory.open(path, scan_directory.identity(both, settings), flag=flag)
    if phantoms:
        arguments = _phantoms(path / "phantoms", phantoms)
    paths = reader.expand_fields(arguments)
    source, announcement = models.announcement(phantoms > 0)
    run.update_manifest(
        source=source,
        announcement=announcement,
        environment=run_environment.describe(policy, program),
        settings=dataclasses.asdict(settings) | {"method": both.stage1.method},
        models=both.about,
    )
    if client is None:
        scan_directory.scan(run, paths, both, settings, workers=workers, truth=truth)
    else:
        archive.scan(run, paths, models, both, settings, client, truth=truth)
    table = scan_directory.sum_up(run)
    _print(table)
    for line in (*both.about["stage2"]["scored"], *scanned.remarks(run)):
        print(f"Stage 2: {line}")
    evaluation = scan_evaluation.evaluate_scan(
        run, complete=complete_truth, match_radius=match_radius
    )
    for line in evaluation.lines() if evaluation else ():
        print(line)
    run.update_manifest(peak_memory_mib=round(device.peak_memory_mib()))
    page = scan_report.write_report(run)
    return Outcome(page, len(table), run.manifest()["unreadable"])


def _phantoms(folder: Path, count: int) -> list[str]:
    """Returns drawn fields; those that are there already are kept, since they never change."""
    paths = [folder / f"phantom_{number:02d}.jpg" for number in range(count)]
    if not all(path.exists() for path in (*paths, folder / scan_directory.TRUTH)):
        phantom_set.write_fields(folder, count)
    return [str(path) for path in paths]


def scan_of_run(run: RunDirectory, place: str | None, count: int, policy: DevicePolicy) -> None:
    """Scans a few fields with a run's own models, so that its report shows the whole method.

    Args:
        run: A run of `replication.run`. Where it has no model of both stages there is nothing to
            scan with, and nothing is done.
        place: Folder of fields, or its URL; where it is not there nothing is scanned, which is
            said, and of "" nothing is said. None draws phantoms.
        count: Fields at most.
        policy: The device policy in force.

    Raises:
        PapError: If the run's scan was made with other models.
    """
    fits = results.read_fits(run)
    both = [
        protocol
        for protocol in ("clean", "paper")
        if {fit.stage for fit in fits if fit.protocol == protocol} == {1, 2}
    ]
    if not both or not count or place == "":
        return
    if place is not None and not urls.is_folder(place):
        print(f"No field is scanned: {redaction.redacted(place)} does not exist")
        return
    print(f"Whole fields, {both[0]} protocol:")
    scan_and_report(
        run.path / f"{scanned.FOLDER}_{both[0]}",
        Models(run.path, run.path, both[0]),
        [] if place is None else reader.expand_fields([place])[:count],
        settings=Settings(),
        policy=policy,
        phantoms=count if place is None else 0,
        workers=os.cpu_count() or 1,
        complete_truth=place is None,
        program="replication.run",
        flag="run_dir",
    )


def _print(table: pd.DataFrame) -> None:
    """Prints a line a field."""
    if table.empty:
        return
    fixed = {"field", "slide", "rois", "detections", "cells", "most_severe", "slide_score"}
    names = [str(name) for name in table.columns if name not in fixed]
    headings = ("field", "cells", *names, "most severe", "slide-level score")
    rows = [
        (
            Path(row["field"]).name,
            *(str(row[name]) for name in ("cells", *names)),
            row["most_severe"] or "none",
            "none" if row["slide_score"] == "" else f"{row['slide_score']:.3f}",
        )
        for row in table.to_dict("records")
    ]
    terminal.console().print(terminal.table(headings, rows, fold=headings))
