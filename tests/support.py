"""Helpers that several test files share: paths, processes, images, comparison of tensors."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from shufflenetv2 import ShuffleNetV2
from shufflenetv2.data import Dataset
from shufflenetv2.engine import Hook, train_step
from shufflenetv2.recipe import linear_decay, parameter_groups

ROOT = Path(__file__).parent.parent
Train = Callable[..., subprocess.CompletedProcess[str]]
Run = Callable[..., tuple[int, str, str]]  # command-line arguments -> exit status, standard output, standard error

# Environment of a child process: with more threads than free cores torch's threads wait for each other.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

# Options of a training run that takes seconds and includes validation, checkpoints and recalibration.
SHORT = [
    "--config", str(ROOT / "configs/digits.yaml"), "--input-size", "32", "--resize-size", "32", "--batch-size", "16",
    "--total-iters", "12", "--display-interval", "3", "--val-interval", "6", "--save-interval", "4", "--device", "cpu",
    "--save", "models", "--no-figures", "--no-memory-check", "--val-batch-size", "180",
    "--recalibration-images", "160",
]  # fmt: skip


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Draw a smooth coloured image with some noise, so that a JPEG of it has low and high frequencies."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def hub_load(**arguments: Any) -> Any:
    """Load a network through torch.hub, from this repository."""
    return torch.hub.load(str(ROOT), "shufflenet_v2", source="local", **arguments)  # type: ignore[no-untyped-call]


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Return whether two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pixels(dataset: Dataset, index: int) -> np.ndarray:
    """Decode the whole image of a sample: uint8 (H, W, 3), BGR."""
    image = dataset.image(index)
    return image.crop(0, 0, image.height, image.width).copy()


def probabilities(output: str) -> Tensor:
    """Return the probability of each class (N, n_class) from the output of `predict --json` for all classes."""
    rows = [json.loads(line)["predictions"] for line in output.splitlines()]
    return torch.tensor([[entry["probability"] for entry in sorted(row, key=lambda entry: entry["label"])] for row in rows])


def training_losses(
    network: ShuffleNetV2, batches: list[tuple[torch.Tensor, torch.Tensor]], base: float, decay: float = 4e-5
) -> list[float]:
    """Train a network with the package's public functions instead of the Trainer; return the loss of each iteration.

    Args:
        batches: (images, targets), one pair per iteration.
        base: base learning rate, which decays linearly.
        decay: weight decay.
    """
    optimizer = torch.optim.SGD(parameter_groups(network, decay), lr=base, momentum=0.9)
    scheduler, loss_function = linear_decay(optimizer, len(batches)), nn.CrossEntropyLoss(label_smoothing=0.1)
    network.train()
    losses = []
    for images, targets in batches:
        scheduler.step()
        loss, logits = train_step(network, images, targets, loss_function, optimizer)
        assert not loss.requires_grad
        assert not logits.requires_grad
        losses.append(loss.item())
    return losses


class Stop(Hook):
    """Hook that sends SIGTERM to its process after the iteration `after`; a test may set `after` in the class."""

    after = 7

    def after_iteration(self, iteration: int, loss: Tensor, logits: Tensor) -> None:
        if iteration == self.after:
            os.kill(os.getpid(), signal.SIGTERM)


def mounted_disk(mount_point: Path, size: str) -> Iterator[Path]:
    """Mount an empty file system of a size such as '64k' for a fixture; skip the test where that is not permitted."""
    mount_point.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount_point], capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield mount_point
    subprocess.run(["umount", "--lazy", mount_point], check=True)
