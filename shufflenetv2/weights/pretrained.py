"""Download torchvision's published ImageNet weights and convert them."""

from contextlib import nullcontext
from pathlib import Path

import torch

from ..errors import UserError, one_line
from ..terminal import show_downloads
from .conversion import from_torchvision
from .file import Preprocessing, Weights


def pretrained_weights(model_size: str, *, progress: bool = True) -> Weights:
    """Download torchvision's published ImageNet weights of a model size and convert them.

    The file is downloaded once and kept in torch.hub's folder (see TORCH_HOME). torchvision evaluated the weights with images
    resized by Pillow; this trainer resizes with OpenCV, so that the accuracy is slightly lower.

    Args:
        model_size: '0.5x', '1.0x', '1.5x' or '2.0x'.
        progress: show the progress of the download.

    Raises:
        UserError: if the file cannot be downloaded, or is damaged.

    Example:
        >>> network = pretrained_weights("1.0x").network()
    """
    from torchvision.models import get_model_weights  # imported here, because the import takes a second

    published = get_model_weights(f"shufflenet_v2_x{model_size[:-1].replace('.', '_')}").DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", Path(published.url).name)
    try:
        with show_downloads(torch.hub) if progress else nullcontext():
            state_dict = published.get_state_dict(progress=progress, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # the errors of downloading, writing and loading have no common class
        if file.exists():
            raise UserError(f"{file} is damaged, or holds more than weights; delete it to download it again") from error
        raise UserError(
            f"`pretrained`: {published.url} cannot be downloaded ({one_line(error)}); give a file with `initial_checkpoint`"
        ) from error
    weights = from_torchvision(state_dict, file)
    transforms = published.transforms()
    mean, std = (tuple(round(255 * value, 6) for value in reversed(rgb)) for rgb in (transforms.mean, transforms.std))
    weights.preprocessing = Preprocessing(transforms.crop_size[0], transforms.resize_size[0], mean, std)
    weights.class_names = list(published.meta["categories"])
    return weights
