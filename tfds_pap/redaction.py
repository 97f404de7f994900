"""URLs in what is written: tables, manifests, pages and messages tell no secret of them."""

import hashlib
import re

#: Who asks, and the password: `//user:password@`; of a web server what stands there is a token.
_PASSWORD = re.compile(r"//[^/\s:]*:[^/\s]*@|(?i:(?<=http:)|(?<=https:))//[^/\s]+@")

#: From the `?` or `#` of a URL in a text to its end.
_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^?#\n]*[?#])([^\s'\"<>]+)")

#: Parameters that sign a URL of Amazon, Google or Azure (the last where there is a `sig` alone):
#: signed again, it names the same file.
_SIGNING = re.compile(
    r"x-(amz|goog)-[a-z-]+|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id"
)
_SIGNING_OF_AZURE = re.compile(r"sig|s[etpvrs]|srt|spr|sip|skoid|sktid|sk[tesv]")

#: Other parameters that are secret by their name, and characters from which any value may be.
_SECRET = re.compile(r"token|secret|passw|pwd|key|auth|credential|session|signature|sig|jwt|code")
_RANDOM = 20


def holds_password(url: str) -> bool:
    """Tells whether a URL says who asks, and the password, or a token in their place.

    Example:
        >>> holds_password("https://me:secret@host/a.svs"), holds_password("abfs://box@host/a.svs")
        (True, False)
    """
    return _PASSWORD.search(url) is not None


def redacted(text: str) -> str:
    """Returns a text as it may be written: no URL in it tells a secret.

    What signs a URL is left out, so that the same file has the same name when it is signed again.
    Any other secret, and whatever looks random, may be what tells one file from another: eight
    digits of its SHA-256 take its place.

    Args:
        text: A URL, or any text.

    Example:
        >>> redacted("https://me:secret@host/a.svs: no such file")
        'https://***@host/a.svs: no such file'
        >>> redacted("https://host/a.svs?page=2&X-Amz-Signature=be57")
        'https://host/a.svs?page=2&X-Amz-Signature=***'
        >>> redacted("https://host/download?token=be57")
        'https://host/download?token=***b6fe0194'
    """
    if "://" not in text:
        return text
    return _QUERY.sub(_redacted_query, _PASSWORD.sub("//***@", text))


def _redacted_query(match: re.Match[str]) -> str:
    query = match[2].rstrip(":,;.)")
    parts = query.split("&")
    is_azure = any(part.startswith("sig=") for part in parts)
    shown = "&".join(_redacted_part(part, is_azure) for part in parts)
    return match[1] + shown + match[2][len(query) :]


def _redacted_part(part: str, is_azure: bool) -> str:
    name, equals, value = part.partition("=") if "=" in part else ("", "", part)
    known = name.lower()
    if _SIGNING.fullmatch(known) or (is_azure and _SIGNING_OF_AZURE.fullmatch(known)):
        return f"{name}=***"
    if len(value) < _RANDOM and not (value and _SECRET.search(known)):
        return part
    # What was redacted before stays as it is.
    told = value if value.startswith("***") else hashlib.sha256(value.encode()).hexdigest()
    return f"{name}{equals}***{told.removeprefix('***')[:8]}"


def is_redacted(text: str) -> bool:
    """Tells whether something was left out of a URL by `redacted`, so that it cannot be read."""
    return "://" in text and re.search(r"//\*{3}@|[=?&#]\*{3}", text) is not None
