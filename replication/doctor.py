"""What of this machine is ready for the project, and the command that mends what is not.

    python -m replication.doctor --manual_dir=DIR

One line a fact: `ok`, `note` for what only some commands need, or `bad` for what every command
needs; what is not ok ends with the command that mends it. Exit status 1 where anything is bad.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from tfds_pap import commands, keras_settings, path_flags

_MANUAL_DIR = path_flags.define(
    "manual_dir",
    None,
    "Folder that holds DB_3 and DB_4, or its URL (default: none, no images are looked at).",
    path_flags.FOLDER_OR_URL,
)
_DATA_DIR = path_flags.define(
    "data_dir", None, "Where TFDS keeps prepared data (default: ~/tensorflow_datasets)."
)
_WEIGHTS = path_flags.define(
    "weights",
    None,
    "Folder of weights (default: that of Keras, ~/.keras/models).",
    path_flags.FOLDER,
)
_PORTS = flags.DEFINE_list(
    "ports",
    ["8500", "8501", "6006"],
    "Ports of gRPC, REST and TensorBoard that should be free (default: 8500,8501,6006).",
)

#: Bytes below which a run, its features and prepared images may not find room.
_DISK, _MEMORY = 5e9, 3e9


class Fact(NamedTuple):
    """A line of the answer.

    Attributes:
        state: "ok", "note" or "bad".
        what: Of what.
        words: What was seen.
        mend: The command, or the sentence, that mends it; "" where nothing needs to be.
    """

    state: str
    what: str
    words: str
    mend: str = ""


def main(argv: list[str]) -> None:
    """Prints every fact as soon as it is known."""
    commands.no_arguments(argv)
    if not all(port.isdecimal() for port in _PORTS.value):
        raise app.UsageError(f"--ports={','.join(_PORTS.value)}: expected numbers, such as 8500")
    commands.quiet_logs()
    states = []
    for fact in facts():
        states.append(fact.state)
        mend = f"; {fact.mend}" if fact.mend else ""
        print(f"{fact.state:<5} {fact.what:<12} {fact.words}{mend}", flush=True)
    if "bad" in states:
        sys.exit(1)


def facts() -> Iterator[Fact]:
    """Yields what is known at once first, and what needs TensorFlow last."""
    yield from packages(importlib.metadata.requires("pap-two-stage") or ())
    yield _disk(Path.cwd())
    yield _memory()
    yield from map(_writable, (Path("runs"), _data_dir(), keras_settings.home()))
    yield from (_port(int(port)) for port in _PORTS.value)
    if importlib.util.find_spec("tensorflow") is None:
        return
    yield from _weights()
    yield from _prepared()
    yield from _computing()
    if _MANUAL_DIR.value:
        yield from _trees(_MANUAL_DIR.value)


def packages(requirements: Iterable[str]) -> Iterator[Fact]:
    """Holds the installed packages against the declared ranges.

    Args:
        requirements: As a package's metadata lists them; those of extras are left out.

    Example:
        >>> [fact.state for fact in packages(["numpy>=1", "numpy>=999"])]
        ['ok', 'bad']
    """
    from packaging.requirements import Requirement

    python = ".".join(map(str, sys.version_info[:3]))
    known = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Fact("ok" if known else "bad", "Python", python, "" if known else "take 3.11 to 3.13")
    wrong, versions = [], {}
    for line in requirements:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            versions[needed.name] = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append((line, "not installed"))
            continue
        if not needed.specifier.contains(versions[needed.name], prereleases=True):
            wrong.append((line, f"{versions[needed.name]} is installed"))
    for line, seen in wrong:
        yield Fact("bad", "package", f"{line}: {seen}", f"pip install {line!r}")
    shown = ", ".join(
        f"{name} {versions[name]}"
        for name in ("tensorflow", "keras", "keras-tuner", "tensorflow-datasets", "numpy")
        if name in versions
    )
    if not wrong:
        yield Fact("ok", "packages", shown or "none is needed")


def _disk(folder: Path) -> Fact:
    free = shutil.disk_usage(folder).free
    enough = free >= _DISK
    mend = "" if enough else "free some, or name other places with --run_dir and --data_dir"
    return Fact("ok" if enough else "note", "disk", f"{free / 1e9:.1f} GB free in {folder}", mend)


def _memory() -> Fact:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        values = {
            name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines)
        }
        free = values["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return Fact("note", "memory", "this system does not say how much is free")
    enough = free >= _MEMORY
    mend = "" if enough else "a run needs about 2 GB; close something"
    return Fact("ok" if enough else "note", "memory", f"{free / 1e9:.1f} GB available", mend)


def _data_dir() -> Path:
    given = _DATA_DIR.value or os.environ.get("TFDS_DATA_DIR")
    return Path(given or "~/tensorflow_datasets").expanduser()


def _writable(folder: Path) -> Fact:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Fact("bad", "writable", f"{folder}: {reason}", f"chmod u+w {place}")
    return Fact("ok", "writable", str(folder))


def _port(port: int) -> Fact:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            mend = "give another to --port, --rest_api_port or tensorboard --port"
            return Fact("note", "port", f"{port}: {(error.strerror or '').lower()}", mend)
    return Fact("ok", "port", f"{port} is free")


def _weights() -> Iterator[Fact]:
    commands.prepare_tensorflow()
    from replication.learning import models, weights

    folder = Path(_WEIGHTS.value) if _WEIGHTS.value else weights.cache_dir()
    names = [name for name in models.BACKBONES if weights.available(name, str(folder))]
    missing = [name for name in models.BACKBONES if name not in names]
    if names:
        yield Fact("ok", "weights", f"{folder}: {', '.join(names)}")
    if missing:
        mend = "Keras downloads them when they are needed, or put them there by hand"
        yield Fact("note", "weights", f"{folder} lacks {', '.join(missing)}", mend)


def _prepared() -> Iterator[Fact]:
    for name in ("pap_db3", "pap_db4"):
        for source in ("phantom", "original"):
            versions = sorted((_data_dir() / name / source).glob("*/dataset_info.json"))
            if versions:
                yield Fact("ok", "prepared", str(versions[-1].parent))


def _computing() -> Iterator[Fact]:
    import keras

    from replication.runs import device

    policy = device.configure()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Fact("ok", "processor", f"{device.processor()}, {cores} cores for this process")
    yield one_dnn(os.environ, _instructions())
    device_nodes = [path for path in ("/dev/nvidia0", "/dev/kfd") if Path(path).exists()]
    if policy.accelerated:
        yield Fact("ok", "GPU", policy.device)
    elif device_nodes:
        yield Fact(
            "note",
            "GPU",
            f"{device_nodes[0]} is there, {keras.backend.backend()} does not see it",
            "pip install 'pap-two-stage[gpu]'",
        )
    else:
        yield Fact("ok", "GPU", "none; everything runs on the processor")
    words = f"backend {keras.backend.backend()}, {policy.precision}, XLA {policy.xla}"
    yield Fact("ok", "policy", words)


def one_dnn(environment: Mapping[str, str], offered: str) -> Fact:
    """Says what TensorFlow's convolutions use of the processor.

    Args:
        environment: Variables that TensorFlow and oneDNN read.
        offered: Vector instructions of the processor.
    """
    if environment.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() in ("0", "false"):
        return Fact(
            "note",
            "oneDNN",
            f"off by TF_ENABLE_ONEDNN_OPTS; the processor offers {offered}",
            "unset it, unless results must match another machine: training is slower without",
        )
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        held = environment.get(name, "")
        if held and held.upper() not in ("ALL", "DEFAULT"):
            words = f"on, held to {held} by {name}; the processor offers {offered}"
            return Fact("note", "oneDNN", words, "unset it for all that the processor offers")
    return Fact("ok", "oneDNN", f"on; the processor offers {offered}")


def _instructions() -> str:
    """The widest vector instructions that the processor offers, as Linux tells them."""
    try:
        flags_line = next(
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("flags")
        ).split()
    except (OSError, StopIteration):
        return "unknown"
    wanted = ("amx_tile", "avx512_bf16", "avx512f", "avx2", "avx")
    return ", ".join([name for name in wanted if name in flags_line][:2]) or "no AVX"


def _trees(manual_dir: str) -> Iterator[Fact]:
    import tensorflow_datasets.public_api as tfds

    import tfds_pap  # noqa: F401  (registers the builders)
    from tfds_pap import copies, folders, urls

    for name in ("pap_db3", "pap_db4"):
        builder = tfds.builder(f"{name}/original", data_dir=str(_data_dir()))
        try:
            tree = folders.read_tree(
                copies.folder(manual_dir, builder.TREE),
                builder.CLASS_FOLDERS,
                published=builder.PUBLISHED_COUNTS,
            )
        except (folders.TreeError, urls.UrlError) as error:
            mend = "lay the images out as README says"
            yield Fact("bad", builder.TREE, str(error).splitlines()[0], mend)
            continue
        counts = "; ".join(
            f"{split} " + ", ".join(f"{label} {count:,}" for label, count in labels.items())
            for split, labels in tree.counts().items()
        )
        yield Fact("ok", builder.TREE, f"{counts}; fingerprint {tree.fingerprint[:12]}")
        for note in tree.notes:
            yield Fact("note", builder.TREE, note)
        if builder.is_prepared():
            same = builder.info.metadata.get("fingerprint") == tree.fingerprint
            words = "prepared" if same else "prepared from other images; the next command renews it"
            yield Fact("ok", builder.TREE, words)


if __name__ == "__main__":
    commands.run(main, commands.STARTS_AGAIN)
