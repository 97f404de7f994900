"""The base of all errors that the person who typed a command can mend."""


class PapError(ValueError):
    """What was asked for cannot be done; the message is one line that a command ends with.

    It names the file or the flag, and what was expected.
    """

    #: Exit status of a command that ends with it; 2 asks back.
    status = 1
