"""Checkpoints: their names, and the newest good one."""

import logging
import re
from pathlib import Path
from typing import Any

from .. import storage

_NAME = re.compile(r"checkpoint-(\d+)\.pth\.tar")
logger = logging.getLogger(__name__)


def path_of(folder: Path, iteration: int, tag: str = "") -> Path:
    """Where the checkpoint of an iteration stands; `tag` is 'bnps-' after recalibration."""
    return folder / f"{tag}checkpoint-{iteration:06}.pth.tar"


def find(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first; those with a tag are no place to go on from."""
    found = [(int(match[1]), path) for path in folder.glob("*.pth.tar") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def read_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, and its content. A damaged one is named in a warning and passed over."""
    for path in find(folder):
        try:
            return path, storage.read(path, must_be_ours=True)
        except (storage.DamagedFileError, OSError) as error:
            logger.warning("%s; trying the checkpoint before it", error)
    return None


def set_aside(folder: Path) -> Path | None:
    """Moves the results of an earlier run into a folder of their own, so that a new one cannot be mistaken for it.

    Returns:
        That folder, 'previous-1' or the next free number; None where there was nothing to move.
    """
    results = [*folder.glob("*checkpoint-*.pth.tar"), *folder.glob("model.pkl")]
    if not results:
        return None
    number = 1
    while (aside := folder / f"previous-{number}").exists():
        number += 1
    aside.mkdir()
    for path in results:
        path.rename(aside / path.name)
    return aside
