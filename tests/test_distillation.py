"""A teacher gives the logits that its library gives, never changes, and is refused in one line where it cannot teach."""

import argparse
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from shufflenetv2 import ShuffleNetV2, files
from shufflenetv2.config import DistillationConfig
from shufflenetv2.engine import train_step
from shufflenetv2.errors import UserError
from shufflenetv2.recipe import DistillationLoss, Teacher, distillation_loss, load_teacher, teachers
from shufflenetv2.weights import Preprocessing, model_record
from tests.models import randomize_batch_norms
from tests.support import same_tensors

IMAGENET = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
NAMES = ["cat", "dog", "owl"]


def images(side: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_model(name: str, n_class: int = 3) -> nn.Module:
    model: nn.Module = (
        timm.create_model(name, num_classes=n_class)
        if name.startswith("test_")
        else torchvision.models.get_model(name, num_classes=n_class)
    )
    randomize_batch_norms(model, seed=1)
    return model.eval()


def load(name: str, n_class: int = 3, checkpoint: str | Path = "", class_names: list[str] | None = None) -> Teacher:
    config = DistillationConfig(teacher=name, teacher_checkpoint=str(checkpoint))
    teacher = load_teacher(config, n_class, class_names)
    assert teacher is not None
    return teacher


def logits_by_hand(model: nn.Module, batch: Tensor, side: int) -> Tensor:
    """Return the logits of a model for images that torchvision's transforms prepared."""
    prepared = []
    for image in batch:
        rgb = image[[2, 1, 0]].float() / 255
        if rgb.shape[-1] != side:
            rgb = torchvision.transforms.functional.resize(rgb, [side, side], antialias=True)
        prepared.append((rgb - IMAGENET[0]) / IMAGENET[1])
    with torch.no_grad():
        logits: Tensor = model(torch.stack(prepared))
    return logits


def as_state_dict(state: dict[str, Tensor]) -> object:
    return state


def as_torchvision(state: dict[str, Tensor]) -> object:
    average = {"n_averaged": torch.tensor(3)} | {f"module.{name}": tensor for name, tensor in state.items()}
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    return {"model": other, "model_ema": average, "epoch": 3, "args": argparse.Namespace(lr=0.5)}


def as_timm(state: dict[str, Tensor]) -> object:
    return {"epoch": 3, "arch": "any", "state_dict": state, "args": argparse.Namespace(lr=0.5)}


def without_counts_of_batches(state: dict[str, Tensor]) -> object:
    return {"model": {name: tensor for name, tensor in state.items() if "num_batches" not in name}}


@pytest.mark.parametrize(
    ("name", "architecture", "model_side", "side", "layout"),
    [
        ("shufflenet_v2_x0_5", "shufflenet_v2_x0_5", 224, 224, as_state_dict),
        ("torchvision/shufflenet_v2_x0_5", "shufflenet_v2_x0_5", 224, 96, as_torchvision),
        ("test_efficientnet", "test_efficientnet", 160, 160, as_timm),
        ("timm/test_efficientnet.r160_in1k", "test_efficientnet", 160, 192, without_counts_of_batches),
    ],
)
def test_a_teacher_by_name_gives_the_logits_of_its_library(
    tmp_path: Path, name: str, architecture: str, model_side: int, side: int, layout: Callable[[dict[str, Tensor]], object]
) -> None:
    model = random_model(architecture)
    torch.save(layout(model.state_dict()), tmp_path / "weights.pth")
    teacher = load(name, checkpoint=tmp_path / "weights.pth")
    expected = logits_by_hand(model, images(side), model_side)
    assert expected.std() > 1e-3
    for batch in (images(side), images(side).float(), images(side).contiguous(memory_format=torch.channels_last)):
        logits = teacher(batch)
        assert (logits.shape, logits.dtype, logits.requires_grad) == ((2, 3), torch.float32, False)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_prefix_of_the_name_chooses_the_library(tmp_path: Path) -> None:
    """Both have a resnet18, with the same names of tensors."""
    torch.save(random_model("resnet18").state_dict(), tmp_path / "weights.pth")
    for name, library in (("resnet18", "torchvision"), ("torchvision/resnet18", "torchvision"), ("timm/resnet18", "timm")):
        teacher = load(name, checkpoint=tmp_path / "weights.pth")
        assert type(teacher.network).__module__.split(".")[0] == library


def write_model_file(folder: Path, side: int = 64, names: list[str] | None = None) -> tuple[str, ShuffleNetV2]:
    model = ShuffleNetV2(side, 3, "0.5x", mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))
    model.initialize_weights(torch.Generator().manual_seed(0))
    randomize_batch_norms(model, seed=1)
    preprocessing = Preprocessing(side, side, (100.0, 110.0, 120.0), (50.0, 60.0, 70.0))
    record = model_record(model, class_names=names or NAMES, preprocessing=preprocessing, iteration=7)
    files.write(folder / "model.pkl", record)
    return str(folder / "model.pkl"), model.eval()


def test_a_model_file_is_a_teacher(tmp_path: Path) -> None:
    path, model = write_model_file(tmp_path)
    teacher = load(path, class_names=NAMES)
    batch = images(96).float()
    with torch.no_grad():
        expected = model(images(64))
        resized = model(torchvision.transforms.functional.resize(batch, [64, 64], antialias=True))
    assert torch.equal(teacher(images(64)), expected)
    torch.testing.assert_close(teacher(batch.byte()), resized)


def test_a_state_dict_is_a_teacher_at_any_size(tmp_path: Path) -> None:
    model = ShuffleNetV2(32, 3, "0.5x").eval()
    torch.save(model.state_dict(), tmp_path / "original.pth.tar")
    teacher = load(str(tmp_path / "original.pth.tar"), class_names=NAMES)
    for side in (32, 64):
        with torch.no_grad():
            assert torch.equal(teacher(images(side)), model(images(side)))


def test_published_weights_come_from_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = random_model("shufflenet_v2_x0_5", 1000)
    published = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(model.state_dict(), tmp_path / "hub/checkpoints" / published.url.rpartition("/")[2])
    teacher = load("shufflenet_v2_x0_5", 1000)
    torch.testing.assert_close(teacher(images(64)), logits_by_hand(model, images(64), 224), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="has 1000 classes and the training images have 10;"):
        load("shufflenet_v2_x0_5", 10)


def test_published_weights_come_from_the_hubs_cache_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is a folder in the layout of huggingface_hub, written by hand."""
    import safetensors.torch
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cut_off_network(monkeypatch)
    model = random_model("test_efficientnet", 1000)
    folder = tmp_path / "models--timm--test_efficientnet.r160_in1k"
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    safetensors.torch.save_file(model.state_dict(), folder / "snapshots/abc/model.safetensors")
    teacher = load("timm/test_efficientnet", 1000)
    torch.testing.assert_close(teacher(images(160)), logits_by_hand(model, images(160), 160), rtol=1e-4, atol=1e-5)
    assert not constants.HF_HUB_OFFLINE


def cut_off_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all requests go to a proxy that does not exist: a port that was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    from huggingface_hub import close_session

    close_session()  # a session remembers its proxies


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_0", "timm/test_resnet", "hf-hub:timm/test_resnet"])
def test_without_a_network_the_remedy_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cut_off_network(monkeypatch)
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)  # huggingface_hub sleeps between two attempts
    with pytest.raises(UserError, match=r"not available .*; give other weights as `teacher_checkpoint`$") as refusal:
        load(name, 10)
    assert str(refusal.value).startswith(f"`teacher` {name}: ")
    assert "\n" not in str(refusal.value)
    assert waits == []
    assert socket.getdefaulttimeout() is None
    assert not constants.HF_HUB_OFFLINE


def test_a_teacher_never_changes() -> None:
    teacher = Teacher(random_model("resnet18"), (64, 64), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert not teacher(images(64).float().requires_grad_()).requires_grad
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    both = nn.ModuleList([student, teacher])
    optimizer = torch.optim.SGD([parameter for parameter in both.parameters() if parameter.requires_grad], lr=0.1)
    assert both.train() is both
    assert student.training
    assert teacher.train() is teacher
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    loss_function = DistillationLoss(nn.functional.cross_entropy, 0.5, 2.0)
    for step in range(2):
        batch = images(64, step).float()
        train_step(student, batch / 255, (torch.tensor([0, 2]), teacher(batch)), loss_function, optimizer)
    assert same_tensors(teacher.state_dict(), before)


def divergence_by_hand(logits: np.ndarray, teacher_logits: np.ndarray, temperature: float) -> float:
    """Sum p log(p / q) over classes, take the mean over samples and multiply by T squared, in double precision."""

    def softmax(x: np.ndarray) -> np.ndarray:
        powers = np.exp(x.astype(np.float64) / temperature)
        probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    p, q = softmax(teacher_logits), softmax(logits)
    return float(temperature**2 * (p * np.log(p / q)).sum(axis=1).mean())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_divergence_from_the_teacher(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher_logits = (3 * torch.randn(5, 7, generator=generator) for _ in range(2))
    logits.requires_grad_()
    loss = distillation_loss(logits, teacher_logits, temperature)
    assert loss.item() == pytest.approx(
        divergence_by_hand(logits.detach().numpy(), teacher_logits.numpy(), temperature), rel=1e-5
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    # T (q - p) / N: section 2.1 of the paper, times T squared
    expected_gradient = temperature * ((logits / temperature).softmax(1) - (teacher_logits / temperature).softmax(1)) / 5
    torch.testing.assert_close(gradient, expected_gradient.detach(), rtol=1e-4, atol=1e-6)
    reference = nn.functional.kl_div(
        (logits / temperature).log_softmax(1), (teacher_logits / temperature).softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(loss, temperature**2 * reference)
    assert distillation_loss(teacher_logits, teacher_logits, temperature).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_is_computed_in_float32() -> None:
    logits = torch.tensor([[10.0, 9.0, -8.0]])
    half = logits.bfloat16()
    teacher_logits = torch.tensor([[9.0, 10.0, -30.0]])
    loss = distillation_loss(half, teacher_logits.bfloat16(), 3.0)
    assert loss.dtype == torch.float32
    assert loss.item() == distillation_loss(logits, teacher_logits, 3.0).item()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_is_the_weight_of_the_teacher(alpha: float) -> None:
    logits, teacher_logits, targets = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    hard_loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    loss = DistillationLoss(hard_loss, alpha, 4.0)(logits, (targets, teacher_logits))
    expected = (1 - alpha) * hard_loss(logits, targets) + alpha * distillation_loss(logits, teacher_logits, 4.0)
    torch.testing.assert_close(loss, expected)


@pytest.fixture(scope="module")
def unsuitable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of files that are not, or not always, a teacher."""
    folder = tmp_path_factory.mktemp("unsuitable")
    write_model_file(folder, names=["dog", "cat", "owl"])
    torch.save(random_model("resnet18").state_dict(), folder / "weights.pth")
    torch.save([1, 2], folder / "list.pth")
    (folder / "cut.pth").write_bytes((folder / "weights.pth").read_bytes()[:-1000])
    return folder


@pytest.mark.parametrize(
    ("name", "checkpoint", "n_class", "message"),
    [
        ("resnet81", "", 3, "is neither a file nor a model of torchvision or timm; did you mean resnet"),
        ("torchvision/tf_efficientnet_b0", "", 3, "nor a model of torchvision; did you mean efficientnet_b0"),
        ("timm/shufflenet_v2_x0_5", "", 3, "nor a model of timm; did you mean "),
        ("models/best", "", 3, "is neither a file nor a model"),
        ("missing.pkl", "", 3, "`teacher`: missing.pkl cannot be read: No such file or directory$"),
        ("timm/resnet18.nobody", "", 3, r"\(Invalid pretrained tag \(nobody\) for resnet18.\)"),
        ("timm/resnet18.nobody", "weights.pth", 3, r"cannot be created: Invalid pretrained tag \(nobody\) for resnet18.$"),
        ("resnet18", "missing.pth", 3, "`teacher_checkpoint` missing.pth cannot be read: No such file or directory"),
        ("resnet18", "weights.pth", 4, "weights.pth does not fit resnet18 with 4 classes: 2 tensors .* fc.weight first"),
        ("resnet34", "weights.pth", 3, "does not fit resnet34 with 3 classes: [0-9]+ tensors are missing"),
        ("resnet18", "list.pth", 3, "list.pth holds a list, not a state dict"),
        ("resnet18", "cut.pth", 3, "`teacher_checkpoint`: cut.pth is not a file of weights"),
        (
            "weights.pth",
            "",
            3,
            "weights.pth .*; for weights of another model give the model's name as `teacher`",
        ),
        ("model.pkl", "weights.pth", 3, "model.pkl is a file with weights; leave `teacher_checkpoint` weights.pth out"),
        ("model.pkl", "", 10, "has 3 classes and the training images have 10;"),
        ("model.pkl", "", 3, "model.pkl has the class 'dog' where the training images have 'cat'"),
    ],
)
def test_an_unsuitable_teacher_is_refused_in_one_line(
    unsuitable: Path, monkeypatch: pytest.MonkeyPatch, name: str, checkpoint: str, n_class: int, message: str
) -> None:
    monkeypatch.chdir(unsuitable)
    monkeypatch.setattr(teachers, "SERVER_TIMEOUT", 0.1)
    cut_off_network(monkeypatch)
    with pytest.raises(UserError, match=message) as refusal:
        load(name, n_class, checkpoint, NAMES)
    assert str(refusal.value).startswith("`teacher")
    assert "\n" not in str(refusal.value)


def test_without_a_name_there_is_no_teacher() -> None:
    assert load_teacher(DistillationConfig(), 3) is None
