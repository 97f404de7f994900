"""One definition of each flag that several commands have, whatever each of them says of it.

A command calls these where it would define the flag; to `--help` the flag is the command's own.
"""

from collections.abc import Sequence

from absl import flags

from tfds_pap import path_flags

flags.disclaim_key_flags()

PROTOCOLS = ("paper", "clean")

#: What --weights may be beside a path, and what is said where it is neither.
WEIGHTS, NO_WEIGHTS = ("imagenet", "none"), "no such file or folder, and not imagenet or none"


def protocol(
    help_text: str, *, default: str = "clean", further: Sequence[str] = ()
) -> flags.FlagHolder[str]:
    """Defines --protocol; `further` are values beside "paper" and "clean"."""
    return flags.DEFINE_enum("protocol", default, [*PROTOCOLS, *further], help_text)


def trained(whose: str, models: str = "models") -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines --protocol and --seed, which choose among the finished models of `whose` runs."""
    first = "each run's" if whose == "the runs'" else "the run's"
    return (
        protocol(f"Which of {whose} models (default: clean)."),
        flags.DEFINE_integer("seed", None, f"Seed of the {models} (default: {first} first)."),
    )


def seeds(*default: int, of: str) -> flags.FlagHolder[list[str]]:
    """Defines --seeds, each of which gives one `of`; `values.seeds` reads it."""
    numbers = [str(seed) for seed in default]
    return flags.DEFINE_list(
        "seeds", numbers, f"Seeds, one {of} each (default: {','.join(numbers)})."
    )


def run_dir(help_text: str, *, finished: bool = False) -> flags.FlagHolder[str | None]:
    """Defines --run_dir: where a run is written, or a finished one that must be named."""
    if finished:
        return path_flags.define("run_dir", None, help_text, path_flags.RUN, required=True)
    return path_flags.define("run_dir", None, help_text, path_flags.NEW_FOLDER, otherwise="runs")


def manual_dir(trees: str) -> flags.FlagHolder[str | None]:
    """Defines --manual_dir, a folder that holds `trees` such as "DB_4", or its URL."""
    return path_flags.define(
        "manual_dir",
        None,
        f"Folder that holds {trees}, or its URL such as s3://BUCKET/FOLDER, of which each tree is "
        "copied to this machine first (default: none, phantoms are drawn).",
        path_flags.FOLDER_OR_URL,
    )


def data_dir() -> flags.FlagHolder[str | None]:
    """Defines --data_dir."""
    return path_flags.define(
        "data_dir",
        None,
        "Where TFDS keeps prepared data (default: TFDS's own, ~/tensorflow_datasets).",
        path_flags.STORE,
        otherwise=path_flags.PREPARED,
    )


def weights(ending: str = "") -> flags.FlagHolder[str]:
    """Defines --weights of one backbone, see `weights.find`; `ending` is what a command adds."""
    return path_flags.define_word_or_path(
        "weights",
        "imagenet",
        "imagenet (default; Keras's download and cache), none, or the path of a file or directory "
        f"of .h5 or .keras files{ending}.",
        WEIGHTS,
        NO_WEIGHTS,
    )


def prevalence(ending: str = "") -> flags.FlagHolder[float | None]:
    """Defines --prevalence, 0 to 1; `ending` is what a command adds."""
    return flags.DEFINE_float(
        "prevalence",
        None,
        "Share of HSIL or SCC where the model is to be used, 0 to 1, for PPV and NPV (default: "
        f"none, and no predictive values{ending}).",
        lower_bound=0,
        upper_bound=1,
    )


def batch_size(default: int | None, help_text: str) -> flags.FlagHolder[int | None]:
    """Defines --batch_size, from 1."""
    return flags.DEFINE_integer("batch_size", default, help_text, lower_bound=1)


def epochs(default: int | None, help_text: str) -> flags.FlagHolder[int | None]:
    """Defines --epochs, from 1."""
    return flags.DEFINE_integer("epochs", default, help_text, lower_bound=1)


def dry_run(what: str) -> flags.FlagHolder[bool]:
    """Defines --dry_run; `what` is told, such as "fits, epochs"."""
    return flags.DEFINE_bool(
        "dry_run",
        False,
        f"Print {what}, minutes (from a short measurement on this machine) and disk, write "
        "nothing, and end (default: off).",
    )


def csv(help_text: str) -> flags.FlagHolder[str | None]:
    """Defines --csv."""
    return path_flags.define("csv", None, help_text, path_flags.NEW_FILE)


def phantom(doing: str, count: int) -> tuple[flags.FlagHolder[bool], flags.FlagHolder[int]]:
    """Defines --phantom and --phantom_fields."""
    return (
        flags.DEFINE_bool("phantom", False, doing),
        flags.DEFINE_integer(
            "phantom_fields",
            count,
            f"Fields that --phantom draws (default: {count}).",
            lower_bound=1,
        ),
    )


def stride(help_text: str) -> flags.FlagHolder[int]:
    """Defines --stride in pixels, from 1."""
    return flags.DEFINE_integer("stride", 25, help_text, lower_bound=1)


def threshold(help_text: str) -> flags.FlagHolder[float]:
    """Defines --threshold, 0 to 1."""
    return flags.DEFINE_float("threshold", 0.5, help_text, lower_bound=0, upper_bound=1)


def suppression_radius(help_text: str) -> flags.FlagHolder[float]:
    """Defines --suppression_radius in pixels, from 0."""
    return flags.DEFINE_float("suppression_radius", 50.0, help_text, lower_bound=0)
