"""The training of a unit's branches on a processor, tensors channels-last.

Batch norm, ReLU and the depthwise convolution hardly compute, yet they take almost as much of a
step as the products of matrices: they are bound by memory. `branch.c` (compiled where the package
is installed with a compiler) passes over the tensors less often than torch's operations do:

- A branch is [pointwise, norm, ReLU,] depthwise, norm, pointwise, norm, ReLU. The first norm and
  ReLU are applied by the depthwise convolution to what it reads; their result is never stored.
- The norm after it, which has no ReLU, scales and shifts what a product of matrices is taken of.
  The scales are multiplied into the matrix instead. The shifts add a constant to each channel of
  the product, which the last norm subtracts again: they are left out, and enter only its running
  mean. The gradient of the scales follows from that of the matrix; that of the shifts is 0.
- The last norm and its ReLU write next to the channels that passed by the branch.

A pointwise convolution is a product of matrices in this layout, and computed as one. The copies
of the channel shuffle are here too: torch's take one channel at a time.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.nn.functional import conv2d

from .bindings import load_library

LIBRARY = Path(__file__).with_name("_training")
HEADER = Path(__file__).with_name("training.h")
LARGEST_MAP = 14 * 14  # pixels; on larger maps torch's convolution is as fast as its product of matrices, or faster
STATISTICS = MEAN, VARIANCE, INVERSE, SCALE, SHIFT = range(5)  # rows of a (5, C) tensor, as in branch.c


@functools.cache
def library() -> ctypes.CDLL | None:
    """What `branch.c` was compiled to; None where it was not, or where the processor cannot run it."""
    return load_library(LIBRARY, HEADER, "Steps with --channels-last take a quarter longer")


def is_fast(branch: nn.Sequential, x: Tensor) -> bool:
    """Whether this is a step of training that branch.c can do: float32, on a processor, channels-last, with gradients."""
    if not (branch.training and torch.is_grad_enabled()) or is_tracing() or torch.compiler.is_compiling():  # type: ignore[no-untyped-call]
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if x[:, 0, ::2, ::2].numel() < 2:  # a batch norm would have one value per channel, which torch refuses
        return False
    return "".join(map(_letter, branch)) in ("cnr", "pnr", "dnpnr", "pnrdnpnr") and library() is not None


def _letter(module: nn.Module) -> str:
    """(c)onvolution, (p)ointwise, (d)epthwise, (n)orm, (r)elu as the network has them; ? is all else, and what is watched."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "?"
    if type(module) is nn.ReLU:
        return "r"
    if type(module) is nn.BatchNorm2d:
        counts = module.training and module.affine and module.track_running_stats and module.momentum is not None
        return "n" if counts else "?"
    if type(module) is not nn.Conv2d or module.bias is not None:
        return "?"
    if module.groups == 1:
        return "p" if (module.kernel_size, module.stride, module.padding) == ((1, 1), (1, 1), (0, 0)) else "c"
    surrounds = (module.kernel_size, module.padding, module.dilation) == ((3, 3), (1, 1), (1, 1))
    square = module.stride[0] == module.stride[1]
    return "d" if surrounds and square and module.groups == module.in_channels == module.out_channels else "?"


def forward(branch: nn.Sequential, x: Tensor, passing: Tensor | None) -> Tensor:
    """What the branch makes of x, after the channels that pass by it, if any; where `is_fast`."""
    layers: list[Any] = [module for module in branch if not isinstance(module, nn.ReLU)]
    first = None
    if len(layers) != 4:  # all but (depthwise, norm, pointwise, norm)
        convolution, first = layers[:2]
        x = _Pointwise.apply(x, convolution.weight) if convolution.kernel_size == (1, 1) else convolution(x)
        if len(layers) == 2:
            made: Tensor = _NormReLU.apply(x, passing, first.weight, first.bias, first)
            return made
    depthwise, second, pointwise, third = layers[-4:]
    made = _Depthwise.apply(
        x, passing, *_affine(first), depthwise.weight, *_affine(second), pointwise.weight, *_affine(third),
        first, second, third, depthwise.stride[0],
    )  # fmt: skip
    return made


def _affine(norm: nn.BatchNorm2d | None) -> tuple[Tensor | None, Tensor | None]:
    return (norm.weight, norm.bias) if norm is not None else (None, None)


class _Pointwise(torch.autograd.Function):
    """A convolution with 1 x 1 weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight.flatten(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_weight = torch.empty_like(weight)
        torch.mm(_matrix(gradient).t(), _matrix(x), out=of_weight.view(len(weight), -1))
        return _product(gradient, weight.flatten(1).t()) if ctx.needs_input_grad[0] else None, of_weight


class _NormReLU(torch.autograd.Function):
    """Batch norm with the batch's statistics, and ReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passing: Tensor | None, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        made, statistics = _normalized(x, passing, weight, bias, norm)
        _update(norm, statistics, _pixels(x))
        ctx.save_for_backward(x, statistics)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics = ctx.saved_tensors
        return *_normalized_backward(gradient, x, statistics, ctx.needs_input_grad[1]), None


class _Depthwise(torch.autograd.Function):
    """[Norm, ReLU,] depthwise, norm, pointwise, norm, ReLU."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, passing: Tensor | None, weight_1: Tensor | None, bias_1: Tensor | None, taps: Tensor,
        weight_2: Tensor, bias_2: Tensor, pointwise: Tensor, weight_3: Tensor, bias_3: Tensor,
        norm_1: nn.BatchNorm2d | None, norm_2: nn.BatchNorm2d, norm_3: nn.BatchNorm2d, stride: int,
    ) -> Tensor:  # fmt: skip
        images, channels, height, width = x.shape
        statistics_1 = None
        if norm_1 is not None:
            statistics_1 = x.new_empty(len(STATISTICS), channels)
            _call("norm_forward", x, _pixels(x), channels, weight_1, bias_1, norm_1.eps, statistics_1, None, 0)
            _update(norm_1, statistics_1, _pixels(x))
        taps = taps.view(channels, 9).t().contiguous()
        z = _empty(x, channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
        statistics_2 = x.new_empty(len(STATISTICS), channels)
        _call(
            "depthwise_forward", x, images, height, width, channels, stride, statistics_1, taps, z,
            weight_2, bias_2, norm_2.eps, statistics_2,
        )  # fmt: skip
        _update(norm_2, statistics_2, _pixels(z))
        matrix = pointwise.flatten(1)
        scaled = matrix * statistics_2[SCALE]
        product = _product(z, scaled)
        made, statistics_3 = _normalized(product, passing, weight_3, bias_3, norm_3)
        _update(norm_3, statistics_3, _pixels(z), left_out=matrix @ statistics_2[SHIFT])
        ctx.save_for_backward(x, statistics_1, taps, z, statistics_2, pointwise, scaled, product, statistics_3)
        ctx.stride = stride
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics_1, taps, z, statistics_2, pointwise, scaled, product, statistics_3 = ctx.saved_tensors
        images, channels, height, width = x.shape
        gradient, of_passing, of_weight_3, of_bias_3 = _normalized_backward(
            gradient, product, statistics_3, ctx.needs_input_grad[1]
        )
        of_scaled = torch.mm(_matrix(gradient).t(), _matrix(z))
        of_pointwise = torch.empty_like(pointwise)
        torch.mul(of_scaled, statistics_2[SCALE], out=of_pointwise.view(len(pointwise), -1))
        # Over the batch the gradient adds up to 0 per channel, since batch norm subtracts means: so do the products with it.
        of_weight_2 = (of_scaled * pointwise.flatten(1)).sum(0) * statistics_2[INVERSE]
        slope = of_weight_2 * statistics_2[SCALE] * statistics_2[INVERSE] / _pixels(z)
        of_z = _product(gradient, scaled.t())  # but for slope (z - mean), which depthwise_backward subtracts
        of_x, of_taps = torch.empty_like(x), torch.empty_like(taps)
        of_norm_1 = x.new_empty(2, channels)
        _call(
            "depthwise_backward", of_z, z, statistics_2[MEAN], slope, x, images, height, width, channels, ctx.stride,
            statistics_1, taps, of_x, of_taps, of_norm_1[0], of_norm_1[1],
        )  # fmt: skip
        of_weight_1, of_bias_1 = of_norm_1 if statistics_1 is not None else (None, None)
        of_depthwise = of_taps.t().reshape(channels, 1, 3, 3)
        of_bias_2 = torch.zeros_like(of_weight_2)
        return (
            of_x, of_passing, of_weight_1, of_bias_1, of_depthwise, of_weight_2, of_bias_2,
            of_pointwise, of_weight_3, of_bias_3, None, None, None, None,
        )  # fmt: skip


def _normalized(x: Tensor, passing: Tensor | None, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """ReLU(norm(x)), written after what passes, and the (5, C) statistics."""
    channels, before = x.shape[1], 0 if passing is None else passing.shape[1]
    joined, statistics = _empty(x, before + channels, *x.shape[2:]), x.new_empty(len(STATISTICS), channels)
    if passing is not None:
        gather(passing, joined[:, :before])
    made = joined[:, before:]
    _call("norm_forward", x, _pixels(x), channels, weight, bias, norm.eps, statistics, made, before + channels)
    return joined, statistics


def _normalized_backward(
    gradient: Tensor, x: Tensor, statistics: Tensor, passes: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of x, what passes, weight and bias."""
    channels, before = x.shape[1], gradient.shape[1] - x.shape[1]
    stride = gradient.stride(3)
    if not _is_strided(gradient, stride, 1):
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        stride = before + channels
    of_x, of_norm = torch.empty_like(x), x.new_empty(2, channels)
    of_made = gradient[:, before:]
    _call("norm_backward", of_made, stride, x, _pixels(x), channels, statistics, of_x, of_norm[0], of_norm[1])
    return of_x, gradient[:, :before] if passes else None, of_norm[0], of_norm[1]


def _is_strided(x: Tensor, pixel: int, channel: int) -> bool:
    """Whether pixels and channels lie that many floats apart: some or all channels of a tensor that is channels-last."""
    return x.stride() == (x.shape[2] * x.shape[3] * pixel, channel, x.shape[3] * pixel, pixel)


def gather(x: Tensor, to: Tensor) -> None:
    """Copies every second channel of a tensor, x, to some or all channels of another."""
    channels = x.shape[1]
    if _is_strided(x, 2 * channels, 2) and _is_strided(to, to.stride(3), 1) and _is_compiled(x):
        _call("gather", x, _pixels(x), channels, to, to.stride(3))
    else:
        to.copy_(x)


def interleave(even: Tensor, odd: Tensor, to: Tensor) -> None:
    """Copies both to a tensor of twice as many channels, in turn."""
    channels = odd.shape[1]
    parts = _is_strided(even, even.stride(3), 1) and _is_strided(odd, channels, 1)
    if parts and _is_strided(to, 2 * channels, 1) and _is_compiled(to):
        _call("interleave", even, even.stride(3), odd, _pixels(odd), channels, to)
    else:
        to[:, 0::2] = even
        to[:, 1::2] = odd


def _is_compiled(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and library() is not None


def _update(norm: nn.BatchNorm2d, statistics: Tensor, pixels: int, left_out: Tensor | None = None) -> None:
    """The running statistics; `left_out` was not added to what was normalised."""
    mean = statistics[MEAN] if left_out is None else statistics[MEAN] + left_out
    norm.running_mean.lerp_(mean, norm.momentum)  # type: ignore[union-attr, arg-type]
    norm.running_var.lerp_(statistics[VARIANCE] * (pixels / (pixels - 1)), norm.momentum)  # type: ignore[union-attr, arg-type]
    norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """(N, C, H, W) and (D, C) -> (N, D, H, W)"""
    if x.shape[2] * x.shape[3] > LARGEST_MAP:
        return conv2d(x, matrix[:, :, None, None])
    made = _empty(x, len(matrix), *x.shape[2:])
    torch.mm(_matrix(x), matrix.t(), out=_matrix(made))
    return made


def _matrix(x: Tensor) -> Tensor:
    """(N, C, H, W), channels-last -> (N H W, C), the same memory"""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _empty(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    return x.new_empty(x.shape[0], height, width, channels).permute(0, 3, 1, 2)


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _call(name: str, *arguments: Tensor | float | None) -> None:
    """A function of branch.c, with this process's threads; tensors are float32, and None is what a function may go without."""
    pointers = (each.data_ptr() if isinstance(each, Tensor) else each for each in arguments)
    if getattr(library(), name)(*pointers, torch.get_num_threads()):
        raise MemoryError(f"{name} of branch.c found no memory")
