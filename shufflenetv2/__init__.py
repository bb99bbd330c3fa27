"""A reference trainer for ShuffleNetV2: faithful, unkillable, fast."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


class UserError(ValueError):
    """What whoever runs the program can mend. The text is one line that names the culprit and the remedy."""

    status = 2  # of the process: 2 is wrong use, 1 a failure on the way


if TYPE_CHECKING:
    from .blocks import ShuffleV2Block as ShuffleV2Block
    from .conversion import load_model as load_model
    from .conversion import read_any as read_any
    from .deploy.convert import convert as convert
    from .deploy.formats import export as export
    from .deploy.inference import open_model as open_model
    from .deploy.inference import predict as predict
    from .deploy.info import describe as describe
    from .deploy.recalibrate import recalibrate as recalibrate
    from .network import ShuffleNetV2 as ShuffleNetV2

_HOMES = {
    "ShuffleNetV2": ".network",
    "ShuffleV2Block": ".blocks",
    "load_model": ".conversion",
    "read_any": ".conversion",
    "convert": ".deploy.convert",
    "describe": ".deploy.info",
    "export": ".deploy.formats",
    "open_model": ".deploy.inference",
    "predict": ".deploy.inference",
    "recalibrate": ".deploy.recalibrate",
}
__all__ = [*_HOMES, "UserError"]


def __getattr__(name: str) -> Any:
    # On demand, so that `train.py --help` and a mistyped option do not wait for torch to load.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
