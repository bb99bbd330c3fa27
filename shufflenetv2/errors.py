"""UserError, which the command line shows as one line, and helpers for messages: similar names, one line, printable text."""

import difflib
from collections.abc import Iterable

MAX_TYPED = 100  # characters of a name that is compared with others; the time grows with the square of the length


class UserError(ValueError):
    """An error that the user can fix. The message names what is wrong and the remedy; the command shows no traceback.

    A message names an option by its field in backticks (`` `batch_size` ``), as a Python caller gives it; the command line
    replaces it by what the user typed: `--batch-size`, `-b`, or a key of a YAML file. Subclasses exist only where a caller
    catches the error by its type.

    Args:
        message: one line.
        status: exit status of the process: 2 for wrong usage, 1 for a failure while running.

    Attributes:
        is_repeated: whether another of the processes of a run has reported an error before; None if they could not be asked.
    """

    status = 2
    is_repeated: bool | None = None

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status


def nearest(name: str, choices: Iterable[str], cutoff: float = 0.75) -> str:
    """Return the choice whose spelling is most similar to `name`, in upper or lower case, or '' if none is similar enough.

    Args:
        name: what the user wrote.
        choices: the accepted spellings.
        cutoff: smallest similarity of a match, from 0 (any choice matches) to 1 (only an equal choice matches);
            the same letters in another order have a similarity of 0.9.
    """

    if len(name) > MAX_TYPED:
        return ""

    def similarity(choice: str) -> float:
        typed, accepted = name.casefold(), choice.casefold()
        matched = difflib.SequenceMatcher(None, typed, accepted).ratio()
        return max(matched, 0.9) if sorted(typed) == sorted(accepted) else matched

    best = max(choices, key=similarity, default="")
    return best if best and similarity(best) >= cutoff else ""


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, or the name of the error's class if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(text: str, keep: str = "") -> str:
    """Return a text in which characters that are not printable are escaped, as Python writes them in a string.

    Names of files and classes are chosen by the author of a data set or a file. If they were printed unchanged, they could move
    the cursor, begin a new line, reverse the direction of writing, or be impossible to encode.

    Args:
        keep: characters that are not escaped.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )
