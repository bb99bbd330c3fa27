"""The command `shufflenetv2 check`: find damaged images, copies and unequal classes before a training."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import terminal
from ..config import VALIDATION_FOLDERS, CheckConfig
from ..errors import UserError
from .command import folder_option, run_command
from .parser import OptionParser

if TYPE_CHECKING:
    from ..data import CheckResult, Finding

SHOWN = 10  # findings of a kind in the text
SHOWN_IMAGES = 6  # of a finding, in the text
MOVED = "moved.csv"
DESCRIPTION = """\
Read every image of a data set once, and name what would disturb a training: files that cannot be read or decoded, tiny images,
images under a wrong suffix or in the wrong place, files with the same content and images that look alike, within and across
training and validation, and classes that are empty, unequal or in one of the two sets only.

Nothing is changed, unless --fix names a folder to move files to.
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 check") -> int:
    """Check a data set and print the findings.

    Returns:
        The exit status: 0 nothing was found; 1 something was found, or the command failed; 2 wrong usage.
    """
    parser = OptionParser(prog, CheckConfig, description=DESCRIPTION)

    def run() -> int:
        config = parser.parse_group(CheckConfig, argv)
        from ..data import check_folders  # here because torch and OpenCV take seconds to import
        from ..report import write_findings

        terminal.configure(quiet=config.quiet or config.json)
        train_dir, val_dir = find_folders(config)
        if config.fix:
            check_destination(Path(config.fix), [folder for folder in (train_dir, val_dir) if folder])
        result = check_folders(
            train_dir, val_dir, min_side=config.min_side, max_distance=config.max_distance, workers=config.workers
        )
        remedy = "" if config.fix else parser.spell(describe_remedy(result))
        if config.html:
            write_findings(Path(config.html), result, remedy)
        if config.json:
            text = json.dumps(as_json(result), indent=1)
        else:
            lines = [*as_text(result), *([f"\n{remedy}"] if remedy else [])]
            text = parser.spell("\n".join(lines))
        terminal.write_result(text)
        if config.html:
            terminal.write_error(f"the page is {config.html}")
        if config.fix:
            terminal.write_error(move_files(result, Path(config.fix)))
        return 0 if result.is_clean else 1

    return run_command(parser, run)


def find_folders(config: CheckConfig) -> tuple[Path, Path | None]:
    """Return the folder of the training images, and that of the validation images if there is one."""
    folder, val_dir = Path(config.folder), Path(config.val_dir) if config.val_dir else None
    if folder.is_dir() and folder_option(config.folder, {}) == "data_dir":
        found = next((folder / name for name in VALIDATION_FOLDERS if (folder / name).is_dir()), None)
        return folder / "train", val_dir or found
    return folder, val_dir


def as_text(result: "CheckResult") -> list[str]:
    """Return the findings as lines, at most SHOWN of each kind."""
    from ..data import KINDS

    lines = [result.describe_sizes()]
    for kind, findings in result.findings.items():
        if findings:
            lines += ["", f"{KINDS[kind]}: {len(findings):,}"]
            lines += [f"  {describe(result, finding)}" for finding in findings[:SHOWN]]
            if len(findings) > SHOWN:
                lines.append(f"  and {len(findings) - SHOWN:,} more, which `html` and `json` list")
    return lines if not result.is_clean else [*lines, "nothing was found"]


def describe_remedy(result: "CheckResult") -> str:
    """Return what the user can do about files that are of no use; '' if there are none."""
    count = sum(1 for _ in result.files_to_move())
    if not count:
        return ""
    return (
        f"`fix` DIR moves {count:,} file{'s' * (count > 1)} away: what cannot be decoded, and all but one of the copies within "
        "a class. Copies in different classes and images that look alike stay."
    )


def describe(result: "CheckResult", finding: "Finding") -> str:
    """Return a finding as one line."""
    paths = [str(result.path(image)) for image in finding.images]
    shown = ", ".join(paths[:SHOWN_IMAGES]) + f" and {len(paths) - SHOWN_IMAGES:,} more" * (len(paths) > SHOWN_IMAGES)
    return f"{shown}: {finding.detail}" if paths else finding.detail


def as_json(result: "CheckResult") -> dict[str, Any]:
    """Return the findings as plain values."""

    def text(path: object) -> str:
        return str(path).encode(errors="backslashreplace").decode()  # a file name need not be valid Unicode

    return {
        "folders": {split: text(folder) for split, folder in result.folders.items()},
        "images": {split: {text(name): n for name, n in by_class.items()} for split, by_class in result.counts.items()},
        "counts": {kind: len(findings) for kind, findings in result.findings.items()},
        "findings": {
            kind: [
                {"images": [[image.split, text(image.path)] for image in finding.images], "detail": text(finding.detail)}
                for finding in findings
            ]
            for kind, findings in result.findings.items()
        },
    }


def check_destination(destination: Path, folders: list[Path]) -> None:
    """Raise a UserError if files that are moved to a folder would stay part of a data set."""
    target = Path(os.path.realpath(destination))
    for folder in folders:
        source = Path(os.path.realpath(folder))
        if target == source or source in target.parents:
            raise UserError(f"`fix` {destination} lies in {folder}, and its files would stay part of it; name a folder outside")


def move_files(result: "CheckResult", destination: Path) -> str:
    """Move the files that disturb a training, and list the moves in moved.csv; return a line about it.

    Raises:
        UserError: a file cannot be moved.
    """
    from ..report import protect, write_csv

    rows = []
    for image, reason in result.files_to_move():
        source, target = result.path(image), destination / image.split / image.path
        while target.exists():
            target = target.with_name(target.name + ".again")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, target)
        except OSError as error:
            raise UserError(f"{source} cannot be moved to {target}: {error.strerror}", status=1) from error
        rows.append([str(source), str(target), reason])
    if not rows:
        return "there was no file to move"
    path = destination / MOVED
    while path.exists():
        path = path.with_name("again-" + path.name)
    write_csv(path, [["from", "to", "reason"], *(map(protect, row) for row in rows)])
    moved = "1 file was" if len(rows) == 1 else f"{len(rows):,} files were"
    return f"{moved} moved to {destination}; {path} says where from"
