"""Weight files: what is in one, whoever wrote it, and the network it belongs to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from . import UserError, storage
from .network import SIZES, ShuffleNetV2


class WeightsError(UserError):
    """Weights that cannot be used; the text names the file, the reason and the remedy."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input: sizes in pixels, mean and std in BGR order on 0..255, and how it is resized."""

    input_size: int = 224
    resize_size: int = 256
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    interpolation: str = "bilinear"


@dataclass
class Weights:
    """The content of a weight file. What a file of another origin does not tell is None.

    Attributes:
        architecture: what else the network is built with; see ShuffleNetV2.architecture.
    """

    path: Path
    state_dict: dict[str, Tensor]
    model_size: str
    n_class: int
    class_names: list[str] | None = None
    preprocessing: Preprocessing | None = None
    iteration: int = 0
    architecture: dict[str, Any] = field(default_factory=dict)

    def network(self, preprocessing: Preprocessing | None = None) -> ShuffleNetV2:
        """The network with these weights, in eval mode; `preprocessing` replaces the file's own.

        Raises:
            WeightsError: where a tensor is missing, superfluous or of another shape.
        """
        use = preprocessing or self.preprocessing or Preprocessing()
        network = ShuffleNetV2(use.input_size, self.n_class, self.model_size, mean=use.mean, std=use.std, **self.architecture)
        expected = network.state_dict()
        found = self.state_dict
        wrong = sorted(expected.keys() ^ found.keys())
        wrong += [name for name in expected if name in found and expected[name].shape != found[name].shape]
        # Weights saved before torch 0.4.1 do not count batches, and evaluation does not need the count.
        wrong = [name for name in wrong if not (name in expected and name.endswith("num_batches_tracked"))]
        if wrong:
            raise WeightsError(
                f"{self.path} does not fit ShuffleNetV2 {self.model_size}: "
                f"{len(wrong)} tensors are missing, unknown or of another shape, {wrong[0]} first"
            )
        network.load_state_dict(self.state_dict, strict=False)
        return network.eval()


def model_record(
    network: ShuffleNetV2, *, class_names: list[str], preprocessing: Preprocessing, iteration: int
) -> dict[str, Any]:
    """What every file of ours says of its model: the part of the content that `read_weights` understands."""
    return {
        "state_dict": network.state_dict(),
        "model_size": network.model_size,
        "class_names": class_names,
        "preprocessing": asdict(preprocessing),
        "iteration": iteration,
        "architecture": network.architecture,
    }


def read_weights(path: str | Path) -> Weights:
    """Reads the weights in a file: ours, or the original trainer's, under any name.

    The original's files are a state dict, bare or under 'state_dict', with or without 'module.'
    before the names. The size and the number of classes are read off the shapes.

    Raises:
        WeightsError: for a file that is missing, damaged, or holds something else.
    """
    path = Path(path)
    try:
        content = storage.read(path)
    except storage.DamagedFileError as error:
        raise WeightsError(str(error)) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not weights")
    state_dict = content.get("state_dict", content)
    if not isinstance(state_dict, Mapping):
        raise WeightsError(f"{path} holds no state dict")
    # Split batch norm's further statistics are for augmented images, which nobody evaluates on.
    state_dict = {
        str(name).removeprefix("module."): tensor for name, tensor in state_dict.items() if ".aux_bn." not in str(name)
    }
    model_size = size_of(state_dict)
    if model_size is None:
        raise WeightsError(f"{path} does not hold weights of a ShuffleNetV2 of this layout")
    try:
        preprocessing = Preprocessing(**content["preprocessing"]) if "preprocessing" in content else None
    except TypeError as error:
        raise WeightsError(f"{path} describes its preprocessing in a way this version does not know") from error
    return Weights(
        path=path,
        state_dict=state_dict,
        model_size=model_size,
        n_class=state_dict["classifier.0.weight"].shape[0],
        class_names=content.get("class_names"),
        preprocessing=preprocessing,
        iteration=content.get("iteration", 0),
        architecture=content.get("architecture") or architecture_of(state_dict),
    )


def size_of(state_dict: Mapping[str, Any]) -> str | None:
    """The model size whose last convolution and classifier have the shapes found, if any."""
    shapes = [tuple(getattr(state_dict.get(name), "shape", ())) for name in ("last_conv.0.weight", "classifier.0.weight")]
    for size, (stages, last) in SIZES.items():
        if shapes[0] == (last, stages[-1], 1, 1) and shapes[1][1:] in ((last,), (2 * last,)):
            return size
    return None


def architecture_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """What the shapes tell of the architecture; see ShuffleNetV2.architecture."""
    last, pooled = state_dict["last_conv.0.weight"].shape[0], state_dict["classifier.0.weight"].shape[1]
    made = {len(state_dict.get(f"features.0.{name}.weight", ())) for name in ("branch_proj.2", "branch_main.5")}
    return {
        "pooling": "catavgmax" if pooled == 2 * last else "avg",
        "layout": "torchvision" if len(made) == 1 and 0 not in made else "original",
        "head_bias": "classifier.0.bias" in state_dict,
    }


def load_model(path: str | Path) -> ShuffleNetV2:
    """The model in a weight file, in eval mode on the CPU.

    Shape:
        images (N, 3, H, W), BGR, 0..255 -> logits (N, n_class). Whatever normalisation the
        weights want, the model does itself.

    Raises:
        WeightsError: for a file that is missing, damaged, or of another kind of model.
    """
    return read_weights(path).network()
