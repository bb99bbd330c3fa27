"""The preview of a training shows the pixels and the learning rate that the training will have."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import ROOT, SHORT, Run, Train

DIGITS = ["--config", str(ROOT / "configs/digits.yaml"), "--input-size", "32", "--resize-size", "32", "--batch-size", "16"]


def tiles(path: Path, count: int, top: int) -> np.ndarray:
    """Return the images in a row of a grid: (count, 128, 128, 3)."""
    with Image.open(path) as image:
        grid = np.asarray(image.convert("RGB"))
    return np.stack([grid[top : top + 128, 8 + 136 * number :][:, :128] for number in range(count)])


def test_the_preview_shows_the_images_of_the_training(tmp_path: Path, command: Run, train_here: Train) -> None:
    status, output, errors = command("preview", *DIGITS, "--mixup", "0.4", "--batches", "2")
    assert (status, errors) == (0, "")
    names = ["batch-1.png", "batch-2.png", "validation.png", "learning_rate.png"]
    assert [line.split(":")[0] for line in output.splitlines()] == [f"preview/{name}" for name in names]
    assert (
        train_here(*SHORT, "--mixup", "0.4", "--total-iters", "2", "--display-interval", "1", "--save-images").returncode == 0
    )
    for iteration in (1, 2):
        previewed = tiles(tmp_path / f"preview/batch-{iteration}.png", 8, top=8 + 34)
        trained = tiles(tmp_path / f"logs/models/images/00000{iteration}.png", 8, top=8)
        assert np.array_equal(previewed, trained)
    assert previewed.std() > 10


def test_the_preview_says_how_long_the_training_is(tmp_path: Path, command: Run) -> None:
    output = command("preview", *DIGITS, "--epochs", "10", "--sched", "cosine", "--warmup-iters", "9", "--out", "new")[1]
    length = "899 iterations of 16 images are 10.0 times the 1,438 training images"
    assert output.splitlines()[-1] == f"new/learning_rate.png: 0.0124969 at most; {length}"
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "0"], "--batches 0: must be"),
        (["--mixup", "-1"], "--mixup -1: must be"),
        (["--batchs", "2"], "unknown option '--batchs' on the command line; did you mean --batches?"),
        (["--train-dir", "missing"], "missing"),
    ],
)
def test_wrong_options_are_refused_in_one_line(command: Run, arguments: list[str], message: str) -> None:
    status, output, errors = command("preview", *arguments, *(DIGITS if "--train-dir" not in arguments else []))
    assert (output, errors.count("\n")) == ("", 1)
    assert message in errors
    assert status in (1, 2)
