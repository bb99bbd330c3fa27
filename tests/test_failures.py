"""Every error in docs/troubleshooting.md happens as described, and prints the line that stands there."""

import itertools
from pathlib import Path

import pytest

from tests.failures import cause, document_rows, make_folder, read_failures

SECTIONS = read_failures()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("failures")
    make_folder(path)
    return path


@pytest.mark.parametrize("section", SECTIONS)
def test_the_errors_print_the_lines_of_the_document(folder: Path, section: str) -> None:
    before = itertools.takewhile(lambda title: title != section, SECTIONS)
    rows = document_rows()[sum(len(SECTIONS[title]) for title in before) :]
    for failure, (happened, line, remedy) in zip(SECTIONS[section], rows, strict=False):
        assert (happened, remedy) == (failure.happened, failure.remedy)
        status, printed = cause(failure, folder)
        assert printed == line, f"{failure.command}: python -m tests.failures writes the lines"
        assert "error: " in printed
        assert status in (1, 2)
