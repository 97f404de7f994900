"""The bearer token that a server may ask for."""

import hmac
from pathlib import Path

from tfds_pap.errors import PapError


class TokenError(PapError):
    """A token file that cannot be used; the message is one line."""


def read(path: str | Path) -> str:
    """Reads a token from the only line of a file.

    Raises:
        TokenError: If the file cannot be read, or holds no token.
    """
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"{path}: cannot be read as a token: {error}") from None
    if not token or token.split() != [token]:
        raise TokenError(f"{path}: expected a token on one line, without spaces")
    return token


def matches(header: str | None, token: str) -> bool:
    """Whether an Authorization header brings the token, in a time that does not tell how nearly.

    Example:
        >>> matches("Bearer abc", "abc"), matches("abc", "abc"), matches(None, "abc")
        (True, False, False)
    """
    scheme, _, sent = (header or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(
        sent.strip().encode("utf-8", "replace"), token.encode()
    )
