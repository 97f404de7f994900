"""Which commands make the whole paper, and in which order.

A step is one command of this project, as a user would type it; nothing here imports TensorFlow.
"""

import dataclasses
import functools
import hashlib
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tfds_pap import copies, files, redaction, tree_files, urls
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    # It imports statsmodels, for which a wrong flag need not wait.
    from replication.measures.published import Source

PROTOCOLS = ("paper", "clean")

#: The networks that P4 compared; the one said to be the best comes first.
PAPER_BACKBONES = ("resnet152", "vgg16", "efficientnetb0", "efficientnetb3", "densenet201")
#: What stands in for them on drawn images, where no network says anything about smears.
DRAWN_BACKBONES = ("mobilenetv2_035", "mobilenetv2")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the steps have in common.

    Attributes:
        directory: Where everything is written, a folder a step.
        manual_dir: Folder of DB_3 and DB_4, or its URL; None draws images.
        images: Whose they are by declaration: "original", "stand-in" or None.
        data_dir: Where TFDS keeps prepared data; None takes its default.
        weights: As `pap compare --weights`: one for all, and NAME=... for single backbones.
        backbones: Of P4, the one that P5 and P6 fine-tune first.
        seed: Of every model but the heads of P4, which have three.
        device: Flags of the device policy.
        audit: How hard the audit looks.
        ablate_defects: Whether the size of each defect of the published code is measured as well.
        engine: What computes the frozen features of P4 and P5, one of `engines.ENGINES`.
    """

    directory: Path
    manual_dir: str | None = None
    images: Literal["original", "stand-in"] | None = None
    data_dir: str | None = None
    weights: tuple[str, ...] = ("imagenet",)
    backbones: tuple[str, ...] = PAPER_BACKBONES
    seed: int = 0
    device: tuple[str, ...] = ()
    audit: str = "full"
    ablate_defects: bool = False
    engine: str = "auto"

    @property
    def source(self) -> "Source":
        """Whose images: "original", "stand-in", "undeclared" or "phantom"."""
        return "phantom" if self.manual_dir is None else self.images or "undeclared"

    def weights_of(self, backbone: str) -> str:
        """Returns where the weights of a backbone are."""
        found = "imagenet"
        for entry in self.weights:
            name, _, place = entry.rpartition("=")
            if name.lower() in ("", backbone):
                found = place
                if name:
                    break
        return found

    # Steps are planned again and again, and storage far away answers late.
    @functools.cached_property
    def fields(self) -> str | None:
        """Folder or URL of whole fields that are read; None draws some."""
        place = urls.inside(self.manual_dir or "", "fields")
        return place if self.manual_dir and urls.is_folder(place) else None


@dataclasses.dataclass(frozen=True)
class Step:
    """One command, and what it leaves.

    Attributes:
        name: For --only and --skip; what stands before the last "-" names its part, such as "p4".
        what: In words.
        module: That is run.
        arguments: Its flags.
        results: Patterns of the files that count, below the run directory; each must match one.
        report: Its page, below the run directory; "" for none.
        needs: Steps whose results it reads.
        backbones: Pre-trained networks in it.
    """

    name: str
    what: str
    module: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    report: str
    needs: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """The part of the paper: "p1", "p4", "audit"."""
        return self.name.partition("-")[0]

    @property
    def place(self) -> str:
        """Its folder below the run directory."""
        return self.name

    @property
    def command(self) -> str:
        """As a user types it."""
        return redaction.redacted(shlex.join(["python", "-m", self.module, *self.arguments]))


#: Files of a trained model that count. Reports and manifests hold times, and are no results.
_FIT = tuple(
    f"{{}}/stage*/*/seed_*/{name}"
    for name in ("fit.json", "metrics.json", "predictions.csv", "model.keras")
)


def _fit_files(name: str) -> tuple[str, ...]:
    return tuple(pattern.format(name) for pattern in _FIT)


def steps(settings: Settings, limits: Mapping[str, Any] | None = None) -> list[Step]:
    """Returns every step, in the order in which they run.

    Args:
        settings: What they have in common.
        limits: From `budget.shorten`: step or part -> epochs, trials, or the backbones that stay.
    """
    limits = limits or {}
    source = [f"--manual_dir={settings.manual_dir}"] if settings.manual_dir else []
    data = [f"--data_dir={settings.data_dir}"] if settings.data_dir else []
    images = [f"--images={settings.images}"] if settings.images else []
    # The audit of the first step is read again by all others, which would make a faster one.
    looked = f"--audit={settings.audit}"
    common = [*source, *images, *data, looked, *settings.device]
    audit = Step(
        "audit",
        "the same picture, or slide, on both sides of the split?",
        "tfds_pap.audit",
        (*source, *data, looked, f"--output={settings.directory / 'audit'}"),
        ("audit/pap_db3/audit.json", "audit/pap_db4/audit.json"),
        "audit/pap_db4/audit.html",
    )
    return [
        audit,
        *_trainings(settings, limits, common),
        *_pretrained(settings, limits, common),
        *([_defects(settings, limits, common)] if settings.ablate_defects else []),
        *_endings(settings, data),
    ]


def _trainings(settings: Settings, limits: Mapping[str, Any], common: Sequence[str]) -> list[Step]:
    kinds = {
        "p1-20": ("P1: stage 1 of 20 x 20 px", ["--stages=1", "--stage1=20"]),
        "p1-50": ("P1: stage 1 of 50 x 50 px, the later variant", ["--stages=1", "--stage1=50"]),
        "p2": ("P2: stage 2, the original CNN", ["--stages=2", "--stage2=cnn"]),
        "p3": (
            "P3: stage 2, frozen ResNet50",
            [
                "--stages=2",
                "--stage2=resnet50",
                f"--weights={settings.weights_of('resnet50')}",
            ],
        ),
    }
    return [
        Step(
            name,
            what,
            "replication.run",
            (
                *own,
                "--scan_fields=0",
                f"--seeds={settings.seed}",
                *([f"--epochs={limits[name]}"] if name in limits else []),
                *common,
                f"--run_dir={settings.directory / name}",
            ),
            _fit_files(name),
            f"{name}/report.html",
            backbones=("resnet50",) if name == "p3" else (),
        )
        for name, (what, own) in kinds.items()
    ]


def _pretrained(settings: Settings, limits: Mapping[str, Any], common: Sequence[str]) -> list[Step]:
    compared = tuple(limits.get("p4") or settings.backbones)
    chosen = settings.backbones[0]
    weights = f"--weights={settings.weights_of(chosen)}"
    engine = [] if settings.engine == "auto" else [f"--engine={settings.engine}"]
    found = []
    for protocol in PROTOCOLS:
        name = f"p4-{protocol}"
        arguments = (
            f"--protocol={protocol}",
            f"--backbones={','.join(compared)}",
            f"--weights={','.join(settings.weights)}",
            *engine,
            *common,
            f"--run_dir={settings.directory / name}",
        )
        found.append(
            Step(
                name,
                f"P4: pre-trained networks compared, {protocol} protocol",
                "replication.compare",
                arguments,
                (f"{name}/ranking.csv", *([f"{name}/pairs.csv"] if len(compared) > 1 else [])),
                f"{name}/report.html",
                backbones=compared,
            )
        )
    for protocol in PROTOCOLS:
        name = f"p5-{protocol}"
        trials = [f"--max_trials={limits['p5']}"] if "p5" in limits else []
        arguments = (
            f"--protocol={protocol}",
            # A part of the grid in its own order would never leave the first heads.
            f"--tuner={'random' if trials else 'grid'}",
            "--space=paper",
            "--objective=val_accuracy",
            *trials,
            f"--backbone={chosen}",
            weights,
            f"--seed={settings.seed}",
            *engine,
            *common,
            f"--search_dir={settings.directory / name}",
        )
        found.append(
            Step(
                name,
                f"P5: search of the head's hyperparameters, {protocol} protocol",
                "finetune.search",
                arguments,
                (f"{name}/search.csv", f"{name}/best.json"),
                f"{name}/report.html",
                backbones=(chosen,),
            )
        )
    for protocol in PROTOCOLS:
        name = f"p6-{protocol}"
        arguments = (
            f"--protocol={protocol}",
            "--hparams=p6",
            *([] if chosen == PAPER_BACKBONES[0] else [f"--backbone={chosen}"]),
            weights,
            f"--seeds={settings.seed}",
            *common,
            f"--run_dir={settings.directory / name}",
        )
        found.append(
            Step(
                name,
                f"P6: the final model, {protocol} protocol",
                "finetune.train",
                arguments,
                _fit_files(name),
                f"{name}/report.html",
                backbones=(chosen,),
            )
        )
    return found


def _defects(settings: Settings, limits: Mapping[str, Any], common: Sequence[str]) -> Step:
    chosen = settings.backbones[0]
    return Step(
        "defects",
        "D1 to D8: the size of each defect of the published code",
        "replication.defects",
        (
            f"--backbone={chosen}",
            f"--weights={settings.weights_of(chosen)}",
            # D7 is a spread over seeds, of which one has none.
            f"--seeds={settings.seed},{settings.seed + 1}",
            *([f"--epochs={limits['defects']}"] if "defects" in limits else []),
            *common,
            f"--run_dir={settings.directory / 'defects'}",
        ),
        ("defects/defects.csv",),
        "defects/report.html",
        backbones=(chosen,),
    )


def _endings(settings: Settings, data: Sequence[str]) -> list[Step]:
    where = settings.directory
    place = settings.fields
    fields = [place] if place else ["--phantom", "--phantom_fields=3"]
    return [
        Step(
            "scan",
            "whole fields read by P1 and P6",
            "replication.scan",
            (
                f"--stage1={where / 'p1-20'}",
                f"--stage2={where / 'p6-clean'}",
                f"--scan_dir={where / 'scan'}",
                *fields,
            ),
            ("scan/fields.csv", "scan/cells.csv"),
            "scan/report.html",
            needs=("p1-20", "p6-clean"),
            backbones=settings.backbones[:1],
        ),
        Step(
            "export",
            "P6 as a version for TensorFlow Serving, loaded and held against the trained model",
            "serving.export",
            (
                f"--run_dir={where / 'p6-clean'}",
                f"--stage1_run_dir={where / 'p1-20'}",
                f"--serving_dir={where / 'export' / 'pap_stage2'}",
                *data,
            ),
            ("export/pap_stage2/*/saved_model.pb", "export/pap_stage2/*/variables/*"),
            "",
            needs=("p1-20", "p6-clean"),
            backbones=settings.backbones[:1],
        ),
    ]


def choose(names: Sequence[str], known: Sequence[Step], flag: str) -> set[str]:
    """Returns the steps that names stand for; the name of a part stands for all of its steps.

    Args:
        names: Of steps or parts.
        known: Every step.
        flag: That names them, for messages.

    Raises:
        PapError: A name is none.
    """
    chosen: set[str] = set()
    for name in names:
        same = {step.name for step in known if name.lower() in (step.name, step.part)}
        if not same:
            all_names = ", ".join(step.name for step in known)
            raise PapError(f"--{flag}={name}: no such step; expected some of {all_names}, or p4")
        chosen |= same
    return chosen


def fingerprint(manual_dir: str | None) -> dict[str, str]:
    """Returns what tells the images from any others: a digest over names and contents of a tree.

    Args:
        manual_dir: Folder of DB_3 and DB_4, or its URL; None for drawn images, which the code
            tells.

    Raises:
        PapError: A tree is missing.
    """
    if manual_dir is None:
        return {}
    found = {}
    for tree in ("DB_3", "DB_4"):
        root = copies.folder(manual_dir, tree)
        if not root.is_dir():
            raise PapError(f"--manual_dir={manual_dir}: no folder {tree} in it")
        digest = hashlib.sha256()
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            # A copy of what is behind a URL has no hidden ones.
            if any(map(tree_files.is_hidden, map(Path, path.relative_to(root).parts))):
                continue
            digest.update(f"{path.relative_to(root)}\0{files.sha256(path)}\n".encode())
        found[f"images of {tree}"] = digest.hexdigest()[:16]
    return found


def selected(known: Sequence[Step], only: Collection[str], skip: Collection[str]) -> list[Step]:
    """Returns the steps to run.

    Args:
        known: Every step.
        only: Names of `choose`; empty for all.
        skip: Likewise; empty for none.
    """
    return [step for step in known if (not only or step.name in only) and step.name not in skip]
