"""Fixtures of the whole suite."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from shufflenetv2 import __main__
from shufflenetv2.cli.command import main
from tests.processes import Process
from tests.support import Run, Train, photograph

# One thread in this process: the steps are small, and with more threads than free cores torch's threads
# wait for each other.
torch.set_num_threads(1)
# Many tests compare bits, which are the same in each run on CPUs only. `CUDA_VISIBLE_DEVICES=0 make test` adds those for a GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers for `-n auto`: one more than cores, because some tests wait for processes."""
    return min(4, (os.cpu_count() or 1) + 1)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a class folder of JPEG photographs: 3 classes, 7 images each, with odd and even sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    for label, name in enumerate(("cat", "dog", "owl")):
        (folder / name).mkdir()
        for number in range(7):
            image = photograph(97 + 13 * number, 110 + 8 * label - 5 * number, seed=10 * label + number)
            image.save(folder / name / f"{number}.jpg", quality=90)
    return folder


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Run `python train.py ARGUMENTS` as a process of its own in an empty folder."""

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        process = Process(tmp_path, *arguments, **environment)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(arguments, process.wait(), stdout, stderr)

    return run


@pytest.fixture
def train_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """Run the training command in this process, in an empty folder: a new process needs seconds to load torch."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        status = main(list(map(str, arguments)))
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return run


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `shufflenetv2 COMMAND ARGUMENTS` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        return __main__.main(list(map(str, arguments))), *capsys.readouterr()

    return run
