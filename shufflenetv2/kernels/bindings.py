"""The parts that are written in C. Installing the package compiles them where there is a compiler."""

import ctypes
import logging
import sysconfig
from pathlib import Path

TYPES = {
    "p": ctypes.c_void_p,
    "b": ctypes.c_char_p,
    "n": ctypes.c_ssize_t,
    "i": ctypes.c_int,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX") or ".so"

logger = logging.getLogger(__name__)


def open_library(path: Path, arguments: dict[str, str], loss: str) -> ctypes.CDLL | None:
    """A library's functions, during which other threads may run; None where there is none that this processor can run.

    Args:
        path: of the library, without SUFFIX.
        arguments: what each function takes, a letter of TYPES for each.
        loss: what is lost where it is not compiled, which the log then says.
    """
    try:
        library = ctypes.CDLL(f"{path}{SUFFIX}")
    except OSError:
        logger.warning("%s: `pip install -e .`, with a C compiler, mends it", loss)
        return None
    if not library.is_supported():
        return None
    for name, letters in arguments.items():
        getattr(library, name).argtypes = [TYPES[letter] for letter in letters]
    return library
