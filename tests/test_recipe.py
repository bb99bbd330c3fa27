"""Losses, updates and the learning rate are the original's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from shufflenetv2 import ShuffleNetV2
from shufflenetv2.config import AugmentationConfig, DistillationConfig, OptimizationConfig
from shufflenetv2.data import DataIterator, Digits, TrainTransform
from shufflenetv2.engine import train_step
from shufflenetv2.recipe import AveragedWeights, build_loss, linear_decay, parameter_groups
from tests.reference import ReferenceNetwork, reference_training, smoothed_cross_entropy
from tests.support import ROOT

GOLDEN = Path(__file__).parent / "golden_losses.json"


def test_the_recipe_is_imported_without_timm() -> None:
    """Importing timm takes a second; only optimizers and teachers of timm need it."""
    program = "import sys, shufflenetv2.recipe; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=100).returncode == 0


def test_label_smoothing_is_the_originals() -> None:
    logits, targets = torch.randn(9, 10), torch.randint(0, 10, (9,))
    loss = build_loss(OptimizationConfig(), AugmentationConfig(), DistillationConfig())
    torch.testing.assert_close(loss(logits, targets), smoothed_cross_entropy(logits, targets, 0.1))


def digit_batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    batches = DataIterator(Digits("train"), TrainTransform(size=32), 16, seed=0)
    return [batches.next() for _ in range(count)]


def our_training(
    network: ShuffleNetV2, batches: list[tuple[torch.Tensor, torch.Tensor]], base: float, decay: float = 4e-5
) -> list[float]:
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


def test_losses_and_weights_are_those_of_the_recipe_written_out_literally() -> None:
    network, reference = ShuffleNetV2(32, 10, "0.5x"), ReferenceNetwork(10, "0.5x", 32)
    network.initialize_weights(torch.Generator().manual_seed(0))
    reference.load_state_dict(network.state_dict())
    # In double precision rounding stays invisible, so that any deviation is one of the recipe.
    network, reference = network.double(), reference.double()
    batches = digit_batches(6)
    losses = our_training(network, batches, base=0.1)
    expected = reference_training(reference, [(images.double(), targets) for images, targets in batches], base=0.1, total=6)
    assert losses == pytest.approx(expected, rel=1e-9)
    for (name, tensor), wanted in zip(network.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-9, msg=name)


def test_averaged_weights_are_the_moving_average() -> None:
    network = ShuffleNetV2(32, 10, "0.5x").train()
    averaged = AveragedWeights(network, decay=0.9)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(3):
        network(torch.rand(4, 3, 32, 32) * 255)  # changes the statistics
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(step + 1)
        averaged.update(network, step + 1)
        for name, value in network.state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * value if value.is_floating_point() else value.clone()
    for name, value in averaged.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert not averaged.network.training
    assert not any(parameter.requires_grad for parameter in averaged.network.parameters())


def machine() -> dict[str, object]:
    """What the bits of a loss depend on."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def golden_losses() -> list[float]:
    assert torch.get_num_threads() == 1  # see conftest
    network = ShuffleNetV2(32, 10, "0.5x")
    network.initialize_weights(torch.Generator().manual_seed(0))
    return our_training(network, digit_batches(12), base=0.03)


def test_the_golden_loss_sequence_is_unchanged() -> None:
    """Bit for bit where torch and the processor's instructions are those it was recorded with, else closely.

    Record it anew, only when it is meant to change, with: python -m tests.test_recipe
    """
    golden = json.loads(GOLDEN.read_text())
    losses = golden_losses()
    if golden["machine"] == machine():
        assert [loss.hex() for loss in losses] == golden["losses"]
    else:
        # Training amplifies float32 rounding, which differs between processors: only the first updates are comparable.
        assert losses[:2] == pytest.approx([float.fromhex(loss) for loss in golden["losses"][:2]], rel=2e-2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    recorded = {"machine": machine(), "losses": [loss.hex() for loss in golden_losses()]}
    GOLDEN.write_text(json.dumps(recorded, indent=1) + "\n")
