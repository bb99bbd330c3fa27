"""Packages that only exported files need, and the messages that they print."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from typing import Any

from ..errors import UserError


class MissingPackageError(UserError):
    """An optional package is not installed."""


def import_optional(purpose: str, *modules: str) -> list[Any]:
    """Import modules of packages that the program does not require.

    Args:
        purpose: what needs them, for the message.

    Raises:
        MissingPackageError: naming the packages that are not installed.
    """
    imported, missing = [], []
    for name in modules:
        try:
            imported.append(import_module(name))
        except ImportError as error:
            missing.append((error.name or name).split(".")[0])
    if missing:
        packages = " ".join(dict.fromkeys(missing))
        raise MissingPackageError(f"{purpose} needs {packages}, which is not installed; pip install {packages}")
    return imported


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress the progress reports, log lines and warnings of exporters and runtimes."""
    with warnings.catch_warnings(), open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
