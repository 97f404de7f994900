"""Says which version each label points to, and changes it: promotion and the way back.

    python -m serving.labels --serving_dir=models/pap_stage2                            # look
    python -m serving.labels --serving_dir=models/pap_stage2 --label=stable --to_version=4
    python -m serving.labels --serving_dir=models/pap_stage2 --label=stable --rollback

Servers that poll models.config, TensorFlow Serving among them, follow within their polling time.
"""

from pathlib import Path

from absl import app, flags

from tfds_pap import commands, path_flags
from tfds_pap.errors import PapError

_SERVING_DIR = path_flags.define(
    "serving_dir", None, "Holds the versions of one model.", required=True
)
_LABEL = flags.DEFINE_string(
    "label", None, "Label to change, such as stable or canary (default: none)."
)
_TO_VERSION = flags.DEFINE_integer(
    "to_version", None, "Version that the label shall point to (default: none).", lower_bound=1
)
_ROLLBACK = flags.DEFINE_bool(
    "rollback",
    False,
    "Go back to the version before: of the label, or without one of the model (default: off).",
)


def main(argv: list[str]) -> None:
    """Changes what the flags say, then prints what is served."""
    commands.no_arguments(argv)
    if _ROLLBACK.value and _TO_VERSION.value is not None:
        raise app.UsageError("--rollback and --to_version: expected one of them")
    if _TO_VERSION.value is not None and _LABEL.value is None:
        raise app.UsageError("--to_version: expected --label as well")
    if _LABEL.value is not None and not (_ROLLBACK.value or _TO_VERSION.value is not None):
        raise app.UsageError("--label: expected --to_version or --rollback as well")
    commands.quiet_logs()
    from serving.store import model_config, publish

    serving_dir = Path(_SERVING_DIR.value)
    available = publish.versions(serving_dir)
    if not available:
        raise PapError(f"--serving_dir={serving_dir} holds no version")
    config = model_config.ModelConfig(serving_dir)
    if _ROLLBACK.value:
        before, now = config.roll_back(_LABEL.value)
        print(f"{_LABEL.value or config.name}: version {before} -> {now}")
    elif _TO_VERSION.value is not None:
        previous = config.assign(_LABEL.value, _TO_VERSION.value)
        print(f"{_LABEL.value}: version {previous or 'none'} -> {_TO_VERSION.value}")
    labels, pinned = config.labels(), config.pinned()
    for version in available:
        names = [label for label, number in sorted(labels.items()) if number == version]
        served = version in pinned if pinned else version == available[-1]
        print(f"{version:>6}  {'served' if served else '-':<8}{', '.join(names)}".rstrip())


if __name__ == "__main__":
    commands.run(main, commands.STARTS_AGAIN)
