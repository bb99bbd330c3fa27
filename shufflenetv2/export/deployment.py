"""The network in the form in which it is exported: batch norms folded, input converted, channels split without strides."""

import copy
import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..blocks import ShuffleV2Block
from ..network import ShuffleNetV2
from .metadata import ExportMetadata


def fold_batch_norms(network: ShuffleNetV2) -> ShuffleNetV2:
    """Return a copy of a network for inference in which each batch norm is part of the convolution before it."""
    network = copy.deepcopy(network).eval()
    for sequence in network.modules():
        if isinstance(sequence, nn.Sequential):
            for index, (layer, following) in enumerate(itertools.pairwise(list(sequence))):
                if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                    sequence[index], sequence[index + 1] = fuse_conv_bn_eval(layer, following), nn.Identity()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    return network


class DeployedNetwork(nn.Module):
    """A copy of a network that takes images in the format of an export and returns logits.

    The order RGB costs nothing: the input channels of the first convolution are reversed instead of those of the images.
    (Reversing the images would add a Gather, or a slice with a negative step, which some runtimes do not support.)

    Shape:
        images `metadata.input_shape` -> logits (N, n_class)
    """

    def __init__(self, network: ShuffleNetV2, metadata: ExportMetadata) -> None:
        super().__init__()
        self.network = network = copy.deepcopy(network)
        self.interleaved = metadata.layout == "nhwc"
        if metadata.channels == "rgb":
            with torch.no_grad():
                weight = network.get_parameter("first_conv.0.weight")
                weight.copy_(weight.flip(1))
            network.input_mean, network.input_std = network.input_mean.flip(1), network.input_std.flip(1)
        for index, unit in enumerate(network.features):
            if isinstance(unit, ShuffleV2Block) and unit.branch_proj is None:
                network.features[index] = DeployedUnit(unit.branch_main)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if self.interleaved:
            images = images.permute(0, 3, 1, 2)
        logits: Tensor = self.network(images)
        return logits


class DeployedUnit(nn.Module):
    """A unit of stride 1 that separates even and odd channels without a strided slice, Gather or Transpose.

    In memory, an even channel and the odd channel after it are one image of twice the height, whose upper half is the even
    channel. A reshape, which copies nothing, and two contiguous slices therefore separate them. ONNX Runtime takes as long for
    this form as for strided slices and for a 5-D transpose (measured with size 1.0x at 224 pixels). But ncnn's converter
    (pnnx) leaves a strided slice in the network as an unknown layer, and XNNPACK does not support it.
    """

    def __init__(self, branch_main: nn.Sequential) -> None:
        super().__init__()
        self.branch_main = branch_main

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        pairs = x.reshape(n, channels // 2, 2 * height, width)
        even, odd = pairs[:, :, :height], pairs[:, :, height:]
        return torch.cat((even, self.branch_main(odd)), dim=1)
