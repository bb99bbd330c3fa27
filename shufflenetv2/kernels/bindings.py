"""Load the compiled libraries and call them through bindings that are derived from their C headers.

Installing the package compiles the libraries if there is a C compiler. The headers `pixels.h` and `training.h` declare every
function that Python calls. This module parses the prototypes in the headers, so that bindings always agree with the C code. A
library that was compiled with another version of its header is not used.
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
    """Return the checksum of a header, which setup.py compiles into the library to identify the header it was built with."""
    return zlib.crc32(header.encode()) & 0x7FFFFFFF


def parse_prototypes(header: str) -> dict[str, tuple[type, list[type]]]:
    """Return the ctypes result type and argument types of each function that a C header declares.

    Args:
        header: text of the header. Prototypes begin at the start of a line; argument types are pointers and keys of C_TYPES.

    Raises:
        KeyError: for a type that is not in C_TYPES.
    """
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    return {
        name: (C_TYPES[result], [_ctype(argument) for argument in arguments.split(",") if argument.strip() != "void"])
        for result, name, arguments in PROTOTYPE.findall(code)
    }


def _ctype(declaration: str) -> type:
    """Return the ctypes type of an argument declaration such as "const float *x" or "int height"."""
    if "*" in declaration:
        return ctypes.c_void_p
    return C_TYPES[declaration.replace("const ", "").split()[0]]


def load_library(library: Path, header: Path, consequence: str) -> ctypes.CDLL | None:
    """Load a compiled library; calls into it release the interpreter lock.

    Args:
        library: path without SUFFIX.
        header: path of the header that declares the functions.
        consequence: what is slower without the library; logged if the library is missing or outdated.

    Returns:
        The library, with the types of its functions set from the header. None if the library is missing, was built with another
        version of the header, or needs instructions that this processor does not have.
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
