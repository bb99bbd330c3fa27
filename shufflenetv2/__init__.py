"""A reference trainer for ShuffleNetV2: faithful, unkillable, fast."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


if TYPE_CHECKING:
    from .blocks import ShuffleV2Block as ShuffleV2Block
    from .cli.convert import convert as convert
    from .cli.info import describe as describe
    from .cli.recalibrate import recalibrate as recalibrate
    from .errors import UserError as UserError
    from .export.formats import export as export
    from .export.predict import open_model as open_model
    from .export.predict import predict as predict
    from .network import ShuffleNetV2 as ShuffleNetV2
    from .weights.convert import load_model as load_model
    from .weights.convert import read_any as read_any

_HOMES = {
    "UserError": ".errors",
    "ShuffleNetV2": ".network",
    "ShuffleV2Block": ".blocks",
    "load_model": ".weights.convert",
    "read_any": ".weights.convert",
    "convert": ".cli.convert",
    "describe": ".cli.info",
    "export": ".export.formats",
    "open_model": ".export.predict",
    "predict": ".export.predict",
    "recalibrate": ".cli.recalibrate",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    # On demand, so that `train.py --help` and a mistyped option do not wait for torch to load.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
