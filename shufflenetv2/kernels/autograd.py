"""Autograd functions of the faster training step in training.py.

`Split` and `Join`, for the channel shuffle, work in every memory layout and on every device. The other functions need float32
tensors on a CPU in the channels-last layout, and the compiled code. In that layout, torch's batch norm, ReLU and depthwise
convolution take almost as much time as the matrix products, because they are bound by memory bandwidth. The functions here read
and write the tensors less often:

- A branch is [pointwise, norm, ReLU,] depthwise, norm, pointwise, norm, ReLU. The depthwise convolution applies the first norm
  and ReLU to its input as it reads it; their output is never stored.
- The second norm has no ReLU after it: it only scales and shifts the input of the second pointwise convolution, which is a
  matrix product. The scales are multiplied into the matrix instead. The shifts would add a constant to each channel of the
  product, which the last norm would subtract again; they are omitted, and added only to the last norm's running mean. The
  gradient of the scales follows from the gradient of the matrix; the gradient of the shifts is 0.
- The last norm and its ReLU write their output directly next to the channels of the left branch, without a concatenation.

A pointwise convolution is a matrix product in this layout, and is computed as one on small feature maps.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

from .bindings import load_library

LIBRARY = Path(__file__).with_name("_training")
HEADER = Path(__file__).with_name("training.h")
MAX_PRODUCT_PIXELS = 14 * 14  # on larger feature maps torch's pointwise convolution is at least as fast as its matrix product
STATISTICS = MEAN, VARIANCE, INVERSE_STD, SCALE, SHIFT = range(5)  # rows of a (5, C) tensor, see training.h


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the functions of `training.h`; None if they are not compiled or this processor cannot run them."""
    return load_library(LIBRARY, HEADER, "Training steps on this CPU take a quarter longer in the channels-last layout")


class Split(torch.autograd.Function):
    """Split into even and odd channels, with a backward pass that writes each gradient once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.layout = _layout(x)
        n, channels, height, width = x.shape
        right = torch.empty((n, channels // 2, height, width), dtype=x.dtype, device=x.device, memory_format=ctx.layout)
        gather(x[:, 1::2], right)
        return x[:, 0::2], right

    @staticmethod
    def backward(ctx: Any, left_grad: Tensor, right_grad: Tensor) -> Tensor:
        n, half, height, width = right_grad.shape
        shape = (n, 2 * half, height, width)
        x_grad = torch.empty(shape, dtype=right_grad.dtype, device=right_grad.device, memory_format=ctx.layout)
        interleave(left_grad, right_grad, x_grad)
        return x_grad


class Join(torch.autograd.Function):
    """Concatenate channels; the gradients are contiguous where the inputs were, not slices of a larger tensor."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.left_channels, ctx.layout = left.shape[1], _layout(right)
        ctx.left_is_contiguous = left.is_contiguous(memory_format=ctx.layout)
        return torch.cat((left, right), dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        left_grad, right_grad = gradient[:, : ctx.left_channels], gradient[:, ctx.left_channels :]
        if ctx.left_is_contiguous:
            left_grad = left_grad.contiguous(memory_format=ctx.layout)
        return left_grad, right_grad.contiguous(memory_format=ctx.layout)


def _layout(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


class Pointwise(torch.autograd.Function):
    """A convolution with a 1 x 1 kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight.flatten(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        weight_grad = torch.empty_like(weight)
        torch.mm(_matrix(gradient).t(), _matrix(x), out=weight_grad.view(len(weight), -1))
        return _product(gradient, weight.flatten(1).t()) if ctx.needs_input_grad[0] else None, weight_grad


class NormReLU(torch.autograd.Function):
    """Batch norm with batch statistics, then ReLU; the output is concatenated with `left`."""

    @staticmethod
    def forward(ctx: Any, norm: nn.BatchNorm2d, x: Tensor, left: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        output, statistics = _norm_relu(x, left, norm)
        _update_running_stats(norm, statistics, _pixels(x))
        ctx.save_for_backward(x, statistics)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics = ctx.saved_tensors
        return None, *_norm_relu_backward(gradient, x, statistics, ctx.needs_input_grad[2])


class DepthwiseBranch(torch.autograd.Function):
    """[Norm, ReLU,] depthwise, norm, pointwise, norm, ReLU; the output is concatenated with `left`."""

    @staticmethod
    def forward(
        ctx: Any,
        norms: Sequence[Any],  # the first one is None if the branch begins with the depthwise convolution
        stride: int,
        x: Tensor,
        left: Tensor | None,
        taps: Tensor,
        pointwise: Tensor,
        *norm_parameters: Tensor | None,  # weight and bias of each norm, passed so that autograd asks for their gradients
    ) -> Tensor:
        first_norm, second_norm, third_norm = norms
        images, channels, height, width = x.shape
        statistics_1 = None
        if first_norm is not None:
            statistics_1 = x.new_empty(len(STATISTICS), channels)
            norm_1 = (first_norm.weight, first_norm.bias, first_norm.eps)
            _call("norm_forward", x, _pixels(x), channels, *norm_1, statistics_1, None, 0)
            _update_running_stats(first_norm, statistics_1, _pixels(x))
        taps = taps.view(channels, 9).t().contiguous()
        z = _empty(x, channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
        statistics_2 = x.new_empty(len(STATISTICS), channels)
        norm_2 = (second_norm.weight, second_norm.bias, second_norm.eps)
        shape = (images, height, width, channels, stride)
        _call("depthwise_forward", x, *shape, statistics_1, taps, z, *norm_2, statistics_2)
        _update_running_stats(second_norm, statistics_2, _pixels(z))
        matrix = pointwise.flatten(1)
        scaled = matrix * statistics_2[SCALE]
        product = _product(z, scaled)
        output, statistics_3 = _norm_relu(product, left, third_norm)
        _update_running_stats(third_norm, statistics_3, _pixels(z), omitted_shift=matrix @ statistics_2[SHIFT])
        ctx.save_for_backward(x, statistics_1, taps, z, statistics_2, pointwise, scaled, product, statistics_3)
        ctx.stride = stride
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics_1, taps, z, statistics_2, pointwise, scaled, product, statistics_3 = ctx.saved_tensors
        images, channels, height, width = x.shape
        gradient, left_grad, weight_3_grad, bias_3_grad = _norm_relu_backward(
            gradient, product, statistics_3, ctx.needs_input_grad[3]
        )
        scaled_grad = torch.mm(_matrix(gradient).t(), _matrix(z))
        pointwise_grad = torch.empty_like(pointwise)
        torch.mul(scaled_grad, statistics_2[SCALE], out=pointwise_grad.view(len(pointwise), -1))
        # The gradient of the last norm's input sums to 0 per channel over the batch, because batch norm subtracts means, and so
        # does the gradient of the second norm's output. Its shifts therefore have gradient 0, and the mean of z drops out here.
        weight_2_grad = (scaled_grad * pointwise.flatten(1)).sum(0) * statistics_2[INVERSE_STD]
        slope = weight_2_grad * statistics_2[SCALE] * statistics_2[INVERSE_STD] / _pixels(z)
        z_grad = _product(gradient, scaled.t())  # depthwise_backward subtracts slope * (z - mean)
        x_grad, taps_grad, norm_1_grad = torch.empty_like(x), torch.empty_like(taps), x.new_empty(2, channels)
        inputs = (z_grad, z, statistics_2[MEAN], slope, x, images, height, width, channels, ctx.stride, statistics_1, taps)
        _call("depthwise_backward", *inputs, x_grad, taps_grad, norm_1_grad[0], norm_1_grad[1])
        norm_grads = (
            *(norm_1_grad if statistics_1 is not None else (None, None)),
            *(weight_2_grad, torch.zeros_like(weight_2_grad)),
            *(weight_3_grad, bias_3_grad),
        )
        depthwise_grad = taps_grad.t().reshape(channels, 1, 3, 3)
        return None, None, x_grad, left_grad, depthwise_grad, pointwise_grad, *norm_grads


def _norm_relu(x: Tensor, left: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return `left` concatenated with ReLU(norm(x)), and the (5, C) statistics."""
    channels, left_channels = x.shape[1], 0 if left is None else left.shape[1]
    output, statistics = _empty(x, left_channels + channels, *x.shape[2:]), x.new_empty(len(STATISTICS), channels)
    if left is not None:
        gather(left, output[:, :left_channels])
    y, y_stride = output[:, left_channels:], left_channels + channels
    _call("norm_forward", x, _pixels(x), channels, norm.weight, norm.bias, norm.eps, statistics, y, y_stride)
    return output, statistics


def _norm_relu_backward(
    gradient: Tensor, x: Tensor, statistics: Tensor, left_needs_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return the gradients of x, left, weight and bias."""
    channels, left_channels = x.shape[1], gradient.shape[1] - x.shape[1]
    stride = gradient.stride(3)
    if not _has_strides(gradient, stride, 1):
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        stride = left_channels + channels
    x_grad, norm_grad = torch.empty_like(x), x.new_empty(2, channels)
    y_grad = gradient[:, left_channels:]
    _call("norm_backward", y_grad, stride, x, _pixels(x), channels, statistics, x_grad, norm_grad[0], norm_grad[1])
    return x_grad, gradient[:, :left_channels] if left_needs_grad else None, norm_grad[0], norm_grad[1]


def gather(source: Tensor, target: Tensor) -> None:
    """Copy `source`, every second channel of a tensor, to `target`, all or some adjoining channels of another tensor."""
    channels = source.shape[1]
    if _has_strides(source, 2 * channels, 2) and _has_strides(target, target.stride(3), 1) and _is_compiled_for(source):
        _call("gather", source, _pixels(source), channels, target, target.stride(3))
    else:
        target.copy_(source)


def interleave(even: Tensor, odd: Tensor, target: Tensor) -> None:
    """Copy the channels of both tensors to `target` alternately."""
    channels = odd.shape[1]
    are_packed = _has_strides(even, even.stride(3), 1) and _has_strides(odd, channels, 1)
    if are_packed and _has_strides(target, 2 * channels, 1) and _is_compiled_for(target):
        _call("interleave", even, even.stride(3), odd, _pixels(odd), channels, target)
    else:
        target[:, 0::2] = even
        target[:, 1::2] = odd


def _has_strides(x: Tensor, pixel: int, channel: int) -> bool:
    """Return whether x is in channels-last order, with the given distances between pixels and between channels, in elements."""
    return x.stride() == (x.shape[2] * x.shape[3] * pixel, channel, x.shape[3] * pixel, pixel)


def _is_compiled_for(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and library() is not None


def _update_running_stats(norm: nn.BatchNorm2d, statistics: Tensor, pixels: int, omitted_shift: Tensor | None = None) -> None:
    """Update the running statistics of a norm.

    Args:
        statistics: (5, C) tensor of the batch.
        pixels: number of values per channel in the batch.
        omitted_shift: (C,) shift of the norm's input that was left out of the computation; added to the mean.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    mean = statistics[MEAN] if omitted_shift is None else statistics[MEAN] + omitted_shift
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(statistics[VARIANCE] * (pixels / (pixels - 1)), norm.momentum)
    norm.num_batches_tracked.add_(1)


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the channels of every pixel by a matrix: (N, C, H, W) and (D, C) -> (N, D, H, W)."""
    if x.shape[2] * x.shape[3] > MAX_PRODUCT_PIXELS:
        return conv2d(x, matrix[:, :, None, None])
    output = _empty(x, len(matrix), *x.shape[2:])
    torch.mm(_matrix(x), matrix.t(), out=_matrix(output))
    return output


def _matrix(x: Tensor) -> Tensor:
    """Return a channels-last tensor (N, C, H, W) as a matrix (N H W, C) that shares its memory."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _empty(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Return an uninitialized channels-last tensor (N, channels, height, width), with the N, dtype and device of x."""
    return x.new_empty(x.shape[0], height, width, channels).permute(0, 3, 1, 2)


def _pixels(x: Tensor) -> int:
    """Return N * H * W, the number of values per channel."""
    return x.shape[0] * x.shape[2] * x.shape[3]


def _call(name: str, *arguments: Tensor | float | None) -> None:
    """Call a function of training.h with this process's number of threads; tensors are float32, None is a NULL pointer."""
    pointers = (argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments)
    if getattr(library(), name)(*pointers, torch.get_num_threads()):
        raise MemoryError(f"{name} could not allocate memory")
