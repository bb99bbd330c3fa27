"""A reference trainer for ShuffleNetV2: faithful, unkillable, fast."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


class UserError(ValueError):
    """What whoever runs the program can mend. The text is one line that names the culprit and the remedy."""

    status = 2  # of the process: 2 is wrong use, 1 a failure on the way


if TYPE_CHECKING:
    from .blocks import ShuffleV2Block as ShuffleV2Block
    from .network import ShuffleNetV2 as ShuffleNetV2
    from .weights import load_model as load_model

__all__ = ["ShuffleNetV2", "ShuffleV2Block", "UserError", "load_model"]
_HOMES = {"ShuffleNetV2": ".network", "ShuffleV2Block": ".blocks", "load_model": ".weights"}


def __getattr__(name: str) -> Any:
    # On demand, so that `train.py --help` and a mistyped option do not wait for torch to load.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
