"""The README says what is so."""

import re
import subprocess
import sys

import torch.distributed.run

from tests.support import ROOT


def test_the_tables_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/tables.py", "--check"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout


def test_every_file_and_option_that_the_readme_names_exists() -> None:
    from shufflenetv2.cli import convert, export, info, predict, prepare, recalibrate
    from shufflenetv2.config import OPTIONS

    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"(?:shufflenetv2|configs|benchmarks|tests)/[\w./{},-]*[\w}]", text):
        variants = [name.replace("{0.5x,1.0x,1.5x,2.0x}", size) for size in ("0.5x", "1.0x", "1.5x", "2.0x")]
        assert all((ROOT / variant).exists() for variant in variants), name
    option = r"--[a-z][a-z0-9-]+"
    known = {"--" + option.key for option in OPTIONS} | {"--no-auto-continue", "--help"}
    known |= {"--nodes", "--gpus-per-node"}  # sbatch's
    others = (
        *(command.parser("").format_help() for command in (convert, export, info, predict, prepare, recalibrate)),
        torch.distributed.run.get_args_parser().format_help(),
        (ROOT / "benchmarks/kill_test.py").read_text(),
    )
    known |= set(re.findall(option, " ".join(others)))
    assert set(re.findall(option, re.sub(r"<!--.*?-->", "", text))) <= known
