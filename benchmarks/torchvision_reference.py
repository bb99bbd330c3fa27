"""Train torchvision's ShuffleNetV2 with the defaults of torchvision's reference, and print the accuracy of each epoch as JSON.

Network, transforms, optimizer and schedule are those of `references/classification/train.py` with no options but the model
and the sizes of the images: SGD with a rate of 0.1, momentum 0.9, weight decay 1e-4, batches of 32, 90 epochs, a tenth of the
rate after 30 and 60 epochs. Imports, and the validation after each epoch, do not count as time.

    python benchmarks/torchvision_reference.py TASK [--epochs 90] [--seed 0] [--input-size 64]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_RATIO = 224 / 256


def train_epoch(model: nn.Module, batches: DataLoader[Any], optimizer: torch.optim.Optimizer) -> None:
    criterion = nn.CrossEntropyLoss()
    model.train()
    for images, targets in batches:
        loss = criterion(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # the reference logs the loss of every iteration


def accuracy(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in torch.split(images, 100)])
    return float((logits.argmax(dim=1) == targets).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="TASK", help="folder with train/ and val/")
    parser.add_argument("--model", default="shufflenet_v2_x0_5")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    started = time.perf_counter()
    torch.manual_seed(arguments.seed)
    to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD)]
    size = arguments.input_size
    train_transform = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), *to_tensor])
    val_transform = v2.Compose([v2.Resize(int(size / CROP_RATIO + 0.5), antialias=True), v2.CenterCrop(size), *to_tensor])
    train_set = ImageFolder(str(arguments.folder / "train"), train_transform)
    batches = DataLoader(train_set, 32, shuffle=True, num_workers=arguments.workers)
    model = models.get_model(arguments.model, weights=None, num_classes=len(train_set.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    seconds = time.perf_counter() - started

    val_set = ImageFolder(str(arguments.folder / "val"), val_transform)
    val_images, val_targets = next(iter(DataLoader(val_set, len(val_set))))
    epochs = []
    for _ in range(arguments.epochs):
        started = time.perf_counter()
        train_epoch(model, batches, optimizer)
        schedule.step()
        seconds += time.perf_counter() - started
        epochs.append({"seconds": seconds, "top1": accuracy(model, val_images, val_targets)})
    print(json.dumps(epochs))


if __name__ == "__main__":
    main()
