"""What both fronts need before they listen: a free port, and a certificate that can be used."""

import socket
import ssl
from pathlib import Path

#: Bytes that the system takes of a connection before they are read; Linux doubles it.
RECEIVED_BYTES = 2**18


def bound(host: str, port: int) -> socket.socket:
    """A TCP socket that is bound and does not listen yet; port 0 takes a free one.

    Raises:
        OSError: One line naming host and port.
    """
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        # A port is free as soon as its last server has ended.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Before it listens, or the window has been announced. Larger ones take megabytes of a
        # header without end before it is refused.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED_BYTES)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}") from None
    return listener


def check_certificate(certificate: Path, key: Path) -> None:
    """Refuses files of which one is missing, is no PEM, or does not belong to the other.

    Raises:
        OSError: One line naming the files.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"{certificate}, {key}: expected a certificate chain and its private key in PEM: "
            f"{reason}"
        ) from None
