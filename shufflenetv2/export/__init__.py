"""Exported files: formats that other runtimes execute.

The package can be called: `shufflenetv2.export` is also the public function `formats.export`.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that is called like its main function, since both are public under the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> bytes:
        from .formats import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
