"""The command `pap`: one name for all commands of the project.

    pap run --manual_dir=DIR        is the same as        python -m replication.run --manual_dir=DIR

Nothing is imported before the command is known, so that `pap --help` answers at once.
"""

import difflib
import runpy
import sys
from collections.abc import Mapping

_USAGE = "usage: pap COMMAND [--flag=value ...]        pap COMMAND --help lists the flags of one"

#: Group -> command -> module, and what it does in a line. What is wanted first stands first.
COMMANDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "From images to a report": {
        "run": ("replication.run", "train both stages as the paper does, and report"),
        "compare": ("replication.compare", "which pre-trained network is best, and how much leaks"),
        "benchmark": (
            "replication.benchmark",
            "one table of models x cuts on any images, that others can cite",
        ),
        "defects": (
            "replication.defects",
            "what each defect of the papers' code is worth",
        ),
        "search": ("finetune.search", "let KerasTuner fine-tune a backbone"),
        "train": ("finetune.train", "train what a search chose, and look at the test images once"),
        "paper": ("replication.paper", "all of the above as the papers did, and their claims"),
    },
    "With trained models": {
        "predict": (
            "replication.predict",
            "name the cells of new images; with --server=HOST:PORT a served model does",
        ),
        "scan": ("replication.scan", "read whole fields in two stages"),
        "sweep": ("replication.scan_sweep", "stride, threshold and radius against recall and cost"),
    },
    "Images": {
        "audit": ("tfds_pap.audit", "is the same picture, or slide, on both sides of a split?"),
        "phantom": ("tfds_pap.phantom", "draw cells and fields whose truth is known"),
    },
    "A served model": {
        "export": ("serving.export", "write a checked version for TensorFlow Serving"),
        "serve": ("serving.server", "serve it on this machine, with a page to try it"),
        "labels": ("serving.labels", "promote a version, or go back"),
        "deploy": ("serving.deploy", "write compose file, manifest and configs"),
    },
    "This machine": {
        "verify": (
            "replication.verify",
            "does what a run or a committed table states come out again?",
        ),
        "doctor": ("replication.doctor", "what is ready, and the command that mends what is not"),
    },
}

#: `pap predict` where another process has the model; it needs no TensorFlow.
ASKS_A_SERVER = "serving.predict"

_DEFAULTS = """\
Without --manual_dir images are drawn, whose truth is known. Results go to runs/, prepared data to
~/tensorflow_datasets; weights of Keras come from ~/.keras/models. Flags are --name=value; a command
ends with status 0 only if it did its work. Research software, not a medical device."""


def main() -> None:
    """Runs the command that stands first on the line."""
    modules = {name: module for group in COMMANDS.values() for name, (module, _) in group.items()}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(usage())
        return
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(modules)}"
        print(f"pap: no command {name!r}{hint}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    module = modules[name]
    if name == "predict" and any(each.startswith("--server") for each in sys.argv):
        module = ASKS_A_SERVER
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        # The client alone is installed without what the other commands need.
        package = (error.name or "").partition(".")[0]
        if package in ("", "tfds_pap", "replication", "finetune", "serving"):
            raise
        sys.exit(f"pap {name}: {package} is not installed; pap doctor says what mends it")


def usage() -> str:
    """Returns the text of `pap --help`."""
    lines = [_USAGE, ""]
    for group, commands in COMMANDS.items():
        lines += [group, *(f"  {name:<9} {what}" for name, (_, what) in commands.items()), ""]
    return "\n".join([*lines, _DEFAULTS])


if __name__ == "__main__":
    main()
