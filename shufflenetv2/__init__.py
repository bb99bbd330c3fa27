"""A reference trainer for ShuffleNetV2.

Train a classifier and use it:

    >>> import shufflenetv2
    >>> result = shufflenetv2.train(train_dir="flowers", val_fraction=0.2, total_iters=2000, batch_size=64)
    >>> classifier = shufflenetv2.load(result.best)
    >>> classifier("rose.jpg").class_name

Load the network of a weight file, describe and convert it:

    >>> model = shufflenetv2.load_model("models/model.pkl")   # takes BGR images on 0..255, returns logits
    >>> shufflenetv2.describe("models/model.pkl")["accuracy"]
    >>> shufflenetv2.convert("models/model.pkl", "torchvision.pth", "torchvision")

Build a training loop of your own from the packages `shufflenetv2.data`, `shufflenetv2.recipe` and `shufflenetv2.engine`.
The same as commands: `shufflenetv2 --help`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


if TYPE_CHECKING:
    from . import data as data
    from . import engine as engine
    from . import recipe as recipe
    from .api import train as train
    from .blocks import ShuffleV2Block as ShuffleV2Block
    from .engine.recalibration import recalibrate as recalibrate
    from .errors import UserError as UserError
    from .export import export as export
    from .export import load as load
    from .export import predict as predict
    from .network import ShuffleNetV2 as ShuffleNetV2
    from .weights import Preprocessing as Preprocessing
    from .weights import Weights as Weights
    from .weights import convert as convert
    from .weights import describe as describe
    from .weights import load_model as load_model
    from .weights import pretrained_weights as pretrained_weights
    from .weights import read_weights as read_weights

PACKAGES = ("data", "engine", "export", "recipe")
# Name: module that defines it
MODULES = {
    "Preprocessing": ".weights",
    "ShuffleNetV2": ".network",
    "ShuffleV2Block": ".blocks",
    "UserError": ".errors",
    "Weights": ".weights",
    "convert": ".weights",
    "describe": ".weights",
    "load": ".export",
    "load_model": ".weights",
    "predict": ".export",
    "pretrained_weights": ".weights",
    "read_weights": ".weights",
    "recalibrate": ".engine.recalibration",
    "train": ".api",
}
FORMER_NAMES = {"open_model": "load", "read_any": "read_weights"}
__all__ = ["__version__", *PACKAGES, *MODULES]


def __getattr__(name: str) -> Any:
    # Names are imported when they are used: importing torch takes seconds, which `--help` should not wait for.
    name = FORMER_NAMES.get(name, name)
    if name in PACKAGES:
        return import_module(f".{name}", __name__)
    if name in MODULES:
        return getattr(import_module(MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
