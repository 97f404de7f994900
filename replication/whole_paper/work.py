"""Runs steps as processes of their own, and tells which results are there and valid.

A step is valid where its record says that it ended well, by the same command, on the same results
of the steps that it needs, and every file that counts has the digest that it had then.
"""

import codecs
import ctypes
import dataclasses
import datetime
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from replication.runs.directory import RunDirectory
from replication.whole_paper.budget import Cost, limit_of
from replication.whole_paper.plan import Step
from tfds_pap import files
from tfds_pap.errors import PapError

#: How a step stands: its results are valid, it ended with an error, or it was not begun.
DONE, FAILED, WAITING = "done", "failed", "waiting"

#: Where what each step said is kept, below the run directory.
LOGS = "logs"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        status: Exit status; negative: the signal that ended it.
        seconds: From start to end.
        processor_seconds: Of all its threads.
        peak_memory_mib: Its largest resident size.
        last_line: That it wrote.
    """

    status: int
    seconds: float
    processor_seconds: float
    peak_memory_mib: float
    last_line: str


def results(directory: Path, step: Step) -> dict[str, str]:
    """Returns the SHA-256 of every file of a step that counts; empty where a kind is missing.

    Args:
        directory: Of the whole paper.
        step: Whose.
    """
    digests = {}
    for pattern in step.results:
        matching = sorted(directory.glob(pattern))
        if not matching:
            return {}
        for path in matching:
            digests[str(path.relative_to(directory))] = files.sha256(path)
    return digests


def digest(digests: Mapping[str, str]) -> str:
    """Returns one digest of all results of a step; "" for none."""
    lines = "".join(f"{name} {value}\n" for name, value in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest() if digests else ""


def records(run: RunDirectory) -> dict[str, Any]:
    """Returns what is known of each step that was begun."""
    return dict(run.manifest().get("steps", {}))


def why_invalid(directory: Path, step: Step, known: Mapping[str, Any]) -> str | None:
    """Tells why the results of a step cannot be used.

    Args:
        directory: Of the whole paper.
        step: Whose.
        known: From `records`.

    Returns:
        None where they are valid, "" where it has not ended well, else the reason.
    """
    record = known.get(step.name, {})
    if record.get("state") != DONE:
        return ""
    if record["command"] != step.command:
        return f"made by another command: {record['command']}"
    for name, before in record["results"].items():
        path = directory / name
        if not path.is_file():
            return f"{path} is missing"
        if files.sha256(path) != before:
            return f"{path} is not what the step wrote"
    for need in step.needs:
        if record["needs"].get(need) != digest(known.get(need, {}).get("results", {})):
            return f"made from other results of {need}"
    return None


def set_aside(directory: Path, step: Step) -> Path | None:
    """Renames the folder of a step whose results cannot be used; nothing is deleted.

    Returns:
        Where it is now; None where there was none.
    """
    place = directory / step.place
    if not place.exists():
        return None
    number = 1
    while (aside := directory / f"{step.place}.aside-{number}").exists():
        number += 1
    place.rename(aside)
    return aside


def perform(run: RunDirectory, step: Step, planned: float | None) -> dict[str, Any]:
    """Runs a step and records how it ended.

    Args:
        run: The directory of the whole paper.
        step: Whose needs are valid.
        planned: Seconds that it was to take; None if unknown.

    Returns:
        Its record.
    """
    known = records(run)
    before = known.get(step.name, {})
    # A step that was killed goes on: what it has taken so far counts as well, as far as is known.
    tries = before.get("tries", 0) + 1 if before.get("state") != DONE else 1
    record: dict[str, Any] = {
        "state": WAITING,
        "command": step.command,
        "tries": tries,
        "planned_seconds": planned,
        "seconds": before.get("seconds", 0.0) if tries > 1 else 0.0,
        "started": _now(),
    }
    _write(run, step, record)
    outcome = _process(step, run.path / LOGS / f"{step.name}.txt")
    made = results(run.path, step) if outcome.status == 0 else {}
    reason = ""
    if outcome.status < 0:
        reason = f"ended by signal {-outcome.status} ({signal.Signals(-outcome.status).name})"
    elif outcome.status:
        reason = outcome.last_line or f"exit status {outcome.status}"
    elif not made:
        reason = f"ended well, but left none of {', '.join(step.results)}"
    record |= {
        "state": FAILED if reason else DONE,
        "reason": reason,
        "exit_status": outcome.status,
        "ended": _now(),
        "seconds": round(record["seconds"] + outcome.seconds, 1),
        "processor_seconds": round(outcome.processor_seconds, 2),
        "peak_memory_mib": round(outcome.peak_memory_mib),
        "results": made,
        "needs": {need: digest(known[need]["results"]) for need in step.needs},
    }
    _write(run, step, record)
    return record


def refuse(run: RunDirectory, step: Step, reason: str) -> None:
    """Records why a step could not be begun."""
    _write(run, step, {"state": FAILED, "command": step.command, "tries": 0, "reason": reason})


def _write(run: RunDirectory, step: Step, record: Mapping[str, Any]) -> None:
    run.update_manifest(steps={**records(run), step.name: record})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _process(step: Step, log: Path) -> Outcome:
    """Runs the command; what it says is shown and kept."""
    log.parent.mkdir(parents=True, exist_ok=True)
    start, parent = time.perf_counter(), os.getpid()
    tail, letters = b"", codecs.getincrementaldecoder("utf-8")("replace")
    with log.open("ab") as kept:
        kept.write(f"\n$ {step.command}\n".encode())
        process = subprocess.Popen(
            [sys.executable, "-m", step.module, *step.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            preexec_fn=lambda: _end_with(parent),
        )
        assert process.stdout is not None
        try:
            while chunk := os.read(process.stdout.fileno(), 1 << 16):
                sys.stdout.write(letters.decode(chunk))
                sys.stdout.flush()
                kept.write(chunk)
                kept.flush()
                tail = (tail + chunk)[-4096:]
            # Unlike `wait`, this tells what the process used.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            # Ctrl-C: what is finished is kept, as after any kill.
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()
    lines = [line.strip() for line in re.split(r"[\r\n]+", tail.decode(errors="replace"))]
    return Outcome(
        process.returncode,
        time.perf_counter() - start,
        usage.ru_utime + usage.ru_stime,
        # Linux counts in KiB, macOS in bytes.
        usage.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024),
        next((line for line in reversed(lines) if line), ""),
    )


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a new process, whose memory is given back.

    Args:
        function: Of a module; what it returns can be pickled.
        *arguments: Likewise.

    Raises:
        PapError: As the function does, or if its process ends without an answer.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_answer, args=(os.getpid(), sender, function, arguments), daemon=True
    )
    process.start()
    sender.close()
    try:
        error, value = receiver.recv()
    except EOFError:
        process.join()
        raise PapError(
            f"{function.__name__.strip('_')}: its process ended with status {process.exitcode}"
        ) from None
    finally:
        # After Ctrl-C it is still at work.
        process.kill()
        process.join()
    if error is not None:
        raise PapError(error)
    return value


def _answer(
    parent: int,
    sender: "multiprocessing.connection.Connection",
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    _end_with(parent)
    # Ctrl-C is the parent's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sender.send((None, function(*arguments)))
    except (PapError, OSError) as error:
        sender.send((str(error), None))


def _end_with(parent: int) -> None:
    """Has the kernel end this process with the one that started it, even by `kill -9`.

    It would go on with a step that the same command, given again, runs as well.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def make_valid(
    run: RunDirectory,
    step: Step,
    every: Sequence[Step],
    place: str,
    costs: Mapping[str, Cost],
) -> bool:
    """Runs a step where its results are not there and valid.

    Args:
        run: Of the whole paper.
        step: What is to be done.
        every: All steps, among them those that it needs.
        place: Which of how many it is, as it is printed.
        costs: Of each step, what was planned.

    Returns:
        Whether anything changed.
    """
    known = records(run)
    why = why_invalid(run.path, step, known)
    if why is None:
        print(f"{place} {step.name}: there and valid")
        return False
    if why:
        aside = set_aside(run.path, step)
        kept = f"; what was there is kept in {aside}" if aside else ""
        print(f"{place} {step.name}: made again: {why}{kept}")
    by_name = {other.name: other for other in every}
    for need in step.needs:
        if why_invalid(run.path, by_name[need], known) is not None:
            refuse(run, step, f"needs {need}, which is not done")
            print(f"{place} {step.name}: not begun, needs {need}", flush=True)
            return True
    limit = limit_of(run.manifest()["limits"], step.name)
    print(f"\n{place} {step.name}: {step.what}\n$ {step.command}", flush=True)
    record = perform(run, step, round(costs[step.name].seconds(limit), 1))
    end = record["reason"] or f"{record['seconds']:.0f} s"
    print(f"{place} {step.name}: {record['state']}: {end}", flush=True)
    return True
