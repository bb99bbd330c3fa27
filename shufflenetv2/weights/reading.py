"""Reading weight files of every supported project: shufflenetv2, original, torchvision, mmpretrain."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..network import ShuffleNetV2
from .conversion import from_mmpretrain, from_torchvision
from .file import METADATA_KEY, Weights, read_content
from .names import infer_architecture, infer_model_size, is_original, recognize_names, unwrapped_names
from .schema import ArchitectureRecord, check_metadata, check_tensors, check_values, plain_items

# Keys under which trainers save a state dict; the first one that is present is read.
STATE_DICT_KEYS = ("state_dict", "model", "model_ema")
AVERAGED_KEYS = ("state_dict_ema", "model_ema")  # of this trainer and timm, of torchvision's reference


def read_weights(path: str | Path, *, use_ema: bool = False, check_weights: bool = True) -> Weights:
    """Read a weight file of this trainer, the original, torchvision or mmpretrain; the content decides which one it is.

    The file is one of torch.save or a .safetensors file. Its state dict may stand under 'state_dict', 'model' or 'model_ema',
    and its names may begin with 'module.' or '_orig_mod.'. Nothing in the file is executed.

    Args:
        path: the file.
        use_ema: take the averaged weights (EMA) of a checkpoint.
        check_weights: refuse values that are NaN or infinite, and negative variances.

    Returns:
        The weights with the original's tensor names and order of channels, and what the file states about them.

    Raises:
        UserError: if the file is missing, damaged or contains something else, metadata that cannot be true, weights that no
            network can compute with, or no averaged weights with `use_ema`.

    Example:
        >>> weights = read_weights("models/model.pkl")
        >>> weights.model_size, weights.n_class, weights.origin
        ('1.0x', 1000, 'shufflenetv2')
        >>> network = weights.network()
    """
    path = Path(path)
    saved = read_content(path)
    content = plain_items(saved)
    state_dict = _state_dict(path, content, use_ema)
    entries = unwrapped_names(plain_items(state_dict))
    project = recognize_names(entries)
    if project is None:
        raise UserError(_refusal(path, entries))
    tensors = check_tensors(path, entries)
    weights = _from_names(project, tensors, path, content)
    if "model_size" in content:
        weights.origin = "shufflenetv2"
        weights.update_metadata(content)
        if use_ema:
            weights.details["averaged"] = True
    else:  # metadata that `convert` added for another project's file
        for container in (content, getattr(saved if state_dict is content else state_dict, "_metadata", None)):
            if isinstance(container, dict) and isinstance(container.get(METADATA_KEY), dict):
                weights.update_metadata(plain_items(container[METADATA_KEY]))
    if check_weights:
        check_values(path, tensors)
    return weights


def _from_names(project: str, tensors: dict[str, Tensor], path: Path, content: Mapping[str, Any]) -> Weights:
    """Return weights of the project whose tensor names these are, without the metadata of this trainer."""
    if project == "torchvision":
        return from_torchvision(tensors, path)
    if project == "mmpretrain":
        weights = from_mmpretrain(tensors, path)
        weights.class_names = _mmpretrain_classes(content.get("meta"), weights.n_class)
        return weights
    architecture = content.get("architecture") if "model_size" in content else None
    return _from_original_names(tensors, path, architecture)


def load_model(path: str | Path, *, use_ema: bool = False, check_weights: bool = True) -> ShuffleNetV2:
    """Load the model in a weight file of any supported project (see `read_weights`), in eval mode on the CPU.

    The model normalizes its input itself, as in the training of the weights.

    Args:
        path: a file of this trainer, the original, torchvision or mmpretrain.
        use_ema: take the averaged weights (EMA) of a checkpoint.
        check_weights: see `read_weights`.

    Returns:
        The network.

    Raises:
        UserError: if the file is missing, damaged, or contains another kind of model; see `read_weights`.

    Shape:
        images (N, C, H, W), BGR or grey, 0..255, uint8 or floating point -> logits (N, n_class)

    Example:
        >>> model = load_model("models/model.pkl")
        >>> logits = model(images)
    """
    return read_weights(path, use_ema=use_ema, check_weights=check_weights).network()


def _state_dict(path: Path, content: dict[str, Any], use_ema: bool) -> dict[str, Any]:
    """Return the part of a file that maps names to tensors: the averaged weights with `use_ema`."""
    if use_ema and content.get("averaged") is not True:  # whose weights are averaged ones
        for key in AVERAGED_KEYS:
            if isinstance(content.get(key), dict):
                return content[key]  # type: ignore[no-any-return]
        averaged_file = path.with_stem(f"{path.stem}-ema")  # a run writes model-ema.pkl beside model.pkl
        remedy = f"{averaged_file} does" if averaged_file.exists() else "checkpoints of a run with `model_ema` do"
        raise UserError(f"{path} holds no averaged weights; {remedy}. Without `use_ema` the file is used as it is")
    return next((content[key] for key in STATE_DICT_KEYS if isinstance(content.get(key), dict)), content)


def _from_original_names(state_dict: dict[str, Tensor], path: Path, architecture: Any) -> Weights:
    model_size = infer_model_size(state_dict)
    assert model_size is not None
    if architecture is not None:
        architecture = check_metadata(path, ArchitectureRecord, architecture, "architecture")
    return Weights(
        path,
        state_dict,
        model_size,
        n_class=state_dict["classifier.0.weight"].shape[0],
        architecture=architecture or infer_architecture(state_dict),
        origin="original" if is_original(state_dict) else "shufflenetv2",
    )


def _mmpretrain_classes(meta: Any, n_class: int) -> list[str] | None:
    """Return the class names from where mmpretrain ('dataset_meta') or mmclassification ('CLASSES') saves them."""
    if not isinstance(meta, dict):
        return None
    meta = plain_items(meta)
    dataset_meta = meta.get("dataset_meta")
    names = plain_items(dataset_meta).get("classes") if isinstance(dataset_meta, dict) else meta.get("CLASSES")
    if isinstance(names, list | tuple) and len(names) == n_class and all(isinstance(name, str) for name in names):
        return list(names)
    return None


def _refusal(path: Path, entries: Mapping[str, Any]) -> str:
    refusal = f"{path} holds no weights of a ShuffleNetV2 classifier of this trainer, the original, torchvision or mmpretrain"
    if not entries:
        return f"{refusal}: it is empty"
    name, entry = next(iter(entries.items()))
    shape = f" of shape {tuple(entry.shape)}" if hasattr(entry, "shape") else ""
    return f"{refusal}: its first of {len(entries)} entries is {name!r}{shape}"
