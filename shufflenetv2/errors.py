"""The error that a user can act on, and the parts of its message."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error that the user of the program can fix: one line that names the culprit and the remedy, without a traceback.

    An option is written as the name of its field in backticks (`` `batch_size` ``), which is how a Python caller gave it;
    the command line replaces that with what the user typed (`--batch-size`, `-b`, or a key of a YAML file). A part makes a
    subclass only where a caller catches that error by its type.

    Args:
        message: one line.
        status: exit status of the process: 2 for wrong usage, 1 for a failure while running.
    """

    status = 2

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status


def nearest(name: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """Return the choice whose spelling is nearest to `name`, or '' where none is near.

    Args:
        name: what the user wrote.
        choices: the accepted spellings.
        cutoff: similarity from 0 (any choice) to 1 (equal).
    """
    matches = difflib.get_close_matches(name, list(choices), 1, cutoff)
    return matches[0] if matches else ""


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, to quote it in a UserError; the name of its class if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__
