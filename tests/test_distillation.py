"""A teacher answers as it does at home, never changes, and is refused in one line where it cannot teach."""

import argparse
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from shufflenetv2 import ShuffleNetV2, files
from shufflenetv2.engine import train_step
from shufflenetv2.recipe import distillation
from shufflenetv2.recipe.distillation import DistillationLoss, Teacher, TeacherError, distillation_loss, load_teacher
from shufflenetv2.weights import Preprocessing, model_record
from tests.models import randomize_batch_norms
from tests.support import same_tensors

IMAGENET = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
NAMES = ["cat", "dog", "owl"]


def images(side: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_model(name: str, n_class: int = 3) -> nn.Module:
    made: nn.Module = (
        timm.create_model(name, num_classes=n_class)
        if name.startswith("test_")
        else torchvision.models.get_model(name, num_classes=n_class)
    )
    randomize_batch_norms(made, seed=1)
    return made.eval()


def by_hand(model: nn.Module, batch: Tensor, side: int) -> Tensor:
    """The model's logits, from each image as torchvision's own transforms prepare it."""
    prepared = []
    for image in batch:
        rgb = image[[2, 1, 0]].float() / 255
        if rgb.shape[-1] != side:
            rgb = torchvision.transforms.functional.resize(rgb, [side, side], antialias=True)
        prepared.append((rgb - IMAGENET[0]) / IMAGENET[1])
    with torch.no_grad():
        logits: Tensor = model(torch.stack(prepared))
    return logits


def bare(state: dict[str, Tensor]) -> object:
    return state


def of_torchvision(state: dict[str, Tensor]) -> object:
    average = {"n_averaged": torch.tensor(3)} | {f"module.{name}": tensor for name, tensor in state.items()}
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    return {"model": other, "model_ema": average, "epoch": 3, "args": argparse.Namespace(lr=0.5)}


def of_timm(state: dict[str, Tensor]) -> object:
    return {"epoch": 3, "arch": "any", "state_dict": state, "args": argparse.Namespace(lr=0.5)}


def before_batches_were_counted(state: dict[str, Tensor]) -> object:
    return {"model": {name: tensor for name, tensor in state.items() if "num_batches" not in name}}


@pytest.mark.parametrize(
    ("name", "architecture", "own_side", "side", "layout"),
    [
        ("resnet18", "resnet18", 224, 224, bare),
        ("torchvision/resnet18", "resnet18", 224, 96, of_torchvision),
        ("test_efficientnet", "test_efficientnet", 160, 160, of_timm),
        ("timm/test_efficientnet.r160_in1k", "test_efficientnet", 160, 192, before_batches_were_counted),
    ],
)
def test_a_named_teacher_answers_as_the_model_by_hand(
    tmp_path: Path, name: str, architecture: str, own_side: int, side: int, layout: Callable[[dict[str, Tensor]], object]
) -> None:
    model = random_model(architecture)
    torch.save(layout(model.state_dict()), tmp_path / "weights.pth")
    teacher = load_teacher(name, 3, checkpoint=str(tmp_path / "weights.pth"))
    expected = by_hand(model, images(side), own_side)
    assert expected.std() > 1e-3
    for batch in (images(side), images(side).float(), images(side).contiguous(memory_format=torch.channels_last)):
        logits = teacher(batch)
        assert (logits.shape, logits.dtype, logits.requires_grad) == ((2, 3), torch.float32, False)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_library_is_the_one_that_is_named(tmp_path: Path) -> None:
    """Both have a resnet18, whose tensors are called the same."""
    torch.save(random_model("resnet18").state_dict(), tmp_path / "weights.pth")
    for name, library in (("resnet18", "torchvision"), ("torchvision/resnet18", "torchvision"), ("timm/resnet18", "timm")):
        teacher = load_teacher(name, 3, checkpoint=str(tmp_path / "weights.pth"))
        assert type(teacher.network).__module__.split(".")[0] == library


def our_file(folder: Path, side: int = 64, names: list[str] | None = None) -> tuple[str, ShuffleNetV2]:
    model = ShuffleNetV2(side, 3, "0.5x", mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))
    model.initialize_weights(torch.Generator().manual_seed(0))
    randomize_batch_norms(model, seed=1)
    preprocessing = Preprocessing(side, side, (100.0, 110.0, 120.0), (50.0, 60.0, 70.0))
    record = model_record(model, class_names=names or NAMES, preprocessing=preprocessing, iteration=7)
    files.write(folder / "model.pkl", record)
    return str(folder / "model.pkl"), model.eval()


def test_our_own_file_is_a_teacher(tmp_path: Path) -> None:
    path, model = our_file(tmp_path)
    teacher = load_teacher(path, 3, class_names=NAMES)
    batch = images(96).float()
    with torch.no_grad():
        expected = model(images(64))
        resized = model(torchvision.transforms.functional.resize(batch, [64, 64], antialias=True))
    assert torch.equal(teacher(images(64)), expected)
    torch.testing.assert_close(teacher(batch.byte()), resized)


def test_a_file_of_weights_alone_is_a_teacher_at_any_size(tmp_path: Path) -> None:
    model = ShuffleNetV2(32, 3, "0.5x").eval()
    torch.save(model.state_dict(), tmp_path / "original.pth.tar")
    teacher = load_teacher(str(tmp_path / "original.pth.tar"), 3, class_names=NAMES)
    for side in (32, 64):
        with torch.no_grad():
            assert torch.equal(teacher(images(side)), model(images(side)))


def test_published_weights_come_from_the_cache_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = random_model("shufflenet_v2_x0_5", 1000)
    published = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(model.state_dict(), tmp_path / "hub/checkpoints" / published.url.rpartition("/")[2])
    teacher = load_teacher("shufflenet_v2_x0_5", 1000)
    torch.testing.assert_close(teacher(images(64)), by_hand(model, images(64), 224), rtol=1e-4, atol=1e-5)
    with pytest.raises(TeacherError, match="the teacher knows 1000 classes and the training images have 10;"):
        load_teacher("shufflenet_v2_x0_5", 10)


def test_published_weights_come_from_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that the hub's client keeps, written by hand; without a network it must be enough."""
    import safetensors.torch
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    no_network(monkeypatch)
    model = random_model("test_efficientnet", 1000)
    folder = tmp_path / "models--timm--test_efficientnet.r160_in1k"
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    safetensors.torch.save_file(model.state_dict(), folder / "snapshots/abc/model.safetensors")
    teacher = load_teacher("timm/test_efficientnet", 1000)
    torch.testing.assert_close(teacher(images(160)), by_hand(model, images(160), 160), rtol=1e-4, atol=1e-5)
    assert not constants.HF_HUB_OFFLINE


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything goes through a proxy that is not there: a port that was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    from huggingface_hub import close_session

    close_session()  # which remembers the proxies


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_0", "timm/test_resnet", "hf-hub:timm/test_resnet"])
def test_without_a_network_the_remedy_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    no_network(monkeypatch)
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)  # what the hub's client does between two of its attempts
    with pytest.raises(TeacherError, match=r"cannot be had .*; --teacher-checkpoint FILE reads others$") as refusal:
        load_teacher(name, 10)
    assert str(refusal.value).startswith(f"--teacher {name}: ")
    assert "\n" not in str(refusal.value)
    assert waits == []
    assert socket.getdefaulttimeout() is None
    assert not constants.HF_HUB_OFFLINE


def test_a_teacher_never_changes() -> None:
    teacher = Teacher(random_model("resnet18"), (64, 64), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert not teacher(images(64).float().requires_grad_()).requires_grad
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    together = nn.ModuleList([student, teacher])
    optimizer = torch.optim.SGD([parameter for parameter in together.parameters() if parameter.requires_grad], lr=0.1)
    assert together.train() is together
    assert student.training
    assert teacher.train() is teacher
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    loss_function: Any = DistillationLoss(nn.functional.cross_entropy, 0.5, 2.0)
    for step in range(2):
        batch = images(64, step).float()
        goal: Any = (torch.tensor([0, 2]), teacher(batch))
        train_step(student, batch / 255, goal, loss_function, optimizer)
    assert same_tensors(teacher.state_dict(), before)


def kl_by_hand(logits: np.ndarray, teacher_logits: np.ndarray, temperature: float) -> float:
    """Sum over classes of p log(p / q), the mean over samples, times T squared; in double precision."""

    def softmax(x: np.ndarray) -> np.ndarray:
        powers = np.exp(x.astype(np.float64) / temperature)
        shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return shares

    p, q = softmax(teacher_logits), softmax(logits)
    return float(temperature**2 * (p * np.log(p / q)).sum(axis=1).mean())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_divergence_from_the_teacher(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher_logits = (3 * torch.randn(5, 7, generator=generator) for _ in range(2))
    logits.requires_grad_()
    loss = distillation_loss(logits, teacher_logits, temperature)
    assert loss.item() == pytest.approx(kl_by_hand(logits.detach().numpy(), teacher_logits.numpy(), temperature), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    # T (q - p) / N: section 2.1 of the paper, times T squared
    expected = temperature * ((logits / temperature).softmax(1) - (teacher_logits / temperature).softmax(1)) / 5
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-4, atol=1e-6)
    torch_own = nn.functional.kl_div(
        (logits / temperature).log_softmax(1), (teacher_logits / temperature).softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(loss, temperature**2 * torch_own)
    assert distillation_loss(teacher_logits, teacher_logits, temperature).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_is_computed_in_float32() -> None:
    logits = torch.tensor([[10.0, 9.0, -8.0]])
    half = logits.bfloat16()
    teacher_logits = torch.tensor([[9.0, 10.0, -30.0]])
    loss = distillation_loss(half, teacher_logits.bfloat16(), 3.0)
    assert loss.dtype == torch.float32
    assert loss.item() == distillation_loss(logits, teacher_logits, 3.0).item()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_weighs_the_teacher_against_the_targets(alpha: float) -> None:
    logits, teacher_logits, targets = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    hard_loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    loss = DistillationLoss(hard_loss, alpha, 4.0)(logits, (targets, teacher_logits))
    expected = (1 - alpha) * hard_loss(logits, targets) + alpha * distillation_loss(logits, teacher_logits, 4.0)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("name", "checkpoint", "n_class", "said"),
    [
        ("resnet81", "", 3, "there is no such file, nor a model of torchvision or timm; the nearest is resnet"),
        ("torchvision/tf_efficientnet_b0", "", 3, "nor a model of torchvision; the nearest is efficientnet_b0"),
        ("timm/shufflenet_v2_x0_5", "", 3, "nor a model of timm; the nearest is "),
        ("models/best", "", 3, "there is no such file, nor a model"),
        ("missing.pkl", "", 3, "--teacher: missing.pkl cannot be read: No such file or directory$"),
        ("timm/resnet18.nobody", "", 3, r"\(Invalid pretrained tag \(nobody\) for resnet18.\)"),
        ("timm/resnet18.nobody", "weights.pth", 3, r"cannot be made: Invalid pretrained tag \(nobody\) for resnet18.$"),
        ("resnet18", "missing.pth", 3, "--teacher-checkpoint missing.pth cannot be read: No such file or directory"),
        ("resnet18", "weights.pth", 4, "weights.pth does not fit resnet18 with 4 classes: 2 tensors .* fc.weight first"),
        ("resnet34", "weights.pth", 3, "does not fit resnet34 with 3 classes: [0-9]+ tensors are missing"),
        ("resnet18", "list.pth", 3, "list.pth holds a list, not a state dict"),
        ("resnet18", "cut.pth", 3, "--teacher-checkpoint: cut.pth is not a file of weights"),
        (
            "weights.pth",
            "",
            3,
            "weights.pth .*; .* --teacher NAME --teacher-checkpoint",
        ),
        ("model.pkl", "weights.pth", 3, "model.pkl is a file with weights; leave --teacher-checkpoint weights.pth out"),
        ("model.pkl", "", 10, "the teacher knows 3 classes and the training images have 10;"),
        ("model.pkl", "", 3, "model.pkl has the class 'dog' where the training images have 'cat'"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, checkpoint: str, n_class: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distillation, "PATIENCE", 0.1)
    no_network(monkeypatch)
    our_file(Path(), names=["dog", "cat", "owl"])
    torch.save(random_model("resnet18").state_dict(), "weights.pth")
    torch.save([1, 2], "list.pth")
    Path("cut.pth").write_bytes(Path("weights.pth").read_bytes()[:-1000])
    with pytest.raises(TeacherError, match=said) as refusal:
        load_teacher(name, n_class, checkpoint=checkpoint, class_names=NAMES)
    assert str(refusal.value).startswith("--teacher")
    assert "\n" not in str(refusal.value)
