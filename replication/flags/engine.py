"""The flag that says what computes frozen features; a command adopts it."""

from absl import flags

from replication.runs import engines

_ENGINE = flags.DEFINE_enum(
    "engine",
    "auto",
    list(engines.ENGINES),
    "What computes frozen features: tensorflow, or onnx (ONNX Runtime on the CPU; the extra onnx). "
    "Default auto: Keras's backend.",
)


def given() -> str:
    """Returns the flag, one of `engines.ENGINES`, once it is known that it can be had.

    Raises:
        PapError: If it cannot be had in this process.
    """
    engines.resolve(_ENGINE.value)
    return _ENGINE.value


def engine() -> str:
    """Returns the engine's name for manifests: "onnx", or Keras's backend.

    Raises:
        PapError: If it cannot be had in this process.
    """
    return engines.resolve(_ENGINE.value)
