"""Real files and real processes for the tests."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
Train = Callable[..., subprocess.CompletedProcess[str]]

# One thread, here and in the processes below: the steps are small, and with more of them than free
# cores torch's threads spin against each other.
torch.set_num_threads(1)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

# A run of seconds that still goes through everything: the digits, small.
SHORT = [
    "--config", str(ROOT / "configs/digits.yaml"), "--input-size", "32", "--resize-size", "32", "--batch-size", "16",
    "--total-iters", "12", "--display-interval", "3", "--val-interval", "6", "--save-interval", "4", "--device", "cpu",
]  # fmt: skip


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """A smooth coloured picture with some noise, so that JPEG has both to chew on."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class folder of JPEG photographs: 3 classes, 7 images each, of odd and even sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    for label, name in enumerate(("cat", "dog", "owl")):
        (folder / name).mkdir()
        for number in range(7):
            image = photograph(97 + 13 * number, 110 + 8 * label - 5 * number, seed=10 * label + number)
            image.save(folder / name / f"{number}.jpg", quality=90)
    return folder


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Runs `python train.py ARGS` as a process of its own, in a folder of its own."""

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, ROOT / "train.py", *arguments],
            cwd=tmp_path,
            env={**os.environ, **ONE_THREAD, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
