"""How every command's process is prepared, and how it ends: done, refused, or interrupted."""

import codecs
import contextlib
import importlib.util
import io
import logging
import os
import re
import select
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags

from tfds_pap import keras_settings, redaction
from tfds_pap.errors import PapError

#: absl of a required flag that is not there.
_MISSING = re.compile(r"(--\w+)=None: Flag --\w+ must have a value other than None\.")

#: What a shell reports of a command that SIGINT ended.
INTERRUPTED = 130
#: And of one that SIGPIPE ended, as `| head` does.
UNREAD = 141

#: For commands that go on where they were.
RESUMES = "the same command goes on where it was"
#: For those that keep what they have done beside their table.
RESUMES_A_TABLE = "with --csv the same command goes on where it was"
#: For commands that have nothing to go on with.
STARTS_AGAIN = "nothing half-written is left; the same command starts again"

#: Read by TensorFlow once, when it is imported, and by JAX when it looks for devices.
_SETTINGS = {
    # Errors that matter are raised; what is logged below this level is chatter about absent GPUs.
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Its plain allocator gives blocks of hundreds of MB back to the system and takes them anew in
    # each step: a third of a training step's processor time where oneDNN is off.
    "TF_CPU_ALLOCATOR_USE_BFC": "true",
    # JAX as well takes of a GPU what it uses; see `keras_settings.leave_gpus`.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


#: What a terminal without UTF-8 shows in place of letters of reports and tables.
_SUBSTITUTES = {
    **{"…": "...", "−": "-", "–": "-", "—": "-", "×": "x", "±": "+-", "°": " degrees", "µ": "u"},
    **{
        "→": "->",
        "\xa0": " ",
        "\u202f": " ",
        "≥": ">=",
        "≤": "<=",
        "·": "*",
        "•": "*",
        "’": "'",
        "“": '"',
        "”": '"',
    },
}


def run(main: Callable[[list[str]], object], interrupted: str) -> None:
    """Runs a command; what can be mended ends it with one line and exit status 1, Ctrl-C with 130.

    Where the reader of its output has gone it ends without a word; with exit status 141 if it had
    more to say.

    Args:
        main: From the arguments that are no flags to anything.
        interrupted: What is said after Ctrl-C: `RESUMES`, `STARTS_AGAIN`, or a sentence.
    """
    _say_plainly()
    try:
        app.run(_without_usage(main), flags_parser=_parse_flags)
    except KeyboardInterrupt as error:
        # On a line of its own: a progress line may be half written.
        print(f"\n{_program()}: interrupted; {str(error) or interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (PapError, OSError) as error:
        # A broken pipe of a connection is an error like others.
        if isinstance(error, BrokenPipeError) and _unread():
            sys.exit(UNREAD)
        print(f"{_program()}: {redaction.redacted(_line(error))}", file=sys.stderr)
        sys.exit(error.status if isinstance(error, PapError) else 1)
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            # Else the interpreter tries again when it ends, and says that it could not.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _line(error: Exception) -> str:
    """An error in words; of the system's own without its number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _say_plainly() -> None:
    """Lets terminals without UTF-8 have plain substitutes for what they cannot show."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_SUBSTITUTES.get(letter, "?") for letter in text), error.end


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; what is wrong with one is a line like every other error, --help is none."""
    try:
        return flags.FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        message = " ".join(str(error).split()).removeprefix("flag ")
        missing = _MISSING.findall(message)
        raise PapError(f"{', '.join(missing)}: must be given" if missing else message) from None
    except flags.Error as error:
        message = " ".join(str(error).split())
        raise PapError(f"{message[0].lower()}{message[1:]}; --help lists the flags") from None
    except SystemExit:
        # Only --help and its like end the process here, and absl calls that a failure.
        sys.exit(0)


def _without_usage(main: Callable[[list[str]], object]) -> Callable[[list[str]], object]:
    """A main whose wrong use is one line; absl would print every flag above it."""

    def run_main(argv: list[str]) -> object:
        try:
            return main(argv)
        except app.UsageError as error:
            raise PapError(str(error)) from None

    return run_main


def _unread() -> bool:
    """Whether nobody is left to read standard output or error."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _program() -> str:
    specification = sys.modules["__main__"].__spec__
    name = specification.name if specification else sys.argv[0]
    return name.removesuffix(".__main__")


def quiet_logs() -> None:
    """Sets what TensorFlow reads when it is imported, and keeps loggers off the terminal."""
    import absl.logging

    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    absl.logging.set_verbosity(absl.logging.ERROR)
    # Warns of retracing wherever several models predict one after another.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def prepare_tensorflow() -> None:
    """Imports TensorFlow with this package's settings and without its chatter.

    Called before anything else imports it; variables that the user has set are left as they are,
    but for those of `keras_settings`.

    Raises:
        PapError: It, or Keras's backend, is not installed.
    """
    quiet_logs()
    if importlib.util.find_spec("tensorflow") is None:
        raise PapError("tensorflow is not installed; pap doctor says what mends it")
    keras_settings.check_backend()
    keras_settings.before_import()
    with _without_stderr():
        import tensorflow  # noqa: F401
    # TensorFlow has imported Keras.
    keras_settings.after_import()


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Holds back what C++ code writes to the terminal; shows it where the block fails.

    TensorFlow's libraries write some lines before they have read their log level.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, contextlib.ExitStack() as stack:
        terminal = os.dup(2)
        stack.callback(os.close, terminal)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)


def no_arguments(argv: Sequence[str]) -> None:
    """Refuses what is no flag.

    Args:
        argv: The program, and what is left once flags are parsed.

    Raises:
        app.UsageError: If anything is left.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; every option is a --flag")
