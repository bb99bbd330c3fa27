"""The documents name files, options and functions that exist, and their tables show the measured results."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed.run

import shufflenetv2
from shufflenetv2 import __main__
from shufflenetv2.cli import command
from shufflenetv2.config import (
    OPTIONS,
    ConvertConfig,
    ExportConfig,
    InfoConfig,
    PredictConfig,
    PrepareConfig,
    RecalibrateConfig,
    options_of,
)
from tests.models import random_images, write_model
from tests.support import ROOT

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/extending.md",
    "docs/features.md",
    "benchmarks/README.md",
]
OPTION = r"--[a-z][a-z0-9-]+"


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_the_tables_show_the_results() -> None:
    check = run_script("benchmarks/tables.py", "--check")
    assert check.returncode == 0, check.stdout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    paths = re.findall(r"\b(?:shufflenetv2|configs|benchmarks|tests|docs|scripts)/[\w./-]*\w", text)
    links = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if link]
    assert [path for path in paths if not (ROOT / path).exists() and f"~/.cache/{path}" not in text] == []
    assert [link for link in links if not (ROOT / document).parent.joinpath(link).exists()] == []


def test_every_option_that_the_readme_names_exists() -> None:
    text = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text())
    commands = (ConvertConfig, ExportConfig, InfoConfig, PredictConfig, PrepareConfig, RecalibrateConfig)
    helps = [
        torch.distributed.run.get_args_parser().format_help(),
        run_script("benchmarks/kill_test.py", "--help").stdout,
    ]
    existing = (
        {"--" + option.key for option in (*OPTIONS, *options_of(*commands))}
        | {"--no-auto-continue", "--help"}
        | set(re.findall(OPTION, str(helps)))
    )
    options_of_sbatch = {"--nodes", "--gpus-per-node"}
    assert set(re.findall(OPTION, text)) - existing - options_of_sbatch == set()


def test_the_python_example_of_the_readme_runs(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    model = write_model(Path("models/model.pkl"), n_class=3)
    shufflenetv2.convert(model, "original.pth", "original")
    for folder in ("D", "V"):
        Path(folder).mkdir()
        for label, class_folder in enumerate(sorted(photographs.iterdir())):
            Path(folder, f"Käfer {label}").symlink_to(class_folder)  # the classes of write_model
    blocks = re.findall(r"(?:^    .*\n|^\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)
    (example,) = (block for block in blocks if "from shufflenetv2 import" in block)
    code = "\n".join(line[4:] for line in example.splitlines())
    names = {"images": random_images(2)}
    exec(code, names)
    assert names["logits"].shape == (2, 3)


def test_the_commands_of_the_readme_follow_each_other(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digits of `make train`, then the user's own images, then everything that names a result of these two."""
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for folder in ("D", "V"):
        Path(folder).symlink_to(photographs)
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^ {4}python (?:train.py|-m shufflenetv2) .*|(?<=`)python train.py [^`]*(?=`)", text, re.MULTILINE)
    uses_result = [line.split() for line in commands if "models/" in line or line.endswith("--eval")]
    own_images = "--model-size 1.5x --train-dir D --val-dir V"
    assert f"    python train.py {own_images}" in commands
    assert len(uses_result) >= 8
    short = ["--total-iters", "1", "--batch-size", "16", "--input-size", "32", "--resize-size", "32", "--device", "cpu"]
    assert command.main(["--config", "configs/digits.yaml", *short]) == 0
    assert command.main([*own_images.split(), *short]) == 0
    for words in uses_result:
        arguments = words[2:] if words[1] == "train.py" else words[3:]
        main = command.main if words[1] == "train.py" else __main__.main
        if "export" not in words:  # takes long, and has its own tests
            assert main(arguments) == 0, words


def test_the_public_function_export_can_be_called_after_its_package_was_imported(tmp_path: Path) -> None:
    importlib.import_module("shufflenetv2.export.formats")
    weights = shufflenetv2.read_weights(write_model(tmp_path / "model.pkl"))
    assert shufflenetv2.export(weights, "torchscript")[:2] == b"PK"  # the magic number of a zip archive
