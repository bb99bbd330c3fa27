"""A faster training step for the units of a network, by fewer passes over memory than torch's operations need.

`accelerate` replaces the forward pass of a network's units from outside, by changing the class of the modules: FusedBlock for
ShuffleV2Block, FusedBranch for a sequence of layers. Both call the plain forward pass whenever they do not support the
call, for example in evaluation. Two operations are faster:

1. Channel shuffle and concatenation, in every memory layout and on every device: their backward passes write each gradient
   once. torch's backward pass fills two tensors with zeros and adds them, and its convolutions are slow on gradients that are
   slices of a larger tensor.
2. The FUSED_FORMS of layers, in the channels-last layout on a CPU: compiled code (`batch_norm.c`, `depthwise.c`) computes them;
   see autograd.py.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from ..blocks import ShuffleV2Block
from . import autograd

# The sequences of layers that the compiled code can compute
FUSED_FORMS = (
    ("convolution", "norm", "relu"),
    ("pointwise", "norm", "relu"),
    ("depthwise", "norm", "pointwise", "norm", "relu"),
    ("pointwise", "norm", "relu", "depthwise", "norm", "pointwise", "norm", "relu"),
)


def accelerate(network: nn.Module) -> None:
    """Make a network's units use the faster training step, in place.

    Weights, state-dict names, hooks and deep copies remain as they are, and so does every call that is not a training step.
    """
    for module in network.modules():
        if type(module) is ShuffleV2Block:
            module.__class__ = FusedBlock
        elif type(module) is nn.Sequential and tuple(map(_kind, module)) in FUSED_FORMS:
            module.__class__ = FusedBranch
            module.fused_layers = tuple(module)  # type: ignore[assignment]


def _kind(layer: nn.Module) -> str:
    """Return the name of a layer in FUSED_FORMS, or "" if the compiled code does not support the layer."""
    if type(layer) is nn.ReLU:
        return "relu"
    if type(layer) is nn.BatchNorm2d:
        return "norm" if layer.affine and layer.track_running_stats else ""
    if type(layer) is not nn.Conv2d or layer.bias is not None:
        return ""
    if layer.groups == 1:
        is_pointwise = (layer.kernel_size, layer.stride, layer.padding) == ((1, 1), (1, 1), (0, 0))
        return "pointwise" if is_pointwise else "convolution"
    is_3x3 = (layer.kernel_size, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1))
    is_depthwise = layer.groups == layer.in_channels == layer.out_channels
    return "depthwise" if is_3x3 and is_depthwise and layer.stride[0] == layer.stride[1] else ""


class FusedBranch(nn.Sequential):
    """A sequence of layers in one of the FUSED_FORMS: a branch of a unit, the stem, or the last convolution."""

    fused_layers: tuple[nn.Module, ...] = ()  # the layers that `accelerate` checked; replaced layers are not fused

    def forward(self, x: Tensor) -> Tensor:
        if self.can_fuse(x):
            return self.fused_forward(x, None)
        output: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return output

    def can_fuse(self, x: Tensor) -> bool:
        """Return whether this call is a training step that the compiled code supports."""
        if not self.training or not _is_eager_step(x) or x.device.type != "cpu" or x.dtype != torch.float32:
            return False
        if torch.is_autocast_enabled("cpu") or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return False
        images, _, height, width = x.shape
        # With stride 2 a single value per channel could remain, for which torch's batch norm raises an error.
        if images * ((height + 1) // 2) * ((width + 1) // 2) < 2:
            return False
        return (
            tuple(self) == self.fused_layers and all(map(_trains_plainly, self.fused_layers)) and autograd.library() is not None
        )

    def fused_forward(self, x: Tensor, left: Tensor | None) -> Tensor:
        """Compute the layers, and concatenate `left` (if given) and their output along the channels.

        Shape:
            x (N, C, H, W), left (N, L, H', W') -> (N, L + D, H', W')
        """
        layers: list[Any] = [layer for layer in self if not isinstance(layer, nn.ReLU)]
        first_norm: Any = None
        if len(layers) != 4:  # in all forms but depthwise, norm, pointwise, norm: begin with convolution, norm and ReLU
            convolution, first_norm = layers[:2]
            is_pointwise = _kind(convolution) == "pointwise"
            x = autograd.Pointwise.apply(x, convolution.weight) if is_pointwise else convolution(x)
        if len(layers) == 2:
            output: Tensor = autograd.NormReLU.apply(first_norm, x, left, first_norm.weight, first_norm.bias)
            return output
        depthwise, second_norm, pointwise, third_norm = layers[-4:]
        norms = (first_norm, second_norm, third_norm)
        parameters = [parameter for norm in norms for parameter in ((norm.weight, norm.bias) if norm else (None, None))]
        output = autograd.DepthwiseBranch.apply(
            norms, depthwise.stride[0], x, left, depthwise.weight, pointwise.weight, *parameters
        )
        return output

    def __prepare_scriptable__(self) -> nn.Sequential:
        """Return the plain layers, which torch.jit.script compiles."""
        return nn.Sequential(*self).train(self.training)


class FusedBlock(ShuffleV2Block):
    """A ShuffleV2Block whose branches, channel shuffle and concatenation are faster in training."""

    def forward(self, x: Tensor) -> Tensor:
        if not _is_eager_step(x):
            return super().forward(x)
        left, right = _split(x) if self.branch_proj is None else (self.branch_proj(x), x)
        main = self.branch_main
        if self.drop is None and isinstance(main, FusedBranch) and not _has_hooks(main) and main.can_fuse(right):
            return main.fused_forward(right, left)
        right = main(right)
        if self.drop is not None:
            right = self.drop(right)
        return _join(left, right)

    def __prepare_scriptable__(self) -> ShuffleV2Block:
        """Return the plain unit, which torch.jit.script compiles, and which then takes this unit's place in the network."""
        plain: ShuffleV2Block = copy.copy(self)
        plain.__class__ = ShuffleV2Block
        return plain


def _is_eager_step(x: Tensor) -> bool:
    """Return whether operations on x run eagerly with gradients: not traced, compiled, exported or under no_grad."""
    if type(x) is not Tensor or not torch.is_grad_enabled():
        return False
    return not (is_tracing() or torch.compiler.is_compiling())  # type: ignore[no-untyped-call]


def _trains_plainly(layer: nn.Module) -> bool:
    """Return whether a layer has no hooks and, if it is a batch norm, normalizes by batch statistics and has a momentum."""
    if _has_hooks(layer):
        return False
    return not isinstance(layer, nn.BatchNorm2d) or (layer.training and layer.momentum is not None)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the even channels and the odd channels: channel shuffle, then split."""
    if not x.requires_grad:
        return x[:, 0::2], x[:, 1::2]
    left, right = autograd.Split.apply(x)
    return left, right


def _join(left: Tensor, right: Tensor) -> Tensor:
    """Concatenate the channels of both tensors."""
    if not right.requires_grad:
        return torch.cat((left, right), dim=1)
    output: Tensor = autograd.Join.apply(left, right)
    return output
