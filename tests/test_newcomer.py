"""A newcomer with a folder of photographs in unequal classes is interrupted, and changes their mind."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shufflenetv2 import describe, open_model, predict, train
from shufflenetv2.data import FolderDataset
from tests.support import ONE_THREAD, ROOT, Run, Train, photograph

# Options that make a run of seconds.
SHORT = [
    "--model-size", "0.5x", "--input-size", "64", "--resize-size", "64", "--batch-size", "8", "--total-iters", "12",
    "--warmup-iters", "2", "--device", "cpu",
]  # fmt: skip
CLASSES = {"ant": 16, "bee": 9, "cat": 7, "dog": 5, "elk": 4, "fox": 3}  # training images of each class
SHAPES = [(96, 96), (120, 80), (64, 150), (200, 90), (77, 131)]  # width, height in pixels


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with D and V: photographs of six unequal classes, each with a colour of its own."""
    root = tmp_path_factory.mktemp("newcomer")
    for label, (name, count) in enumerate(CLASSES.items()):
        for number in range(count + 3):
            folder = root / ("D" if number < count else "V") / name
            folder.mkdir(parents=True, exist_ok=True)
            width, height = SHAPES[(label + number) % len(SHAPES)]
            pixels = np.asarray(photograph(width, height, seed=100 * label + number), dtype=np.float32) / 2
            pixels += 127 * np.array([(label >> bit) & 1 for bit in range(3)], dtype=np.float32)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=92)
    return root


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    words = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(words, cwd=folder, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def test_a_newcomer_is_interrupted_and_changes_their_mind(
    folders: Path, tmp_path: Path, train_here: Train, command: Run
) -> None:
    recipe = [*SHORT, "--learning-rate", "0.02", "--momentum", "0.8", "--model-ema", "--model-ema-decay", "0.8"]
    run = [str(folders / "D"), "--val-dir", str(folders / "V"), *recipe, "--save-interval", "5", "--display-interval", "1"]
    models = tmp_path / "models"

    # The power fails after an iteration that nobody has chosen.
    last = random.Random().randint(6, 11)
    process = start(tmp_path, *run)
    assert process.stdout is not None
    assert any(f" {last}/12" in line for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.wait()
    iterations = [int(path.name[11:17]) for path in models.glob("checkpoint-*.pth.tar")]
    # The checkpoint of iteration 10 may still have been on its way to the disk.
    assert last - max(iterations, default=0) <= (5 if last < 10 else 6)

    # The same command goes on.
    again = train_here(*run)
    assert again.returncode == 0, again.stderr
    assert not iterations or "continuing from models/checkpoint-" in again.stdout
    assert "6 classes" in again.stdout

    # Longer; then with other augmentation, until nothing gets better.
    longer = train_here(*run, "--total-iters", "18", "--prolong")
    assert "total-iters 12 -> 18" in longer.stdout, longer.stderr
    other = ["--total-iters", "60", "--hflip", "0", "--val-interval", "2", "--early-stop-iters", "4", "--change-recipe"]
    changed = train_here(*run, *other)
    assert "hflip 0.5 -> 0.0" in changed.stdout, changed.stderr
    assert read(models / "model.pkl")["iteration"] <= 60
    assert [change["iteration"] for change in describe(models / "model.pkl")["history"]] == [12, 18]

    # The best weights are a result, too.
    best, final = read(models / "best.pkl"), read(models / "model.pkl")
    assert best["accuracy"]["top1"] >= final["accuracy"]["top1"]

    # Every artefact predicts, and so do exported files.
    images, checkpoint = FolderDataset(str(folders / "V")), max(models.glob("checkpoint-*.pth.tar"))
    for path in [*models.glob("*.pkl"), checkpoint]:
        expected = [prediction.labels[0] for prediction in predict(open_model(path), images)]
        assert len(expected) == len(images)
        if path in (models / "best.pkl", checkpoint):
            status, _, error = command("export", path, "exported.onnx")
            assert status == 0, error
            assert [prediction.labels[0] for prediction in predict(open_model("exported.onnx"), images)] == expected


def test_the_recipe_for_own_images_learns_classes_of_a_few_images(folders: Path, tmp_path: Path) -> None:
    result = train(
        config=ROOT / "configs/own-images.yaml", train_dir=folders / "D", val_dir=folders / "V", save=tmp_path, device="cpu",
        input_size=32, epochs=30,
    )  # fmt: skip
    assert result.accuracy
    assert result.accuracy["top1"] > 0.4  # 0.17 by chance
