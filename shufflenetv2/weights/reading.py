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

# Keys under which trainers save a state dict; the first one that is present is read.
STATE_DICT_KEYS = ("state_dict", "model", "model_ema")
AVERAGED_KEYS = ("state_dict_ema", "model_ema")  # of this trainer and timm, of torchvision's reference


def read_weights(path: str | Path, *, use_ema: bool = False) -> Weights:
    """Read a weight file of this trainer, the original, torchvision or mmpretrain; the content decides which one it is.

    The file is one of torch.save or a .safetensors file. Its state dict may stand under 'state_dict', 'model' or 'model_ema',
    and its names may begin with 'module.' or '_orig_mod.'. Nothing in the file is executed.

    Args:
        path: the file.
        use_ema: take the averaged weights (EMA) of a checkpoint.

    Returns:
        The weights with the original's tensor names and order of channels, and what the file states about them.

    Raises:
        UserError: if the file is missing, damaged or contains something else, or no averaged weights with `use_ema`.

    Example:
        >>> weights = read_weights("models/model.pkl")
        >>> weights.model_size, weights.n_class, weights.origin
        ('1.0x', 1000, 'shufflenetv2')
        >>> network = weights.network()
    """
    path = Path(path)
    content = read_content(path)
    state_dict = _state_dict(path, content, use_ema)
    tensors = unwrapped_names(state_dict)
    project = recognize_names(tensors)
    if project is None:
        raise UserError(_refusal(path, tensors))
    if project == "torchvision":
        weights = from_torchvision(tensors, path)
    elif project == "mmpretrain":
        weights = from_mmpretrain(tensors, path)
        weights.class_names = _mmpretrain_classes(content.get("meta"), weights.n_class)
    else:
        weights = _from_original_names(tensors, path, content.get("architecture"))
    if "model_size" in content:
        weights.origin = "shufflenetv2"
        weights.update_metadata(content)
        if use_ema:
            weights.details["averaged"] = True
        return weights
    # Metadata that `convert` added for another project's file
    for container in (content, getattr(state_dict, "_metadata", None)):
        if isinstance(container, Mapping) and isinstance(container.get(METADATA_KEY), Mapping):
            weights.update_metadata(container[METADATA_KEY])
    return weights


def load_model(path: str | Path, *, use_ema: bool = False) -> ShuffleNetV2:
    """Load the model in a weight file of any supported project (see `read_weights`), in eval mode on the CPU.

    The model normalizes its input itself, as in the training of the weights.

    Args:
        path: a file of this trainer, the original, torchvision or mmpretrain.
        use_ema: take the averaged weights (EMA) of a checkpoint.

    Returns:
        The network.

    Raises:
        UserError: if the file is missing, damaged, or contains another kind of model.

    Shape:
        images (N, C, H, W), BGR or grey, 0..255, uint8 or floating point -> logits (N, n_class)

    Example:
        >>> model = load_model("models/model.pkl")
        >>> logits = model(images)
    """
    return read_weights(path, use_ema=use_ema).network()


def _state_dict(path: Path, content: Mapping[str, Any], use_ema: bool) -> Mapping[str, Any]:
    """Return the part of a file that maps names to tensors: the averaged weights with `use_ema`."""
    if use_ema and not content.get("averaged"):  # whose weights are averaged ones
        for key in AVERAGED_KEYS:
            if isinstance(content.get(key), Mapping):
                return content[key]  # type: ignore[no-any-return]
        averaged_file = path.with_stem(f"{path.stem}-ema")  # a run writes model-ema.pkl beside model.pkl
        remedy = f"{averaged_file} does" if averaged_file.exists() else "checkpoints of a run with `model_ema` do"
        raise UserError(f"{path} holds no averaged weights; {remedy}. Without `use_ema` the file is used as it is")
    return next((content[key] for key in STATE_DICT_KEYS if isinstance(content.get(key), Mapping)), content)


def _from_original_names(state_dict: dict[str, Tensor], path: Path, architecture: dict[str, Any] | None) -> Weights:
    model_size = infer_model_size(state_dict)
    assert model_size is not None
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
    if not isinstance(meta, Mapping):
        return None
    dataset_meta = meta.get("dataset_meta")
    names = dataset_meta.get("classes") if isinstance(dataset_meta, Mapping) else meta.get("CLASSES")
    return [str(name) for name in names] if isinstance(names, list | tuple) and len(names) == n_class else None


def _refusal(path: Path, entries: Mapping[str, Any]) -> str:
    refusal = f"{path} holds no weights of a ShuffleNetV2 classifier of this trainer, the original, torchvision or mmpretrain"
    if not entries:
        return f"{refusal}: it is empty"
    name, entry = next(iter(entries.items()))
    shape = f" of shape {tuple(entry.shape)}" if hasattr(entry, "shape") else ""
    return f"{refusal}: its first of {len(entries)} entries is {name!r}{shape}"
