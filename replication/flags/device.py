"""Flags that say how a command computes; a command adopts them and asks for the policy."""

from absl import flags

from replication.runs import device as devices
from replication.runs.device import DevicePolicy

_XLA = flags.DEFINE_enum(
    "xla",
    "auto",
    ["auto", "on", "off"],
    "Compile with XLA (default auto: for JAX, and on GPUs for work of minutes).",
)
_PRECISION = flags.DEFINE_enum(
    "precision",
    "auto",
    ["auto", "float32", "mixed_bfloat16", "mixed_float16"],
    "Keras dtype policy (default auto: mixed_bfloat16 on GPUs that have it, else float32).",
)
_STRATEGY = flags.DEFINE_enum(
    "strategy",
    "none",
    ["none", "mirrored"],
    "mirrored: every GPU of this machine takes an equal part of each batch of images, with the "
    "same weights in the end (default: none, one GPU).",
)
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "Op determinism: same seed, same weights; slower (default: off)."
)


def policy() -> DevicePolicy:
    """Sets this process up as the flags say; see `device.configure`.

    Raises:
        PapError: If the strategy cannot be had.
    """
    return devices.configure(
        xla=_XLA.value,
        precision=_PRECISION.value,
        strategy=_STRATEGY.value,
        deterministic=_DETERMINISTIC.value,
    )


def values() -> tuple[str, str, bool]:
    """Returns --xla, --precision and --deterministic, for another process to set itself up."""
    return _XLA.value, _PRECISION.value, _DETERMINISTIC.value


def given() -> tuple[str, ...]:
    """Returns those that are not left as they are, as another command takes them."""
    chosen = (_XLA, _PRECISION, _DETERMINISTIC)
    return tuple(
        f"--{flag.name}={str(flag.value).lower()}" for flag in chosen if flag.value != flag.default
    )


def identity(policy: DevicePolicy) -> dict[str, object]:
    """Returns what results depend on, for `RunDirectory.open`.

    Args:
        policy: The policy in force.
    """
    import keras

    return {
        "backend": keras.backend.backend(),
        "precision": policy.precision,
        "xla": policy.jit_compile,
        "deterministic": _DETERMINISTIC.value,
        "strategy": _STRATEGY.value,
    }


def words(policy: DevicePolicy) -> str:
    """Returns the line that a command prints before it computes.

    Args:
        policy: The policy in force.
    """
    return f"{policy.device}; {policy.precision}, XLA {policy.xla}"
