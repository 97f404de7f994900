"""Whether what a run or a committed table states comes out again, figure by figure.

    python -m replication.verify --run_dir=RUN            # from its predictions: seconds
    python -m replication.verify --run_dir=RUN --again    # from its images: as long as the run took
    python -m replication.verify --run_dir=SCAN           # likewise a scan, a search, an export
    python -m replication.verify --csv=results/first_minute.csv

Says of each place whether its figures are the same to the bit, the same within what is allowed, or
different, and lists what is different; exit status 1 where anything is.
"""

import shutil
import tempfile
from pathlib import Path

from absl import app, flags

from tfds_pap import commands, path_flags, urls
from tfds_pap.errors import PapError

_RUN_DIR = path_flags.define(
    "run_dir",
    None,
    "Directory of pap run, train, compare, benchmark, scan or search, or the --serving_dir of pap "
    "export, or one version of it (default: none).",
    path_flags.RESULT,
)
_CSV = path_flags.define(
    "csv", None, "A table of results/ in a checkout, made again (default: none).", path_flags.FILE
)
_AGAIN = flags.DEFINE_bool(
    "again",
    False,
    "Repeat the directory's own command as well, from the images on, in --scratch (default: off).",
)
_SCRATCH = path_flags.define(
    "scratch",
    None,
    "Where --again repeats the command; killed, it goes on there, done, it is removed (default: "
    "runs/verify-<name of --run_dir>).",
    path_flags.NEW_FOLDER,
    otherwise="runs",
)
_MINUTES = flags.DEFINE_float(
    "minutes", 3.0, "With --csv: what a command may take, in minutes (default: 3).", lower_bound=0
)
_ONLY = flags.DEFINE_string(
    "only",
    "",
    "With --csv: only commands that hold these words, such as --efforts=fast (default: all).",
)
_PLACES = flags.DEFINE_multi_string(
    "place",
    [],
    "With --csv: NAME=PATH, the place that a flag's DIR or a word such as WEIGHTS stands for in "
    "its commands, such as fields=PATH; may be given several times (default: none).",
)
_URLS = flags.DEFINE_bool(
    "urls",
    False,
    "With --run_dir: ask the URLs that the directory names, with what this machine may read "
    "(default: off; they are named, and not asked).",
)
_FACTOR = flags.DEFINE_float(
    "factor",
    4.0,
    "With --csv: by which a measured time may be off, either way (default: 4; beside other work "
    "more).",
    lower_bound=1,
)


def main(argv: list[str]) -> None:
    """Compares, prints, and ends with status 1 where something is different."""
    commands.no_arguments(argv)
    places = _places()
    if bool(_RUN_DIR.value) == bool(_CSV.value):
        raise app.UsageError("--run_dir, --csv: give one of them")
    if _AGAIN.value and _CSV.value:
        raise app.UsageError("--again is about --run_dir; --csv always repeats")
    same = _table(Path(_CSV.value), places) if _CSV.value else _run(Path(_RUN_DIR.value))
    if not same:
        raise PapError(f"{_CSV.value or _RUN_DIR.value} states something else than what came out")
    print("Nothing is different.")


def _places() -> dict[str, str]:
    places = {}
    for entry in _PLACES.value:
        name, equals, path = entry.partition("=")
        if not equals or not Path(path).expanduser().exists():
            raise app.UsageError(f"--place={entry}: expected NAME=PATH of what is there")
        places[name] = str(Path(path).expanduser().resolve())
    return places


def _table(path: Path, places: dict[str, str]) -> bool:
    from replication.verification import committed, figures

    # Wrong tables are answered before anything is made.
    committed.recipe(path)
    checkout = path.resolve().parents[1]
    if checkout != Path(__file__).resolve().parents[1]:
        # Its scripts are code: who types the command there has chosen to run them.
        raise PapError(
            f"--csv={path}: made again by the code beside it; run python -m replication.verify in "
            f"{checkout}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        same, repeated = True, 0
        for checked in committed.checks(
            path, _MINUTES.value, places, Path(scratch), _FACTOR.value, only=_ONLY.value
        ):
            same &= figures.say([checked])
            repeated += checked.figures
    if not repeated:
        raise PapError(f"--csv={path}: none of its commands was repeated")
    return same


def _run(path: Path) -> bool:
    # TensorFlow takes seconds to import; flag errors and --help need not wait for it.
    commands.prepare_tensorflow()
    from replication.verification import figures, kinds, recomputed, repeated, sent

    same = True
    sent.check(path)
    for run in kinds.directories(path):
        if run.path != path:
            print(f"{run.path.parent}:")
        if not run.manifest_path.exists():
            print("Not looked at: exported before versions had a manifest")
            continue
        scratch = Path(_SCRATCH.value or Path("runs") / f"verify-{path.resolve().name}")
        why = "" if _URLS.value else "the directory names it; --urls has it asked"
        with sent.one_error(run), urls.unasked(why):
            kind = kinds.of(run)
            program, typed = "", list[str]()
            if _AGAIN.value:
                program, typed = repeated.arguments(run, scratch, urls=_URLS.value)
            changes = recomputed.packages(run)
            print(
                f"Packages that differ: {len(changes) or 'none'}", *changes, sep="\n  ", flush=True
            )
            same &= figures.say(kind.checks(run))
        if _AGAIN.value:
            repeated.start(["-m", program, *typed])
            rule, why = repeated.rule(run, changes)
            print(f"Repeated; the same is: {rule.words} ({why})")
            # A command that was killed after its export has published another version.
            made = kinds.directories(scratch / "run")[-1]
            same &= figures.say(kind.again(run, made, rule))
            shutil.rmtree(scratch)
    return same


if __name__ == "__main__":
    commands.run(main, commands.RESUMES)
