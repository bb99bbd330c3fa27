"""Compile the C libraries of shufflenetv2.kernels, which pyproject.toml cannot declare.

Without a C compiler the package is installed without these libraries: plain PyTorch and OpenCV compute the same, slower.
"""

import zlib
from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("shufflenetv2/kernels")
FLAGS = ["-O3", "-fwrapv", "-fno-math-errno", "-fno-trapping-math"]


def library(name: str, sources: list[str], flags: list[str], link_flags: list[str] | None = None) -> Extension:
    """Return the extension module `_NAME` with the functions that NAME.h declares."""
    # bindings.py compares this checksum with the header's, and uses a library only with the header it was compiled with.
    checksum = zlib.crc32((KERNELS / f"{name}.h").read_text().encode()) & 0x7FFFFFFF
    return Extension(
        f"shufflenetv2.kernels._{name}",
        [str(KERNELS / source) for source in sources],
        depends=sorted(map(str, KERNELS.glob("*.h"))),
        define_macros=[("HEADER_CHECKSUM", str(checksum))],
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=link_flags or [],
        optional=True,
    )


setup(
    ext_modules=[
        # No contraction to fused multiply-adds, so that sample positions equal OpenCV's to the last bit
        library("pixels", ["jpeg.c", "jpeg_headers.c", "jpeg_verify.c", "crop_resize.c", "jitter.c"], ["-ffp-contract=off"]),
        # OpenMP: at run time the functions use the OpenMP library that torch has loaded, and its threads
        library("training", ["batch_norm.c", "depthwise.c"], ["-fopenmp"], ["-fopenmp"]),
    ]
)
