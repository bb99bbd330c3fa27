"""Teachers for knowledge distillation (Hinton et al. 2015, https://arxiv.org/abs/1503.02531); the loss is in losses.py."""

import argparse
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import files
from ..config import DistillationConfig, height_width
from ..errors import UserError, nearest
from ..weights import check_tensors, check_values, describe_mismatch, describe_unreadable, plain_items, read_weights

FILE_ENDINGS = (".pkl", ".pt", ".pth", ".tar")
# Keys under which trainers store a state dict. The first key that a file has is used; averaged weights come first, because they
# make the better teacher.
STATE_DICT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
SERVER_TIMEOUT = 10.0  # seconds


class Teacher(nn.Module):
    """A trained network with frozen weights, always in eval mode, which resizes and normalizes its input images.

    Args:
        network: network from images to logits; its parameters are frozen.
        input_size: (height, width) to which images are resized; None to leave their size as it is.
        mean, std: for a network that takes normalized RGB images, in RGB order on the scale 0..1. None for a network that takes
            BGR images on 0..255, as the networks of this project do.
        channels: number of input channels of the network. A network with three takes grey images as three equal channels.

    Shape:
        images (N, C, H, W), BGR or grey, 0..255, uint8 or floating point -> logits (N, n_class), float32, without gradients
    """

    def __init__(
        self,
        network: nn.Module,
        input_size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.input_size, self.channels = input_size, channels
        self.mean: Tensor | None
        self.std: Tensor | None
        for name, values in (("mean", mean), ("std", std)):
            on_bytes = None if values is None else 255 * torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, on_bytes, persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode; torch calls this method when a module that contains the teacher changes its mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if self.input_size and tuple(images.shape[-2:]) != self.input_size:
            images = functional.interpolate(images.float(), self.input_size, mode="bilinear", antialias=True)
        if images.shape[1] < self.channels:
            images = images.expand(-1, self.channels, -1, -1)
        if self.mean is not None and self.std is not None:
            images = (images.flip(1).float() - self.mean) / self.std
        logits: Tensor = self.network(images)
        return logits.float()


def load_teacher(
    config: DistillationConfig, n_class: int, class_names: list[str] | None = None, in_chans: int = 3
) -> Teacher | None:
    """Load the teacher that the options name, on the CPU; return None if they name none.

    Args:
        config: `teacher` is a checkpoint or model file of this project, or a model with its published weights:
            'torchvision/NAME', 'timm/NAME', 'hf-hub:...', or NAME alone, which is looked up in torchvision, then in timm.
            `teacher_checkpoint` is a file with a state dict of that model for `n_class` classes, used instead of the published
            weights. Images are still resized and normalized as for the published weights.
        n_class: number of classes of the training images.
        class_names: names of these classes, compared with the class names in the teacher's file, if there are any.
        in_chans: number of channels of the training images.

    Raises:
        UserError: for an unknown teacher, for weights that are unavailable or do not fit, or if the teacher's classes are not
            those of the training images.
    """
    name, checkpoint = config.teacher, config.teacher_checkpoint
    if not name:
        return None
    if Path(name).is_file() or name.endswith(FILE_ENDINGS):
        if checkpoint:
            raise UserError(f"`teacher` {name} is a file with weights; leave `teacher_checkpoint` {checkpoint} out")
        teacher = _teacher_from_file(name, n_class, class_names)
        if teacher.channels < in_chans:
            raise UserError(f"`teacher` {name} takes grey images, and the training images are in colour; use `in_chans=1`")
        return teacher
    create, model_name = _find_model(name)
    try:
        teacher = create(model_name, n_class if checkpoint else None)
    except Exception as error:  # torchvision, timm and their HTTP libraries raise errors of many types
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if checkpoint:
            raise UserError(f"`teacher` {name} cannot be created: {reason}") from error
        raise UserError(
            f"`teacher` {name}: its published weights are not available ({reason}); give other weights as `teacher_checkpoint`"
        ) from error
    if checkpoint:
        _load_checkpoint(teacher.network, checkpoint, f"{name} with {n_class} classes")
    height, width = teacher.input_size or (224, 224)
    _require_classes(name, teacher(torch.zeros(1, 3, height, width, dtype=torch.uint8)).shape[-1], n_class)
    return teacher


def _teacher_from_file(name: str, n_class: int, class_names: list[str] | None) -> Teacher:
    try:
        weights = read_weights(name)
        network = weights.network()
    except UserError as error:
        remedy = "; for weights of another model give the model's name as `teacher` and the file as `teacher_checkpoint`"
        raise UserError(f"`teacher`: {error}{remedy if Path(name).is_file() else ''}") from error
    _require_classes(name, weights.n_class, n_class)
    for teacher_class, train_class in zip(weights.class_names or (), class_names or (), strict=False):
        if teacher_class != train_class:
            raise UserError(f"`teacher` {name} has the class {teacher_class!r} where the training images have {train_class!r}")
    size = height_width(weights.preprocessing.input_size) if weights.preprocessing else None
    return Teacher(network, size, channels=weights.channels)


def _require_classes(name: str, teacher_classes: int, n_class: int) -> None:
    if teacher_classes != n_class:
        raise UserError(
            f"`teacher` {name} has {teacher_classes} classes and the training images have {n_class}; "
            "choose a teacher that was trained on the same classes"
        )


# (model name, number of classes) -> teacher; None classes: a model with its published weights
_Create = Callable[[str, int | None], Teacher]


def _find_model(name: str) -> tuple[_Create, str]:
    """Return the function that creates the teacher, and the name of the model in its library."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)  # this module contains the classifiers
    library, _, model_name = name.partition("/") if name.startswith(("torchvision/", "timm/")) else ("", "", name)
    if library != "timm" and model_name in names:
        return _create_with_torchvision, model_name
    if library != "torchvision":
        import timm

        if model_name.startswith("hf-hub:") or timm.is_model(model_name):
            return _create_with_timm, model_name
        names = timm.list_models() + (names if not library else [])
    raise UserError(
        f"`teacher` {name} is neither a file nor a model of {library or 'torchvision or timm'}; "
        f"did you mean {nearest(model_name, names, cutoff=0)}?"
    )


def _create_with_torchvision(name: str, n_class: int | None) -> Teacher:
    from torchvision.models import get_model, get_model_weights

    published = get_model_weights(name).DEFAULT
    if n_class is None:
        with _socket_timeout():
            network = get_model(name, weights=published)
    else:
        network = get_model(name, num_classes=n_class)
    preset = published.transforms()
    side = preset.crop_size[0]
    return Teacher(network, (side, side), mean=preset.mean, std=preset.std)


def _create_with_timm(name: str, n_class: int | None) -> Teacher:
    import timm

    # Published weights are on the Hugging Face hub; for a name like hf-hub:... the architecture is there as well.
    needs_hub = n_class is None or name.startswith("hf-hub:")
    with _socket_timeout(), _cache_if_unreachable() if needs_hub else contextlib.nullcontext():
        network = timm.create_model(name, pretrained=n_class is None, num_classes=n_class)
    config: dict[str, Any] = timm.data.resolve_model_data_config(network)  # type: ignore[no-untyped-call, unused-ignore]
    return Teacher(network, tuple(config["input_size"][1:]), mean=config["mean"], std=config["std"])


@contextlib.contextmanager
def _socket_timeout() -> Iterator[None]:
    """Limit the time for which urllib waits for a server; by default it waits for minutes if a firewall drops packets."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SERVER_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _cache_if_unreachable() -> Iterator[None]:
    """Make huggingface_hub use its cache at once if the hub cannot be reached; by default it retries for a minute."""
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=SERVER_TIMEOUT)
    except Exception:  # the type of the error depends on the HTTP library
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _load_checkpoint(network: nn.Module, checkpoint: str, model: str) -> None:
    try:
        # The checkpoints of timm and of torchvision's references also contain their options, an argparse.Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = files.read(Path(checkpoint))
    except files.DamagedFileError as error:
        raise UserError(f"`teacher_checkpoint`: {error}") from error
    except OSError as error:
        reason = describe_unreadable(Path(checkpoint), error)
        raise UserError(f"`teacher_checkpoint` {checkpoint} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"`teacher_checkpoint` {checkpoint} holds a {type(content).__name__}, not a state dict")
    content = plain_items(content)
    content = plain_items(next((content[key] for key in STATE_DICT_KEYS if isinstance(content.get(key), dict)), content))
    entries = {str(name).removeprefix("module."): tensor for name, tensor in content.items() if name != "n_averaged"}
    if difference := describe_mismatch(network.state_dict(), entries):
        raise UserError(f"`teacher_checkpoint` {checkpoint} does not fit {model}: {difference}")
    state_dict = check_tensors(Path(checkpoint), entries)
    check_values(Path(checkpoint), {name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()})
    network.load_state_dict(state_dict, strict=False)
