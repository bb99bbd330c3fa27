"""Where and how the network computes: layout, precision, compiler."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shufflenetv2 import ShuffleNetV2, load_model
from shufflenetv2.config import ExecutionConfig
from shufflenetv2.engine import Devices, choose_devices, train_step
from shufflenetv2.errors import UserError
from tests.support import ROOT, SHORT, Train, same_tensors

CPU = torch.device("cpu")


def network() -> ShuffleNetV2:
    made = ShuffleNetV2(64, 10, "0.5x")
    made.initialize_weights(torch.Generator().manual_seed(0))
    return made


def one_step(devices: Devices) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a step, and the logits after it."""
    bare, generator = network(), torch.Generator().manual_seed(1)
    model = devices.place(bare, training=True).train()
    images = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    targets = torch.randint(0, 10, (8,), generator=generator)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.01)
    loss, _ = train_step(model, images, targets, torch.nn.CrossEntropyLoss(), optimizer, devices.scaler())
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(images)
    return loss, logits


@pytest.mark.parametrize(
    ("execution", "tolerance"),
    [
        (ExecutionConfig(channels_last=True), 1e-3),
        (ExecutionConfig(torchcompile="eager"), 0.0),
        (ExecutionConfig(amp=True), 5e-2),
        (ExecutionConfig(channels_last=True, amp=True, torchcompile="eager"), 5e-2),
    ],
)
def test_another_execution_computes_the_same_up_to_rounding(execution: ExecutionConfig, tolerance: float) -> None:
    plain_loss, plain_logits = one_step(Devices(CPU))
    loss, logits = one_step(Devices(CPU, execution=execution))
    assert loss.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(loss, plain_loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(logits, plain_logits, rtol=10 * tolerance, atol=10 * tolerance)
    if tolerance:
        assert not torch.equal(logits, plain_logits)  # it did have an effect


def test_the_layout_goes_all_the_way_through() -> None:
    seen: list[bool] = []
    model = Devices(CPU, execution=ExecutionConfig(channels_last=True)).place(network()).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.in_channels > 1:
            module.register_forward_hook(
                lambda module, inputs, output: seen.append(output.is_contiguous(memory_format=torch.channels_last))
            )
    model(torch.zeros(2, 64, 64, 3, dtype=torch.uint8).permute(0, 3, 1, 2))
    assert len(seen) == 56
    assert all(seen)


def test_what_a_device_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="`device` cuda:77: this machine has no such device"):
        choose_devices("cuda:77")
    with pytest.raises(UserError, match=r"`torchcompile` fastest: unknown backend; torch has .*inductor"):
        choose_devices("cpu", ExecutionConfig(torchcompile="fastest"))
    with pytest.raises(UserError, match="float16 needs a GPU"):
        choose_devices("cpu", ExecutionConfig(amp=True, amp_dtype="float16"))


def test_a_run_in_another_layout_and_precision_resumes_exactly(train: Train, tmp_path: Path) -> None:
    options = [*SHORT, "--channels-last", "--amp", "--amp-dtype", "bfloat16", "--batch-size", "64"]
    whole = train(*options, "--save", "whole")
    assert whole.returncode == 0, whole.stderr
    (tmp_path / "cut").mkdir()
    for iteration in (4, 8):
        name = f"checkpoint-{iteration:06}.pth.tar"
        (tmp_path / "cut" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    resumed = train(*options, "--save", "cut")
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing from cut/checkpoint-000008.pth.tar" in resumed.stdout
    a, b = (torch.load(tmp_path / folder / "model.pkl", weights_only=True)["state_dict"] for folder in ("whole", "cut"))
    assert same_tensors(a, b)
    assert load_model(tmp_path / "cut/model.pkl")(torch.zeros(1, 3, 32, 32)).shape == (1, 10)

    refused = train(*options, "--save", "cut", "--no-channels-last")
    assert refused.returncode == 2
    assert "channels-last was True and is False" in refused.stderr


def test_a_compiled_run_ends_as_any_other(train: Train) -> None:
    compiled = train(*SHORT, "--total-iters", "4", "--torchcompile", "eager", "--display-interval", "4")
    plain = train(*SHORT, "--total-iters", "4", "--save", "plain", "--display-interval", "4")
    for done in (compiled, plain):
        assert done.returncode == 0, done.stderr
    lines = [
        [line.split("data_time")[0][22:] for line in run.stdout.splitlines() if "TRAIN" in line] for run in (compiled, plain)
    ]
    assert lines[0] == lines[1] != []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_on_a_processor_freed_memory_is_kept() -> None:
    """A page that the system has taken back is a fault when it is needed again: some 40,000 for what is made here."""
    steps = """
import resource, torch
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    large = [torch.ones(10_000_000) for _ in range(4)]
    del large
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    placed = "import torch; from shufflenetv2.engine import choose_devices; choose_devices('cpu').place(torch.nn.Identity())"
    as_it_was, kept = (
        int(subprocess.run([sys.executable, "-c", first + steps], capture_output=True, text=True, check=True, cwd=ROOT).stdout)
        for first in ("", placed)
    )
    assert kept < 1000 < as_it_was
