"""Exported files: ONNX, TorchScript, torch's exported programs and ExecuTorch; writing, running and predicting with them."""

import sys
from types import ModuleType
from typing import Any

from .deployment import fold_batch_norms as fold_batch_norms
from .formats import export as export
from .formats import largest_difference as largest_difference
from .metadata import ExportMetadata as ExportMetadata
from .pipeline import export_file as export_file
from .prediction import Classifier as Classifier
from .prediction import Prediction as Prediction
from .prediction import accuracy as accuracy
from .prediction import load as load
from .prediction import predict as predict
from .runtimes import Program as Program
from .runtimes import open_program as open_program


class _CallablePackage(ModuleType):
    """A package that can be called as its function `export`.

    `from shufflenetv2 import export` is part of the public interface, but imports this package, which has the same name.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> bytes:
        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
