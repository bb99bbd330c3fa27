"""Losses, updates and the learning rate are the original's."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shufflenetv2 import ShuffleNetV2
from shufflenetv2.config import AugmentationConfig, DistillationConfig, OptimizationConfig
from shufflenetv2.data import DataIterator, Digits, TrainTransform
from shufflenetv2.recipe import AveragedWeights, build_loss
from tests.reference import ReferenceNetwork, reference_training, smoothed_cross_entropy
from tests.support import ROOT, training_losses

GOLDEN = Path(__file__).parent / "golden_losses.json"
CPUINFO = Path("/proc/cpuinfo")


def test_the_recipe_is_imported_without_timm() -> None:
    """Importing timm takes a second; only optimizers and teachers of timm need it."""
    program = "import sys, shufflenetv2.recipe; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=100).returncode == 0


def test_label_smoothing_is_the_originals() -> None:
    logits, targets = torch.randn(9, 10), torch.randint(0, 10, (9,))
    loss = build_loss(OptimizationConfig(), AugmentationConfig(), DistillationConfig())
    torch.testing.assert_close(loss(logits, targets), smoothed_cross_entropy(logits, targets, 0.1))


def digit_batches(count: int, batch_size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    batches = DataIterator(Digits("train"), TrainTransform(size=32), batch_size, seed=0)
    return [batches.next() for _ in range(count)]


def test_losses_and_weights_are_those_of_the_recipe_written_out_literally() -> None:
    network, reference = ShuffleNetV2(32, 10, "0.5x"), ReferenceNetwork(10, "0.5x", 32)
    network.initialize_weights(torch.Generator().manual_seed(0))
    reference.load_state_dict(network.state_dict())
    # In double precision rounding stays invisible, so that any deviation is one of the recipe.
    network, reference = network.double(), reference.double()
    batches = digit_batches(6, 64)
    losses = training_losses(network, batches, base=0.05)
    expected = reference_training(reference, [(images.double(), targets) for images, targets in batches], base=0.05, total=6)
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
    """Return what the bits of float32 results depend on: torch, the processor, and settings that choose other kernels."""
    cpuinfo = dict(re.findall(r"^(.+?)\s*: (.*)$", CPUINFO.read_text(), re.MULTILINE)) if CPUINFO.exists() else {}
    return {
        "torch": torch.__version__,
        "vendor": cpuinfo.get("vendor_id", platform.machine()),
        "model": f"family {cpuinfo.get('cpu family')} model {cpuinfo.get('model')}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "settings": sorted(name for name in os.environ if name.startswith(("ATEN_", "MKL_", "ONEDNN_", "DNNL_"))),
    }


def golden_losses(dtype: torch.dtype) -> list[float]:
    """Train twelve updates on the digits.

    The float64 run is the one that rounding disturbs least of those tried: its losses differ by up to 1e-10 between
    instruction sets. With 16 images in a batch, or with a rate far below or above 0.05, they differ by 1e-9 to 1.
    """
    assert torch.get_num_threads() == 1  # see conftest
    batch_size, rate = {torch.float64: (64, 0.05), torch.float32: (16, 0.03)}[dtype]
    network = ShuffleNetV2(32, 10, "0.5x").to(dtype)
    network.initialize_weights(torch.Generator().manual_seed(0))
    return training_losses(network, digit_batches(12, batch_size), base=rate)


def test_the_golden_losses_in_float64_are_unchanged() -> None:
    """The same on every processor. A weight decay of 0 instead of 4e-5 changes the losses from the third on by 0.1 % to 9 %.

    Record the losses anew, only when they are meant to change, with: python -m tests.test_recipe
    """
    assert golden_losses(torch.float64) == pytest.approx(json.loads(GOLDEN.read_text())["float64"], rel=1e-7)


def test_the_golden_losses_in_float32_are_unchanged_bit_for_bit() -> None:
    """Only where they were recorded for this torch and this processor: training amplifies the rounding of float32."""
    here = machine()
    for record in json.loads(GOLDEN.read_text())["float32"]:
        if record["machine"].items() <= here.items():
            assert [loss.hex() for loss in golden_losses(torch.float32)] == record["losses"]
            return
    pytest.skip(f"float32 losses are not recorded for {here}; those in float64 are compared everywhere")


def record_golden_losses() -> None:
    """Write the losses in float64, and those in float32 of this machine.

    The float32 records of other machines are kept while the float64 losses are unchanged: they are of the same recipe.
    """
    golden, here = json.loads(GOLDEN.read_text()), machine()
    losses = golden_losses(torch.float64)
    unchanged = losses == pytest.approx(golden["float64"], rel=1e-7)
    others = [record for record in golden["float32"] if unchanged and not record["machine"].items() <= here.items()]
    mine = {"machine": here, "losses": [loss.hex() for loss in golden_losses(torch.float32)]}
    golden = {"float64": golden["float64"] if unchanged else losses, "float32": [*others, mine]}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    record_golden_losses()
