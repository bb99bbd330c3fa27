"""Tables in CSV files, which programs read and people open in spreadsheets."""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .records import write_file

FORMULA = re.compile(r"'*[=+\-@\t\r]")  # at the start of a field: a formula for a spreadsheet, or `protect` of such a text
PROTECTED = re.compile(r"'+[=+\-@\t\r]")


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file; fields may be names of files, which need not be valid Unicode.

    Raises:
        UserError: the file cannot be written.
    """
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_file(path, table.getvalue().encode(errors="backslashreplace"))


def protect(text: str) -> str:
    """Put a ' in front of a text that a spreadsheet would take for a formula; `unprotect` removes it.

    The names of images and classes come from whoever made the data set, and a formula can send a table elsewhere.
    """
    return f"'{text}" if FORMULA.match(text) else text


def unprotect(field: str) -> str:
    """Return the text for which `protect` returned this field."""
    return field[1:] if PROTECTED.match(field) else field
