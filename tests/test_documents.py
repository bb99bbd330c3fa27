"""The documents name files, options and functions that exist, and their tables show the measured results."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed.run

import shufflenetv2
from shufflenetv2.config import COMMAND_GROUPS, OPTIONS, options_of
from tests.documents import DOCUMENTS, TRANSLATION, commands
from tests.models import write_model
from tests.support import ROOT

ALL_DOCUMENTS = [*DOCUMENTS, TRANSLATION, "CONTRIBUTING.md", "benchmarks/README.md"]
OTHER_PROGRAMS = {"--nodes", "--gpus-per-node", "--extra-index-url"}  # options of sbatch and pip
# Documents with options that do not exist: those of other trainers, and mistyped ones. Other tests check them.
WITH_OTHER_OPTIONS = ("docs/coming-from.md", "docs/features.md", "docs/troubleshooting.md")
OPTION = r"--[a-z][a-z0-9-]+"


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_the_tables_show_the_results() -> None:
    check = run_script("benchmarks/tables.py", "--check")
    assert check.returncode == 0, check.stdout


@pytest.mark.parametrize("document", ALL_DOCUMENTS)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    paths = re.findall(r"\b(?:shufflenetv2|configs|benchmarks|tests|docs|scripts)/[\w./-]*\w", text)
    links = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if link]
    assert [path for path in paths if not (ROOT / path).exists() and f"~/.cache/{path}" not in text] == []
    assert [link for link in links if not (ROOT / document).parent.joinpath(link).exists()] == []


def test_the_translation_has_the_commands_links_and_output_of_the_readme() -> None:
    def content(document: str) -> tuple[list[list[str]], list[str], list[str], int]:
        text = (ROOT / document).read_text(encoding="utf-8")
        links = re.findall(r"\]\((?!README)([^)]+)\)", text)
        return commands(document), sorted(links), re.findall(r"^    .*$", text, re.MULTILINE)[:12], text.count("\n#")

    assert content(TRANSLATION) == content("README.md")


def test_every_option_that_a_document_names_exists() -> None:
    documents = [name for name in DOCUMENTS if name not in WITH_OTHER_OPTIONS]
    text = "".join(re.sub(r"<!--.*?-->", "", (ROOT / name).read_text()) for name in documents)
    helps = [
        torch.distributed.run.get_args_parser().format_help(),
        run_script("benchmarks/kill_test.py", "--help").stdout,
    ]
    options = (*OPTIONS, *options_of(*COMMAND_GROUPS))
    existing = (
        {"--" + option.key for option in options}
        | {f"--no-{option.key}" for option in options if option.is_switch}
        | {"--help"}
        | set(re.findall(OPTION, str(helps)))
    )
    assert set(re.findall(OPTION, text)) - existing - OTHER_PROGRAMS == set()


def test_the_public_function_export_can_be_called_after_its_package_was_imported(tmp_path: Path) -> None:
    importlib.import_module("shufflenetv2.export.formats")
    weights = shufflenetv2.read_weights(write_model(tmp_path / "model.pkl"))
    assert shufflenetv2.export(weights, "torchscript")[:2] == b"PK"  # the magic number of a zip archive
