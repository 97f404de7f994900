"""Changes what a directory states, and says what a check finds different."""


def change(path, old, new):
    """Changes the first of some bytes."""
    data = path.read_bytes()
    assert old.encode() in data
    path.write_bytes(data.replace(old.encode(), new.encode(), 1))


def differences(checks):
    """Returns the lines of each place where something is different."""
    return {checked.place: checked.different for checked in checks if checked.different}
