"""Knowledge distillation: a larger network's logits as part of the goal (Hinton et al. 2015, https://arxiv.org/abs/1503.02531)."""

import argparse
import contextlib
import difflib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .. import files
from ..errors import UserError
from ..weights import describe_mismatch, read_weights

FILE_ENDINGS = (".pkl", ".pt", ".pth", ".tar")
# Where trainers put a state dict, the average of the weights first: it is the better teacher.
STATE_DICTS = ("state_dict_ema", "model_ema", "state_dict", "model")
PATIENCE = 10.0  # seconds that a server may take to answer


class TeacherError(UserError):
    """A teacher that cannot be had, or cannot teach these classes."""


class Teacher(nn.Module):
    """A trained network that only answers: frozen, and in eval mode whatever it is told.

    It prepares the images as the network inside wants them.

    Args:
        network: images to logits; from here on frozen.
        input_size: (height, width) in pixels that images of another size are brought to; None takes any.
        mean, std: three numbers each, in RGB order on 0..1, for a network that takes RGB images
            normalised with them; None for one that takes BGR 0..255, as ours.

    Shape:
        images (N, 3, H, W), BGR, 0..255, uint8 or floating point -> logits (N, n_class), float32, without gradients
    """

    def __init__(
        self,
        network: nn.Module,
        input_size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.input_size = input_size
        self.mean: Tensor | None
        self.std: Tensor | None
        for name, values in (("mean", mean), ("std", std)):
            on_bytes = None if values is None else 255 * torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, on_bytes, persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if self.input_size and tuple(images.shape[-2:]) != self.input_size:
            images = F.interpolate(images.float(), self.input_size, mode="bilinear", antialias=True)
        if self.mean is not None and self.std is not None:
            images = (images.flip(1).float() - self.mean) / self.std
        logits: Tensor = self.network(images)
        return logits.float()


def load_teacher(name: str, n_class: int, *, checkpoint: str = "", class_names: list[str] | None = None) -> Teacher:
    """The teacher of that name, on the CPU.

    Args:
        name: a file of ours (a checkpoint or model.pkl); or a model with its published weights:
            'torchvision/NAME', 'timm/NAME', 'hf-hub:...', or a bare name that torchvision or else timm knows.
        n_class: how many classes the training images have.
        checkpoint: a file with a state dict that fits the named model with `n_class` classes, in place
            of the published weights. (What it was trained with is not in there: the images are prepared
            as for the published weights.)
        class_names: those of the training images; compared with the teacher's where its file tells them.

    Raises:
        TeacherError: where there is no such teacher, its weights cannot be had or do not fit, or it knows
            other classes.
    """
    if Path(name).is_file() or name.endswith(FILE_ENDINGS):
        if checkpoint:
            raise TeacherError(f"--teacher {name} is a file with weights; leave --teacher-checkpoint {checkpoint} out")
        return _teacher_from_file(name, n_class, class_names)
    create, model_name = _find(name)
    try:
        teacher = create(model_name, n_class if checkpoint else None)
    except Exception as error:  # each library, and whatever it downloads with, has errors of its own
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if checkpoint:
            raise TeacherError(f"--teacher {name} cannot be made: {reason}") from error
        raise TeacherError(
            f"--teacher {name}: its published weights cannot be had ({reason}); --teacher-checkpoint FILE reads others"
        ) from error
    if checkpoint:
        _load_checkpoint(teacher.network, checkpoint, f"{name} with {n_class} classes")
    height, width = teacher.input_size or (224, 224)
    _require_classes(name, teacher(torch.zeros(1, 3, height, width, dtype=torch.uint8)).shape[-1], n_class)
    return teacher


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The Kullback-Leibler divergence of the student from the teacher, both softened by the temperature T.

    Multiplied by T squared, which keeps the size of the gradients when T changes (section 2 of the
    paper); the mean over the batch.

    Args:
        logits, teacher_logits: (N, n_class), any floating point.

    Returns:
        A scalar, float32.
    """
    student = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class DistillationLoss:
    """(1 - alpha) times the loss of the targets, plus alpha times the distance from the teacher.

    Args:
        hard_loss: (logits, targets) -> scalar.
        alpha: 0 to 1.
        temperature: above 0.
    """

    hard_loss: Callable[[Tensor, Any], Tensor]
    alpha: float
    temperature: float

    def __call__(self, logits: Tensor, goal: tuple[Any, Tensor]) -> Tensor:
        """Of logits (N, n_class) and a goal (whatever `hard_loss` takes, the teacher's logits (N, n_class))."""
        targets, teacher_logits = goal
        soft = distillation_loss(logits, teacher_logits, self.temperature)
        return (1 - self.alpha) * self.hard_loss(logits, targets) + self.alpha * soft


def _teacher_from_file(name: str, n_class: int, class_names: list[str] | None) -> Teacher:
    try:
        weights = read_weights(name)
        network = weights.network()
    except UserError as error:
        remedy = "; another model's weights go with its name: --teacher NAME --teacher-checkpoint FILE"
        raise TeacherError(f"--teacher: {error}{remedy if Path(name).is_file() else ''}") from error
    _require_classes(name, weights.n_class, n_class)
    for theirs, ours in zip(weights.class_names or (), class_names or (), strict=False):
        if theirs != ours:
            raise TeacherError(f"--teacher {name} has the class {theirs!r} where the training images have {ours!r}")
    side = weights.preprocessing.input_size if weights.preprocessing else None
    return Teacher(network, (side, side) if side else None)


def _require_classes(name: str, known: int, n_class: int) -> None:
    if known != n_class:
        raise TeacherError(
            f"--teacher {name}: the teacher knows {known} classes and the training images have {n_class}; "
            "take one that was trained on these"
        )


_Create = Callable[[str, int | None], Teacher]  # (name, classes); without a number, with the published weights and classes


def _find(name: str) -> tuple[_Create, str]:
    """What makes the teacher of that name, and what the library that has it calls it."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)  # classification alone
    library, _, rest = name.partition("/") if name.startswith(("torchvision/", "timm/")) else ("", "", name)
    if library != "timm" and rest in names:
        return _create_with_torchvision, rest
    if library != "torchvision":
        import timm

        if rest.startswith("hf-hub:") or timm.is_model(rest):
            return _create_with_timm, rest
        names = timm.list_models() + (names if not library else [])
    near = difflib.get_close_matches(rest, names, 1, cutoff=0)
    where = library or "torchvision or timm"
    raise TeacherError(f"--teacher {name}: there is no such file, nor a model of {where}; the nearest is {near[0]}")


def _create_with_torchvision(name: str, n_class: int | None) -> Teacher:
    from torchvision.models import get_model, get_model_weights

    published = get_model_weights(name).DEFAULT
    if n_class is None:
        with _impatient():
            network = get_model(name, weights=published)
    else:
        network = get_model(name, num_classes=n_class)
    preset = published.transforms()
    side = preset.crop_size[0]
    return Teacher(network, (side, side), preset.mean, preset.std)


def _create_with_timm(name: str, n_class: int | None) -> Teacher:
    import timm

    asks_the_hub = n_class is None or name.startswith("hf-hub:")  # which has the description of such a model, too
    with _impatient(), _hub_that_answers() if asks_the_hub else contextlib.nullcontext():
        network = timm.create_model(name, pretrained=n_class is None, num_classes=n_class)
    config: dict[str, Any] = timm.data.resolve_model_data_config(network)  # type: ignore[no-untyped-call, unused-ignore]
    return Teacher(network, tuple(config["input_size"][1:]), config["mean"], config["std"])


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Where packets are dropped rather than refused, urllib would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _hub_that_answers() -> Iterator[None]:
    """Without a network huggingface_hub tries again for most of a minute; so it is asked once, and else looks in its cache."""
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # which, depends on the library it asks with
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _load_checkpoint(network: nn.Module, checkpoint: str, what: str) -> None:
    try:
        # Both timm and torchvision's references save their options beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = files.read(Path(checkpoint))
    except files.DamagedFileError as error:
        raise TeacherError(f"--teacher-checkpoint: {error}") from error
    except OSError as error:
        raise TeacherError(f"--teacher-checkpoint {checkpoint} cannot be read: {error.strerror}") from error
    if not isinstance(content, Mapping):
        raise TeacherError(f"--teacher-checkpoint {checkpoint} holds a {type(content).__name__}, not a state dict")
    content = next((content[key] for key in STATE_DICTS if isinstance(content.get(key), Mapping)), content)
    found = {str(name).removeprefix("module."): tensor for name, tensor in content.items() if name != "n_averaged"}
    if wrong := describe_mismatch(network.state_dict(), found):
        raise TeacherError(f"--teacher-checkpoint {checkpoint} does not fit {what}: {wrong}")
    network.load_state_dict(found, strict=False)
