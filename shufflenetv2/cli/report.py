"""The command `shufflenetv2 report`: write the page about a run again, or a page that compares several runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ReportConfig
from ..errors import UserError
from .command import parse, print_line, run_command
from .parser import OptionParser

if TYPE_CHECKING:
    from ..data import Dataset

COMPARISON = "comparison.html"
EXAMPLES = """examples:
  a run:            {prog} logs/models
  several runs:     {prog} logs/baseline logs/mixup logs/larger --out comparison.html
"""


def main(argv: Sequence[str], prog: str = "shufflenetv2 report") -> int:
    """Write the page, and print its path.

    Returns:
        The exit status: 0 done; 1 failed; 2 wrong usage.
    """
    parser = OptionParser(
        prog,
        ReportConfig,
        description="Write the page about a run from the files in its log folder, or one that compares several runs.",
        examples=EXAMPLES,
    )

    def run() -> None:
        config = parser.parse_group(ReportConfig, argv)
        # Here because torch takes seconds to import.
        from ..report import ReportPage, describe_interval, find_best, find_log_folder, read_predictions, write_page

        folders = [find_log_folder(run) for run in config.runs]
        if len(folders) > 1:
            path = Path(config.out or COMPARISON)
            pages = [ReportPage(folder).collect() for folder in folders]
            best, verdict = find_best(pages, [read_predictions(folder) for folder in folders])
            write_page(path, pages, best, verdict)
            for folder, page in zip(folders, pages, strict=True):
                print_line(f"{folder}: {describe_interval(page)}")
            if verdict:
                print_line(verdict)
        else:
            report = ReportPage(folders[0], *open_datasets(folders[0]))
            path = report.write(Path(config.out) if config.out else None)
        print_line(str(path))

    return run_command(parser, run)


def open_datasets(folder: Path) -> "tuple[Dataset | None, Dataset | None]":
    """Open the data sets of a run; (None, None) if they are not on this machine or not as they were."""
    from ..data import open_datasets

    try:
        config = parse(["--config", str(folder / "options.yaml"), "--no-dataset-download"])
        return open_datasets(config.data, config.optimization.seed)
    except (UserError, OSError):
        return None, None
