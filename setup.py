"""What pyproject.toml cannot say: the libraries in C, called through ctypes. Without a compiler all else is installed."""

from setuptools import Extension, setup

FLAGS = ["-O3", "-fwrapv", "-fno-math-errno", "-fno-trapping-math"]

setup(
    ext_modules=[
        Extension(
            "shufflenetv2.kernels._pixels",
            [f"shufflenetv2/kernels/{name}.c" for name in ("jpeg", "resize", "jitter", "cut")],
            depends=["shufflenetv2/kernels/pixels.h"],
            extra_compile_args=[*FLAGS, "-ffp-contract=off"],  # the positions of samples are OpenCV's to the last bit
            optional=True,
        ),
        # With the OpenMP that torch has already loaded, and so its threads.
        Extension(
            "shufflenetv2.kernels._branch",
            ["shufflenetv2/kernels/branch.c"],
            extra_compile_args=[*FLAGS, "-fopenmp"],
            extra_link_args=["-fopenmp"],
            optional=True,
        ),
    ]
)
