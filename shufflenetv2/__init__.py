"""A reference trainer for ShuffleNetV2: faithful, unkillable, fast."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


if TYPE_CHECKING:
    from .blocks import ShuffleV2Block as ShuffleV2Block
    from .cli.recalibrate import recalibrate as recalibrate
    from .errors import UserError as UserError
    from .export.formats import export as export
    from .export.prediction import open_model as open_model
    from .export.prediction import predict as predict
    from .network import ShuffleNetV2 as ShuffleNetV2
    from .weights import convert as convert
    from .weights import describe as describe
    from .weights import load_model as load_model
    from .weights import read_weights as read_weights

_HOMES = {
    "UserError": ".errors",
    "ShuffleNetV2": ".network",
    "ShuffleV2Block": ".blocks",
    "load_model": ".weights",
    "read_weights": ".weights",
    "convert": ".weights",
    "describe": ".weights",
    "export": ".export.formats",
    "open_model": ".export.prediction",
    "predict": ".export.prediction",
    "recalibrate": ".cli.recalibrate",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    # On demand, so that `train.py --help` and a mistyped option do not wait for torch to load.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
