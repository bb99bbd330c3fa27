"""Devices, memory layout, precision and compiler."""

import platform
import subprocess
import sys

import pytest
import torch

from shufflenetv2 import ShuffleNetV2
from shufflenetv2.config import ExecutionConfig
from shufflenetv2.engine import Devices, choose_devices, train_step
from shufflenetv2.errors import UserError
from tests.support import ROOT

CPU = torch.device("cpu")


def small_network() -> ShuffleNetV2:
    network = ShuffleNetV2(64, 10, "0.5x")
    network.initialize_weights(torch.Generator().manual_seed(0))
    return network


def one_step(devices: Devices) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of a step, and the logits after it."""
    network, generator = small_network(), torch.Generator().manual_seed(1)
    model = devices.place(network, training=True).train()
    images = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    targets = torch.randint(0, 10, (8,), generator=generator)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    loss, _ = train_step(model, images, targets, torch.nn.CrossEntropyLoss(), optimizer, devices.scaler())
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(images)
    return loss, logits


@pytest.mark.parametrize(
    ("execution", "tolerance"),
    [
        (ExecutionConfig(channels_last=True), 1e-3),
        (ExecutionConfig(torchcompile="eager"), 0.0),
        (ExecutionConfig(torchscript=True), 0.0),
        (ExecutionConfig(amp=True), 5e-2),
        (ExecutionConfig(channels_last=True, amp=True, torchcompile="eager"), 5e-2),
    ],
)
def test_every_execution_computes_the_same_up_to_rounding(execution: ExecutionConfig, tolerance: float) -> None:
    plain_loss, plain_logits = one_step(Devices(CPU))
    loss, logits = one_step(Devices(CPU, execution=execution))
    assert loss.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(loss, plain_loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(logits, plain_logits, rtol=10 * tolerance, atol=10 * tolerance)
    if tolerance:
        assert not torch.equal(logits, plain_logits)  # the option had an effect


def test_channels_last_reaches_every_convolution() -> None:
    is_channels_last: list[bool] = []
    model = Devices(CPU, execution=ExecutionConfig(channels_last=True)).place(small_network()).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.in_channels > 1:
            module.register_forward_hook(
                lambda module, inputs, output: is_channels_last.append(output.is_contiguous(memory_format=torch.channels_last))
            )
    model(torch.zeros(2, 64, 64, 3, dtype=torch.uint8).permute(0, 3, 1, 2))
    assert len(is_channels_last) == 56
    assert all(is_channels_last)


@pytest.mark.parametrize(
    ("name", "execution", "message"),
    [
        ("cuda:77", ExecutionConfig(), "`device` cuda:77: this machine has no such device"),
        ("cpu", ExecutionConfig(torchcompile="fastest"), r"`torchcompile` fastest: unknown backend; torch has .*inductor"),
        ("cpu", ExecutionConfig(amp=True, amp_dtype="float16"), "`amp_dtype` float16 needs a GPU"),
    ],
)
def test_what_a_device_does_not_support_is_refused(name: str, execution: ExecutionConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_devices(name, execution)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_on_a_cpu_freed_memory_is_kept() -> None:
    """Memory that the operating system has taken back causes page faults, here some 40,000 of them."""
    allocations = """
import resource, torch
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    large = [torch.ones(10_000_000) for _ in range(4)]
    del large
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    place = "import torch; from shufflenetv2.engine import choose_devices; choose_devices('cpu').place(torch.nn.Identity())"
    faults, faults_after_place = (
        int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout)
        for code in (allocations, place + allocations)
    )
    assert faults_after_place < 1000 < faults
