"""The order of a run: data of a stage, its fits, and the report after each of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow_datasets.public_api as tfds

from replication.flags import audit as audit_flags
from replication.learning import training
from replication.runs import description, dry_run, fitting, publication, results
from replication.runs import progress as run_progress
from replication.runs.device import DevicePolicy
from replication.runs.directory import RunDirectory
from replication.runs.sources import Sources
from tfds_pap import files, leak_audit, preparing

if TYPE_CHECKING:
    import distributed


@dataclasses.dataclass
class Steps:
    """A run at work.

    Attributes:
        path: Of the run directory.
        sources: Of the images.
        images: Whose images these are, as declared.
        policy: The device policy in force.
        identity: Everything that results depend on, but for the data.
        planned: Recipe of each (protocol, stage).
        prevalence: Of HSIL+ where the models are to be used, for predictive values.
        profile: Whether fits write a TensorBoard profile.
        effort: Of the audit: "full", "fast" or "off".
        blocks: What roles keep together, by data set and id.
    """

    path: Path
    sources: Sources
    images: Any
    policy: DevicePolicy
    identity: Mapping[str, Any]
    planned: Mapping[tuple[str, int], training.Recipe]
    prevalence: float | None = None
    profile: bool = False
    effort: str = "fast"
    blocks: dict[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    builders: dict[int, tfds.core.DatasetBuilder] = dataclasses.field(default_factory=dict)
    audits: dict[str, leak_audit.Audit] = dataclasses.field(default_factory=dict)

    @property
    def run(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory(self.path)

    def missing(self, seeds: Sequence[int], stages: Sequence[int]) -> list[tuple[int, int, str]]:
        """Returns (seed, stage, protocol) of what is not trained yet, in order.

        Seeds are the outer loop: after the first one the whole table can be filled.

        Args:
            seeds: One model each.
            stages: To train.
        """
        protocols = list(dict.fromkeys(protocol for protocol, _ in self.planned))
        wanted = [(seed, stage, name) for seed in seeds for stage in stages for name in protocols]
        done = {(fit.seed, fit.stage, fit.protocol) for fit in results.read_fits(self.run)}
        for seed, stage, protocol in wanted:
            if (seed, stage, protocol) in done:
                fitting.check_size(self.run, self.planned[protocol, stage], protocol, seed)
                print(f"{fitting.label(stage, protocol, seed)}: finished before")
        return [each for each in wanted if each not in done]

    def progress(
        self, missing: Sequence[tuple[int, int, str]], *, ending: bool
    ) -> run_progress.RunProgress:
        """Measures this processor for a moment and plans what is missing.

        Args:
            missing: See the method of that name.
            ending: Whether fields are read at the end.
        """
        fits = [
            run_progress.Fit.of(
                fitting.label(stage, protocol, seed),
                self.planned[protocol, stage],
                self._train_images(stage),
            )
            for seed, stage, protocol in missing
        ]
        return run_progress.RunProgress(
            fits, run_progress.measure_speed(self.policy), ending=ending
        )

    def dry_run(self, seeds: Sequence[int], stages: Sequence[int], *, ending: bool) -> None:
        """Prints what is missing, how long it takes and what it writes; writes nothing.

        Args:
            seeds: One model each.
            stages: To train.
            ending: Whether fields are read at the end.
        """
        missing = self.missing(seeds, stages)
        counted = {
            stage: dry_run.images(self.sources.builder(stage), self.sources.manual_dir)
            for stage in stages
        }
        lines, parts = dry_run.training(
            self.planned, missing, counted, policy=self.policy, ending=ending
        )
        parts = {
            "images": sum(each.bytes_to_prepare for each in counted.values()),
            **parts,
        }
        dry_run.report(self.path, lines, parts)

    def _train_images(self, stage: int) -> int:
        return self.sources.train_images(stage, self.builders.get(stage))

    def prepare(self, stages: Sequence[int], client: "distributed.Client | None" = None) -> None:
        """Prepares the data of these stages, each once, and opens the run directory for them.

        Args:
            stages: Whose images are needed now.
            client: From `cluster.connected`, whose workers audit them; None does it here.

        Raises:
            PapError: If the directory belongs to other flags or data.
            folders.TreeError: If a tree cannot be used.
        """
        new = [stage for stage in stages if stage not in self.builders]
        if not new:
            return
        for stage in new:
            self.builders[stage] = self.sources.prepare(stage)
        data = {
            f"data of stage {stage}": preparing.identity(builder)
            for stage, builder in self.builders.items()
        }
        run = RunDirectory.open(self.path, {**self.identity, **data})
        # What was audited before is kept beside the data; the page of pairs shows every stage.
        self.audits |= description.audit(
            run, self.builders.values(), self.effort, audit_flags.note, client
        )
        self.blocks |= audit_flags.blocks(self.audits)
        description.describe(
            run, self.builders, self.policy, images=self.images, blocks=self.blocks
        )

    def fit(self, seed: int, stage: int, protocol: str, progress: run_progress.RunProgress) -> None:
        """Trains and scores one model, says what came out, and writes the report anew.

        Args:
            seed: Of the fit.
            stage: 1 or 2.
            protocol: "paper" or "clean".
            progress: Of the whole run.
        """
        self.prepare([stage])
        recipe = self.planned[protocol, stage]
        fitting.run_fit(
            self.run,
            recipe,
            protocol,
            seed,
            builder=self.builders[stage],
            policy=self.policy,
            profile=self.profile,
            prevalence=self.prevalence,
            blocks=self.blocks.get(self.builders[stage].name),
            progress=progress.callback(recipe.epochs, self._train_images(stage)),
        )
        progress.finished()
        accuracy = files.read_json(self.run.fit_directory(stage, protocol, seed) / "metrics.json")[
            "accuracy"
        ]
        name = fitting.label(stage, protocol, seed)
        line = f"{progress.place()} done: {name}: {_accuracy(accuracy, self.sources.kind)}"
        print("; ".join(filter(None, [line, progress.left()])), flush=True)

        # The last fit's is written with heat maps, once fields are read.
        if progress.is_under_way:
            publication.write_page(
                self.run, self.builders, self.audits, prevalence=self.prevalence, explained=False
            )


def _accuracy(accuracy: Mapping[str, Any], source: str) -> str:
    images = "drawn test images" if source == "phantom" else "test images"
    words = f"accuracy {100 * accuracy['value']:.1f} % of {accuracy['count']} {images}"
    if accuracy.get("low") is None:
        return words
    return f"{words} [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
