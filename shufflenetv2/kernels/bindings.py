"""Load the compiled libraries and call them through bindings that are derived from their C headers.

Installing the package compiles the libraries where a C compiler exists. A header (`pixels.h`, `training.h`) declares every
function that Python calls; its prototypes are parsed here, so a binding cannot disagree with the C code. A library that was
compiled with an earlier version of its header is not used.
"""

import ctypes
import logging
import re
import sysconfig
import zlib
from pathlib import Path

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
C_TYPES: dict[str, type] = {
    "int": ctypes.c_int,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "size_t": ctypes.c_size_t,
    "ptrdiff_t": ctypes.c_ssize_t,
}
PROTOTYPE = re.compile(r"^(\w+) (\w+)\(([^()]*)\);", re.MULTILINE)

logger = logging.getLogger(__name__)


def header_checksum(header: str) -> int:
    """Return the checksum that setup.py compiles into a library, to recognize the header the library was built with."""
    return zlib.crc32(header.encode()) & 0x7FFFFFFF


def parse_prototypes(header: str) -> dict[str, tuple[type, list[type]]]:
    """Return the ctypes result type and argument types of each function that a C header declares.

    Args:
        header: text with one prototype per statement, each beginning at the start of a line. Argument types are pointers
            and the keys of C_TYPES.

    Raises:
        KeyError: for a type that is not in C_TYPES.
    """
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    return {
        name: (C_TYPES[result], [_ctype(argument) for argument in arguments.split(",") if argument.strip() != "void"])
        for result, name, arguments in PROTOTYPE.findall(code)
    }


def _ctype(declaration: str) -> type:
    """Return the type of an argument declaration, as "const float *x" or "int height"."""
    if "*" in declaration:
        return ctypes.c_void_p
    return C_TYPES[declaration.replace("const ", "").split()[0]]


def load_library(library: Path, header: Path, consequence: str) -> ctypes.CDLL | None:
    """Load a compiled library; calls into it release the interpreter lock.

    Args:
        library: path without SUFFIX.
        header: declares the functions.
        consequence: what is slower without the library; the log says so if the library is missing or outdated.

    Returns:
        The library, its functions typed as in the header; None if the library is missing, was built with another version of
        the header, or if this processor lacks instructions that it needs.
    """
    text = header.read_text()
    try:
        functions = ctypes.CDLL(f"{library}{SUFFIX}")
        if functions.header_checksum() != header_checksum(text):
            raise OSError("built with another version of the header")
    except (OSError, AttributeError):
        logger.warning("%s: compile it with `pip install -e .`, which needs a C compiler", consequence)
        return None
    if not functions.is_supported():
        return None
    for name, (result_type, argument_types) in parse_prototypes(text).items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result_type, argument_types
    return functions
