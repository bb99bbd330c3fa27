"""Compile the C libraries of shufflenetv2.kernels, which pyproject.toml cannot declare.

Without a C compiler the package installs without them: plain PyTorch and OpenCV compute the same, slower.
"""

import zlib
from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("shufflenetv2/kernels")
FLAGS = ["-O3", "-fwrapv", "-fno-math-errno", "-fno-trapping-math"]


def library(name: str, sources: list[str], flags: list[str], link_flags: list[str] | None = None) -> Extension:
    """Describe the library `_NAME`, whose functions NAME.h declares."""
    # bindings.py uses a library only with the header that the library was compiled with.
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
        # Without contraction to fused multiply-adds: sample positions are OpenCV's to the last bit.
        library("pixels", ["jpeg.c", "jpeg_headers.c", "crop_resize.c", "jitter.c"], ["-ffp-contract=off"]),
        # OpenMP: the library that torch has loaded, and its threads.
        library("training", ["batch_norm.c", "depthwise.c"], ["-fopenmp"], ["-fopenmp"]),
    ]
)
