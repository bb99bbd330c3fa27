"""The file bad_images.csv in the log folder of a run: the images that could not be decoded, one row for each.

Rows are appended while the run goes on, so that the file is complete at any time.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError
from ..files import MAX_RECORD_BYTES, open_regular, read_regular_file
from .records import user_error
from .tables import protect, unprotect

BAD_IMAGES_FILE = "bad_images.csv"

Row = tuple[str, str, str]  # split ('training' or 'validation'), name of the image, reason


def append_bad_images(folder: Path, rows: Iterable[Row]) -> None:
    """Add rows to the file.

    Raises:
        UserError: the file cannot be written.
    """
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(map(protect, row) for row in rows)
    path = folder / BAD_IMAGES_FILE
    with user_error(path), open(path, "ab", opener=open_regular) as file:
        file.write(table.getvalue().encode(errors="backslashreplace"))


def read_bad_images(folder: Path) -> list[Row]:
    """Return the rows of the file; none if it does not exist or cannot be read."""
    try:
        content = read_regular_file(folder / BAD_IMAGES_FILE, MAX_RECORD_BYTES).decode(errors="replace")
        rows = [tuple(map(unprotect, row)) for row in csv.reader(io.StringIO(content))]
    except (OSError, UserError, csv.Error):
        return []
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]  # the last may be incomplete after a kill
