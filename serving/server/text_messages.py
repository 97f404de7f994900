"""Official messages in files of their text form."""

from pathlib import Path
from typing import Any

from google.protobuf import text_format

from serving.server.errors import invalid


def read(path: Path, message: Any) -> Any:
    """Fills a message from a file, and returns it.

    Raises:
        ServingError: INVALID_ARGUMENT, one line naming the file and what was expected.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), message)
    except (OSError, UnicodeDecodeError) as error:
        raise invalid(f"{path}: cannot be read: {error}") from None
    except text_format.ParseError as error:
        name = message.DESCRIPTOR.full_name
        raise invalid(f"{path}: expected a {name} in text form: {error}") from None
