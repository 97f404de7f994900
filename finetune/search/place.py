"""Where this process stands in a search: alone, chief, or worker, by KerasTuner's variables."""

import ipaddress
import os

from tfds_pap.errors import PapError

ID, IP, PORT = "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"

_LOOPBACK = "127.0.0.1"


def is_chief() -> bool:
    """Tells whether this process hands out trials to others.

    Raises:
        PapError: If one of KerasTuner's variables is missing.
    """
    return _in_cluster() and "chief" in os.environ[ID]


def is_worker() -> bool:
    """Tells whether this process gets its trials from a chief.

    Raises:
        PapError: If one of KerasTuner's variables is missing.
    """
    return _in_cluster() and "chief" not in os.environ[ID]


def _in_cluster() -> bool:
    # As in KerasTuner, the address decides; a tuner may have an id without any cluster.
    if IP not in os.environ:
        return False
    for name in (PORT, ID):
        if name not in os.environ:
            raise PapError(f"{name}: missing, though {IP} is set")
    return True


def address() -> str:
    """Returns host and port of the chief.

    Raises:
        PapError: If a variable is missing, or the port is none.
    """
    for name in (IP, PORT):
        if name not in os.environ:
            raise PapError(f"{name}: missing; a cluster needs {ID}, {IP} and {PORT}")
    port = os.environ[PORT]
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise PapError(f"{PORT}={port}: expected a number from 1 to 65535")
    return f"{os.environ[IP] or _LOOPBACK}:{port}"


def is_loopback() -> bool:
    """Tells whether the chief's address is reached from this machine alone."""
    host = os.environ[IP] or _LOOPBACK
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
