"""Changes what a directory states, and says what a check finds different."""

from commands import command


def change(path, old, new):
    """Changes the first of some bytes."""
    data = path.read_bytes()
    assert old.encode() in data
    path.write_bytes(data.replace(old.encode(), new.encode(), 1))


def differences(checks):
    """Returns the lines of each place where something is different."""
    return {checked.place: checked.different for checked in checks if checked.different}


def verified_again(directory, scratch):
    """Repeats the command of a directory; returns all lines, and those that compare the two."""
    done = command(
        "replication.verify", f"--run_dir={directory}", "--again", f"--scratch={scratch}",
        draws=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "Nothing is different."
    assert not scratch.exists()
    return lines, lines[next(n for n, line in enumerate(lines) if line.startswith("Repeated; ")) :]
